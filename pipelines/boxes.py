"""Boxes as arrays: areas, overlaps and clipping. Boxes are xyxy in pixels of the original image."""

from __future__ import annotations

import numpy as np

Frame = tuple[float, float, float, float]
"""The image, (0, 0, width, height), or a window into it: xyxy in pixels of the original image."""


def area(boxes: np.ndarray) -> np.ndarray:
    """float64[N]: areas of xyxy boxes[N, 4] in square px; 0 for an inverted one."""
    sides = np.maximum(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def intersection(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64[A, B]: area that each box of left[A, 4] shares with each of right[B, 4], in square px."""
    low = np.maximum(left[:, None, :2].astype(np.float64), right[None, :, :2])
    high = np.minimum(left[:, None, 2:].astype(np.float64), right[None, :, 2:])
    return np.maximum(high - low, 0.0).prod(2)


def iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64[A, B]: intersection over union of left[A, 4] and right[B, 4]; 0 where the union is empty."""
    shared = intersection(left, right)
    union = area(left)[:, None] + area(right)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def clip(boxes: np.ndarray, frame: Frame) -> np.ndarray:
    """New float32[N, 4]: boxes cut at the frame's borders."""
    low, high = np.array(frame[:2] * 2, np.float32), np.array(frame[2:] * 2, np.float32)
    return np.clip(boxes, low, high).astype(np.float32)
