"""All figures of an evaluated benchmark as one flat table; a figure that no question bears on is left out."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.evaluation.metrics.cases import Case, Scene
from pipelines.evaluation.metrics.counting import counting
from pipelines.evaluation.metrics.detection import coco_ap, detections_from_cases
from pipelines.evaluation.metrics.regions import (
    absent_false_positives,
    exact_match,
    region_f1,
    rejection_accuracy,
    valid_answer_rate,
)

DETECTION = "detection"
"""Task whose answers are judged as detections."""
TEXT_TASKS = ("region_name",)
"""Tasks answered in words alone."""


def summarise(
    cases: Sequence[Case], *, scenes: Sequence[Scene] = (), names: Sequence[str] = ()
) -> dict[str, float]:
    """Compute every figure the cases bear on.

    With `scenes` (the full truth of the pictures) and `names` (all categories, all of them asked) the COCO
    figures are added. Raises ValueError when there are no cases, since every figure would be a fiction.
    """
    if not cases:
        raise ValueError("cases: nothing was evaluated; is the benchmark's shard artifact empty?")
    figures: dict[str, float | None] = {
        "samples": float(len(cases)),
        "valid_answers": valid_answer_rate(cases),
        "exact_match": exact_match(cases),
        **region_f1(cases),
        "rejection_accuracy": rejection_accuracy(cases),
        "absent_false_positives": absent_false_positives(cases),
        "name_accuracy": name_accuracy(cases),
        **counting(cases),
    }
    if scenes:
        figures |= coco_ap(
            scenes,
            detections_from_cases([case for case in cases if case.task == DETECTION], names),
            names,
        )
    return {name: value for name, value in figures.items() if value is not None}


def name_accuracy(cases: Sequence[Case]) -> float | None:
    """Share of questions about a region answered with exactly the true words, case and outer blanks aside."""
    hits = [
        c.text.strip().lower() == c.reference.strip().lower() for c in cases if c.task in TEXT_TASKS
    ]
    return sum(hits) / len(hits) if hits else None
