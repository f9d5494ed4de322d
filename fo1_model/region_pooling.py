"""Mean-pooled RoIAlign, exactly, without the upsampled map.

The paper pools a region from four DaViT levels that are first upsampled to the finest grid and
concatenated, by RoIAlign and a mean over its bins. Every one of these steps is linear in the
features and separable in y and x:

- all bins of a box hold the same number of samples, so the mean of bins of means of samples is one
  mean over a regular grid of points;
- the four bilinear weights of a point are products of a weight along y and one along x, and so is
  the rule for points outside the map (dropped when more than a cell away, else clamped to the
  border);
- bilinear upsampling of the map is `M_y F M_x^T`.

Hence `pooled = (a_y M_y) F (a_x M_x)^T` with one weight vector per box and axis, and pooling N
boxes from a level is one GEMM of float[N, h w] with float[h w, C]. Autograd gives the exact
gradient of the features; boxes get none, as in torchvision. `pool_regions_reference` spells the
same quantity with torchvision and is what the tests compare with.

Shape letters: N boxes, C channels, H x W cells of the grid that boxes are sampled on, h x w cells
of the stored map, K sample points along an axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from fo1_model import boxes as box_ops


class FeatureMap(NamedTuple):
    """One image's feature map that knows where it lies over the original image."""

    values: Tensor
    """The features, float[C, H, W], in any memory layout."""

    scale: tuple[float, float]
    """Pixels of the tower's input per pixel of the original image, (sx, sy). A ViT with patches
    of 14 px that sees a 640x480 image as 46 by 34 patches has the scale (46 * 14 / 640, 34 *
    14 / 480)."""

    stride: float
    """Pixels of the tower's input per cell; its inverse is RoIAlign's spatial scale. 14 in the
    example."""


def boxes_in_cells(feature_map: FeatureMap, boxes: Tensor) -> Tensor:
    """Return boxes of the original image, float[N, 4] xyxy in pixels, in cells of the map.

    Two multiplications, as in the release: a box as wide as the image often spans a whole number of
    samples, and then the last bit of its width in cells decides how many RoIAlign takes.
    """
    in_input = box_ops.scale(boxes, *feature_map.scale)
    return box_ops.scale(in_input, 1 / feature_map.stride, 1 / feature_map.stride)


def pool_regions(
    values: Tensor,
    boxes: Tensor,
    *,
    output_size: int,
    aligned: bool,
    sampling_ratio: int,
    upsampled_size: tuple[int, int] | None = None,
) -> Tensor:
    """Return the mean over the bins of RoIAlign for every box.

    Args:
        values: float[C, h, w] of one image.
        boxes: float[N, 4] xyxy, finite, in cells of the sampled grid (`upsampled_size` or the map's
            own).
        output_size: Bins per side.
        aligned: As in torchvision's `roi_align`.
        sampling_ratio: As in torchvision's `roi_align`.
        upsampled_size: (H, W); sample the map as if first resized to it bilinearly
            (`align_corners=False`).

    Returns:
        float32[N, C] (float64 for float64 values): weights and sums are float32 whatever the type
        of the map, also under autocast.
    """
    return pool_levels(
        [values],
        boxes,
        output_size=output_size,
        aligned=aligned,
        sampling_ratio=sampling_ratio,
        grid_size=upsampled_size or (values.shape[1], values.shape[2]),
    )


def pool_levels(
    levels: Sequence[Tensor],
    boxes: Tensor,
    *,
    output_size: int,
    aligned: bool,
    sampling_ratio: int,
    grid_size: tuple[int, int],
) -> Tensor:
    """Return `pool_regions` of several maps sampled on one grid, concatenated.

    The weights of the boxes on the grid are computed once; each level costs two small products and
    one GEMM.

    Args:
        levels: float[C_l, h_l, w_l] each, of one image.
        boxes: float[N, 4] xyxy, finite, in cells of the grid.
        output_size: Bins per side.
        aligned: As in torchvision's `roi_align`.
        sampling_ratio: As in torchvision's `roi_align`.
        grid_size: (H, W) of the grid.

    Returns:
        float32[N, sum of channels] in the order of the levels.
    """
    dtype = torch.float64 if levels[0].dtype == torch.float64 else torch.float32
    with torch.autocast(boxes.device.type, enabled=False):
        weights_y, weights_x = _grid_weights(
            boxes.detach().to(dtype), grid_size, output_size, aligned, sampling_ratio
        )
        return torch.cat([_pool(level, weights_y, weights_x) for level in levels], dim=1)


