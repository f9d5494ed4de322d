import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fo1_model import boxes as box_ops

BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [4.0, 1.0, 4.0, 5.0]])

coordinates = st.floats(0, 1000, width=32)


@pytest.mark.parametrize(
    "call",
    [
        lambda boxes: box_ops.clip(boxes, 2, 2),
        lambda boxes: box_ops.scale(boxes, 2, 3),
        lambda boxes: box_ops.scale(boxes, 1, 1),
        box_ops.area,
        lambda boxes: box_ops.iou(boxes, boxes),
        box_ops.to_center_size,
        box_ops.to_corners,
        lambda boxes: box_ops.embed(boxes, 16),
    ],
)
def test_no_function_writes_into_its_argument(call) -> None:
    boxes = BOXES.clone()
    result = call(boxes)
    result.fill_(-7)  # nor hands out the argument's memory
    assert torch.equal(boxes, BOXES)


def test_clip_by_hand() -> None:
    boxes = torch.tensor([[-3.0, 2.0, 12.0, 30.0], [11.0, 21.0, 15.0, 25.0]])
    expected = torch.tensor([[0.0, 2.0, 10.0, 20.0], [10.0, 20.0, 10.0, 20.0]])
    assert torch.equal(box_ops.clip(boxes, 10, 20), expected)


def test_scale_and_area_by_hand() -> None:
    assert box_ops.scale(BOXES[1:2], 2, 10).tolist() == [[2, 10, 6, 30]]
    assert box_ops.area(torch.tensor([[1.0, 2.0, 4.0, 8.0], [4.0, 2.0, 1.0, 8.0]])).tolist() == [
        18,
        0,
    ]


def test_iou_by_hand() -> None:
    expected = torch.tensor([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(box_ops.iou(BOXES, BOXES), expected)


def test_center_size_by_hand() -> None:
    assert box_ops.to_center_size(torch.tensor([[1.0, 2.0, 5.0, 10.0]])).tolist() == [[3, 6, 4, 8]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1, max_size=5)
)
def test_corners_and_center_size_are_inverse(rows) -> None:
    boxes = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(box_ops.to_corners(box_ops.to_center_size(boxes)), boxes)


def test_embedding_by_hand() -> None:
    # Center (0.25, 0.5), size (0.5, 0.125): angles pi/2, pi, pi, pi/4; frequencies 1, 1, 100, 100.
    box = torch.tensor([[0.0, 0.4375, 0.5, 0.5625]], dtype=torch.float64)
    expected = []
    for angle in (math.pi, math.pi / 2, math.pi, math.pi / 4):  # cy, cx, w, h
        expected += [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]
    torch.testing.assert_close(
        box_ops.embed(box, 16), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_embedding_of_no_boxes_and_of_an_empty_box() -> None:
    assert box_ops.embed(torch.zeros(0, 4), 8).shape == (0, 8)
    assert torch.isfinite(box_ops.embed(torch.zeros(1, 4), 8)).all()


def test_embedding_width_must_be_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="dim=10"):
        box_ops.embed(BOXES, 10)
