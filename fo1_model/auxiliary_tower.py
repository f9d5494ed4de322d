"""The auxiliary tower: DaViT, which makes four feature maps that know their scale.

The paper's "DaViT-Large" is the vision tower of Florence-2-large, which timm calls `davit_huge_fl`
(its `davit_large` is another network). Images are never padded to a common size: channel attention
mixes all positions and scales by their number, so padding would change every feature. Images of
equal size share a batch; the others run alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from fo1_model.config import AuxiliaryConfig
from fo1_model.region_pooling import FeatureMap

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SQUARE_SIDES = (384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1280, 1536, 1792, 2048)
"""Sides in pixels that `dynamic_square` chooses from (release, vlm_fo1/mm_utils.py)."""

STRIDES = (4, 8, 16, 32)
"""Input pixels per cell of each map."""


def auxiliary_size(width: int, height: int, config: AuxiliaryConfig) -> tuple[int, int]:
    """Return the size (width, height) in pixels at which the tower sees an image of a given size.

    `dynamic`: as it is. `squash`: a square of `config.size`. `dynamic_square`: the square with a
    side of `SQUARE_SIDES` that is nearest in area. Source: release, vlm_fo1/mm_utils.py.
    """
    if config.resize == "dynamic":
        return width, height
    side = config.size
    if config.resize == "dynamic_square":
        side = min(SQUARE_SIDES, key=lambda candidate: abs(candidate**2 - width * height))
    return side, side


def auxiliary_image(image: Image.Image, config: AuxiliaryConfig) -> Tensor:
    """Return the tower's input for one RGB image: float32[3, H, W], ImageNet mean and deviation."""
    size = auxiliary_size(*image.size, config)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class AuxiliaryTower(nn.Module):
    """DaViT from timm without its classifier, as `.model`, with random weights.

    A block has a spatial and a channel half; in training the last half drops a residual at the rate
    `drop_path`, the first never, those between at rates that grow linearly.

    Args:
        config: The timm model (`name`, `kwargs`) and its stochastic depth.
    """

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__()
        # Any, because timm's own attributes (stem, stages) are not declared on nn.Module.
        self.model: Any = timm.create_model(
            config.name, pretrained=False, num_classes=0, **config.kwargs
        )
        # timm keeps the classifier's LayerNorm, and a parameter without gradient stalls distributed
        # training.
        self.model.head = nn.Identity()
        self._set_drop_path(config.drop_path)

    def forward(
        self, images: Sequence[Tensor], original_sizes: Sequence[tuple[int, int]]
    ) -> list[list[FeatureMap]]:
        """Return the four maps of every image.

        Args:
            images: float[3, H, W] each, from `auxiliary_image`, of any sizes.
            original_sizes: (width, height) in pixels of the images that boxes refer to.

        Returns:
            Per image, maps float[config.dims[l], h, w] at strides 4, 8, 16, 32, sides rounded up.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        dtype = self.model.stem.conv.weight.dtype
        maps: list[list[FeatureMap]] = [[] for _ in images]
        for members in groups.values():
            batch = torch.stack([images[index] for index in members]).to(dtype)
            levels = self.model.forward_intermediates(batch, intermediates_only=True)
            for row, index in enumerate(members):
                width, height = original_sizes[index]
                scale = (batch.shape[3] / width, batch.shape[2] / height)
                maps[index] = [
                    FeatureMap(values[row], scale, stride)
                    for values, stride in zip(levels, STRIDES, strict=True)
                ]
        return maps

    def set_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute every DaViT block in backward instead of storing its activations."""
        # The model's own switch also wraps the stages around these blocks, which recomputes
        # everything twice.
        for stage in self.model.stages:
            stage.set_grad_checkpointing(enabled)

    def _set_drop_path(self, rate: float) -> None:
        """Give half-block k of n the rate `rate * k / (n - 1)`; timm has one for both halves."""
        halves = [half for stage in self.model.stages for block in stage.blocks for half in block]
        for index, half in enumerate(halves):
            own = rate * index / max(len(halves) - 1, 1)
            half.drop_path1 = DropPath(own) if own > 0 else nn.Identity()
            half.drop_path2 = DropPath(own) if own > 0 else nn.Identity()
