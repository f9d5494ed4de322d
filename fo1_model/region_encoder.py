"""HFRE and the connector: maps of both towers and boxes become one region token a box.

    auxiliary maps (+ positions) -- upsampled, pooled -----.
                                                           +-- concat + box embedding -- connector
    primary map -- SimpleFP -- pooled level by level ------'

All arithmetic from pooling to the box embedding is float32; the sum is cast to the connector's
type. Sources: paper 3.1; the release for order (auxiliary first), embedding and RoIAlign settings.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fo1_model import boxes as box_ops
from fo1_model.config import ConnectorConfig, RegionConfig
from fo1_model.errors import SettingError
from fo1_model.pyramid import STRIDES, SimpleFP
from fo1_model.region_pooling import FeatureMap, boxes_in_cells, pool_levels, pool_regions


class RegionNorm(nn.LayerNorm):
    """LayerNorm that computes in float32 whatever the type of its parameters."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the parent class
        """Normalise float32[N, D]."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps)


class RegionEncoder(nn.Module):
    """Hybrid fine-grained region encoder with its connector.

    Args:
        region: How a box becomes a feature.
        connector: How a feature becomes a token.
        auxiliary_dims: Channels of the auxiliary maps, fine to coarse.
        primary_dim: Channels of the primary map.
        hidden_size: Width of a region token.

    Raises:
        SettingError: When the box embedding does not fit the width of the hybrid feature, or is to
            use the frame of a tower that the features leave out.
    """

    def __init__(
        self,
        region: RegionConfig,
        connector: ConnectorConfig,
        *,
        auxiliary_dims: Sequence[int],
        primary_dim: int,
        hidden_size: int,
    ) -> None:
        super().__init__()
        if region.features == "primary" and region.box_frame == "auxiliary":
            raise SettingError(
                "box_frame='auxiliary' needs the auxiliary maps; with features='primary' choose "
                "'primary'"
            )
        self.region = region
        self.use_auxiliary = region.features != "primary"
        self.use_primary = region.features != "auxiliary"
        auxiliary_width = sum(auxiliary_dims) if self.use_auxiliary else 0
        primary_width = primary_dim if self.use_primary else 0
        self.pyramid = None
        if self.use_primary and region.pyramid:
            self.pyramid = SimpleFP(primary_dim, region.pyramid_dim)
            primary_width = len(STRIDES) * region.pyramid_dim
        self.hybrid_size = auxiliary_width + primary_width
        """Width of the feature before the connector (5888 in the release)."""
        if region.box_embedding and self.hybrid_size % 4 != 0:
            raise SettingError(
                "box_embedding needs a region width that is a multiple of 4, "
                f"got {self.hybrid_size}"
            )
        if region.map_embedding and any(dim % 4 for dim in auxiliary_dims):
            raise SettingError(
                f"map_embedding needs widths that are multiples of 4, got {list(auxiliary_dims)}"
            )
        self.auxiliary_norm = (
            RegionNorm(auxiliary_width) if region.region_norm and auxiliary_width else None
        )
        self.primary_norm = (
            RegionNorm(primary_width) if region.region_norm and primary_width else None
        )
        self.connector = build_connector(connector.num_layers, self.hybrid_size, hidden_size)

    def forward(
        self, auxiliary_maps: Sequence[FeatureMap], primary: FeatureMap, boxes: Tensor
    ) -> Tensor:
        """Return region tokens of one image, in the connector's type and the boxes' order.

        Args:
            auxiliary_maps: The auxiliary tower's maps, fine to coarse; may be empty with
                features="primary".
            primary: The VLM's map before its merger, float[primary_dim, gh, gw].
            boxes: float32[N, 4] xyxy in original pixels; N may be 0.

        Returns:
            float[N, hidden_size].
        """
        hybrid = self.hybrid_features(auxiliary_maps, primary, boxes)
        # Pooled in float32 and rounded once, whatever the model's type.
        return self.connector(hybrid.to(next(self.connector.parameters()).dtype))

    def hybrid_features(
        self, auxiliary_maps: Sequence[FeatureMap], primary: FeatureMap, boxes: Tensor
    ) -> Tensor:
        """Return the feature before the connector, float32[N, hybrid_size]: [auxiliary | primary].

        The embedding of the boxes is added; arguments as for `forward`.
        """
        # The release's way of scaling, to the last bit: see _in_auxiliary_frame.
        auxiliary_maps, primary, boxes = _in_auxiliary_frame(auxiliary_maps, primary, boxes)
        # Auxiliary first: the order of the connector's columns in released weights.
        parts = []
        if self.use_auxiliary:
            pooled = self._pool_auxiliary(auxiliary_maps, boxes)
            parts.append(pooled if self.auxiliary_norm is None else self.auxiliary_norm(pooled))
        if self.use_primary:
            pooled = self._pool_primary(primary, boxes)
            parts.append(pooled if self.primary_norm is None else self.primary_norm(pooled))
        hybrid = torch.cat(parts, dim=1)
        if self.region.box_embedding:
            frame = primary if self.region.box_frame == "primary" else auxiliary_maps[0]
            height, width = frame.values.shape[1:]
            normalised = box_ops.scale(boxes_in_cells(frame, boxes), 1 / width, 1 / height)
            hybrid = hybrid + box_ops.embed(normalised, self.hybrid_size)
        return hybrid

    def _pool_auxiliary(self, maps: Sequence[FeatureMap], boxes: Tensor) -> Tensor:
        """Return all levels as if upsampled to the finest grid, float32[N, sum of channels]."""
        finest = maps[0]
        levels = [level.values for level in maps]
        if self.region.map_embedding:
            levels = [values + _map_embedding(values) for values in levels]
        return pool_levels(
            levels,
            boxes_in_cells(finest, boxes),
            output_size=self.region.roi_size,
            aligned=self.region.aligned,
            sampling_ratio=self.region.sampling_ratio,
            grid_size=(finest.values.shape[1], finest.values.shape[2]),
        )

    def _pool_primary(self, primary: FeatureMap, boxes: Tensor) -> Tensor:
        """Return each pyramid level pooled at its own stride, float32[N, primary width]."""
        levels = [primary] if self.pyramid is None else self.pyramid(primary)
        pooled = [
            pool_regions(
                level.values,
                boxes_in_cells(level, boxes),
                output_size=self.region.roi_size,
                aligned=self.region.aligned,
                sampling_ratio=self.region.sampling_ratio,
            )
            for level in levels
        ]
        return torch.cat(pooled, dim=1)


def _in_auxiliary_frame(
    auxiliary_maps: Sequence[FeatureMap], primary: FeatureMap, boxes: Tensor
) -> tuple[list[FeatureMap], FeatureMap, Tensor]:
    """Return the same maps and boxes as if the auxiliary tower's input were the original image.

    The release brings boxes to that frame first, rounds them to float32, and goes on to the primary
    tower's from there. The order matters: a box as wide as the image often spans a whole number of
    samples, and then the last bit of its width in cells decides how many RoIAlign takes.

    Returns:
        The auxiliary maps, the primary map, and boxes float32[N, 4].
    """
    if not auxiliary_maps:
        return [], primary, boxes.float()
    scale_x, scale_y = auxiliary_maps[0].scale
    boxes = box_ops.scale(boxes.double(), scale_x, scale_y).float()
    relative = (primary.scale[0] / scale_x, primary.scale[1] / scale_y)
    return (
        [level._replace(scale=(1.0, 1.0)) for level in auxiliary_maps],
        primary._replace(scale=relative),
        boxes,
    )


def _map_embedding(values: Tensor) -> Tensor:
    """Return where each cell of a map float[C, H, W] lies in it, in the map's type.

    C is a multiple of 4. The first half of the channels is of v = i / H, the second of v = j / W:
    sine and cosine, interleaved, of 2 pi v / 10000^(2 floor(k/2) / (C/4)) for k = 0 .. C/4 - 1.
    Source: release.
    """
    channels, height, width = values.shape
    index = torch.arange(channels // 4, device=values.device)
    frequencies = 10000.0 ** (2 * (index // 2) / (channels // 4))

    def waves(length: int) -> Tensor:
        angles = (
            torch.arange(length, device=values.device)[:, None]
            / length
            * (2 * math.pi)
            / frequencies
        )
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).T

    rows = waves(height)[:, :, None].expand(-1, -1, width)
    columns = waves(width)[:, None, :].expand(-1, height, -1)
    return torch.cat((rows, columns)).to(values.dtype)


def build_connector(num_layers: int, in_size: int, hidden_size: int) -> nn.Sequential:
    """Return linear layers with exact GELU between them.

    These are the release's `mlpNx_gelu`, `linear` for one layer, and `identity` for none. Weights
    are normal(0, 0.02), biases zero.

    Args:
        num_layers: Number of linear layers.
        in_size: Width of the input.
        hidden_size: Width of each layer's output.
    """
    layers: list[nn.Module] = []
    for index in range(num_layers):
        layers += [nn.GELU()] if index else []
        layers.append(nn.Linear(hidden_size if index else in_size, hidden_size))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
