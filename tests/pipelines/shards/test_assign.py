from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.records import BadRecord
from pipelines.boxes import iou_matrix
from pipelines.errors import SettingError
from pipelines.shards.assign import Assignment, assign
from pipelines.shards.config import AssignConfig, evaluation_config
from pipelines.shards.matching import _merge, match, match_image

WIDTH, HEIGHT = 200, 100


def boxes(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def run(
    proposals,
    scores,
    objects,
    *,
    ignore=None,
    referenced=(),
    pointed_at=(),
    config=None,
    sample="s",
    seed=0,
    frame=(0, 0, WIDTH, HEIGHT),
):
    config = config or AssignConfig(p_ground_truth=0.0, order="score")
    matching = match_image(
        frame=frame,
        proposals=boxes(*proposals),
        scores=np.array(scores, np.float32),
        objects=boxes(*objects),
        ignore=np.array(ignore if ignore is not None else [False] * len(objects), bool),
        config=config,
    )
    return assign(
        matching,
        sample_id=sample,
        referenced=set(referenced),
        pointed_at=set(pointed_at),
        config=config,
        seed=seed,
    )


def slow_best_match(overlap: np.ndarray, threshold: float) -> float:
    """Greatest sum of IoU over valid pairs, by trying every one-to-one pairing."""
    rows, columns = overlap.shape
    slots = list(range(columns)) + [None] * rows
    best = 0.0
    for choice in set(permutations(slots, rows)):
        pairs = [
            (r, c) for r, c in enumerate(choice) if c is not None and overlap[r, c] >= threshold
        ]
        best = max(best, sum(overlap[r, c] for r, c in pairs))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
def test_matching_is_the_best_of_all_pairings(rows: int, columns: int, seed: int) -> None:
    overlap = np.random.default_rng(seed).random((rows, columns))
    found = match(overlap, 0.4)
    assert len(set(found.values())) == len(found)
    assert all(overlap[r, c] >= 0.4 for r, c in found.items())
    assert sum(overlap[r, c] for r, c in found.items()) == pytest.approx(
        slow_best_match(overlap, 0.4)
    )


def test_two_people_never_share_a_region() -> None:
    # Both objects overlap the first proposal best; arg-max would give both the same region.
    objects = [[0, 0, 10, 10], [1, 0, 11, 10]]
    proposals = [[0.5, 0, 10.5, 10], [2.5, 0, 12.5, 10]]
    made = run(proposals, [0.9, 0.8], objects)
    assert made.region_of == {0: 0, 1: 1}
    assert made.num_matched == 2
    assert made.num_injected == 0


def test_uncovered_object_is_injected_and_the_duplicate_dropped() -> None:
    objects = [[0, 0, 20, 20], [100, 50, 140, 90]]
    proposals = [
        [0, 0, 20, 20],
        [0, 0, 20, 18],
        [60, 60, 80, 80],
    ]  # match, duplicate (IoU 0.9), background
    made = run(proposals, [0.5, 0.9, 0.7], objects, referenced=[1])
    np.testing.assert_array_equal(
        made.boxes, boxes([60, 60, 80, 80], [0, 0, 20, 20], [100, 50, 140, 90])
    )
    assert made.scores == pytest.approx((0.7, 0.5, None))
    assert made.sources == ("proposal", "proposal", "gt")
    assert made.region_of == {0: 1, 1: 2}
    assert (made.num_objects, made.num_matched, made.num_injected) == (2, 1, 1)


@pytest.mark.parametrize(
    ("duplicates", "threshold", "kept"),
    [("drop", 0.3, 1), ("keep_as_negative", 0.3, 2), ("keep", 0.3, 3)],
)
def test_duplicates(duplicates: str, threshold: float, kept: int) -> None:
    objects = [[0, 0, 10, 10]]
    proposals = [[0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 9]]  # IoU 1, 0.4, 0.9
    config = AssignConfig(
        match_iou=threshold, duplicates=duplicates, p_ground_truth=0, order="score"
    )
    assert len(run(proposals, [0.9, 0.8, 0.7], objects, config=config).boxes) == kept


def test_equal_objects_are_one_region_with_both_labels() -> None:
    made = run([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9.8]])
    assert made.region_of == {0: 0, 2: 0, 1: 1}
    assert made.num_objects == 2


