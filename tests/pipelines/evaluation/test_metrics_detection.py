import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics.cases import Answer, Case, Scene, as_boxes
from pipelines.evaluation.metrics.detection import Detection, coco_ap, detections_from_cases

NAMES = ("cat", "dog")
THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def scene(image_id, boxes, labels, ignore=None):
    return Scene(
        image_id=image_id,
        boxes=as_boxes(boxes),
        labels=tuple(labels),
        ignore=tuple(ignore or [False] * len(labels)),
    )


def detection(image_id, label, box, score):
    return Detection(image_id=image_id, label=label, box=tuple(map(float, box)), score=score)


def test_ap_by_hand():
    scenes = [
        scene("a", [[0, 0, 40, 40], [50, 50, 90, 90]], ["cat", "cat"]),
        scene("b", [[0, 0, 40, 40]], ["dog"]),
    ]
    found = [
        detection("a", "cat", [0, 0, 40, 40], 0.9),  # hit
        detection("a", "cat", [100, 0, 140, 40], 0.8),  # false
        detection("a", "cat", [50, 50, 90, 90], 0.7),  # hit: precision 2/3 from recall 0.5 on
    ]
    # 101 recall points: 51 of them (0..0.50) at precision 1, 50 at 2/3. The dog is never found: 0.
    cat = (51 + 50 * 2 / 3) / 101
    metrics = coco_ap(scenes, found, NAMES)
    assert metrics["ap"] == pytest.approx(cat / 2)
    assert metrics["ap50"] == metrics["ap75"] == pytest.approx(cat / 2)
    assert metrics["ar100"] == pytest.approx(0.5)
    assert "ap_small" not in metrics  # 40 x 40 = 1600 pixels lies between 32 and 96 squared
    assert metrics["ap_medium"] == pytest.approx(cat / 2, abs=1e-9)


def test_iou_decides_how_many_thresholds_count():
    # IoU 0.72: right at 0.50, 0.55, 0.60, 0.65, 0.70: half of the thresholds.
    metrics = coco_ap(
        [scene("a", [[0, 0, 100, 100]], ["cat"])],
        [detection("a", "cat", [0, 0, 72, 100], 1.0)],
        ["cat"],
    )
    assert metrics["ap"] == pytest.approx(0.5)
    assert (metrics["ap50"], metrics["ap75"]) == pytest.approx((1.0, 0.0))


def test_crowds_are_neither_right_nor_wrong():
    scenes = [scene("a", [[0, 0, 40, 40], [100, 100, 200, 200]], ["cat", "cat"], [False, True])]
    found = [
        detection("a", "cat", [120, 120, 140, 140], 0.99),
        detection("a", "cat", [0, 0, 40, 40], 0.5),
    ]
    assert coco_ap(scenes, found, ["cat"])["ap"] == pytest.approx(1.0)


def test_no_detection_at_all_is_zero_not_an_error():
    metrics = coco_ap([scene("a", [[0, 0, 40, 40]], ["cat"]), scene("b", [], [])], [], NAMES)
    assert metrics["ap"] == metrics["ap50"] == metrics["ar100"] == 0.0


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="'z'"):
        coco_ap([scene("a", [], [])], [detection("z", "cat", [0, 0, 1, 1], 1.0)], NAMES)
    with pytest.raises(ValueError, match="cow"):
        coco_ap([scene("a", [[0, 0, 1, 1]], ["cow"])], [], NAMES)
    with pytest.raises(ValueError, match="twice"):
        coco_ap([scene("a", [], []), scene("a", [], [])], [], NAMES)


def case(image_id, *answers):
    boxes = as_boxes([[10 * k, 0, 10 * k + 5, 5] for k in range(9)])
    said = tuple(
        Answer(
            text=text,
            regions=regions,
            boxes=boxes[list(regions)],
            scores=np.float32(1) - np.array(regions) / 10,
        )
        for text, regions in answers
    )
    return Case(
        sample_id=image_id,
        image_id=image_id,
        task="detection",
        targets=(),
        answers=said,
        text="",
        reference="",
    )


