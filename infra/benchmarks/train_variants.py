"""What `train_step.py` compares: a model for CPUs, images with questions, and two savings undone.

Logits are computed at supervised positions only; undone, at all of them, as language models usually
do. Regions are pooled without the upsampled map; undone, as the release does (`region_pooling.py`).
"""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from region_pooling import pooling

from fo1_model import grammar, region_encoder
from fo1_model.batch import IGNORE, Batch, Encoded
from fo1_model.config import AuxiliaryConfig, ModelConfig, RegionConfig
from fo1_model.model import FO1Model, ModelOutput
from fo1_model.processing import Processor
from fo1_model.region_pooling import pool_regions_reference
from fo1_model.sizes import SIZES, davit, qwen2_5_vl

VARIANTS = ("ours", "full logits", "upsampled map", "both")
"""Ways to compute: ours, each of the two savings undone, both undone."""


def widened() -> ModelConfig:
    """Return a model for a CPU: the released vocabulary, image size and strides, another width."""
    return ModelConfig(
        vlm=qwen2_5_vl(
            text={
                "vocab_size": 151936,
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
            vision={
                "depth": 4,
                "hidden_size": 160,
                "intermediate_size": 428,
                "num_heads": 4,
                "fullatt_block_indexes": [1, 3],
            },
            mrope_section=[8, 8, 8],
        ),
        auxiliary=AuxiliaryConfig(
            kwargs=davit(
                depths=[1, 1, 1, 1], dims=[64, 128, 256, 512], heads=[2, 4, 8, 16], window=12
            ),
            resize="squash",
            size=768,
        ),
        region=RegionConfig(pyramid_dim=128),
    )


MODELS: dict[str, Callable[[], ModelConfig]] = {"widened": widened, **SIZES}
"""Models by name."""


def full_logits(
    self: FO1Model,
    batch: Batch,
    *,
    return_logits: bool = False,  # noqa: ARG001
) -> ModelOutput:
    """Run `FO1Model.forward` with the head at every position, as language models usually do."""
    hidden = self.decode(
        self.embed(batch), batch.attention_mask, batch.positions, places=batch.places
    )
    logits = self.logits(hidden).flatten(0, 1)
    targets = F.pad(batch.labels, (0, 1), value=IGNORE)[:, 1:].flatten()
    weights = F.pad(batch.loss_weights, (0, 1))[:, 1:].flatten() * (targets != IGNORE)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    loss_sum, num_tokens = (losses * weights).sum(), weights.sum()
    # Nobody reads the losses of samples here.
    by_sample = loss_sum.new_zeros(len(batch.sample_ids), 2, dtype=torch.float64)
    return ModelOutput(loss_sum=loss_sum, num_tokens=num_tokens, by_sample=by_sample)


@contextlib.contextmanager
def computed_as(variant: str) -> Iterator[None]:
    """Let every model compute in one of `VARIANTS` inside."""
    with contextlib.ExitStack() as stack:
        if variant in ("full logits", "both"):
            stack.enter_context(mock.patch.object(FO1Model, "forward", full_logits))
        if variant in ("upsampled map", "both"):
            resized = pooling("reference")
            levels = mock.patch.object(
                region_encoder, "pool_levels", lambda maps, boxes, **_: resized(maps, boxes)
            )
            stack.enter_context(levels)
            stack.enter_context(
                mock.patch.object(region_encoder, "pool_regions", pool_regions_reference)
            )
        yield


def samples(processor: Processor, count: int, side: int, boxes: int) -> list[Encoded]:
    """Return noise images with random boxes, asked for six categories of a few boxes each."""
    names = [
        "red circle",
        "blue square",
        "green star",
        "yellow ring",
        "white cross",
        "black triangle",
    ]
    question = (
        f"Please detect {'; '.join(names)} in this image. Answer the question with object indexes."
    )
    regions = ["".join(f"<region{i}>" for i in range(n, boxes, 36)) for n in range(len(names))]
    answer = "\n".join(
        f"<ground>{name}</ground><objects>{named}</objects>"
        for name, named in zip(names, regions, strict=True)
    )
    messages = [
        {"role": "user", "content": grammar.image_question(question, boxes)},
        {"role": "assistant", "content": answer},
    ]
    made = []
    for index in range(count):
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        # Sides are log-uniform from 12 px to the image's, as boxes of objects are.
        sizes = 12 * (side / 12) ** rng.uniform(0, 1, (boxes, 2))
        corners = rng.uniform(0, 1, (boxes, 2)) * (side - sizes)
        placed = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
        made.append(processor.encode(image, placed, messages, sample_id=str(index)))
    return made
