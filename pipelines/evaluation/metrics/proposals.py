"""Quality of a detector's boxes, whatever their names: recall at a budget, AP of a perfect reader.

AR@k is pycocotools' average recall over IoU 0.50:0.05:0.95 with all categories pooled into one (the
same as its `useCats=0`), as region-proposal papers report it; crowds are ignored on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Scene
from pipelines.evaluation.metrics.detection import (
    AREAS,
    Detection,
    coco_ap,
    detection,
    run_cocoeval,
)

BUDGETS = (10, 100, 300)
"""Numbers of best boxes an image at which recall is given."""


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """The proposals of one image."""

    image_id: str
    """Join key of the image."""
    boxes: np.ndarray
    """float32[N, 4] by descending score, xyxy in pixels of the original image."""
    scores: np.ndarray
    """float32[N]: the detector's scores."""


def proposal_recall(
    scenes: Sequence[Scene], proposals: Iterable[Proposed], budgets: Sequence[int] = BUDGETS
) -> dict[str, float]:
    """Compute the recall of a detector whatever the category.

    Args:
        scenes: Truth of every evaluated image; one without proposals counts as missed.
        proposals: The detector's boxes on these images.
        budgets: Numbers k of best boxes an image, ascending.

    Returns:
        Shares in 0..1: ar@k (mean over IoU 0.50:0.05:0.95), r50@k and r75@k (recall at IoU 0.50 and
        0.75) for each budget, ar_small@k, ar_medium@k and ar_large@k at the largest. A metric
        without any true box is left out.
    """
    pooled = "object"
    truth = [
        Scene(image_id=s.image_id, boxes=s.boxes, labels=(pooled,) * len(s.labels), ignore=s.ignore)
        for s in scenes
    ]
    found = [
        detection(p.image_id, pooled, box, score)
        for p in sorted(proposals, key=lambda p: p.image_id)
        for box, score in zip(p.boxes, p.scores, strict=True)
    ]
    recall = run_cocoeval(truth, found, [pooled], max_detections=budgets)["recall"]
    metrics: dict[str, float] = {}
    for index, budget in enumerate(budgets):
        metrics[f"ar@{budget}"] = float(recall[:, 0, 0, index].mean())
        metrics[f"r50@{budget}"] = float(recall[0, 0, 0, index])
        metrics[f"r75@{budget}"] = float(recall[5, 0, 0, index])
    for index, area in enumerate(AREAS[1:], start=1):
        metrics[f"ar_{area}@{budgets[-1]}"] = float(recall[:, 0, index, -1].mean())
    # -1: no true box of that size.
    return {name: value for name, value in metrics.items() if value >= 0}


def proposal_metrics(
    scenes: Sequence[Scene],
    proposals: Sequence[Proposed],
    names: Sequence[str],
    budgets: Sequence[int] = BUDGETS,
) -> dict[str, float]:
    """Compute all that is said of a detector: `proposal_recall`, and oracle_ap of `oracle_ap`.

    Args:
        scenes: Truth of every evaluated image.
        proposals: The detector's boxes on these images.
        names: Category names.
        budgets: Numbers of best boxes an image, ascending.

    Returns:
        Metrics by name, in 0..1; without oracle_ap when there is no true box.
    """
    ceiling = oracle_ap(scenes, proposals, names)
    return proposal_recall(scenes, proposals, budgets) | (
        {"oracle_ap": ceiling["ap"]} if "ap" in ceiling else {}
    )


def oracle_ap(
    scenes: Sequence[Scene], proposals: Iterable[Proposed], names: Sequence[str]
) -> dict[str, float]:
    """Compute COCO AP when each proposal is named after the true box that it overlaps most.

    A proposal that overlaps none from IoU 0.5 on is left out.

    This is the ceiling that the detector's boxes and scores set for any model choosing among them
    (ours). The entries are those of `coco_ap`.
    """
    truth = {scene.image_id: scene for scene in scenes}
    named: list[Detection] = []
    for proposed in sorted(proposals, key=lambda p: p.image_id):
        scene = truth[proposed.image_id]
        # A crowd gives no name: a box named after one would be ignored instead of counted.
        kept = [index for index, ignore in enumerate(scene.ignore) if not ignore]
        if not kept or not len(proposed.boxes):
            continue
        overlap = iou_matrix(proposed.boxes, scene.boxes[kept])
        for row, box, score in zip(overlap, proposed.boxes, proposed.scores, strict=True):
            best = int(row.argmax())
            if row[best] >= 0.5:
                named.append(detection(proposed.image_id, scene.labels[kept[best]], box, score))
    return coco_ap(scenes, named, names)
