"""Detectors: an image in, class-agnostic boxes out, all behind one protocol and one selection.

`DETECTORS` names their configs (light to import: they are hashed before any worker starts);
`build_detector(config, checkpoint)` makes the detector, once a worker, and `preparation` its CPU
half alone.

- `configs`: the configs of all detectors, and `DETECTORS`.
- `protocol`: what every detector takes and gives.
- `postprocess`: from raw boxes to proposals, the same for every detector.
- `batching`: images of one shape side by side, and the arithmetic a detector runs in.
- `pretrained`: what the Hugging Face detectors share.
- `opn`: OPN, trained or not.
- `closed_set`: Hugging Face detectors with fixed classes, and the small untrained RT-DETR.
- `text_prompted`: Hugging Face detectors that are asked in words.
- `torchvision_models`: torchvision's detectors or their region proposals.
- `upn`: ChatRex's UPN.
- `known_boxes`: annotated boxes, exact or jittered, and boxes from a file.
- `union`: several detectors as one.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fo1_model.detectors.configs import (
    DETECTORS,
    BoxFileConfig,
    ClosedSetConfig,
    DetectorConfig,
    GroundTruthConfig,
    GroundTruthJitterConfig,
    Leaf,
    Need,
    OPNDetectorConfig,
    Selection,
    TextPromptedConfig,
    TorchvisionConfig,
    UnionConfig,
    UntrainedOPNConfig,
    UntrainedRTDETRConfig,
    UPNConfig,
    leaves,
)
from fo1_model.detectors.protocol import (
    Detections,
    Detector,
    DetectorInput,
    Prepare,
    Prepared,
    as_known,
    with_all_pixels,
)
from fo1_model.errors import SettingError

__all__ = [
    "DETECTORS",
    "BoxFileConfig",
    "ClosedSetConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "DetectorInput",
    "GroundTruthConfig",
    "GroundTruthJitterConfig",
    "Leaf",
    "Need",
    "OPNDetectorConfig",
    "Prepare",
    "Prepared",
    "Selection",
    "TextPromptedConfig",
    "TorchvisionConfig",
    "UPNConfig",
    "UnionConfig",
    "UntrainedOPNConfig",
    "UntrainedRTDETRConfig",
    "as_known",
    "build_detector",
    "leaves",
    "preparation",
    "with_all_pixels",
]

Checkpoints = str | None | Sequence[str | None]
"""Path that a detector loads its weights from, None for one without; of a union, one a member."""

_WHERE: dict[type[Leaf], tuple[str, str]] = {
    OPNDetectorConfig: ("opn", "OPNDetector"),
    UntrainedOPNConfig: ("opn", "OPNDetector"),
    ClosedSetConfig: ("closed_set", "ClosedSetDetector"),
    UntrainedRTDETRConfig: ("closed_set", "ClosedSetDetector"),
    TextPromptedConfig: ("text_prompted", "TextPromptedDetector"),
    TorchvisionConfig: ("torchvision_models", "TorchvisionDetector"),
    UPNConfig: ("upn.detector", "UPNDetector"),
    GroundTruthConfig: ("known_boxes", "KnownBoxesDetector"),
    GroundTruthJitterConfig: ("known_boxes", "KnownBoxesDetector"),
    BoxFileConfig: ("known_boxes", "KnownBoxesDetector"),
}
"""Module and class of each detector; the module also has `preparation(config, checkpoint)`.

It is imported when it is needed: each brings a library with it.
"""


def build_detector(
    config: DetectorConfig, checkpoint: Checkpoints = None, device: str = "cpu"
) -> Detector:
    """Return the detector of a config, its weights loaded.

    Args:
        config: Which detector, and its settings.
        checkpoint: Where the weights lie, for configs that need a "run" or "weights".
        device: Where the network runs, as torch names it.

    Raises:
        SettingError: A checkpoint is missing, unreadable, or given to a detector that has none.
    """
    if isinstance(config, UnionConfig):
        from fo1_model.detectors.union import UnionDetector

        given = _of_members(config, checkpoint)
        return UnionDetector(
            config,
            [build_detector(m, c, device) for m, c in zip(config.members, given, strict=True)],
        )
    module, name = _find(config, checkpoint)
    return getattr(module, name)(config, checkpoint, device)


def preparation(config: DetectorConfig, checkpoint: Checkpoints = None) -> Prepare:
    """Return the CPU half of a detector, without weights; takes what `build_detector` takes."""
    if isinstance(config, UnionConfig):
        _of_members(config, checkpoint)
        return with_all_pixels
    module, _ = _find(config, checkpoint)
    return module.preparation(config, checkpoint)


def _find(config: Leaf, checkpoint: Checkpoints) -> tuple[Any, str]:
    """Return module and class of a detector that goes together with the checkpoint."""
    if type(config) not in _WHERE:
        raise SettingError(
            f"{type(config).__name__} is no detector config; use one of {', '.join(DETECTORS)}"
        )
    name = type(config).__name__
    if config.needs in ("run", "weights") and not isinstance(checkpoint, str):
        what = (
            "the export folder of a run" if config.needs == "run" else "a folder or file of weights"
        )
        raise SettingError(f"checkpoint={checkpoint!r}: {name} needs {what}")
    if config.needs not in ("run", "weights") and checkpoint is not None:
        raise SettingError(
            f"checkpoint={checkpoint!r}: {name} has no weights to load; leave it out"
        )
    module, kind = _WHERE[type(config)]
    return import_module(f"fo1_model.detectors.{module}"), kind


def _of_members(config: UnionConfig, checkpoint: Checkpoints) -> Sequence[str | None]:
    """Return the checkpoints of a union's members, one for each."""
    if checkpoint is None:
        return [None] * len(config.members)
    if isinstance(checkpoint, str) or len(checkpoint) != len(config.members):
        raise SettingError(
            f"checkpoint={checkpoint!r}: give a union one for each of {len(config.members)}"
        )
    return checkpoint