def _pool(values: Tensor, weights_y: Tensor, weights_x: Tensor) -> Tensor:
    """Return float[N, C] from float[C, h, w] and weights float[N, H], float[N, W] on the grid."""
    weights_y = _fold_upsampling(weights_y, values.shape[1])
    weights_x = _fold_upsampling(weights_x, values.shape[2])
    weights = (weights_y.unsqueeze(2) * weights_x.unsqueeze(1)).flatten(1)
    # A view of contiguous and of channels-last maps alike, and GEMM reads either side transposed:
    # no copy.
    return weights @ values.flatten(1).to(weights.dtype).T


def _fold_upsampling(weights: Tensor, length: int) -> Tensor:
    """Return weights on the stored map, float[N, length], from those on a grid of L cells."""
    if weights.shape[1] == length:
        return weights
    identity = torch.eye(length, dtype=weights.dtype, device=weights.device).unsqueeze(0)
    upsampling = F.interpolate(identity, size=weights.shape[1], mode="linear", align_corners=False)[
        0
    ]
    return weights @ upsampling.T


def _grid_weights(
    boxes: Tensor, grid_size: tuple[int, int], output_size: int, aligned: bool, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return how much every row and every column of the grid counts in a box's mean.

    Both axes are computed together, as the second dimension (x, y) of every tensor. The order of
    the float operations is torchvision's, because the adaptive number of samples, a ceiling, flips
    on the last bit.

    Returns:
        float[N, H] and float[N, W].
    """
    height, width = grid_size
    last_cell = boxes.new_tensor([[width - 1], [height - 1]])
    corners = boxes.unflatten(1, (2, 2)) - (0.5 if aligned else 0.0)
    start = corners[:, 0]
    extent = corners[:, 1] - start
    if not aligned:
        extent = extent.clamp(min=1.0)
    bin_size = extent / output_size
    samples = bin_size.ceil() if sampling_ratio <= 0 else torch.full_like(bin_size, sampling_ratio)

    # Every box gets the K points of the largest one and uses its own first output_size * samples of
    # them.
    most = max(int(samples.max()), 0) if len(boxes) else 0
    index = torch.arange(output_size * most, device=boxes.device, dtype=boxes.dtype)
    per_bin = samples.clamp(min=1).unsqueeze(-1)
    which_bin = torch.div(index, per_bin, rounding_mode="floor")
    within = (index - which_bin * per_bin + 0.5) * bin_size.unsqueeze(-1) / per_bin
    position = start.unsqueeze(-1) + which_bin * bin_size.unsqueeze(-1) + within
    used = (
        (which_bin < output_size)
        & (samples > 0).unsqueeze(-1)
        & (position >= -1)
        & (position <= last_cell + 1)
    )
    share = used / (output_size * per_bin)

    position = torch.minimum(position.clamp(min=0), last_cell)
    low = position.floor()
    high = torch.minimum(low + 1, last_cell)
    fraction = position - low
    weights = boxes.new_zeros(len(boxes), 2, max(grid_size))
    weights.scatter_add_(2, low.long(), share * (1 - fraction))
    weights.scatter_add_(2, high.long(), share * fraction)
    return weights[:, 1, :height], weights[:, 0, :width]


def pool_regions_reference(
    values: Tensor,
    boxes: Tensor,
    *,
    output_size: int,
    aligned: bool,
    sampling_ratio: int,
    upsampled_size: tuple[int, int] | None = None,
) -> Tensor:
    """Return what `pool_regions` computes, as the paper and the release do: resize, RoIAlign, mean.

    Takes and returns the same; its memory grows with the upsampled map.

    Args:
        values: float[C, h, w] of one image.
        boxes: float[N, 4] xyxy in cells of the sampled grid.
        output_size: Bins per side.
        aligned: As in torchvision's `roi_align`.
        sampling_ratio: As in torchvision's `roi_align`.
        upsampled_size: (H, W) that the map is resized to; None for its own.
    """
    values = values.unsqueeze(0)
    values = values if values.dtype == torch.float64 else values.float()
    if upsampled_size is not None:
        values = F.interpolate(values, size=upsampled_size, mode="bilinear", align_corners=False)
    bins = roi_align(
        values,
        [boxes.to(values.dtype)],
        output_size=output_size,
        spatial_scale=1.0,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    return bins.mean(dim=(2, 3))
