"""Hugging Face detectors with fixed classes as proposers: DETR, RT-DETR, D-FINE, YOLOS and kin.

One adapter for every model of `AutoModelForObjectDetection` that gives `logits` and `pred_boxes`. A
box's score is that of its best foreground class. Whether that is a sigmoid over all columns or a
softmax whose last column means "no object" is learned by showing the folder's own post-processing
one made-up query (`score_rule`). The rest of that post-processing is not used: some of it cuts to
the best (query, class) pairs, where a box occurs several times and others not at all.

Boxes are relative to the processor's whole output, which is where it puts training targets when it
pads to a fixed size. With bf16 most models give coordinates in bf16, good to about 0.2 % of the
image's side.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
)

from fo1_model.detectors.batching import detect_by_shape, inference
from fo1_model.detectors.configs import ClosedSetConfig, UntrainedRTDETRConfig
from fo1_model.detectors.pretrained import load_model, load_part, prepare_image, raw_boxes
from fo1_model.detectors.protocol import Detections, Prepare, Prepared
from fo1_model.errors import SettingError


class ClosedSetDetector:
    """A detector of a folder, or a small untrained RT-DETR when the config says so."""

    def __init__(
        self,
        config: ClosedSetConfig | UntrainedRTDETRConfig,
        checkpoint: str | None,
        device: str = "cpu",
    ) -> None:
        model: Any
        if isinstance(config, UntrainedRTDETRConfig):
            model, processor = untrained_rt_detr(config.seed)
        else:
            model = load_model(AutoModelForObjectDetection, str(checkpoint))
            processor = load_part(AutoImageProcessor, str(checkpoint))
        self.model = model.to(device)
        self.config, self.device = config, device
        self.prepare = partial(prepare_image, processor=processor)
        self._score = score_rule(processor)
        self._takes_mask = "pixel_mask" in inspect.signature(self.model.forward).parameters

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return detect_by_shape(batch, partial(raw_boxes, self._forward), self.config.selection)

    def _forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model as a `Network` of `pretrained`."""
        inputs = {"pixel_values": pixels.to(self.device)}
        if self._takes_mask:
            inputs["pixel_mask"] = mask.to(self.device)
        with inference(self.device, self.config.precision):
            outputs = self.model(**inputs)
        return outputs.pred_boxes, self._score(outputs.logits.float())


def preparation(config: ClosedSetConfig | UntrainedRTDETRConfig, checkpoint: str | None) -> Prepare:
    """Return the CPU half of the detector, as `fo1_model.detectors.preparation`."""
    if isinstance(config, UntrainedRTDETRConfig):
        return partial(prepare_image, processor=_square_processor(RT_DETR_SIDE_PX))
    return partial(prepare_image, processor=load_part(AutoImageProcessor, str(checkpoint)))


def score_rule(processor: Any) -> Callable[[Tensor], Tensor]:
    """Return how a processor turns logits into the score of the best foreground class.

    Args:
        processor: The image processor of the model's folder.

    Returns:
        A function of logits float[..., C] that gives scores float[...].

    Raises:
        SettingError: It does not post-process boxes as the DETR family does.
    """
    logits, name = torch.tensor([[[1.0, 0.0, 2.0]]]), type(processor).__name__
    outputs = SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]))
    try:
        [shown] = processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=[(10, 20)]
        )
    except (AttributeError, TypeError) as error:
        raise SettingError(
            f"{name} does not turn logits and boxes into detections: {error}"
        ) from error
    if len(shown["boxes"]) and torch.allclose(
        shown["boxes"][0], torch.tensor([0.0, 0.0, 20.0, 10.0])
    ):
        for rule in (best_sigmoid, best_softmax):
            if torch.allclose(shown["scores"].max(), rule(logits)):
                return rule
    raise SettingError(
        f"{name} scores boxes neither by sigmoid nor by softmax with a last column of no object"
    )


def best_sigmoid(logits: Tensor) -> Tensor:
    """Return the score of the best class when each has its own sigmoid."""
    return logits.amax(-1).sigmoid()


def best_softmax(logits: Tensor) -> Tensor:
    """Return the score of the best class under a softmax whose last column means no object."""
    return logits.softmax(-1)[..., :-1].amax(-1)


RT_DETR_SIDE_PX = 128
"""Side of the square that the small RT-DETR sees; OPN tiny's."""


def untrained_rt_detr(
    seed: int, *, image_side: int = RT_DETR_SIDE_PX, num_queries: int = 50
) -> tuple[RTDetrForObjectDetection, RTDetrImageProcessor]:
    """Return a randomly initialised RT-DETR with one class, in inference mode, and its processor.

    It has 1.35 M parameters with the default number of queries, about OPN tiny's size. Its norms
    are trainable: it has no pretrained backbone whose statistics could be frozen.

    Args:
        seed: Draws the weights; the caller's random generator is left as it was.
        image_side: Side of the square that images are resized to, px, a multiple of 32.
        num_queries: Boxes out.
    """
    backbone = RTDetrResNetConfig(  # type: ignore[call-arg]  # out_features is in no signature
        embedding_size=32,  # of the first stage too, or its shortcut does not fit
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(  # type: ignore[call-arg]  # nor is num_labels
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[64, 96, 128],
        encoder_hidden_dim=64,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        decoder_layers=2,
        num_queries=num_queries,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RTDetrForObjectDetection(config)
    return model.eval(), _square_processor(image_side)


def _square_processor(side: int) -> RTDetrImageProcessor:
    """Return RT-DETR's processor, which squashes an image into a square of `side` px."""
    return RTDetrImageProcessor(size={"height": side, "width": side})