def test_proposals_inside_an_ignore_region_are_dropped() -> None:
    proposals = [[0, 0, 10, 10], [0, 0, 10, 30], [150, 50, 160, 60]]  # all, a third, nothing inside
    made = run(proposals, [0.9, 0.8, 0.7], [[0, 0, 40, 10]], ignore=[True])
    assert made.scores == pytest.approx((0.8, 0.7))
    assert made.region_of == {}
    assert made.num_objects == 0


def test_an_object_in_front_of_a_crowd_keeps_its_proposal() -> None:
    made = run([[5, 0, 15, 10]], [0.9], [[0, 0, 40, 10], [5, 0, 15, 10.5]], ignore=[True, False])
    assert made.region_of == {1: 0}
    assert made.num_matched == 1
    assert made.num_injected == 0


def test_pointed_at_region_has_the_annotated_box_and_the_other_the_proposed_one() -> None:
    objects = [[0, 0, 20, 20], [100, 50, 140, 90]]
    proposals = [[0, 0, 20, 19], [100, 50, 140, 88]]
    made = run(proposals, [0.9, 0.8], objects, referenced=[0, 1], pointed_at=[1])
    np.testing.assert_array_equal(made.boxes, boxes(proposals[0], objects[1]))
    assert made.sources == ("proposal", "proposal")


def test_share_of_annotated_boxes_follows_p_ground_truth() -> None:
    config = AssignConfig(p_ground_truth=0.2)
    annotated = sum(
        run([[0, 0, 20, 19]], [0.9], [[0, 0, 20, 20]], config=config, sample=f"s{i}").boxes[0, 3]
        == 20
        for i in range(1000)
    )
    assert 160 < annotated < 240


def test_budget_keeps_referenced_then_matched_then_injected_then_the_best_background() -> None:
    objects = [
        [0, 0, 20, 20],
        [30, 0, 50, 20],
        [60, 0, 80, 20],
    ]  # referenced and uncovered, matched, uncovered
    proposals = [[30, 0, 50, 20], [100, 0, 120, 20], [130, 0, 150, 20]]
    for budget, expected in ((1, {0}), (2, {0, 1}), (3, {0, 1, 2})):
        config = AssignConfig(max_regions=budget, p_ground_truth=0.0)
        made = run(proposals, [0.1, 0.9, 0.8], objects, referenced=[0], config=config)
        assert set(made.region_of) == expected
        assert len(made.boxes) == budget
    config = AssignConfig(max_regions=4, p_ground_truth=0.0)
    assert 0.9 in [
        s and round(s, 2) for s in run(proposals, [0.1, 0.9, 0.8], objects, config=config).scores
    ]


def test_more_named_objects_than_budget_is_a_reject_never_a_cut() -> None:
    objects = [[10 * i, 0, 10 * i + 8, 8] for i in range(3)]
    with pytest.raises(BadRecord, match="too_many_regions"):
        run([], [], objects, referenced=[0, 1, 2], config=AssignConfig(max_regions=2))


def test_evaluation_takes_the_proposals_as_they_are() -> None:
    objects = [[0, 0, 20, 20], [100, 50, 140, 90]]
    proposals = [[60, 60, 80, 80], [0, 0, 20, 19], [0, 0, 20, 18]]
    made = run(proposals, [0.3, 0.8, 0.9], objects, referenced=[0, 1], config=evaluation_config())
    np.testing.assert_array_equal(made.boxes, boxes(proposals[2], proposals[1], proposals[0]))
    assert made.region_of == {0: 1}
    # A budget of one keeps the best score, not the one with a label: that would tell the answer.
    assert run(proposals, [0.3, 0.8, 0.9], objects, config=evaluation_config(1)).region_of == {}
    pointed = run(proposals, [0.3, 0.8, 0.9], objects, pointed_at=[1], config=evaluation_config(2))
    assert pointed.region_of == {1: 1}
    assert pointed.scores == pytest.approx((0.9, None))


