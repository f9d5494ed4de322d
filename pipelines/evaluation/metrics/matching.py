"""One-to-one pairing of boxes by their overlap (`pipelines.boxes.iou_matrix`)."""

from __future__ import annotations

import numpy as np


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
