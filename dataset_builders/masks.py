"""Boxes of COCO segmentations: polygons, and run lengths plain or packed into text.

The codes are those of https://github.com/cocodataset/cocoapi (common/maskApi.c), read here without
its C library, which trusts what it is given: a mask of height 0 divides by zero there.
"""

from typing import Any

import numpy as np

from dataset_builders.box_checks import MAX_COORDINATE, get, whole_number
from dataset_builders.records import BadRecord

_MAX_RUN_BITS = 40
"""Most bits of a run length; a longer one is garbage."""


def segmentation_box(
    segmentation: Any, width: int, height: int
) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of a segmentation in pixels of its image, not clipped.

    Of run lengths the box is that of the pixels: whole numbers, the far edges included.

    Args:
        segmentation: A list of polygons [x1, y1, x2, y2, ...] in pixels, or {size: [height, width],
            counts} with counts a list of run lengths or their packed text.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Raises:
        BadRecord: The reason is malformed, not_finite_box, size_mismatch or empty_box.
    """
    if isinstance(segmentation, list):
        return _polygon_box(segmentation)
    counts, size = get(segmentation, "counts"), get(segmentation, "size")
    if not isinstance(size, list) or len(size) != 2:
        raise BadRecord("malformed", f"size of a mask is {str(size)[:80]!r}")
    if [whole_number(side, what="size of a mask") for side in size] != [height, width]:
        raise BadRecord(
            "size_mismatch", f"mask of size {size}, image of height {height}, width {width}"
        )
    runs = np.array(_unpacked(counts) if isinstance(counts, str) else _plain(counts), np.int64)
    if runs.sum() != width * height:
        raise BadRecord("malformed", f"run lengths add up to {runs.sum()}, not to {width}x{height}")
    return _run_box(runs, height)


def _polygon_box(polygons: list[Any]) -> tuple[float, float, float, float]:
    if not polygons:
        raise BadRecord("empty_box", "a segmentation without polygons")
    points = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise BadRecord(
                "malformed", f"polygon {str(polygon)[:80]!r} is not three points or more"
            )
        if not all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in polygon
        ):
            raise BadRecord(
                "malformed", f"polygon {str(polygon)[:80]!r} holds something else than numbers"
            )
        if not all(abs(value) <= MAX_COORDINATE for value in polygon):  # NaN is not below anything
            raise BadRecord("not_finite_box", f"polygon {str(polygon)[:80]}")
        points.append(np.array(polygon, np.float64).reshape(-1, 2))
    corners = np.concatenate(points)
    (x1, y1), (x2, y2) = corners.min(0).tolist(), corners.max(0).tolist()
    return x1, y1, x2, y2


def _plain(counts: Any) -> list[int]:
    if not isinstance(counts, list):
        raise BadRecord("malformed", f"counts of a mask are {type(counts).__name__}")
    runs = [whole_number(count, what="run length") for count in counts]
    if any(not 0 <= run < 1 << _MAX_RUN_BITS for run in runs):
        raise BadRecord("malformed", "a run length is negative or absurd")
    return runs


def _unpacked(text: str) -> list[int]:
    """Return run lengths from their packed text.

    A character holds five bits from "0" on; its sixth says that more follow, and the fifth of the
    last one is the sign. From the fourth number on the difference to the one two before is stored.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > _MAX_RUN_BITS:
            raise BadRecord("malformed", f"{character!a} in the packed run lengths of a mask")
        number |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
        if not 0 <= runs[-1] < 1 << _MAX_RUN_BITS:
            raise BadRecord("malformed", "a packed run length of a mask is negative or absurd")
    if shift:
        raise BadRecord("malformed", "packed run lengths of a mask break off")
    return runs


def _run_box(runs: np.ndarray, height: int) -> tuple[float, float, float, float]:
    """Return the box of the odd runs: they are the mask, the even ones what lies between.

    Args:
        runs: int64[N] run lengths, column after column from the left, each from the top.
        height: Height of a column in pixels.
    """
    ends = runs.cumsum()
    starts = ends - runs
    starts, ends = starts[1::2], ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        raise BadRecord("empty_box", "a mask without any pixel")
    first, last = starts // height, (ends - 1) // height
    # a run that goes on in the next column touches bottom and top
    across = bool((last > first).any())
    top = 0 if across else int((starts % height).min())
    bottom = height if across else int(((ends - 1) % height).max()) + 1
    return float(first.min()), float(top), float(last.max() + 1), float(bottom)
