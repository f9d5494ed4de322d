"""SimpleFP: one map of a plain ViT becomes four, at 1/4 to 2 times its stride (paper 3.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fo1_model.errors import SettingError
from fo1_model.region_pooling import FeatureMap

STRIDES = (0.25, 0.5, 1.0, 2.0)
"""Stride of each level relative to the ViT's patch, fine to coarse: 3.5, 7, 14, 28 px for 14-px
patches."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at every position of float[B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the parent class
        """Normalise float[B, C, H, W]; the result is channels-last in memory."""
        channels_last = input.permute(0, 2, 3, 1)
        normed = F.layer_norm(
            channels_last, self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """Convolution without bias, size-preserving, followed by its own `norm`."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int) -> None:
        super().__init__(in_dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = ChannelNorm(dim)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in the parent class
        """Map float[B, in_dim, H, W] to float[B, dim, H, W]."""
        return self.norm(super().forward(input))


class SimpleFP(nn.Module):
    """Four levels from one ViT map; modules are named as in the release, so tensors map one to one.

    Args:
        in_dim: Channels of the ViT map, a multiple of 4 (release: 1280).
        dim: Channels of each level (release: 512).

    Raises:
        SettingError: For an `in_dim` that is not a multiple of 4.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        if in_dim % 4 != 0:
            raise SettingError(f"in_dim={in_dim} is halved twice and must be a multiple of 4")
        half, quarter = in_dim // 2, in_dim // 4
        self.simfp_1 = nn.Sequential(
            nn.ConvTranspose2d(in_dim, half, 2, stride=2),
            ChannelNorm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
            NormedConv(quarter, dim, 1),
            NormedConv(dim, dim, 3),
        )
        self.simfp_2 = nn.Sequential(
            nn.ConvTranspose2d(in_dim, half, 2, stride=2),
            NormedConv(half, dim, 1),
            NormedConv(dim, dim, 3),
        )
        self.simfp_3 = nn.Sequential(NormedConv(in_dim, dim, 1), NormedConv(dim, dim, 3))
        self.simfp_4 = nn.Sequential(
            nn.MaxPool2d(2, 2), NormedConv(in_dim, dim, 1), NormedConv(dim, dim, 3)
        )

    def forward(self, feature_map: FeatureMap) -> list[FeatureMap]:
        """Return four levels of `dim` channels, fine to coarse, of one image's ViT map.

        Args:
            feature_map: float[in_dim, H, W]; H and W must be even.

        Raises:
            ValueError: For an odd side, which the last level would silently cut.
        """
        height, width = feature_map.values.shape[1:]
        if height % 2 or width % 2:
            raise ValueError(
                f"SimpleFP halves the map: its sides must be even, got {height}x{width} (HxW)"
            )
        values = feature_map.values.unsqueeze(0)
        levels = (self.simfp_1, self.simfp_2, self.simfp_3, self.simfp_4)
        return [
            FeatureMap(level(values)[0], feature_map.scale, feature_map.stride * stride)
            for level, stride in zip(levels, STRIDES, strict=True)
        ]
