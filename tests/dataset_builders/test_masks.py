from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from dataset_builders.masks import segmentation_box
from dataset_builders.records import BadRecord


def test_polygons() -> None:
    triangle, other = [2, 3, 10.5, 4, 5, 20], [30, 1, 31, 2, 30, 2]
    assert segmentation_box([triangle], 100, 80) == (2.0, 3.0, 10.5, 20.0)
    assert segmentation_box([triangle, other], 100, 80) == (2.0, 1.0, 31.0, 20.0)


def test_run_lengths_by_hand() -> None:
    # 4 high, 3 wide, column after column: 5 off, 2 on (rows 1 and 2 of column 1), 5 off
    assert segmentation_box({"size": [4, 3], "counts": [5, 2, 5]}, 3, 4) == (1.0, 1.0, 2.0, 3.0)
    # 3 off, 3 on: the last row of column 0 and the first two of column 1, so the full height
    assert segmentation_box({"size": [4, 3], "counts": [3, 3, 6]}, 3, 4) == (0.0, 0.0, 2.0, 4.0)
    assert segmentation_box({"size": [4, 3], "counts": [0, 12]}, 3, 4) == (0.0, 0.0, 3.0, 4.0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_same_box_as_cocoapi(height: int, width: int, share: float, seed: int, blob: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    if blob:  # long runs, whose packed form has numbers of several characters
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + 1 + rng.integers(height), left : left + 1 + rng.integers(width)] = 1
    else:
        mask[rng.random((height, width)) < share] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [height, width], "counts": packed["counts"].decode()}
    flat = mask.flatten(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    counts = ([0] if flat[0] else []) + np.diff(edges).tolist()
    for segmentation in (text, {"size": [height, width], "counts": counts}):
        if not mask.any():
            with pytest.raises(BadRecord) as raised:
                segmentation_box(segmentation, width, height)
            assert raised.value.reason == "empty_box"
            continue
        x, y, w, h = coco_mask.toBbox(packed).tolist()
        assert segmentation_box(segmentation, width, height) == (x, y, x + w, y + h)


def test_a_big_mask_from_cocoapi() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[2990:, 1999] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    segmentation = {"size": [3000, 2000], "counts": packed["counts"].decode()}
    assert segmentation_box(segmentation, 2000, 3000) == (1999.0, 2990.0, 2000.0, 3000.0)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "malformed"),
        ("", "malformed"),
        ([], "empty_box"),
        ([[]], "malformed"),
        ([[1, 2, 3, 4]], "malformed"),
        ([[1, 2, 3, 4, 5, 6, 7]], "malformed"),
        ([1, 2, 3, 4, 5, 6], "malformed"),
        ([[1, 2, 3, 4, 5, "6"]], "malformed"),
        ([[1, 2, 3, 4, 5, True]], "malformed"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not_finite_box"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not_finite_box"),
        ([[1, 2, 3, 4, 5, 10**400]], "not_finite_box"),
        ({"size": [4, 3]}, "malformed"),
        ({"counts": [12]}, "malformed"),
        ({"size": [3, 4], "counts": [12]}, "size_mismatch"),
        ({"size": [0, 3], "counts": [0]}, "size_mismatch"),
        ({"size": [4, "3"], "counts": [12]}, "malformed"),
        ({"size": [4, 3], "counts": [12]}, "empty_box"),
        ({"size": [4, 3], "counts": [13]}, "malformed"),
        ({"size": [4, 3], "counts": [-1, 13]}, "malformed"),
        ({"size": [4, 3], "counts": [1.5, 10.5]}, "malformed"),
        ({"size": [4, 3], "counts": [10**30]}, "malformed"),
        ({"size": [4, 3], "counts": []}, "malformed"),
        ({"size": [4, 3], "counts": ""}, "malformed"),
        ({"size": [4, 3], "counts": b"<"}, "malformed"),
        ({"size": [4, 3], "counts": "\x00"}, "malformed"),
        ({"size": [4, 3], "counts": "oooooooooooooooooo"}, "malformed"),
        ({"size": [4, 3], "counts": "o"}, "malformed"),
        ({"size": [4, 3], "counts": "O"}, "malformed"),
    ],
)
def test_bad_segmentations(segmentation: Any, reason: str) -> None:
    with pytest.raises(BadRecord) as raised:
        segmentation_box(segmentation, 3, 4)
    assert raised.value.reason == reason
