"""What a model is: frozen dataclasses of every choice (`fo1_model.sizes` has the named sizes).

A config is plain data: ``to_dict`` and ``from_dict`` go to JSON and back without loss, unknown or
missing keys are errors.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from fo1_model.errors import SettingError

AUXILIARY_RESIZES = ("dynamic", "squash", "dynamic_square")
REGION_FEATURES = ("hybrid", "auxiliary", "primary")
BOX_FRAMES = ("primary", "auxiliary")
MODEL_TYPE = "vlm_fo1"
"""Name of our models in ``config.json``, for transformers' auto classes."""
FORMAT = 2
"""Version of a model folder's layout."""
TOWERS = ("primary", "language", "auxiliary")
"""Towers whose activations can be recomputed instead of kept (`fo1_model.acceleration`)."""
ADDED = {"added": True}
"""Metadata of a field that came later; its default is what models before it were.

While it has its default it is written nowhere and not hashed, so that older folders are read and
fingerprints stay."""


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that get adapters where nobody says which: attention and MLP, as QLoRA has it."""


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise SettingError(f"{name}={value} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """The vision-language model that regions are added to."""

    family: str = "qwen2_5_vl"
    """Key of ``fo1_model.vlms.VLM_FAMILIES``."""
    config: dict[str, Any]
    """Keyword arguments of the family's transformers config class (JSON values only)."""


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """The second vision tower, a timm DaViT that sees the image at stride 4 (paper 3.1)."""

    name: str = "davit_huge_fl"
    """Name of the timm model. The paper's "DaViT-Large" is timm's ``davit_huge_fl``."""
    kwargs: dict[str, Any]
    """Keyword arguments of ``timm.create_model`` (JSON values only); ``embed_dims`` is required."""
    resize: str = "squash"
    """How an image is brought to the tower: ``dynamic``, as it is; ``squash``, to ``size`` x
    ``size``; ``dynamic_square``, to the square of the nearest area."""
    size: int = 768
    """Side of the squashed image, pixels (release: 768). Used by ``squash`` only."""
    drop_path: float = 0.0
    """Stochastic depth of the last half-block while training, linear from 0 at the first
    (release: 0.1)."""
    keep_unread: bool = False
    """Whether the tower is built where no region feature reads it, for a released checkpoint
    that carries it."""

    def __post_init__(self) -> None:
        _choose("AuxiliaryConfig.resize", self.resize, AUXILIARY_RESIZES)
        _at_least("AuxiliaryConfig.size", self.size, 28)
        if not 0 <= self.drop_path < 1:
            raise SettingError(f"AuxiliaryConfig.drop_path={self.drop_path} must be in [0, 1)")
        if len(self.kwargs.get("embed_dims", ())) != 4:
            raise SettingError(
                "AuxiliaryConfig.kwargs['embed_dims'] must list the widths of the four stages; "
                f"got {self.kwargs.get('embed_dims')!r}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the four feature maps, fine to coarse."""
        return tuple(self.kwargs["embed_dims"])


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """How a box becomes one feature vector (the paper's HFRE, 3.1)."""

    features: str = "hybrid"
    """Towers that feed a region: both, or one alone (paper table 9)."""
    pyramid: bool = True
    """Whether SimpleFP stands over the primary map; without it the map is pooled as it is."""
    pyramid_dim: int = 512
    """Channels of every pyramid level (release: 512)."""
    roi_size: int = 7
    """Side of the RoIAlign grid that is averaged (release: 7)."""
    aligned: bool = False
    """RoIAlign's half-pixel shift. The release leaves it off, which makes a box at least one
    cell wide."""
    sampling_ratio: int = -1
    """Samples per bin and axis; -1 adapts to the box (release)."""
    box_frame: str = "primary"
    """Frame that normalises boxes for the embedding; ``auxiliary`` is the release's
    ``concat_aux_pos``."""
    region_norm: bool = False
    """Whether each branch has a LayerNorm after pooling (release: decided by the checkpoint)."""
    box_embedding: bool = True
    """Whether the sine-cosine embedding of the box is added (release)."""
    map_embedding: bool = False
    """Whether a sine-cosine map of the position is added to every auxiliary level before it is
    pooled (release: ``feature_map_based`` and, with the embedding of the box, ``hybrid``)."""

    def __post_init__(self) -> None:
        _choose("RegionConfig.features", self.features, REGION_FEATURES)
        _choose("RegionConfig.box_frame", self.box_frame, BOX_FRAMES)
        _at_least("RegionConfig.pyramid_dim", self.pyramid_dim, 1)
        _at_least("RegionConfig.roi_size", self.roi_size, 1)
        if self.sampling_ratio != -1 and self.sampling_ratio < 1:
            raise SettingError(
                f"RegionConfig.sampling_ratio={self.sampling_ratio} must be -1 (adaptive) "
                "or at least 1"
            )
        if self.map_embedding and self.features == "primary":
            raise SettingError(
                "RegionConfig.map_embedding=True needs the auxiliary maps; "
                "features='primary' has none"
            )


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """The MLP from a region feature to one token of the language model."""

    num_layers: int = 2
    """Number of linear layers, GELU between them (release: ``mlp2x_gelu``)."""

    def __post_init__(self) -> None:
        _at_least("ConnectorConfig.num_layers", self.num_layers, 1)


@dataclass(frozen=True, kw_only=True)
class NewRowsConfig:
    """Where the rows of the region language's tokens start (ours; the authors' is not public)."""

    spread: float = 0.1
    """Noise around the mean of the base's rows, in standard deviations of a column. The mean
    keeps a new token from winning or losing every softmax; the noise tells index tokens
    apart. With 1 they look like words of the base, which a small frozen decoder needs."""
    like: dict[str, str] = field(default_factory=dict)
    """New token -> token of the base whose row it starts as."""

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise SettingError(
                f"NewRowsConfig.spread={self.spread} must be above 0: equal rows stay equal"
            )


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Which adapters a decoder gets (`fo1_model.lora`)."""

    rank: int
    """Rank of each adapter's two matrices."""
    alpha: float
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Last parts of the names of the decoder's linear layers that get one."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingError(f"lora_rank={self.rank} must be at least 1")
        if not self.alpha > 0:
            raise SettingError(f"lora_alpha={self.alpha} must be above 0")
        if not self.targets or not all(re.fullmatch(r"[\w.]+", name) for name in self.targets):
            raise SettingError(
                f"lora_targets={','.join(self.targets)}: name linear layers of the decoder with "
                f"commas between them, such as {','.join(LORA_TARGETS[:4])}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of an ``FO1Model``."""

    vlm: VLMConfig
    """The base VLM."""
    auxiliary: AuxiliaryConfig
    """The auxiliary tower."""
    region: RegionConfig = field(default_factory=RegionConfig)
    """The region encoder."""
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    """The connector."""
    new_rows: NewRowsConfig = field(default_factory=NewRowsConfig)
    """The start of the new vocabulary rows."""
    num_region_tokens: int = 100
    """Number of ``<regionN>`` tokens, the most boxes a sample may have (paper 3.2)."""
    max_long_side: int = 2048
    """Long side in pixels that longer images are scaled down to (release)."""
    shortest_edge: int | None = field(default=None, metadata=ADDED)
    """Short side in pixels that images are scaled to, up or down, before ``max_long_side`` caps the
    long one (the release's later demo: 1024); None leaves them as they are (release)."""
    image_projector_layers: int = 0
    """Number of linear layers, GELU between them, on the image tokens (release:
    ``mm_projector_type``); 0 for none."""
    image_gap: str = field(default="\n", metadata=ADDED)
    """Text between an image and a plain question behind it, as the model was trained: a line break
    (release); the family's own for a model on published weights. Regions always stand on a line of
    their own."""
    release: dict[str, Any] | None = None
    """Config of the released checkpoint that the model was imported from, kept for the way back."""

    def __post_init__(self) -> None:
        _at_least("ModelConfig.image_projector_layers", self.image_projector_layers, 0)
        _at_least("ModelConfig.num_region_tokens", self.num_region_tokens, 1)
        _at_least("ModelConfig.max_long_side", self.max_long_side, 28)
        if self.shortest_edge is not None:
            _at_least("ModelConfig.shortest_edge", self.shortest_edge, 28)
            if self.shortest_edge > self.max_long_side:
                raise SettingError(
                    f"ModelConfig.shortest_edge={self.shortest_edge} is over "
                    f"max_long_side={self.max_long_side}, so that no image would reach it; lower it"
                )

    @property
    def builds_auxiliary(self) -> bool:
        """Whether the model has an auxiliary tower."""
        return self.region.features != "primary" or self.auxiliary.keep_unread

    def to_dict(self) -> dict[str, Any]:
        """Return the config as JSON values; tuples become lists."""
        return _plain(_written(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Return the config that ``to_dict`` wrote.

        Raises:
            SettingError: Naming the key when one is unknown or missing.
        """
        return _from_dict(cls, values, "ModelConfig")


def is_released(values: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is the released checkpoint's; other layouts lack the key."""
    return "mm_vision_tower_aux" in values


def is_unset(config: Any, item: Field[Any]) -> bool:
    """Return whether a field of a config is one of `ADDED` that still has its default."""
    return bool(item.metadata.get("added")) and getattr(config, item.name) == item.default


def _written(config: Any) -> dict[str, Any]:
    """Return the fields of a config that are written, nested ones likewise."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if not is_unset(config, f)}
    return {name: _written(v) if is_dataclass(v) else v for name, v in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _from_dict(cls: type, values: Mapping[str, Any], path: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingError(f"{path} must be an object of fields, not {values!r}")
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    optional = {f.name for f in fields(cls) if f.metadata.get("added")}
    if unknown := sorted(set(values) - set(names)):
        raise SettingError(
            f"{path} has no field {', '.join(unknown)}; its fields are {', '.join(names)}"
        )
    if missing := [name for name in names if name not in values and name not in optional]:
        raise SettingError(f"{path} lacks {', '.join(missing)}")
    arguments = {}
    for name in (name for name in names if name in values):
        hint = hints[name]
        nested = is_dataclass(hint) and isinstance(hint, type)
        arguments[name] = (
            _from_dict(hint, values[name], f"{path}.{name}")
            if nested
            else copy.deepcopy(values[name])
        )
    return cls(**arguments)
