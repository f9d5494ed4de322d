"""All metrics of an evaluated benchmark as one flat table.

A metric that no question bears on is left out: a 0 there would be read as a failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import SettingError
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
    """Compute every metric the cases bear on.

    Args:
        cases: The evaluated questions of one benchmark.
        scenes: Full truth of the images; with it the COCO metrics are added.
        names: All categories, each of which every image was asked for; needed with `scenes`.

    Returns:
        Metrics by name; shares in 0..1, and "samples", the number of cases.

    Raises:
        SettingError: There are no cases, so that every metric would be a fiction.
    """
    if not cases:
        raise SettingError("cases: nothing was evaluated; is the benchmark's shard artifact empty?")
    metrics: dict[str, float | None] = {
        "samples": float(len(cases)),
        "valid_answers": valid_answer_rate(cases),
        "exact_match": exact_match(cases),
        **region_f1(cases),
        "rejection_accuracy": rejection_accuracy(cases),
        "absent_false_positives": absent_false_positives(cases),
        "name_accuracy": name_accuracy(cases),
        **counting(cases),
    }
    # Other tasks of the benchmark ask for some names only; their boxes are no detections.
    if scenes:
        metrics |= coco_ap(
            scenes,
            detections_from_cases([case for case in cases if case.task == DETECTION], names),
            names,
        )
    return {name: value for name, value in metrics.items() if value is not None}


def name_accuracy(cases: Sequence[Case]) -> float | None:
    """Compute the share of questions about a region answered with exactly the true words.

    Case and outer blanks do not matter. None without such questions.
    """
    hits = [
        c.text.strip().lower() == c.reference.strip().lower() for c in cases if c.task in TEXT_TASKS
    ]
    return sum(hits) / len(hits) if hits else None
