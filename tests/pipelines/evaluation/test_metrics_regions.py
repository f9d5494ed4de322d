import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Answer, Case, Target, as_boxes
from pipelines.evaluation.metrics.matching import greedy_pairs
from pipelines.evaluation.metrics.regions import (
    absent_false_positives,
    count_by_phrase,
    exact_match,
    region_f1,
    rejection_accuracy,
    valid_answer_rate,
)

# A row of unit-free boxes 10 wide: box k starts at x = 20 k, so different boxes are disjoint.
BOXES = as_boxes([[20 * k, 0, 20 * k + 10, 10] for k in range(6)])


def target(text, regions=(), boxes=None):
    return Target(
        text=text,
        regions=tuple(regions),
        boxes=BOXES[list(regions)] if boxes is None else as_boxes(boxes),
    )


def answer(text, regions=(), boxes=None):
    rows = BOXES[list(regions)] if boxes is None else as_boxes(boxes)
    return Answer(
        text=text, regions=tuple(regions), boxes=rows, scores=np.ones(len(rows), np.float32)
    )


def case(targets=(), answers=(), **changes):
    values = {
        "sample_id": "s",
        "image_id": "i",
        "task": "detection",
        "text": "",
        "reference": "",
    } | changes
    return Case(targets=tuple(targets), answers=tuple(answers), **values)


def test_f1_by_hand():
    right = case([target("cat", [0, 1])], [answer("cat", [0, 1])])  # 2 hits of 2 chosen, 2 true
    half = case([target("cat", [0, 1])], [answer("cat", [1, 2])])  # 1 hit of 2 chosen, 2 true
    wrong_name = case([target("cat", [0])], [answer("dog", [0])])  # 0 hits of 1 chosen, 1 true
    found = region_f1([right, half, wrong_name])
    assert found == pytest.approx({"precision": 3 / 5, "recall": 3 / 5, "f1": 3 / 5})


def test_f1_charges_a_second_box_on_one_object_and_a_true_box_without_proposal():
    twice = case(
        [target("cat", boxes=[[0, 0, 10, 10]])],
        [answer("cat", boxes=[[0, 0, 10, 10], [0, 0, 10, 9]], regions=(0, 1))],
    )
    assert region_f1([twice]) == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3})
    uncovered = case(
        [target("cat", boxes=[[0, 0, 10, 10], [90, 90, 99, 99]])], [answer("cat", [0])]
    )
    assert region_f1([uncovered]) == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3})


def test_f1_threshold_is_inclusive():
    # Intersection 50, union 100: IoU exactly 0.5.
    exactly = case(
        [target("cat", boxes=[[0, 0, 10, 10]])],
        [answer("cat", boxes=[[0, 0, 10, 5]], regions=(0,))],
    )
    below = case(
        [target("cat", boxes=[[0, 0, 10, 10]])],
        [answer("cat", boxes=[[0, 0, 10, 4.9]], regions=(0,))],
    )
    assert region_f1([exactly])["f1"] == 1.0
    assert region_f1([below])["f1"] == 0.0


def test_f1_leaves_boxes_inside_a_crowd_aside():
    crowd = {"cat": as_boxes([[0, 0, 100, 100]])}
    inside = [[50, 50, 60, 60]]  # tiny beside the crowd: IoU 0.01, but all of it lies within
    said = [answer("cat", boxes=[*inside, [200, 200, 210, 210]], regions=(0, 1))]
    counts = count_by_phrase(
        case([target("cat", boxes=[[200, 200, 210, 210]])], said, ignored=crowd)
    )
    assert counts == {"cat": (1, 1, 1)}
    other_name = case([], [answer("dog", boxes=inside, regions=(0,))], ignored=crowd)
    assert count_by_phrase(other_name) == {"dog": (0, 1, 0)}


def test_f1_without_anything_to_choose_is_no_metric():
    assert region_f1([case([], [])]) == {}
    assert region_f1([case([target("cat", [0])], [])])["f1"] == 0.0


def test_exact_match_compares_sets_per_phrase():
    true = [target("cat", [0, 1]), target("dog", [2])]
    assert exact_match([case(true, [answer("dog", [2]), answer("cat", [0, 1])])]) == 1.0
    assert exact_match([case(true, [answer("cat", [0, 1])])]) == 0.0
    assert exact_match([case(true, [answer("cat", [0, 2]), answer("dog", [1])])]) == 0.0
    assert (
        exact_match(
            [case(true, [answer("cat", [0, 1]), answer("dog", [2])], problem="unknown region")]
        )
        == 0.0
    )
    assert exact_match([case([], []), case([], [answer("cat", [0])])]) == 0.5
    assert exact_match([case(task="region_name")]) is None


def test_rejection_needs_a_readable_answer_without_regions():
    none = case([], [], task="rejection", text="None")
    empty_group = case([], [answer("cat", [])], task="rejection")
    named = case([], [answer("cat", [3])], task="rejection")
    broken = case([], [], task="rejection", problem="unbalanced tags")
    present = case([target("cat", [0])], [])
    assert rejection_accuracy([none, empty_group, named, broken, present]) == 0.5
    assert rejection_accuracy([present]) is None


def test_absent_false_positives_count_names_of_mixed_questions():
    asked = ("cat", "dog", "cow")
    one_of_two = case([target("cat", [0])], [answer("cat", [0]), answer("dog", [1])], asked=asked)
    none_of_two = case([target("cat", [0])], [answer("cat", [1])], asked=asked)
    nothing_present = case(
        [], [answer("cat", [0])], asked=asked
    )  # rejection_accuracy is about this one
    unknown_names = case([target("cat", [0])], [answer("dog", [0])])
    assert absent_false_positives([one_of_two, none_of_two, nothing_present, unknown_names]) == 0.25
    assert absent_false_positives([unknown_names]) is None
    crowd = {"dog": as_boxes([[0, 0, 9, 9]])}  # a crowd of dogs: not absent
    assert (
        absent_false_positives(
            [case([target("cat", [0])], [], asked=("cat", "dog"), ignored=crowd)]
        )
        is None
    )


def test_valid_answer_rate():
    assert valid_answer_rate([case(), case(problem="x"), case(), case()]) == 0.75
    assert valid_answer_rate([]) is None


integer_boxes = st.tuples(
    st.integers(0, 6), st.integers(0, 6), st.integers(1, 6), st.integers(1, 6)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def test_pairs_take_the_best_overlap_first():
    overlap = np.array([[0.6, 0.7], [0.9, 0.8]])
    assert greedy_pairs(overlap, 0.5) == [(1, 0), (0, 1)]
    assert greedy_pairs(overlap, 0.75) == [(1, 0)]
    assert greedy_pairs(np.array([[0.5, 0.5], [0.5, 0.5]]), 0.5) == [(0, 0), (1, 1)]
    assert greedy_pairs(np.zeros((0, 3)), 0.5) == []


@given(st.lists(integer_boxes, max_size=6), st.lists(integer_boxes, max_size=6))
@settings(max_examples=60, deadline=None)
def test_pairs_are_one_to_one_maximal_and_over_the_threshold(first, second):
    overlap = iou_matrix(as_boxes(first), as_boxes(second))
    pairs = greedy_pairs(overlap, 0.5)
    rows, columns = {r for r, _ in pairs}, {c for _, c in pairs}
    assert len(rows) == len(columns) == len(pairs)
    assert all(overlap[pair] >= 0.5 for pair in pairs)
    free = np.delete(np.delete(overlap, sorted(rows), axis=0), sorted(columns), axis=1)
    assert not (free >= 0.5).any()
