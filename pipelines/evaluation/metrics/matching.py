"""Overlap of boxes and one-to-one pairing by it. Boxes are xyxy, pixels, float32[N, 4]."""

from __future__ import annotations

import numpy as np
from pycocotools import mask


def iou_matrix(
    boxes: np.ndarray, others: np.ndarray, *, others_are_crowds: bool = False
) -> np.ndarray:
    """Compute IoU as float64[N, M] of float32[N, 4] and float32[M, 4], xyxy.

    Against a crowd the denominator is the area of the first box alone, as COCO defines it.
    """
    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    first, second = (
        np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1).astype(np.float64)
        for b in (boxes, others)
    )
    return np.asarray(mask.iou(first, second, [int(others_are_crowds)] * len(others)))


def greedy_pairs(overlap: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pair rows and columns one to one, largest overlap first, ties by row, then column.

    Args:
        overlap: float64[N, M], e.g. of `iou_matrix`.
        threshold: Least overlap of a pair; included.

    Returns:
        (row, column) of each pair, in the order in which they were taken.
    """
    rows, columns = np.nonzero(overlap >= threshold)
    order = sorted(
        zip(rows.tolist(), columns.tolist(), strict=True), key=lambda rc: (-overlap[rc], *rc)
    )
    pairs: list[tuple[int, int]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    # Greedy, not the best sum of overlaps: one pair then never depends on boxes that overlap less.
    for row, column in order:
        if row not in used_rows and column not in used_columns:
            pairs.append((row, column))
            used_rows.add(row)
            used_columns.add(column)
    return pairs
