"""Tables of metrics: of runs on one benchmark, and of detectors at their budgets of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.reports.html_page import Table

COLUMNS: Mapping[str, tuple[str, str]] = {
    "ap": ("AP", "COCO average precision over IoU 0.50 to 0.95"),
    "ap50": ("AP50", "average precision at IoU 0.50"),
    "ap75": ("AP75", "average precision at IoU 0.75"),
    "precision": ("precision", "chosen boxes that lie on an object asked for, from IoU 0.5 on"),
    "recall": ("recall", "true boxes that were chosen, from IoU 0.5 on"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "exact_match": ("exact", "answers that name exactly the true regions under the true phrases"),
    "rejection_accuracy": (
        "rejection",
        "questions for absent things only, answered with no region",
    ),
    "absent_false_positives": (
        "absent named",
        "absent names, asked beside present ones, that got a region: lower is better",
    ),
    "count_accuracy": ("count", "answers whose first number is the true one, as the release reads"),
    "count_accuracy_strict": ("count, strict", "the same of the last number after the last tag"),
    "count_regions_accuracy": ("count by regions", "answers that name the true number of regions"),
    "name_accuracy": ("naming", "regions described in exactly the true words"),
    "valid_answers": ("readable", "answers that could be read without a problem"),
}
"""Metrics shown in tables, in order, with heading and meaning; all are shares, in percent."""
_RECALLS = {
    "ar": "AR",
    "r50": "R50",
    "r75": "R75",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}


def metrics_table(runs: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    """Lay out the metrics of runs on one benchmark, a row a run; what no run has is left out.

    Args:
        runs: Name and metrics of each run, shares in 0..1.
    """
    shown = [name for name in COLUMNS if any(name in metrics for _, metrics in runs)]
    rows = [
        [
            run,
            *(percent(metrics.get(name)) for name in shown),
            _whole(metrics.get("samples")),
        ]
        for run, metrics in runs
    ]
    return Table(header=["run", *(COLUMNS[name][0] for name in shown), "samples"], rows=rows)


def meanings(table: Table) -> dict[str, str]:
    """Return what the columns of a table of metrics mean, by heading."""
    return {heading: meaning for heading, meaning in COLUMNS.values() if heading in table.header}


def recall_table(detectors: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay out the recall of detectors, a row for each detector and budget of boxes.

    Args:
        detectors: Metrics of `evaluate_proposals` by detector.
    """
    rows = []
    for detector, metrics in detectors.items():
        budgets = sorted({int(name.rpartition("@")[2]) for name in metrics if "@" in name})
        for budget in budgets:
            names = [f"{name}@{budget}" for name in _RECALLS]
            # The oracle takes all boxes: its AP belongs to the largest budget.
            oracle = metrics.get("oracle_ap") if budget == budgets[-1] else None
            shown = [*(metrics.get(name) for name in names), oracle]
            rows.append([detector, str(budget), *(percent(value) for value in shown)])
    return Table(header=["detector", "boxes", *_RECALLS.values(), "oracle AP"], rows=rows)


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