def test_bad_proposals_are_cleaned_and_inputs_left_alone() -> None:
    proposals = boxes([-5, -5, 20, 20], [np.nan, 0, 1, 1], [50, 50, 50.5, 60], [190, 90, 300, 300])
    before = proposals.copy()
    made = run(proposals, [0.9, 0.8, 0.7, np.inf], [])
    np.testing.assert_array_equal(made.boxes, boxes([0, 0, 20, 20]))
    np.testing.assert_array_equal(proposals, before)


def test_a_window_takes_the_proposals_that_lie_in_it_by_half() -> None:
    # inside; cut to 60 % of its area; cut to 40 %; outside
    proposals = [[110, 10, 130, 30], [92, 40, 112, 50], [88, 60, 108, 70], [10, 10, 30, 30]]
    made = run(proposals, [0.9, 0.8, 0.7, 0.6], [[110, 10, 130, 31]], frame=(100, 0, 200, 100))
    np.testing.assert_array_equal(made.boxes, boxes([110, 10, 130, 30], [100, 40, 112, 50]))
    assert made.region_of == {0: 0}


def test_ignore_region_in_a_conversation_is_a_broken_sample() -> None:
    with pytest.raises(ValueError, match=r"x7.*ignore regions \[0\]"):
        run([], [], [[0, 0, 5, 5]], ignore=[True], referenced=[0], sample="x7")


def test_order_is_a_permutation_that_depends_on_sample_and_seed_only() -> None:
    proposals = [[10 * i, 0, 10 * i + 5, 5] for i in range(12)]
    scores = np.linspace(0.9, 0.1, 12)
    config = AssignConfig()
    first = run(proposals, scores, [], config=config)
    assert run(proposals, scores, [], config=config).scores == first.scores
    assert sorted(first.scores) == sorted(float(s) for s in scores.astype(np.float32))
    assert run(proposals, scores, [], config=config, sample="t").scores != first.scores
    assert run(proposals, scores, [], config=config, seed=1).scores != first.scores
    assert list(first.scores) != sorted(first.scores, reverse=True)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 8), st.integers(0, 12), st.integers(0, 10**6), st.integers(1, 12), st.booleans()
)
def test_invariants(
    num_objects: int, num_proposals: int, seed: int, budget: int, training: bool
) -> None:
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        corner = rng.uniform(0, 60, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(2, 40, (count, 2))], 1).astype(
            np.float32
        )

    objects, ignore = draw(num_objects), rng.random(num_objects) < 0.2
    near = objects[rng.permutation(num_objects)[: num_objects // 2]] + 0.5
    proposals = np.concatenate([near, draw(num_proposals)])
    scores = rng.random(len(proposals)).astype(np.float32)
    named = set(np.flatnonzero(~ignore & (rng.random(num_objects) < 0.4)).tolist())
    config = AssignConfig(max_regions=budget) if training else evaluation_config(budget)

    def make() -> Assignment:
        return run(
            proposals,
            scores,
            objects,
            ignore=ignore,
            referenced=named,
            config=config,
            sample=str(seed),
        )

    if training and len(_merge(objects[sorted(named)], np.zeros(len(named), bool), 0.95)) > budget:
        with pytest.raises(BadRecord, match="too_many_regions"):
            make()
        return
    made = make()
    assert len(made.boxes) == len(made.scores) == len(made.sources) <= budget
    assert all(0 <= region < len(made.boxes) for region in made.region_of.values())
    assert not set(made.region_of) & set(np.flatnonzero(ignore).tolist())
    if training:
        assert named <= set(made.region_of)
    else:
        assert None not in made.scores
    for index, region in made.region_of.items():
        assert iou_matrix(objects[[index]], made.boxes[[region]])[0, 0] >= 0.5 - 1e-6
    owners: dict[int, list[int]] = {}
    for index, region in made.region_of.items():
        owners.setdefault(region, []).append(index)
    assert all(
        len(group) == 1 or iou_matrix(objects[group], objects[group]).min() > 0.8
        for group in owners.values()
    )


@pytest.mark.parametrize(
    "wrong", [{"match_iou": 0.0}, {"p_ground_truth": 1.5}, {"max_regions": 0}, {"merge_iou": 2.0}]
)
def test_wrong_settings_name_the_field(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        AssignConfig(**wrong)
