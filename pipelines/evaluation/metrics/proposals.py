"""Quality of a detector's boxes, whatever they are called: recall at a budget, AP of a perfect reader.

AR@k is pycocotools' average recall over IoU 0.50:0.05:0.95 with all categories pooled into one (the same as
its `useCats=0`), as region-proposal papers report it; crowds are ignored on both sides.
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


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """The proposals of one picture."""

    image_id: str
    """Join key of the picture."""
    boxes: np.ndarray
    """float32[N, 4], by descending score."""
    scores: np.ndarray
    """float32[N]."""


def proposal_recall(
    scenes: Sequence[Scene], proposals: Iterable[Proposed], budgets: Sequence[int] = BUDGETS
) -> dict[str, float]:
    """Compute class-agnostic ar@k, r50@k, r75@k for each budget k, and ar_small/medium/large at the largest.

    A figure without any true box is left out.
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
    figures: dict[str, float] = {}
    for index, budget in enumerate(budgets):
        figures[f"ar@{budget}"] = float(recall[:, 0, 0, index].mean())
        figures[f"r50@{budget}"] = float(recall[0, 0, 0, index])
        figures[f"r75@{budget}"] = float(recall[5, 0, 0, index])
    for index, area in enumerate(AREAS[1:], start=1):
        figures[f"ar_{area}@{budgets[-1]}"] = float(recall[:, 0, index, -1].mean())
    return {
        name: value for name, value in figures.items() if value >= 0
    }  # -1: no true box of that size


def proposal_figures(
    scenes: Sequence[Scene],
    proposals: Sequence[Proposed],
    names: Sequence[str],
    budgets: Sequence[int] = BUDGETS,
) -> dict[str, float]:
    """Compute `proposal_recall` and, where there is a true box, oracle_ap: all that is said of a detector."""
    ceiling = oracle_ap(scenes, proposals, names)
    return proposal_recall(scenes, proposals, budgets) | (
        {"oracle_ap": ceiling["ap"]} if "ap" in ceiling else {}
    )


def oracle_ap(
    scenes: Sequence[Scene], proposals: Iterable[Proposed], names: Sequence[str]
) -> dict[str, float]:
    """Compute COCO AP when each proposal is named after the true box it overlaps most, from IoU 0.5 on.

    This is the ceiling that the detector's boxes and scores set for any model choosing among them (ours).
    """
    truth = {scene.image_id: scene for scene in scenes}
    named: list[Detection] = []
    for proposed in sorted(proposals, key=lambda p: p.image_id):
        scene = truth[proposed.image_id]
        kept = [index for index, ignore in enumerate(scene.ignore) if not ignore]
        if not kept or not len(proposed.boxes):
            continue
        overlap = iou_matrix(proposed.boxes, scene.boxes[kept])
        for row, box, score in zip(overlap, proposed.boxes, proposed.scores, strict=True):
            best = int(row.argmax())
            if row[best] >= 0.5:
                named.append(detection(proposed.image_id, scene.labels[kept[best]], box, score))
    return coco_ap(scenes, named, names)
