"""Torchvision's detectors, or their region proposals, as proposers.

Faster R-CNN, RetinaNet, FCOS, SSD and others. The models keep their own cuts before `select`: a
score threshold (here the selection's own floor), NMS within a class, and a number of boxes an image
(here ten times as many as wanted, since one object counts once a class until the class-agnostic NMS
of `select` leaves its best). Region proposals are as many as wanted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fo1_model.detectors.batching import detect_by_shape, inference
from fo1_model.detectors.configs import TorchvisionConfig
from fo1_model.detectors.protocol import Detections, Prepare, Prepared, with_all_pixels
from fo1_model.errors import SettingError
from fo1_model.weights import read_state

_NUM_CLASSES = 91
"""Classes of the model that a file is compared with to learn its own number.

COCO's, background included.
"""
_WITHOUT_EPS = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
"""Models whose published weights were trained with norms that add nothing to the variance.

torchvision sets eps to 0 for them (`overwrite_eps`).
"""


class TorchvisionDetector:
    """A torchvision detector with the weights of a file."""

    def __init__(
        self, config: TorchvisionConfig, checkpoint: str | None, device: str = "cpu"
    ) -> None:
        self.config, self.device, self.prepare = config, device, with_all_pixels
        self.model: Any = (
            with_cuts(load_detector(config.model, str(checkpoint)), config).to(device).eval()
        )

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return detect_by_shape(batch, self._boxes, self.config.selection)

    def _boxes(self, pixels: Tensor, _: list[Prepared]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return boxes and scores of each image of uint8[B, 3, H, W].

        The pixels are the original ones, and so are the boxes'.
        """
        if vanishes(self.model.transform, *pixels.shape[-2:]):
            return [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))] * len(pixels)
        images = list(pixels.to(self.device).float() / 255)
        with inference(self.device, self.config.precision):
            outputs = (
                self.model(images)
                if self.config.boxes == "final"
                else region_proposals(self.model, images)
            )
        return [
            (one["boxes"].float().cpu().numpy(), one["scores"].float().cpu().numpy())
            for one in outputs
        ]


def preparation(config: TorchvisionConfig, checkpoint: str | None) -> Prepare:  # noqa: ARG001
    """Return a preparation that keeps all pixels: the models scale images on their device."""
    return with_all_pixels


def load_detector(name: str, path: str) -> nn.Module:
    """Return the model of a builder with the weights of a file, which tell the number of classes.

    Args:
        name: A builder in `torchvision.models.detection`.
        path: A state dict, as .safetensors or as a torch file of plain tensors.

    Raises:
        SettingError: The builder is unknown, the file unreadable, or its weights another model's.
    """
    state = read_state(Path(path))
    with torch.device("meta"):
        expected = build(name, _NUM_CLASSES).state_dict()
    num_classes = classes_in(state, expected)
    model = build(name, num_classes)
    counters = [key for key in model.state_dict() if key.endswith("num_batches_tracked")]
    frozen = not any(key in state for key in counters)  # published files come from frozen norms
    if frozen:
        state = state | {key: torch.tensor(0) for key in counters}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise SettingError(
            f"checkpoint={path!r}: holds no weights of {name}: {str(error)[:500]}"
        ) from error
    if frozen and name in _WITHOUT_EPS:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return model


def build(name: str, num_classes: int) -> nn.Module:
    """Return a builder's randomly initialised model; an unknown builder is a SettingError."""
    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known:
        raise SettingError(f"TorchvisionConfig.model={name!r}: use one of {', '.join(known)}")
    return torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=num_classes
    )


def classes_in(state: dict[str, Tensor], expected: dict[str, Tensor]) -> int:
    """Return the number of classes of a state dict.

    Its tensors' rows are compared with those of `_NUM_CLASSES` classes. Whatever does not fit
    besides is left to the strict loading that follows.

    Args:
        state: The tensors of the file.
        expected: Those of the same model with `_NUM_CLASSES` classes.
    """
    for key, tensor in expected.items():
        if key in state and tensor.ndim and state[key].shape[:1] != tensor.shape[:1]:
            rows = len(state[key]) if state[key].ndim else 0
            return max(1, rows * _NUM_CLASSES // len(tensor))
    return _NUM_CLASSES


def with_cuts(model: Any, config: TorchvisionConfig) -> Any:
    """Set a model's own cuts by the selection, and keep its box arithmetic in float32.

    Args:
        model: The model, which is changed.
        config: Which boxes are wanted, and how many.

    Returns:
        The same model.

    Raises:
        SettingError: Region proposals are wanted of a model that has none.
    """
    wanted = 10 * config.selection.max_boxes
    two_stage = isinstance(model, GeneralizedRCNN)
    if config.boxes == "rpn" and not two_stage:
        raise SettingError(
            f"TorchvisionConfig.boxes='rpn': {config.model} has no region proposal network; "
            "use 'final'"
        )
    last = model.roi_heads if two_stage else model
    last.score_thresh = config.selection.score_min
    last.detections_per_img = max(last.detections_per_img, wanted)
    if two_stage:
        # Nobody asks for masks and keypoints; without these poolers they are not computed.
        model.roi_heads.mask_roi_pool = model.roi_heads.keypoint_roi_pool = None
    if config.boxes == "rpn":
        # Constructor arguments, under the names that the model keeps. More proposals leave the best
        # ones as they were.
        for kept in (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n):
            kept["testing"] = max(kept["testing"], config.selection.max_boxes)
    heads = (model.rpn.head, last.box_predictor) if two_stage else (model.head,)
    for module in (model.backbone, *heads):
        module.register_forward_hook(lambda _module, _inputs, output: in_float32(output))
    return model


def in_float32(output: Any) -> Any:
    """Return nested lists, tuples and dicts of tensors in float32.

    In bfloat16 an anchor at 1,000 px would move by 2.
    """
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return type(output)((key, in_float32(value)) for key, value in output.items())
    return type(output)(in_float32(value) for value in output)


def region_proposals(model: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return boxes and objectness of a model's region proposals.

    The steps are called one by one, because the forward of that network gives no scores.

    Args:
        model: A two-stage detector.
        images: float32[3, H, W] in [0, 1] each.

    Returns:
        For each image `boxes`, float32[N, 4] in px of the image, and `scores`, float32[N].
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    scaled, _ = model.transform(images)
    maps = list(model.backbone(scaled.tensors).values())
    objectness, deltas = model.rpn.head(maps)
    counts = [level[0].numel() for level in objectness]
    anchors = model.rpn.anchor_generator(scaled, maps)
    flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
    decoded = model.rpn.box_coder.decode(flat_deltas, anchors).view(len(images), -1, 4)
    boxes, scores = model.rpn.filter_proposals(decoded, flat_objectness, scaled.image_sizes, counts)
    found = [{"boxes": box, "scores": score} for box, score in zip(boxes, scores, strict=True)]
    return model.transform.postprocess(found, scaled.image_sizes, sizes)


def vanishes(transform: GeneralizedRCNNTransform, height: int, width: int) -> bool:
    """Return whether an image is so thin that nothing of it is left once it is scaled down.

    Its short side is then under 1 px.
    """
    longer, shorter = max(height, width), min(height, width)
    return transform.fixed_size is None and shorter * transform.max_size < longer
