import hashlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics.cases import Scene, as_boxes
from pipelines.evaluation.metrics.comparison import (
    agreement,
    calibration,
    most_different,
    rank_correlation,
)
from pipelines.evaluation.metrics.proposals import Proposed

FAR = [[500, 500, 510, 510]]


def scene(image_id, boxes, ignore=None):
    return Scene(
        image_id=image_id,
        boxes=as_boxes(boxes),
        labels=("cat",) * len(boxes),
        ignore=tuple(ignore or [False] * len(boxes)),
    )


def proposed(image_id, boxes, scores=None):
    values = np.linspace(1, 0.5, len(boxes)) if scores is None else scores
    return Proposed(image_id=image_id, boxes=as_boxes(boxes), scores=np.asarray(values, np.float32))


def test_agreement_by_hand():
    pairs = [
        (
            # IoU 0.8 and 0.6 with their partners; the third overlaps the first's partner, which is
            # taken.
            proposed("a", [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 5]]),
            proposed("a", [[50, 50, 60, 56], [0, 0, 10, 8]]),
        ),
        (proposed("b", [[0, 0, 10, 10]]), proposed("b", [[0, 0, 10, 10], *FAR])),
        (proposed("c", []), proposed("c", FAR)),
    ]
    everything, best = agreement(pairs, (None, 1))
    assert everything.images == best.images == 3
    assert everything.boxes == (4, 5)
    assert (everything.matched, everything.matched_closely) == (3, 2)
    assert everything.mean_iou == pytest.approx((0.8 + 0.6 + 1.0) / 3)
    assert everything.shares(everything.matched) == (3 / 4, 3 / 5)
    # The best boxes of image a lie apart.
    assert (best.boxes, best.matched, best.mean_iou) == ((2, 3), 1, 1.0)


def test_iou_thresholds_are_inclusive():
    def pairs(height):
        return [(proposed("a", [[0, 0, 10, 20]]), proposed("a", [[0, 0, 10, height]]))]

    found = [agreement(pairs(height))[0] for height in (9, 10, 14, 15)]
    assert [item.matched for item in found] == [0, 1, 1, 1]
    assert [item.matched_closely for item in found] == [0, 0, 0, 1]


def test_nothing_to_compare():
    for pairs in ([], [(proposed("a", []), proposed("a", []))]):
        (found,) = agreement(pairs)
        assert found.images == len(pairs)
        assert (found.boxes, found.matched, found.mean_iou) == ((0, 0), 0, None)
        assert found.shares(0) == (None, None)
    assert agreement([(proposed("a", []), proposed("a", FAR))])[0].shares(0) == (None, 0.0)


def overlap(a, b):
    a, b = list(map(float, a)), list(map(float, b))
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(
        0.0, min(a[3], b[3]) - max(a[1], b[1])
    )
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_matches(first, second):
    """Take the best remaining pair until none is left at IoU 0.5."""
    first, second, values = list(map(tuple, first)), list(map(tuple, second)), []
    while first and second:
        value, i, j = max(
            (overlap(a, b), -i, -j) for i, a in enumerate(first) for j, b in enumerate(second)
        )
        if value < 0.5:
            break
        values.append(value)
        del first[-i], second[-j]
    return values


