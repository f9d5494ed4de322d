"""COCO average precision of a model that answers with regions, by pycocotools (the one of record).

The step from answer to detection is the release's (`evaluation/eval_coco.py`): each (phrase,
region) whose phrase equals a category name exactly becomes one detection with the proposal's box
and the proposal's own score; nothing from the language model enters the score. Under the standard
protocol every image is asked for every name.

COCO's size classes use the area of the segmentation; samples keep boxes only, so ours use the area
of the box. This moves the small/medium/large metrics, not AP, AP50 or AP75.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.evaluation.metrics.cases import Case, Scene

AREAS = ("all", "small", "medium", "large")
"""COCO's size classes, in pycocotools' order: split at areas of 32 x 32 and 96 x 96 px."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One scored box under a category name."""

    image_id: str
    """Join key of the image."""
    label: str
    """Category name; ignored when categories are pooled."""
    box: tuple[float, float, float, float]
    """xyxy, pixels of the original image."""
    score: float
    """Ranking score."""


def detection(image_id: str, label: str, box: np.ndarray, score: float) -> Detection:
    """Make a detection of one row of boxes, float32[4]."""
    left, top, right, bottom = (float(edge) for edge in box)
    return Detection(
        image_id=image_id, label=label, box=(left, top, right, bottom), score=float(score)
    )


def detections_from_cases(cases: Iterable[Case], names: Sequence[str]) -> list[Detection]:
    """Turn answers into detections (release eval_coco.py), sorted by image and region.

    A region given to two names counts once for each; a phrase that is no category name is dropped.
    The order settles ties of equal scores the same way whatever the order of the cases.
    """
    known = set(names)
    found: dict[tuple[str, int, str], Detection] = {}
    for case in cases:
        for answer in case.answers:
            if answer.text not in known:
                continue
            for region, box, score in zip(answer.regions, answer.boxes, answer.scores, strict=True):
                key = (case.image_id, region, answer.text)
                # A region said twice in one image, under one name, is one detection.
                found.setdefault(key, detection(case.image_id, answer.text, box, score))
    return [found[key] for key in sorted(found)]


def coco_ap(
    scenes: Sequence[Scene], detections: Sequence[Detection], names: Sequence[str]
) -> dict[str, float]:
    """Compute COCO box AP over `names` with pycocotools' defaults.

    Args:
        scenes: Truth of every evaluated image.
        detections: Scored boxes on these images.
        names: Category names.

    Returns:
        ap, ap50, ap75, ap_small, ap_medium, ap_large and ar100 in 0..1; 0.0 each when there is no
        detection at all. A metric without any true box (say, no large object) is left out.

    Raises:
        ValueError: A detection is on an unknown image.
    """
    evaluated = run_cocoeval(scenes, detections, names, max_detections=(1, 10, 100))
    precision = evaluated["precision"]  # [thresholds, recalls, categories, areas, budgets]
    metrics = {
        "ap": _mean(precision[:, :, :, 0, 2]),
        "ap50": _mean(precision[0, :, :, 0, 2]),
        "ap75": _mean(precision[5, :, :, 0, 2]),
        "ar100": _mean(evaluated["recall"][:, :, 0, 2]),
    }
    for index, area in enumerate(AREAS[1:], start=1):
        metrics[f"ap_{area}"] = _mean(precision[:, :, :, index, 2])
    return {name: value for name, value in metrics.items() if value is not None}


def run_cocoeval(
    scenes: Sequence[Scene],
    detections: Sequence[Detection],
    names: Sequence[str],
    *,
    max_detections: Sequence[int],
) -> Mapping[str, np.ndarray]:
    """Run pycocotools' box evaluation.

    Args:
        scenes: Truth of every evaluated image.
        detections: Scored boxes on these images.
        names: Category names.
        max_detections: Budgets of boxes an image, ascending.

    Returns:
        Arrays "precision" float64[T, R, K, A, M] and "recall" float64[T, K, A, M], among others: T
        IoU thresholds 0.50:0.05:0.95, R recalls 0:0.01:1, K names, A of `AREAS`, M budgets.
        -1 stands where there is no true box.

    Raises:
        ValueError: An image occurs twice, a true label is not among `names`, or a detection is on
            an unknown image.
    """
    image_ids = {
        scene.image_id: index
        for index, scene in enumerate(sorted(scenes, key=lambda s: s.image_id), 1)
    }
    if len(image_ids) != len(scenes):
        raise ValueError(
            "scenes: an image_id occurs twice; merge the truth of an image into one Scene"
        )
    category_ids = {name: index for index, name in enumerate(names, 1)}
    truth = _truth(scenes, image_ids, category_ids)
    results = _results(detections, image_ids, category_ids)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth_index = COCO()
        truth_index.dataset = truth
        truth_index.createIndex()
        # loadRes fails on an empty list, and an empty index evaluates to recall 0 as it should.
        result_index = truth_index.loadRes(results) if results else _empty_like(truth)
        evaluation = COCOeval(truth_index, result_index, "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _truth(
    scenes: Sequence[Scene], image_ids: Mapping[str, int], category_ids: Mapping[str, int]
) -> dict:
    """Return the truth in the form of COCO's annotation file."""
    annotations: list[dict] = []
    for scene in sorted(scenes, key=lambda s: s.image_id):
        for box, label, ignore in zip(scene.boxes, scene.labels, scene.ignore, strict=True):
            if label not in category_ids:
                raise ValueError(
                    f"names: {scene.image_id} has a true {label!r}, which is not among the names"
                )
            left, top, right, bottom = (float(edge) for edge in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads 0 as "unmatched"
                    "image_id": image_ids[scene.image_id],
                    "category_id": category_ids[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(ignore),
                }
            )
    return {
        "images": [{"id": index} for index in image_ids.values()],
        "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
        "annotations": annotations,
    }


def _results(
    detections: Sequence[Detection], image_ids: Mapping[str, int], category_ids: Mapping[str, int]
) -> list[dict]:
    """Return the detections in the form of COCO's result file."""
    results = []
    for detection in detections:
        if detection.image_id not in image_ids:
            raise ValueError(f"detections: image {detection.image_id!r} is not among the scenes")
        left, top, right, bottom = detection.box
        results.append(
            {
                "image_id": image_ids[detection.image_id],
                "category_id": category_ids[detection.label],
                "bbox": [left, top, right - left, bottom - top],
                "score": detection.score,
            }
        )
    return results


def _empty_like(truth: dict) -> COCO:
    """Return an index of the same images and categories without any annotation."""
    index = COCO()
    index.dataset = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [],
    }
    index.createIndex()
    return index


def _mean(values: np.ndarray) -> float | None:
    """Average what pycocotools filled in; it marks cells without any true box by -1."""
    filled = values[values > -1]
    return float(filled.mean()) if filled.size else None
