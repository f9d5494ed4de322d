"""Boxes: the one convention and the pure functions over it.

A box is `(x0, y0, x1, y1)`: absolute pixels of the original image, float32, x to the right and y
down, `x0 <= x1` and `y0 <= y1`. Every function returns a new tensor; none writes into its
arguments.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from fo1_model.errors import SettingError

_MAX_PERIOD = 10000.0


def check_boxes(boxes: np.ndarray, size: tuple[int, int], sample_id: str = "") -> np.ndarray:
    """Return a copy, float32[N, 4], clamped to the image; none is dropped, moved or reordered.

    Args:
        boxes: Numbers of shape (N, 4), xyxy in pixels; N may be 0.
        size: (width, height) of the image, pixels.
        sample_id: Name of the sample in errors.

    Raises:
        SettingError: When the shape is wrong, a coordinate is not finite or a box is inverted.
    """
    # A copy even where nothing changes: the release writes into its caller's boxes.
    boxes = np.array(boxes, dtype=np.float32, copy=True)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise SettingError(f"sample {sample_id!r} has boxes of shape {boxes.shape}, not (N, 4)")
    for row, box in enumerate(boxes):
        if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise SettingError(
                f"sample {sample_id!r} has a bad box {row}: {box.tolist()} "
                "(xyxy, finite, not inverted)"
            )
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[0])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[1])
    return boxes


def clip(boxes: Tensor, width: float, height: float) -> Tensor:
    """Return boxes cut to the image; float[N, 4] xyxy in pixels of a `width` x `height` image."""
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def scale(boxes: Tensor, factor_x: float, factor_y: float) -> Tensor:
    """Return boxes in another frame: x times `factor_x`, y times `factor_y`; float[N, 4] xyxy."""
    return boxes * boxes.new_tensor([factor_x, factor_y, factor_x, factor_y])


def area(boxes: Tensor) -> Tensor:
    """Return the area of each box in square pixels, float[N]; a reversed box has area 0."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return intersection over union, float[N, M]; empty boxes give 0.

    Args:
        boxes_a: float[N, 4], xyxy.
        boxes_b: float[M, 4], xyxy in the same frame.
    """
    # torchvision divides 0 by 0 for two empty boxes.
    return box_iou(boxes_a, boxes_b).nan_to_num(nan=0.0)


def to_center_size(boxes: Tensor) -> Tensor:
    """Return xyxy boxes as (center x, center y, width, height), float[N, 4]."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def to_corners(boxes: Tensor) -> Tensor:
    """Return (center x, center y, width, height) as xyxy boxes, float[N, 4]."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def embed(boxes: Tensor, dim: int) -> Tensor:
    """Return the sine-cosine embedding of boxes.

    Source: paper 3.1 (a sine embedding), release (order of the blocks, frequencies).

    Args:
        boxes: float[N, 4] xyxy divided by the sides of their frame, so that the whole image is
            (0, 0, 1, 1).
        dim: Width of the result, a multiple of 4.

    Returns:
        float[N, dim]: four blocks of dim/4 entries for center y, center x, width, height. Entry k
        of the block of v is the sine (even k) or the cosine (odd k) of 2 pi v / 10000^(2 floor(k/2)
        / (dim/4)).

    Raises:
        ValueError: When `dim` is not a multiple of 4.
    """
    if dim % 4 != 0:
        raise ValueError(f"dim={dim} must be a multiple of 4, one block a coordinate")
    width = dim // 4
    center_x, center_y, box_width, box_height = to_center_size(boxes).unbind(dim=1)
    # y before x is the release's order; a model trained with it knows no other.
    values = torch.stack([center_y, center_x, box_width, box_height], dim=1)
    return sine_embedding(values, width, _MAX_PERIOD)


def sine_embedding(values: Tensor, width: int, temperature: float) -> Tensor:
    """Return the sine-cosine embedding of shares.

    Args:
        values: float[..., N] in [0, 1].
        width: Entries of one value.
        temperature: Longest period over the shortest.

    Returns:
        float[..., N * width]: entry k of a value v is the sine (even k) or cosine (odd k) of
        2 pi v / temperature^(2 floor(k/2) / width).
    """
    index = torch.arange(width, device=values.device)
    frequencies = temperature ** (2 * (index // 2).to(values.dtype) / width)
    angles = (values * (2 * math.pi)).unsqueeze(-1) / frequencies
    return torch.where(index % 2 == 0, angles.sin(), angles.cos()).flatten(-2)
