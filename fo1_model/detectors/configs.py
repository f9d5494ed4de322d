"""Detector configs: all that changes a detector's boxes and nothing else, so they can be hashed.

Imports nothing heavy. A config holds no paths: what a detector needs beside it (`Need`) is given
apart, as a path or an artifact, and enters fingerprints by its content.
"""

from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

from fo1_model.errors import SettingError
from fo1_model.opn.config import OPN_SIZES, PROMPTS

Need = Literal["nothing", "run", "weights", "objects", "boxes"]
"""What a detector needs beside its config.

`run` is the export folder of a training run of ours, `weights` a folder or file of others' weights,
`objects` the annotated objects of each image, `boxes` a file of boxes.
"""
Precision = Literal["fp32", "bf16"]
"""Arithmetic of matrix products; boxes and scores are float32 in any case."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a detector's raw boxes become proposals, the same for all (`postprocess.select`)."""

    score_min: float = 0.0
    """Boxes below this score are dropped; 0 for training data, 0.3 in the released UPN scripts."""
    nms_iou: float | None = 0.8
    """IoU over which class-agnostic NMS drops (0.8 in the released UPN wrapper); None is off."""
    max_boxes: int = 100
    """Largest number of boxes of an image (paper: 100)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.score_min <= 1.0:
            raise SettingError(f"Selection.score_min={self.score_min}: use a score in [0, 1]")
        if self.nms_iou is not None and not 0.0 < self.nms_iou <= 1.0:
            raise SettingError(
                f"Selection.nms_iou={self.nms_iou}: use an IoU in (0, 1], or None for no NMS"
            )
        if self.max_boxes < 1:
            raise SettingError(f"Selection.max_boxes={self.max_boxes}: use at least 1")


@dataclass(frozen=True, kw_only=True)
class OPNDetectorConfig:
    """A trained OPN; the architecture comes with the checkpoint."""

    needs: ClassVar[Need] = "run"
    prompt: Literal["coarse", "fine", "both"] = "coarse"
    """Granularity: coarse (whole objects), fine (parts), or the boxes of both together."""
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "prompt", (*PROMPTS, "both"))
        _check_choice(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class UntrainedOPNConfig:
    """A randomly initialised OPN: the control any trained one must beat."""

    needs: ClassVar[Need] = "nothing"
    size: str = "tiny"
    """Name of a size in OPN_SIZES."""
    seed: int = 0
    """Seed that draws the weights."""
    prompt: Literal["coarse", "fine", "both"] = "coarse"
    """Granularity: coarse (whole objects), fine (parts), or the boxes of both together."""
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "prompt", (*PROMPTS, "both"))
        _check_choice(self, "precision", ("fp32", "bf16"))
        _check_choice(self, "size", tuple(OPN_SIZES))


@dataclass(frozen=True, kw_only=True)
class ClosedSetConfig:
    """A Hugging Face detector with fixed classes: DETR, RT-DETR, D-FINE and their kin.

    Needs a folder that `AutoModelForObjectDetection` reads. A box's score is its best foreground
    class's.
    """

    needs: ClassVar[Need] = "weights"
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class UntrainedRTDETRConfig:
    """A randomly initialised small RT-DETR: a swapped detector that needs no download."""

    needs: ClassVar[Need] = "nothing"
    seed: int = 0
    """Seed that draws the weights."""
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class TextPromptedConfig:
    """A Hugging Face detector that is asked in words: OmDet-Turbo, Grounding DINO, OWL-ViT, OWLv2.

    Needs a folder that `AutoModelForZeroShotObjectDetection` reads. A box's score is its best
    word's.
    """

    needs: ClassVar[Need] = "weights"
    prompt: str = "object"
    """Words that are asked for; several names with ";" between them.

    "object" alone finds nearly as much as the true names (PF-RPN's comparison).
    """
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "precision", ("fp32", "bf16"))
        if not self.names:
            raise SettingError(
                f"TextPromptedConfig.prompt={self.prompt!r}: name at least one thing"
            )

    @property
    def names(self) -> list[str]:
        """Names of the things asked for, without blanks around them."""
        return [name for part in self.prompt.split(";") if (name := part.strip())]


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig:
    """A torchvision detector.

    Needs a state dict of it (safetensors, or a torch file of plain tensors).
    """

    needs: ClassVar[Need] = "weights"
    model: str = "fasterrcnn_resnet50_fpn"
    """Name of a builder in `torchvision.models.detection`."""
    boxes: Literal["final", "rpn"] = "final"
    """Final boxes by class score, or those of the region proposal network by objectness (rpn)."""
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        _check_choice(self, "boxes", ("final", "rpn"))
        _check_choice(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class UPNConfig:
    """UPN of ChatRex, the detector of the released evaluation.

    Needs its published state dict.
    """

    needs: ClassVar[Need] = "weights"
    prompt: Literal["coarse", "fine"] = "fine"
    """Granularity; the released scripts ask for `fine_grained_prompt`."""
    precision: Precision = "fp32"
    """Arithmetic of the network's matrix products."""
    selection: Selection = field(default_factory=lambda: Selection(score_min=0.3))
    """Which of its boxes become proposals; score 0.3 and NMS 0.8 as in the released scripts."""

    def __post_init__(self) -> None:
        _check_choice(self, "prompt", PROMPTS)
        _check_choice(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class GroundTruthConfig:
    """The annotated boxes themselves, with score 1: the upper bound."""

    needs: ClassVar[Need] = "objects"
    selection: Selection = field(default_factory=lambda: Selection(nms_iou=None))
    """Which of its boxes become proposals; no NMS, which would drop true boxes."""


@dataclass(frozen=True, kw_only=True)
class GroundTruthJitterConfig:
    """Annotated boxes moved at random, among distractors: a stand-in detector of known quality."""

    needs: ClassVar[Need] = "objects"
    jitter: float = 0.08
    """Each edge moves by up to this share of the box's side; 0.08 keeps IoU above 0.7."""
    miss_rate: float = 0.0
    """Probability that an object gets no box."""
    num_distractors: int = 12
    """Number of random boxes an image."""
    seed: int = 0
    """Seed that draws the boxes, together with the image id."""
    selection: Selection = field(default_factory=Selection)
    """Which of its boxes become proposals."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.jitter < 0.5:
            raise SettingError(
                f"GroundTruthJitterConfig.jitter={self.jitter}: use a share in [0, 0.5)"
            )
        if not 0.0 <= self.miss_rate <= 1.0:
            raise SettingError(
                f"GroundTruthJitterConfig.miss_rate={self.miss_rate}: use a probability"
            )
        if self.num_distractors < 0:
            raise SettingError(
                f"GroundTruthJitterConfig.num_distractors={self.num_distractors}: use at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class BoxFileConfig:
    """Boxes that were found elsewhere and lie in a file.

    `pipelines.proposals.box_files` says which forms a file may have.
    """

    needs: ClassVar[Need] = "boxes"
    selection: Selection = field(default_factory=lambda: Selection(nms_iou=None))
    """Which of its boxes become proposals; no NMS: whoever made the file did what was wanted."""


Leaf = (
    OPNDetectorConfig
    | UntrainedOPNConfig
    | ClosedSetConfig
    | UntrainedRTDETRConfig
    | TextPromptedConfig
    | TorchvisionConfig
    | UPNConfig
    | GroundTruthConfig
    | GroundTruthJitterConfig
    | BoxFileConfig
)
"""A detector that is not made of others."""


@dataclass(frozen=True, kw_only=True)
class UnionConfig:
    """The boxes of several detectors together, each with its own score.

    Overlaps are suppressed once more.
    """

    members: tuple[Leaf, ...]
    """The detectors, at least two; each selects by its own settings first."""
    selection: Selection = field(default_factory=Selection)
    """Which of their boxes are kept."""

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise SettingError(
                f"UnionConfig.members: {len(self.members)} given; a union has at least two"
            )
        # One slot of an image's input holds such boxes (`DetectorInput.known`).
        if sum(member.needs in ("objects", "boxes") for member in self.members) > 1:
            raise SettingError(
                "UnionConfig.members: only one of them may bring boxes that are known already"
            )


DetectorConfig = Leaf | UnionConfig
"""Any detector."""

DETECTORS: dict[str, type[DetectorConfig]] = {
    "opn": OPNDetectorConfig,
    "opn_untrained": UntrainedOPNConfig,
    "closed_set": ClosedSetConfig,
    "rt_detr_untrained": UntrainedRTDETRConfig,
    "text_prompted": TextPromptedConfig,
    "torchvision": TorchvisionConfig,
    "upn": UPNConfig,
    "ground_truth": GroundTruthConfig,
    "ground_truth_jitter": GroundTruthJitterConfig,
    "file": BoxFileConfig,
    "union": UnionConfig,
}
"""Name -> config class; `build_detector(DETECTORS["opn"](), FOLDER)` makes a detector of one."""


def leaves(config: DetectorConfig) -> tuple[Leaf, ...]:
    """Return the detectors that a config is made of: itself, or the members of a union."""
    return config.members if isinstance(config, UnionConfig) else (config,)


def with_selection(config: DetectorConfig, **changes: object) -> DetectorConfig:
    """Return the same detector with other settings of its selection."""
    return replace(config, selection=replace(config.selection, **changes))  # type: ignore[arg-type]


def name_of(config: DetectorConfig) -> str:
    """Return a detector's name in DETECTORS; of a union, its members' names joined by "+"."""
    if isinstance(config, UnionConfig):
        return "+".join(name_of(member) for member in config.members)
    return next(name for name, kind in DETECTORS.items() if type(config) is kind)


def from_canonical(described: dict) -> DetectorConfig:
    """Return a config from its canonical form in a manifest.

    Args:
        described: The config's fields, and `type`, the name of its class.

    Raises:
        SettingError: This version does not have the class or its fields.
    """
    kind = next(
        (kind for kind in DETECTORS.values() if kind.__name__ == described.get("type")), None
    )
    values = {name: value for name, value in described.items() if name != "type"}
    if kind is None or set(values) != {f.name for f in fields(kind)}:
        raise SettingError(
            f"detector {described.get('type')!r} of the manifest is not known to this version"
        )
    chosen = {name: value for name, value in values.pop("selection").items() if name != "type"}
    if set(chosen) != {f.name for f in fields(Selection)}:
        raise SettingError(f"the selection {chosen} of the manifest is not known to this version")
    selection = Selection(**chosen)
    if "members" in values:
        values["members"] = tuple(from_canonical(member) for member in values["members"])
    return kind(**values, selection=selection)


def _check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise SettingError for a value that is not among the choices."""
    value = getattr(config, name)
    if value not in choices:
        raise SettingError(
            f"{type(config).__name__}.{name}={value!r}: use one of {', '.join(choices)}"
        )
