"""Boxes as arrays: areas, overlaps and clipping. Pure.

Boxes are xyxy in pixels of the original image. They are stored as float32; areas and overlaps are
computed in float64, so that a threshold means the same for small and for large boxes.
"""

from __future__ import annotations

import numpy as np

Frame = tuple[float, float, float, float]
"""The image, (0, 0, width, height), or a window into it: xyxy in pixels of the original image."""


def area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas, float64[N] in square px, of boxes[N, 4]; 0 for an inverted box."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the area that each box shares with each of the others.

    Args:
        boxes: float[N, 4], xyxy px.
        others: float[M, 4], xyxy px.

    Returns:
        float64[N, M], in square px.
    """
    low = np.maximum(boxes[:, None, :2].astype(np.float64), others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:].astype(np.float64), others[None, :, 2:])
    return np.maximum(high - low, 0.0).prod(2)


def iou_matrix(
    boxes: np.ndarray, others: np.ndarray, *, others_are_crowds: bool = False
) -> np.ndarray:
    """Return intersection over union of each box with each of the others.

    Args:
        boxes: float[N, 4], xyxy px.
        others: float[M, 4], xyxy px.
        others_are_crowds: Divide by the area of the first box alone, as COCO defines the overlap
            with a crowd: a person in front of one lies in it wholly.

    Returns:
        float64[N, M], 0 to 1; 0 where there is nothing to divide by.
    """
    shared = intersection(boxes, others)
    whole = np.broadcast_to(area(boxes)[:, None], shared.shape)
    if not others_are_crowds:
        whole = whole + area(others)[None] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def clip(boxes: np.ndarray, frame: Frame) -> np.ndarray:
    """Return new boxes, float32[N, 4], cut at the frame's borders."""
    low, high = np.array(frame[:2] * 2, np.float32), np.array(frame[2:] * 2, np.float32)
    return np.clip(boxes, low, high).astype(np.float32)