def test_answers_become_detections_with_the_detectors_score():
    found = detections_from_cases(
        [case("b", ("dog", (2, 8)), ("cat", (2,))), case("a", ("Cat", (1,)), ("cat", (0,)))], NAMES
    )
    listed = [(d.image_id, d.label, d.box[0], round(d.score, 5)) for d in found]
    assert listed == [
        ("a", "cat", 0, 1.0),
        ("b", "cat", 20, 0.8),
        ("b", "dog", 20, 0.8),
        ("b", "dog", 80, 0.2),
    ]


def test_order_of_cases_and_answers_does_not_matter_even_with_ties():
    cases = [case("a", ("cat", (1, 2, 3)), ("dog", (1,))), case("b", ("cat", (0,)))]
    assert detections_from_cases(cases, NAMES) == detections_from_cases(cases[::-1], NAMES)


def slow_iou(a, b, crowd):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    shared = width * height
    return shared / (area_a if crowd else area_a + area_b - shared)


def slow_ap(scenes, found, name, threshold):
    """One category at one IoU: greedy by score, best free truth, crowds absorb the rest."""
    outcomes, num_true = [], 0
    for image in sorted(scenes, key=lambda s: s.image_id):
        truth = [
            (tuple(map(float, b)), ig)
            for b, lab, ig in zip(image.boxes, image.labels, image.ignore, strict=True)
            if lab == name
        ]
        num_true += sum(not ig for _, ig in truth)
        mine = sorted(
            (d for d in found if d.image_id == image.image_id and d.label == name),
            key=lambda d: -d.score,
        )
        taken = set()
        for d in mine[:100]:
            options = [
                (slow_iou(d.box, box, False), k)
                for k, (box, ig) in enumerate(truth)
                if not ig and k not in taken and slow_iou(d.box, box, False) >= threshold - 1e-10
            ]
            if options:
                taken.add(max(options)[1])
                outcomes.append((d.score, True))
            elif not any(
                ig and slow_iou(d.box, box, True) >= threshold - 1e-10 for box, ig in truth
            ):
                outcomes.append((d.score, False))
    if not num_true:
        return None
    outcomes.sort(key=lambda o: -o[0])
    hits, curve = 0, []
    for rank, (_, hit) in enumerate(outcomes, 1):
        hits += hit
        curve.append((hits / num_true, hits / rank))
    # pycocotools' own thresholds, of which some are a little above k/100: a recall of 0.7 misses
    # 0.70.
    points = [max((p for r, p in curve if r >= t), default=0.0) for t in np.linspace(0.0, 1.0, 101)]
    return sum(points) / 101


boxes = st.tuples(
    st.integers(0, 30), st.integers(0, 30), st.integers(5, 30), st.integers(5, 30)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
truths = st.lists(
    st.tuples(boxes, st.sampled_from(NAMES), st.integers(0, 5).map(lambda n: n == 0)), max_size=5
)
guesses = st.lists(st.tuples(boxes, st.sampled_from(NAMES)), max_size=6)


@given(
    st.lists(st.tuples(truths, guesses), min_size=1, max_size=3), st.randoms(use_true_random=False)
)
@settings(max_examples=40, deadline=None)
def test_ap_agrees_with_a_slow_reference(images, random):
    scenes, found = [], []
    for index, (truth, guess) in enumerate(images):
        scenes.append(
            scene(f"{index}", [t[0] for t in truth], [t[1] for t in truth], [t[2] for t in truth])
        )
        near = [
            ([x + random.choice([0, 0, 1, 3]) for x in t[0][:2]] + list(t[0][2:]), t[1])
            for t in truth
            if not t[2]
        ]
        found += [
            (f"{index}", label, box)
            for box, label in [*near, *guess]
            if box[0] < box[2] and box[1] < box[3]
        ]
    scores = random.sample(
        range(1000), len(found)
    )  # no ties: their order is a convention, tested above
    found = [
        detection(i, label, box, score / 1000)
        for (i, label, box), score in zip(found, scores, strict=True)
    ]
    values = [[slow_ap(scenes, found, name, t) for t in THRESHOLDS] for name in NAMES]
    values = [v for v in values if v[0] is not None]
    metrics = coco_ap(scenes, found, NAMES)
    if not values:
        assert "ap" not in metrics
    else:
        assert metrics["ap"] == pytest.approx(np.mean(values), abs=1e-9)
        assert metrics["ap50"] == pytest.approx(np.mean([v[0] for v in values]), abs=1e-9)
        assert metrics["ap75"] == pytest.approx(np.mean([v[5] for v in values]), abs=1e-9)
