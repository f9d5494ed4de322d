"""Detectors: an image in, class-agnostic boxes out, all behind one protocol and one selection.

`DETECTORS` names their configs (light to import: they are hashed before any worker starts);
`build_detector(config)` makes the detector, once a worker.
"""

from fo1_model.detectors.configs import (
    DETECTORS,
    DetectorConfig,
    GroundTruthConfig,
    GroundTruthJitterConfig,
    OPNDetectorConfig,
    Selection,
    UntrainedOPNConfig,
)
from fo1_model.detectors.protocol import Detections, Detector, DetectorInput

__all__ = [
    "DETECTORS",
    "Detections",
    "Detector",
    "DetectorConfig",
    "DetectorInput",
    "GroundTruthConfig",
    "GroundTruthJitterConfig",
    "OPNDetectorConfig",
    "Selection",
    "UntrainedOPNConfig",
    "build_detector",
]


def build_detector(config: DetectorConfig, checkpoint: str | None = None, device: str = "cpu") -> Detector:
    """The detector of a config, weights loaded.

    checkpoint: folder of exported weights, where the config needs them (`needs_checkpoint`).
    Raises ValueError when a checkpoint is missing, unreadable, or given to a detector that has none.
    """
    if config.needs_checkpoint and checkpoint is None:
        raise ValueError(
            f"build_detector(checkpoint=None): {type(config).__name__} needs the export folder of a run"
        )
    if checkpoint is not None and not config.needs_checkpoint:
        raise ValueError(
            f"build_detector(checkpoint={checkpoint!r}): {type(config).__name__} has no weights to load; "
            "leave it out"
        )
    if isinstance(config, (OPNDetectorConfig, UntrainedOPNConfig)):
        from fo1_model.detectors.opn import OPNDetector

        return OPNDetector(config, checkpoint, device)
    if isinstance(config, (GroundTruthConfig, GroundTruthJitterConfig)):
        from fo1_model.detectors.ground_truth import GroundTruthDetector

        return GroundTruthDetector(config)
    raise ValueError(
        f"build_detector: {type(config).__name__} is no detector config; use one of {list(DETECTORS)}"
    )
