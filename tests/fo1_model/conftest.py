"""A debug-size model with lively weights, and samples for it."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from fo1_model import grammar
from fo1_model.batch import Encoded
from fo1_model.checkpoint import new_model
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.sizes import debug

torch.set_num_threads(1)

Sample = Callable[..., Encoded]


@pytest.fixture(scope="session")
def _debug() -> tuple[FO1Model, Processor]:
    model, processor = new_model(debug(), seed=0)
    # Fresh weights are so small that every token keeps its own embedding: decoding would repeat one
    # token.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.02 if "embed_tokens" in name or "new_rows" in name else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    return model, processor


@pytest.fixture
def model(_debug: tuple[FO1Model, Processor]) -> FO1Model:
    return copy.deepcopy(_debug[0])


@pytest.fixture
def processor(_debug: tuple[FO1Model, Processor]) -> Processor:
    return _debug[1]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def some_boxes(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(0, 1, (count, 2, 2))
    low, high = corners.min(axis=1), corners.max(axis=1)
    return (np.concatenate([low, high], axis=1) * [width, height, width, height]).astype(np.float32)


@pytest.fixture
def sample(processor: Processor) -> Sample:
    """A factory: sample(width, height, count, answer=None) -> Encoded; no width means no image."""

    def make(
        width: int = 0, height: int = 0, count: int = 0, answer: str | None = None, *, seed: int = 0
    ) -> Encoded:
        image = picture(width, height, seed) if width else None
        boxes = some_boxes(count, width, height, seed) if count else None
        regions = grammar.region_prompt(count) + "\n" if count else ""
        content = (
            f"{grammar.IMAGE}\n" * bool(width) + regions + "Please detect red circle in this image."
        )
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return processor.encode(
            image,
            boxes,
            messages,
            for_generation=answer is None,
            sample_id=f"{width}x{height}/{count}/{seed}",
        )

    return make
