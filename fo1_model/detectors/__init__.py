"""Detectors: an image in, class-agnostic boxes out, all behind one protocol and one selection.

`DETECTORS` names their configs (light to import: they are hashed before any worker starts);
`build_detector(config, checkpoint)` makes the detector, once a worker, and `preparation` its CPU half alone.
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
"""Path that a detector loads its weights from, None for one without; of a union, one for each member."""

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
"""Module and class of each detector. The module also has ``preparation(config, checkpoint)``. Imported when
it is needed: each brings a library with it."""


def build_detector(
    config: DetectorConfig, checkpoint: Checkpoints = None, device: str = "cpu"
) -> Detector:
    """The detector of a config, weights loaded.

    checkpoint: where the weights lie, for configs that need a "run" or "weights".
    Raises ValueError when a checkpoint is missing, unreadable, or given to a detector that has none.
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
    """The CPU half of a detector, without its weights; arguments and errors as for `build_detector`."""
    if isinstance(config, UnionConfig):
        _of_members(config, checkpoint)
        return with_all_pixels
    module, _ = _find(config, checkpoint)
    return module.preparation(config, checkpoint)


def _find(config: Leaf, checkpoint: Checkpoints) -> tuple[Any, str]:
    """Module and class of a detector; raises ValueError when it and the checkpoint do not go together."""
    if type(config) not in _WHERE:
        raise ValueError(
            f"{type(config).__name__} is no detector config; use one of {', '.join(DETECTORS)}"
        )
    name = type(config).__name__
    if config.needs in ("run", "weights") and not isinstance(checkpoint, str):
        what = (
            "the export folder of a run" if config.needs == "run" else "a folder or file of weights"
        )
        raise ValueError(f"checkpoint={checkpoint!r}: {name} needs {what}")
    if config.needs not in ("run", "weights") and checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint!r}: {name} has no weights to load; leave it out")
    module, kind = _WHERE[type(config)]
    return import_module(f"fo1_model.detectors.{module}"), kind


def _of_members(config: UnionConfig, checkpoint: Checkpoints) -> Sequence[str | None]:
    if checkpoint is None:
        return [None] * len(config.members)
    if isinstance(checkpoint, str) or len(checkpoint) != len(config.members):
        raise ValueError(
            f"checkpoint={checkpoint!r}: give a union one for each of {len(config.members)}"
        )
    return checkpoint