boxes = st.tuples(
    st.integers(0, 12), st.integers(0, 12), st.integers(4, 14), st.integers(4, 14)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
images = st.lists(
    st.tuples(st.lists(boxes, max_size=6), st.lists(boxes, max_size=6)), min_size=1, max_size=3
)


@given(images, st.sampled_from([None, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_agreement_equals_a_slow_reference_and_swaps(drawn, top):
    pairs = [(proposed(str(i), a), proposed(str(i), b)) for i, (a, b) in enumerate(drawn)]
    (found,) = agreement(pairs, (top,))
    values = [value for a, b in drawn for value in slow_matches(a[:top], b[:top])]
    assert found.matched == len(values)
    assert found.matched_closely == sum(value >= 0.75 for value in values)
    assert found.mean_iou == (pytest.approx(np.mean(values)) if values else None)
    assert found.boxes == (sum(len(a[:top]) for a, _ in drawn), sum(len(b[:top]) for _, b in drawn))
    (swapped,) = agreement([(b, a) for a, b in pairs], (top,))
    assert (swapped.boxes, swapped.matched) == (found.boxes[::-1], found.matched)


def test_calibration_by_hand():
    scenes = [scene("a", [[0, 0, 10, 10]]), scene("b", [])]
    found = calibration(
        scenes,
        [
            # A hit, its double (a hit too), a near miss.
            proposed("a", [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4]], [0.95, 0.91, 0.5]),
            proposed("b", [[0, 0, 10, 10]], [0.93]),  # nothing is there
            proposed("elsewhere", [[0, 0, 10, 10]], [0.1]),
        ],
    )
    assert (found.boxes, found.hits) == (4, 0.5)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert found.bin_scores[9] == pytest.approx((0.95 + 0.91 + 0.93) / 3)
    assert found.bin_hits[9] == pytest.approx(2 / 3)
    assert (found.bin_scores[5], found.bin_hits[5]) == (0.5, 0.0)
    assert np.isnan(found.bin_hits[:5]).all()
    assert found.error == pytest.approx((3 * abs(0.93 - 2 / 3) + 0.5) / 4)
    # Scores rank 4, 2, 1, 3; overlaps 1, 0.8, 0.4, 0 rank 4, 3, 2, 1: 1 - 6 * (0 + 1 + 1 + 4) / 60.
    assert found.rank_correlation == pytest.approx(0.4)


def test_a_box_in_a_crowd_is_not_judged_unless_it_hits_an_object():
    truth = scene("a", [[0, 0, 10, 10], [0, 0, 100, 100]], [False, True])
    inside, half, less = [40, 40, 50, 50], [90, 40, 110, 50], [91, 40, 111, 50]
    found = calibration([truth], [proposed("a", [[0, 0, 10, 10], inside, half, less])])
    assert (found.boxes, found.hits) == (2, 0.5)
    everything_is_crowd = scene("a", [[0, 0, 100, 100]], [True])
    assert calibration([everything_is_crowd], [proposed("a", [inside, *FAR])]).hits == 0.0


def test_the_ends_of_the_scale_have_bins():
    scenes = [scene("a", [[0, 0, 10, 10]])]
    found = calibration(scenes, [proposed("a", [[0, 0, 10, 10], *FAR], [1.0, 0.0])])
    assert found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found.error == 0.0


@pytest.mark.parametrize("score", [1.5, -0.1, 100.0])
def test_scores_that_are_no_probabilities_have_no_calibration(score):
    found = calibration(
        [scene("a", [[0, 0, 10, 10]])], [proposed("a", [[0, 0, 10, 10], *FAR], [score, 0.5])]
    )
    assert (found.boxes, found.hits, found.error) == (2, 0.5, None)
    assert found.counts.tolist() == [0] * 10
    assert found.rank_correlation == pytest.approx(1.0 if score > 0.5 else -1.0)


@pytest.mark.parametrize("found", [[], [proposed("a", [])], [proposed("elsewhere", FAR)]])
@pytest.mark.parametrize("scenes", [[], [scene("a", [])], [scene("a", [[0, 0, 9, 9]], [True])]])
def test_nothing_to_judge(scenes, found):
    judged = calibration(scenes, found)
    assert (judged.boxes, judged.hits, judged.error, judged.rank_correlation) == (
        0,
        None,
        None,
        None,
    )
    assert judged.counts.tolist() == [0] * 10


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None)
def test_calibration_error_equals_a_slow_reference(drawn):
    scores = np.array([score / 100 for score, _ in drawn], np.float32)
    guesses = [[0, 0, 10, 10] if hit else FAR[0] for _, hit in drawn]
    found = calibration([scene("a", [[0, 0, 10, 10]])], [proposed("a", guesses, scores)])
    error = 0.0
    for low in range(10):
        inside = [
            (float(s), hit)
            for s, (_, hit) in zip(scores, drawn, strict=True)
            if min(9, int(float(s) * 10)) == low
        ]
        if inside:
            gap = np.mean([s for s, _ in inside]) - np.mean([hit for _, hit in inside])
            error += len(inside) / len(drawn) * abs(gap)
    assert found.error == pytest.approx(error, abs=1e-9)
    assert found.counts.sum() == len(drawn)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
@settings(deadline=None)
def test_rank_correlation_equals_a_slow_reference(drawn):
    """Pearson's coefficient of ranks found by comparing every pair of values."""
    first, second = np.array(drawn, float).T
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        ranks = [
            [
                sum(other < value for other in side) + sum(other == value for other in side) / 2
                for value in side
            ]
            for side in (first, second)
        ]
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], []),
        ([0.5], [0.7]),
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]),
        ([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]),
        ([1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_constant_input_has_no_rank_correlation_and_no_warning(first, second):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_correlation(np.array(first, float), np.array(second, float)) is None


def test_rank_correlation_by_hand_with_ties():
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5, variances 1.5 and 2.
    found = rank_correlation(np.array([0.2, 0.2, 0.9]), np.array([0.1, 0.4, 0.5]))
    assert found == pytest.approx(1.5 / np.sqrt(1.5 * 2))


def by_id(*items):
    return {item.image_id: item for item in items}


def test_the_images_that_differ_most_come_first():
    square, other = [0, 0, 10, 10], [20, 20, 30, 30]
    third, fourth = [40, 40, 50, 50], [60, 60, 70, 70]
    scenes = [
        scene("both", [square, other]),
        scene("half", [square, other, third, fourth]),
        scene("whole", [square]),
        scene("crowd", [square], [True]),
        scene("empty", []),
        scene("unseen", [square]),
    ]
    first = by_id(*(proposed(s.image_id, s.boxes.tolist()) for s in scenes))
    second = by_id(
        proposed("both", [other, square]),
        # Two boxes on one object find one. Two objects of four weigh less than one of one.
        proposed("half", [square, [0, 0, 10, 9], other]),
        proposed("whole", FAR),
        proposed("crowd", []),
        proposed("empty", []),
    )
    chosen = most_different(scenes, first, second, 10)
    assert [item.scene.image_id for item in chosen] == ["whole", "half", "both"]
    assert [item.found for item in chosen] == [(1, 0), (4, 2), (2, 2)]
    assert [item.objects for item in chosen] == [1, 4, 2]
    assert [item.found for item in most_different(scenes, second, first, 1)] == [(0, 1)]
    assert most_different(scenes, first, second, 0) == []
    assert most_different(scenes, {}, second, 5) == []


def test_crowds_are_not_to_be_found():
    truth = scene("a", [[0, 0, 10, 10], [20, 20, 30, 30]], [False, True])
    (chosen,) = most_different(
        [truth], by_id(proposed("a", truth.boxes.tolist())), by_id(proposed("a", FAR)), 1
    )
    assert (chosen.objects, chosen.found) == (1, (1, 0))


def test_equal_images_are_ordered_by_what_is_drawn_then_by_hash():
    names = [f"{index}" for index in range(8)]
    scenes = [scene(name, [[0, 0, 10, 10]]) for name in [*names, "slow"]]
    first = by_id(*(proposed(s.image_id, [[0, 0, 10, 10]]) for s in scenes))
    # Found by both, but the second needs more than the ten boxes that are drawn.
    late = proposed("slow", [*(FAR * 10), [0, 0, 10, 10]])
    second = first | by_id(late)
    by_hash = sorted([*names, "slow"], key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert by_hash[0] != "slow"  # or the hash alone would put it first
    hashed = [name for name in by_hash if name != "slow"]
    for order in (scenes, scenes[::-1]):
        chosen = most_different(order, first, second, 6)
        assert [item.scene.image_id for item in chosen] == ["slow", *hashed[:5]]
    assert (chosen[0].shown, chosen[0].found, chosen[0].found_shown) == (10, (1, 1), (1, 0))
    many = [[20 * i, 0, 20 * i + 10, 10] for i in range(8)]
    (wide,) = most_different(
        [scene("a", many)], by_id(proposed("a", many)), by_id(proposed("a", many)), 1
    )
    assert wide.shown == 16
