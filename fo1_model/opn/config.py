"""What OPN is and how it learns: its named sizes, its augmentation, its loss.

Imports nothing heavy: recipes hash it before any worker starts.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fo1_model.errors import SettingError

PROMPTS = ("coarse", "fine")
"""Granularities that a prompt can ask for; the position is the row in OPN's prompt tables."""


@dataclass(frozen=True, kw_only=True)
class OPNConfig:
    """OPN's architecture and its input; weights aside, this is the network."""

    backbone: str = "test_convnext2"
    """Name of a timm model that gives three maps, at strides 8, 16, 32."""
    backbone_indices: tuple[int, ...] = (1, 2, 3)
    """Stages of the backbone that give those maps."""
    backbone_channels: tuple[int, ...] = (64, 96, 128)
    """Channels of the backbone's three maps; checked against it."""
    backbone_layout: Literal["channels_first", "channels_last"] = "channels_first"
    """Layout of the backbone's maps.

    `channels_last` (timm Swin) also puts a LayerNorm on each, as OmDet-Turbo does.
    """
    image_size: int = 128
    """Side of the square that the image is letterboxed into, px; a multiple of 32."""
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean that is subtracted from RGB in [0, 1]; the padding has this colour."""
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation that RGB is divided by once the mean is subtracted."""
    hidden_dim: int = 64
    """Width of encoder and decoder."""
    feedforward_dim: int = 128
    """Inner width of the feed-forward layers of encoder and decoder."""
    num_heads: int = 4
    """Attention heads of encoder and decoder."""
    num_decoder_layers: int = 2
    """Number of decoder layers; each gives boxes and scores, the last is the answer."""
    num_points: int = 4
    """Points that a head samples on each level in deformable attention."""
    num_queries: int = 50
    """Boxes out; at most the number of feature positions, which small images have few of."""
    prompt_dim: int = 96
    """Width of the learned prompts (OmDet-Turbo's class embedding).

    Must differ from `hidden_dim`.
    """
    normalization: Literal["batch", "group"] = "batch"
    """Norm of the convolutional neck.

    `batch` is OmDet-Turbo's, needed for its weights; `group` works per image, so that results do
    not depend on how a batch is split over workers.
    """
    denoising_groups: int = 0
    """Groups of noised ground truth added as extra queries in training (RT-DETR); 0 is off."""
    box_noise_scale: float = 1.0
    """Size of the noise on the extra queries, in half box sides."""

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 32:
            raise SettingError(
                f"OPNConfig.image_size={self.image_size}: use a positive multiple of 32"
            )
        if self.prompt_dim == self.hidden_dim:
            raise SettingError(
                f"OPNConfig.prompt_dim={self.prompt_dim} equals hidden_dim: choose another width "
                "(OmDet-Turbo's decoder builds its prompt projection only when they differ)"
            )
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise SettingError(
                f"OPNConfig.hidden_dim={self.hidden_dim}: use a multiple of 4 and of num_heads "
                f"({self.num_heads})"
            )
        if len(self.backbone_indices) != 3 or len(self.backbone_channels) != 3:
            raise SettingError(
                f"OPNConfig.backbone_indices={self.backbone_indices}, backbone_channels="
                f"{self.backbone_channels}: name exactly three maps, at strides 8, 16, 32"
            )
        for name in ("num_queries", "num_decoder_layers", "num_points", "feedforward_dim"):
            if getattr(self, name) < 1:
                raise SettingError(f"OPNConfig.{name}={getattr(self, name)}: use at least 1")
        if self.denoising_groups < 0 or self.box_noise_scale <= 0:
            raise SettingError(
                f"OPNConfig.denoising_groups={self.denoising_groups}, "
                f"box_noise_scale={self.box_noise_scale}: use groups >= 0 and a scale > 0"
            )
        for name, allowed in (
            ("backbone_layout", ("channels_first", "channels_last")),
            ("normalization", ("batch", "group")),
        ):
            if getattr(self, name) not in allowed:
                raise SettingError(
                    f"OPNConfig.{name}={getattr(self, name)!r}: use one of {allowed}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values; `from_dict` reverses it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OPNConfig":
        """Return the config of `to_dict`'s values.

        Raises:
            SettingError: A name is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            raise SettingError(
                f"OPN config.json: unknown {sorted(set(values) - names)}, "
                f"missing {sorted(names - set(values))}"
            )
        arguments: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**arguments)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What may happen to a training image."""

    flip: bool = True
    """Whether an image is mirrored left-right, with probability 1/2."""
    zoom: float = 1.0
    """An image is shown at between 1/zoom and zoom times its size, drawn log-uniformly; 1 is off.

    Nearer, a random window of it is cut out; farther, it lies somewhere on a larger canvas of the
    padding's colour.
    """
    min_visible: float = 0.3
    """A box of which a window leaves less than this share becomes an ignore region (ours).

    It is then neither an object to find nor background.
    """

    def __post_init__(self) -> None:
        if not 1.0 <= self.zoom <= 8.0:
            raise SettingError(
                f"AugmentationConfig.zoom={self.zoom}: use a factor from 1 (off) to 8"
            )
        if not 0.0 <= self.min_visible <= 1.0:
            raise SettingError(
                f"AugmentationConfig.min_visible={self.min_visible}: use a share in [0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class OPNCriterionConfig:
    """Weights of the loss and of the matching; the defaults are RT-DETR's."""

    varifocal_weight: float = 1.0
    """Weight of the score's term: binary cross-entropy towards the IoU of the matched box."""
    l1_weight: float = 5.0
    """Weight of the boxes' L1 distance, over cxcywh in [0, 1]."""
    giou_weight: float = 2.0
    """Weight of the boxes' 1 - GIoU."""
    matching_score_cost: float = 2.0
    """Weight of the focal score cost in the matching; the box costs equal the box weights."""
    focal_alpha: float = 0.75
    """Weight of negatives in the varifocal term."""
    focal_gamma: float = 2.0
    """Exponent on the predicted score of negatives in the varifocal term."""
    ignore_coverage: float = 0.5
    """An unmatched query with this share of its area in an ignore region is no negative."""
    incomplete_iou: float = 0.1
    """IoU with some object from which on an unmatched query is a negative on incomplete labels.

    Ours. On such an image a second box of a known object is wrong; a box of something else may be
    right.
    """
    ignore_band: tuple[float, float] | None = None
    """An unmatched query whose best IoU lies between these is no negative; None is off.

    This holds on any image: labels of an open world are never complete (OLN uses 0.1 to 0.5).
    """

    def __post_init__(self) -> None:
        if not 0.0 <= self.incomplete_iou <= 1.0:
            raise SettingError(
                f"OPNCriterionConfig.incomplete_iou={self.incomplete_iou}: use an IoU in [0, 1]"
            )
        if (
            self.ignore_band is not None
            and not 0.0 <= self.ignore_band[0] < self.ignore_band[1] <= 1.0
        ):
            raise SettingError(
                f"OPNCriterionConfig.ignore_band={self.ignore_band}: use two rising IoUs such as "
                "(0.1, 0.5)"
            )


def tiny() -> OPNConfig:
    """Return a size that learns drawn scenes on two CPU cores in minutes.

    1.3 M parameters, 128 px.
    """
    return OPNConfig(normalization="group", denoising_groups=2)


def swin_tiny() -> OPNConfig:
    """Return the paper's family: OmDet-Turbo's Swin-tiny sizes without its text tower.

    52 M parameters, 640 px.
    """
    return OPNConfig(
        backbone="swin_tiny_patch4_window7_224",
        backbone_channels=(192, 384, 768),
        backbone_layout="channels_last",
        image_size=640,
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
        hidden_dim=256,
        feedforward_dim=2048,
        num_heads=8,
        num_decoder_layers=6,
        num_queries=900,
        prompt_dim=512,
        denoising_groups=5,
    )


def large() -> OPNConfig:
    """Return the same neck and decoder on Swin-large, UPN's backbone (ours).

    220 M parameters, 768 px: windows of 12 tile the maps of all stages, so that nothing is padded.
    """
    return replace(
        swin_tiny(),
        backbone="swin_large_patch4_window12_384",
        backbone_channels=(384, 768, 1536),
        image_size=768,
    )


OPN_SIZES: dict[str, Callable[[], OPNConfig]] = {
    "tiny": tiny,
    "swin_tiny": swin_tiny,
    "large": large,
}
"""The named sizes; `OPN_SIZES["tiny"]()` makes one's config."""
