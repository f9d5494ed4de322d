"""Boxes: the one convention and the pure functions over it.

A box is `(x0, y0, x1, y1)`: absolute pixels of the original image, float32, x to the right and y down, `x0 <=
x1` and `y0 <= y1`. Every function returns a new tensor; none writes into its arguments.
"""

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou

_MAX_PERIOD = 10000.0


def clip(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes cut to the image; float[N, 4] xyxy in pixels of a `width` x `height` image."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def scale(boxes: Tensor, factor_x: float, factor_y: float) -> Tensor:
    """Boxes in another frame: x times `factor_x`, y times `factor_y`; float[N, 4] xyxy."""
    return boxes * boxes.new_tensor([factor_x, factor_y, factor_x, factor_y])


def area(boxes: Tensor) -> Tensor:
    """Area of each box in square pixels, float[N]; a reversed box has area 0."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union, float[N, M], of float[N, 4] and float[M, 4] xyxy boxes; empty boxes give 0."""
    return box_iou(boxes_a, boxes_b).nan_to_num(nan=0.0)


def to_center_size(boxes: Tensor) -> Tensor:
    """xyxy to (center x, center y, width, height), float[N, 4]."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def to_corners(boxes: Tensor) -> Tensor:
    """(center x, center y, width, height) to xyxy, float[N, 4]."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def embed(boxes: Tensor, dim: int) -> Tensor:
    """Sine-cosine embedding of boxes.

    boxes: float[N, 4] xyxy divided by the sides of their frame, so that the whole image is (0, 0, 1, 1).
    dim: width of the result, a multiple of 4.

    Returns float[N, dim]: four blocks of dim/4 entries for center y, center x, width, height. Entry k of the
    block of v is the sine (even k) or the cosine (odd k) of 2 pi v / 10000^(2 floor(k/2) / (dim/4)).

    Raises ValueError when `dim` is not a multiple of 4.
    Source: paper 3.1 (a sine embedding), release (order of the blocks, frequencies).
    """
    if dim % 4 != 0:
        raise ValueError(f"dim={dim} must be a multiple of 4, one block a coordinate")
    width = dim // 4
    center_x, center_y, box_width, box_height = to_center_size(boxes).unbind(dim=1)
    values = torch.stack([center_y, center_x, box_width, box_height], dim=1)
    return sine_embedding(values, width, _MAX_PERIOD)


def sine_embedding(values: Tensor, width: int, temperature: float) -> Tensor:
    """Sine-cosine embedding of shares.

    values: float[..., N] in [0, 1]. width: entries a value.

    Returns float[..., N * width]: entry k of a value v is the sine (even k) or cosine (odd k) of
    2 pi v / temperature^(2 floor(k/2) / width).
    """
    index = torch.arange(width, device=values.device)
    frequencies = temperature ** (2 * (index // 2).to(values.dtype) / width)
    angles = (values * (2 * math.pi)).unsqueeze(-1) / frequencies
    return torch.where(index % 2 == 0, angles.sin(), angles.cos()).flatten(-2)
