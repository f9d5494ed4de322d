import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.evaluation.metrics.cases import Scene, as_boxes
from pipelines.evaluation.metrics.proposals import Proposed, oracle_ap, proposal_recall


def scene(image_id, boxes, labels=None, ignore=None):
    count = len(boxes)
    return Scene(
        image_id=image_id,
        boxes=as_boxes(boxes),
        labels=tuple(labels or ["cat"] * count),
        ignore=tuple(ignore or [False] * count),
    )


def proposed(image_id, boxes, scores=None):
    values = np.linspace(1, 0.5, len(boxes)) if scores is None else scores
    return Proposed(image_id=image_id, boxes=as_boxes(boxes), scores=np.asarray(values, np.float32))


def test_recall_by_hand():
    scenes = [
        scene("a", [[0, 0, 100, 100], [200, 200, 210, 210]], ["cat", "dog"]),
        scene("b", [[0, 0, 50, 50]]),
    ]
    proposals = [
        # Far away first, so that the budget of 1 misses; then IoU 0.72 with the large one.
        proposed("a", [[400, 400, 410, 410], [0, 0, 72, 100]]),
        proposed("b", [[0, 0, 50, 50]]),
    ]
    metrics = proposal_recall(scenes, proposals, budgets=(1, 10))
    assert [metrics[f"{name}@1"] for name in ("r50", "r75", "ar")] == pytest.approx([1 / 3] * 3)
    assert metrics["r50@10"] == pytest.approx(2 / 3)
    assert metrics["r75@10"] == pytest.approx(1 / 3)
    assert metrics["ar@10"] == pytest.approx((5 * 2 / 3 + 5 * 1 / 3) / 10)
    assert metrics["ar_small@10"] == 0.0
    assert metrics["ar_medium@10"] == 1.0
    assert metrics["ar_large@10"] == pytest.approx(0.5)


def test_crowds_and_empty_images_do_not_count():
    scenes = [scene("a", [[0, 0, 10, 10], [50, 50, 90, 90]], ignore=[False, True]), scene("b", [])]
    metrics = proposal_recall(
        scenes, [proposed("a", [[0, 0, 10, 10]]), proposed("b", [[0, 0, 5, 5]])]
    )
    assert metrics["r50@100"] == 1.0
    assert proposal_recall([scene("b", [])], []) == {}


def test_images_without_proposals_are_misses():
    assert (
        proposal_recall(
            [scene("a", [[0, 0, 10, 10]]), scene("b", [[0, 0, 10, 10]])],
            [proposed("a", [[0, 0, 10, 10]])],
        )["r50@10"]
        == 0.5
    )
    assert proposal_recall([scene("a", [[0, 0, 10, 10]])], [])["ar@100"] == 0.0


def test_oracle_names_proposals_after_the_truth():
    scenes = [scene("a", [[0, 0, 10, 10], [50, 50, 60, 60]], ["cat", "dog"])]
    perfect = [proposed("a", [[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])]
    # The stray box is left out.
    assert oracle_ap(scenes, perfect, ["cat", "dog"])["ap"] == pytest.approx(1.0)
    assert oracle_ap(scenes, [proposed("a", [[0, 0, 10, 10]])], ["cat", "dog"])[
        "ap"
    ] == pytest.approx(0.5)
    assert oracle_ap(scenes, [], ["cat", "dog"])["ap"] == 0.0


def test_oracle_threshold_is_inclusive_and_crowds_name_nothing():
    scenes = [scene("a", [[0, 0, 10, 10], [50, 50, 90, 90]], ignore=[False, True])]
    half = [proposed("a", [[0, 0, 10, 5]])]  # IoU exactly 0.5
    assert oracle_ap(scenes, half, ["cat"])["ap50"] == pytest.approx(1.0)
    # Named after the crowd it would be ignored; it is named after the object, though that overlaps
    # less.
    scenes = [scene("a", [[0, 0, 10, 10], [0, 0, 10, 6]], ["cat", "dog"], [False, True])]
    assert oracle_ap(scenes, [proposed("a", [[0, 0, 10, 6]])], ["cat", "dog"])[
        "ap50"
    ] == pytest.approx(1.0)


def test_oracle_pays_for_a_better_scored_double():
    scenes = [scene("a", [[0, 0, 10, 10]])]
    doubles = [proposed("a", [[0, 0, 10, 6], [0, 0, 10, 10]])]  # IoU 0.6 ranks before the exact box
    assert 0.5 < oracle_ap(scenes, doubles, ["cat"])["ap"] < 1.0


def slow_recall(scenes, proposals, budget, threshold):
    """Greedy by score, best free truth of any category; no crowds here."""
    hits = total = 0
    by_image = {p.image_id: p for p in proposals}
    for image in scenes:
        total += len(image.boxes)
        free = [tuple(map(float, b)) for b in image.boxes]
        rows = by_image[image.image_id]
        order = sorted(range(len(rows.boxes)), key=lambda k: -rows.scores[k])[:budget]
        for k in order:
            ax, ay, bx, by = map(float, rows.boxes[k])
            best, best_iou = None, threshold - 1e-10
            for other in free:
                w = min(bx, other[2]) - max(ax, other[0])
                h = min(by, other[3]) - max(ay, other[1])
                shared = max(0.0, w) * max(0.0, h)
                union = (
                    (bx - ax) * (by - ay) + (other[2] - other[0]) * (other[3] - other[1]) - shared
                )
                if shared / union >= best_iou:
                    best, best_iou = other, shared / union
            if best is not None:
                free.remove(best)
                hits += 1
    return hits / total


boxes = st.tuples(
    st.integers(0, 30), st.integers(0, 30), st.integers(5, 20), st.integers(5, 20)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(
    st.lists(
        st.tuples(st.lists(boxes, max_size=5), st.lists(boxes, max_size=8)), min_size=1, max_size=3
    )
)
@settings(max_examples=30, deadline=None)
def test_recall_agrees_with_a_slow_reference(images):
    scenes = [scene(f"{i}", truth) for i, (truth, _) in enumerate(images)]
    proposals = [proposed(f"{i}", [*guess, *truth[:2]]) for i, (truth, guess) in enumerate(images)]
    metrics = proposal_recall(scenes, proposals, budgets=(3, 10))
    if not any(len(s.boxes) for s in scenes):
        assert metrics == {}
        return
    for budget in (3, 10):
        assert metrics[f"r50@{budget}"] == pytest.approx(
            slow_recall(scenes, proposals, budget, 0.5)
        )
        assert metrics[f"r75@{budget}"] == pytest.approx(
            slow_recall(scenes, proposals, budget, 0.75)
        )
        mean = np.mean(
            [slow_recall(scenes, proposals, budget, 0.5 + 0.05 * step) for step in range(10)]
        )
        assert metrics[f"ar@{budget}"] == pytest.approx(mean)
