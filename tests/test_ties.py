"""The comparisons of `tests.ties` accept near ties in any order, and nothing else."""

import numpy as np
import pytest

from fo1_model.detectors import Detections
from tests.ties import Said, assert_same_detections, assert_same_tokens

BOXES = np.array([[0, 0, 10, 10], [5, 5, 30, 30], [40, 0, 60, 20], [1, 2, 3, 9]], np.float32)
SCORES = np.array([0.9, 0.5, 0.5 - 1e-7, 0.2], np.float32)
MANY = Detections(boxes=BOXES, scores=SCORES)


def taken(order: list[int], scores: np.ndarray = SCORES) -> Detections:
    return Detections(boxes=BOXES[order], scores=scores[: len(order)])


def test_near_ties_may_come_in_any_order() -> None:
    assert_same_detections(taken([0, 2, 1, 3]), MANY)
    assert_same_detections(MANY, MANY)
    moved = Detections(boxes=BOXES + np.float32(1e-3), scores=SCORES + np.float32(5e-6))
    assert_same_detections(moved, MANY)
    nothing = Detections(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32))
    assert_same_detections(nothing, nothing)
    assert_same_detections(MANY, nothing, best_only=True)


def test_an_end_among_near_ties_may_keep_either() -> None:
    for kept in ([0, 1], [0, 2]):
        assert_same_detections(MANY, taken(kept), best_only=True)
    with pytest.raises(AssertionError):
        assert_same_detections(MANY, taken([0, 3]), best_only=True)


@pytest.mark.parametrize(
    "found",
    [
        taken([1, 0, 2, 3]),  # boxes of clearly different scores changed places
        taken([0, 1, 1, 3]),  # one box twice, another not at all
        taken([0, 1, 2]),
        Detections(boxes=BOXES + np.float32(0.01), scores=SCORES),
        Detections(boxes=BOXES, scores=SCORES + np.float32(1e-3)),
        Detections(boxes=BOXES[::-1], scores=SCORES[::-1]),  # worst first
    ],
)
def test_anything_else_is_seen(found: Detections) -> None:
    with pytest.raises(AssertionError):
        assert_same_detections(found, MANY)
    with pytest.raises(AssertionError):
        assert_same_detections(MANY, found)


def test_tokens_are_compared_up_to_the_first_tie() -> None:
    sure = Said(tokens=[4, 7, 2], margins=[1.0, 1.0, 1.0])
    assert_same_tokens([4, 7, 2], sure)
    for wrong in ([5, 7, 2], [4, 7], [4, 7, 2, 2]):
        with pytest.raises(AssertionError):
            assert_same_tokens(wrong, sure)
    assert_same_tokens([4, 9, 9, 9], Said(tokens=[4, 7, 2], margins=[1.0, 1e-6, 1.0]))
    with pytest.raises(AssertionError):
        assert_same_tokens([3, 7, 2], Said(tokens=[4, 7, 2], margins=[1.0, 1e-6, 1.0]))
    with pytest.raises(AssertionError, match="tie"):
        assert_same_tokens([4], Said(tokens=[5], margins=[0.0]))
