"""Detector configs: all that changes a detector's boxes and nothing else (no paths), so they can be hashed.

Imports nothing heavy. The weights of a trained detector enter by the fingerprint of the run that made them.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from fo1_model.opn.config import OPN_SIZES, PROMPTS


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a detector's raw boxes become proposals; shared by all detectors (`postprocess.select`)."""

    score_min: float = 0.0
    """Boxes below this score are dropped; 0 for training data, 0.3 in the released UPN scripts."""
    nms_iou: float | None = 0.8
    """Class-agnostic NMS threshold (0.8 in the released UPN wrapper); None = off."""
    max_boxes: int = 100
    """At most this many boxes an image (paper: 100)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.score_min <= 1.0:
            raise ValueError(f"Selection.score_min={self.score_min}: use a score in [0, 1]")
        if self.nms_iou is not None and not 0.0 < self.nms_iou <= 1.0:
            raise ValueError(f"Selection.nms_iou={self.nms_iou}: use an IoU in (0, 1], or None for no NMS")
        if self.max_boxes < 1:
            raise ValueError(f"Selection.max_boxes={self.max_boxes}: use at least 1")


@dataclass(frozen=True, kw_only=True)
class OPNDetectorConfig:
    """A trained OPN; the architecture comes with the checkpoint."""

    needs_checkpoint: ClassVar[bool] = True
    needs_objects: ClassVar[bool] = False
    prompt: str = "coarse"
    """Granularity: coarse (whole objects) or fine (parts)."""
    selection: Selection = field(default_factory=Selection)
    """Which boxes are kept."""

    def __post_init__(self) -> None:
        _check_prompt(self)


@dataclass(frozen=True, kw_only=True)
class UntrainedOPNConfig:
    """A randomly initialised OPN: the control any trained one must beat."""

    needs_checkpoint: ClassVar[bool] = False
    needs_objects: ClassVar[bool] = False
    size: str = "tiny"
    """Name in OPN_SIZES."""
    seed: int = 0
    """Of the weights."""
    prompt: str = "coarse"
    """Granularity, as for the trained one."""
    selection: Selection = field(default_factory=Selection)
    """Which boxes are kept."""

    def __post_init__(self) -> None:
        _check_prompt(self)
        if self.size not in OPN_SIZES:
            raise ValueError(f"UntrainedOPNConfig.size={self.size!r}: use one of {sorted(OPN_SIZES)}")


@dataclass(frozen=True, kw_only=True)
class GroundTruthConfig:
    """The annotated boxes themselves, score 1: the upper bound."""

    needs_checkpoint: ClassVar[bool] = False
    needs_objects: ClassVar[bool] = True
    selection: Selection = field(default_factory=lambda: Selection(nms_iou=None))
    """Which boxes are kept; no NMS, which would drop true boxes."""


@dataclass(frozen=True, kw_only=True)
class GroundTruthJitterConfig:
    """Annotated boxes moved at random, among random distractors: a stand-in detector of known quality."""

    needs_checkpoint: ClassVar[bool] = False
    needs_objects: ClassVar[bool] = True
    jitter: float = 0.08
    """Each edge moves by up to this share of the box's side; 0.08 keeps IoU above 0.7."""
    miss_rate: float = 0.0
    """Probability that an object gets no box."""
    num_distractors: int = 12
    """Random boxes an image."""
    seed: int = 0
    """Draws, together with the image id."""
    selection: Selection = field(default_factory=Selection)
    """Which boxes are kept."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.jitter < 0.5:
            raise ValueError(f"GroundTruthJitterConfig.jitter={self.jitter}: use a share in [0, 0.5)")
        if not 0.0 <= self.miss_rate <= 1.0:
            raise ValueError(f"GroundTruthJitterConfig.miss_rate={self.miss_rate}: use a probability")
        if self.num_distractors < 0:
            raise ValueError(
                f"GroundTruthJitterConfig.num_distractors={self.num_distractors}: use at least 0"
            )


DetectorConfig = OPNDetectorConfig | UntrainedOPNConfig | GroundTruthConfig | GroundTruthJitterConfig
"""Any of the above."""

DETECTORS: dict[str, type[DetectorConfig]] = {
    "opn": OPNDetectorConfig,
    "opn_untrained": UntrainedOPNConfig,
    "ground_truth": GroundTruthConfig,
    "ground_truth_jitter": GroundTruthJitterConfig,
}
"""Name -> config class: `build_detector(DETECTORS["opn"](), checkpoint=FOLDER)`."""


def _check_prompt(config: OPNDetectorConfig | UntrainedOPNConfig) -> None:
    """Raises ValueError for a granularity OPN has no prompt for."""
    if config.prompt not in PROMPTS:
        raise ValueError(f"{type(config).__name__}.prompt={config.prompt!r}: use one of {PROMPTS}")
