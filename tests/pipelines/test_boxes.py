"""Geometry of boxes: by hand, by counting cells, and as pycocotools has it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from pipelines.boxes import area, clip, intersection, iou_matrix


def as_boxes(rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_iou_by_hand() -> None:
    left = as_boxes([[0, 0, 10, 10]])
    right = as_boxes([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10], [4, 4, 4, 9]])
    np.testing.assert_allclose(iou_matrix(left, right), [[1 / 3, 0, 1, 0]])
    np.testing.assert_allclose(iou_matrix(left, right, others_are_crowds=True), [[0.5, 0, 1, 0]])


def test_a_box_without_area_overlaps_nothing() -> None:
    flat = as_boxes([[3, 3, 3, 9], [3, 3, 3, 3], [5, 5, 2, 9]])
    np.testing.assert_array_equal(area(flat), np.zeros(3))
    np.testing.assert_array_equal(iou_matrix(flat, flat), np.zeros((3, 3)))
    np.testing.assert_array_equal(iou_matrix(flat, flat, others_are_crowds=True), np.zeros((3, 3)))


def slow_iou(a, b):
    """Count the unit cells of integer boxes: no formula shared with the code under test."""
    cells_a = set(itertools.product(range(a[0], a[2]), range(a[1], a[3])))
    cells_b = set(itertools.product(range(b[0], b[2]), range(b[1], b[3])))
    return len(cells_a & cells_b) / len(cells_a | cells_b), len(cells_a & cells_b) / len(cells_a)


integer_boxes = st.tuples(
    st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(integer_boxes, max_size=5), st.lists(integer_boxes, max_size=5))
@settings(max_examples=60, deadline=None)
def test_iou_agrees_with_counting_cells(first, second):
    plain = iou_matrix(as_boxes(first), as_boxes(second))
    crowds = iou_matrix(as_boxes(first), as_boxes(second), others_are_crowds=True)
    assert plain.shape == (len(first), len(second))
    for i, j in itertools.product(range(len(first)), range(len(second))):
        iou, inside = slow_iou(first[i], second[j])
        assert plain[i, j] == pytest.approx(iou)
        assert crowds[i, j] == pytest.approx(inside)


sixteenths = st.integers(0, 16 * 2000).map(lambda value: value / 16)
coordinates = st.one_of(sixteenths, st.floats(0, 2000, width=32))


def ordered(values: tuple[float, float, float, float]) -> tuple[float, ...]:
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def pycocotools_iou(boxes: np.ndarray, others: np.ndarray, crowds: bool) -> np.ndarray:
    first, second = (
        np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1).astype(np.float64)
        for b in (boxes, others)
    )
    return np.asarray(mask.iou(first, second, [int(crowds)] * len(others)))


@given(
    st.lists(st.tuples(*[sixteenths] * 4).map(ordered), min_size=1, max_size=5),
    st.lists(st.tuples(*[sixteenths] * 4).map(ordered), min_size=1, max_size=5),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_iou_is_that_of_pycocotools_to_the_last_bit(first, second, crowds) -> None:
    """On a grid of 1/16 px, where a side is the same number in float32 and float64."""
    boxes, others = as_boxes(first), as_boxes(second)
    boxes, others = boxes[area(boxes) > 0], others[area(others) > 0]
    if len(boxes) and len(others):  # pycocotools knows no empty list
        np.testing.assert_array_equal(
            iou_matrix(boxes, others, others_are_crowds=crowds),
            pycocotools_iou(boxes, others, crowds),
        )


@given(st.lists(st.tuples(*[coordinates] * 4), max_size=6))
@settings(max_examples=60, deadline=None)
def test_iou_is_symmetric_bounded_and_leaves_its_arguments_alone(rows) -> None:
    boxes = as_boxes([ordered(row) for row in rows])
    before = boxes.copy()
    overlap = iou_matrix(boxes, boxes)
    np.testing.assert_array_equal(boxes, before)
    np.testing.assert_array_equal(overlap, overlap.T)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert (np.diag(overlap) == (area(boxes) > 0)).all()
    assert (intersection(boxes, boxes) <= area(boxes)[:, None]).all()


@given(st.lists(st.tuples(*[st.integers(-20, 120)] * 4), max_size=6))
def test_clip_gives_a_new_array_inside_the_frame(rows) -> None:
    boxes = as_boxes(rows)
    before = boxes.copy()
    inside = clip(boxes, (10, 20, 100, 80))
    np.testing.assert_array_equal(boxes, before)
    assert inside.dtype == np.float32
    assert ((inside >= [10, 20, 10, 20]) & (inside <= [100, 80, 100, 80])).all()
    np.testing.assert_array_equal(clip(inside, (10, 20, 100, 80)), inside)
