"""Tables and plots of two caches of proposals, A and B, beside each other and beside the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from pipelines.artifacts import Artifact
from pipelines.evaluation.metrics.comparison import BINS, Agreement, Calibration, Difference
from pipelines.evaluation.metrics.proposals import BUDGETS
from pipelines.proposals.workers import OK
from pipelines.reports.html_page import Table
from pipelines.reports.metric_tables import percent
from pipelines.reports.plots import curves, reliability

TOPS = (None, 10)
"""Agreement is given over all boxes of an image, and over so many of the best."""
CURVE = tuple(sorted({1, 3, 10, 30, 100, 300, *BUDGETS}))
"""Budgets of the curve of recall."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Two caches against one labelled dataset."""

    images: int
    """Number of images of the image source that it labels."""
    objects: int
    """Number of true boxes on them, crowds aside."""
    metrics: tuple[dict[str, float], dict[str, float]]
    """`proposal_metrics` of A and of B."""
    calibrations: tuple[Calibration, Calibration]
    """Calibration of the scores of A and of B."""
    differences: Sequence[Difference]
    """Images to look at."""


def cache_table(caches: Sequence[Artifact]) -> Table:
    """Lay out what each cache holds, whatever is annotated."""
    numbers: list[list[int]] = [[], []]
    statuses: list[Counter[str]] = [Counter(), Counter()]
    alone = [0, 0]
    for bucket in range(caches[0].manifest()["buckets"]):
        name, columns = f"part-{bucket:05d}.parquet", ["image_id", "boxes", "status"]
        tables = [cache.read_table(name, columns) for cache in caches]
        ids = [set(table["image_id"].to_pylist()) for table in tables]
        for index, table in enumerate(tables):
            alone[index] += len(ids[index] - ids[1 - index])
            statuses[index].update(table["status"].to_pylist())
            looked_at = table.filter(pc.equal(table["status"], OK))
            numbers[index] += pc.list_value_length(looked_at["boxes"]).to_pylist()
    rows = []
    for index, cache in enumerate(caches):
        rejected = {reason: n for reason, n in sorted(statuses[index].items()) if reason != OK}
        counted = numbers[index]
        spread = (
            [f"{np.mean(counted):.1f}", f"{np.median(counted):g}", str(max(counted))]
            if counted
            else ["-"] * 3
        )
        reasons = ", ".join(f"{reason} {n}" for reason, n in rejected.items())
        whole = [statuses[index].total(), alone[index], sum(rejected.values())]
        which = [cache.name.partition("/")[2], cache.fingerprint]
        rows.append(["AB"[index], *which, *map(str, whole), *spread, reasons or "-"])
    header = [
        "cache",
        "detector",
        "fingerprint",
        "images",
        "not in the other",
        "rejected",
        "boxes, mean",
        "median",
        "max",
    ]
    return Table(header=[*header, "why rejected"], rows=rows)


def recall_by_cache(against: Mapping[str, Labelled], names: Mapping[str, str]) -> Table:
    """Lay out some metrics of both caches, a row each; one that a cache lacks is left out.

    Args:
        against: The caches against each labelled dataset.
        names: Heading of each metric to show, by its name in `proposal_metrics`.
    """
    rows = []
    for dataset, item in against.items():
        first, second = item.metrics
        for name, heading in names.items():
            pair = first.get(name), second.get(name)
            if pair[0] is not None and pair[1] is not None:
                # Adding 0.0 turns a rounded -0.0 into 0.0.
                points = f"{round(100 * (pair[1] - pair[0]), 1) + 0.0:+.1f}"
                rows.append([dataset, heading, percent(pair[0]), percent(pair[1]), points])
    labelled = [
        f"{name}: {item.objects} objects on {item.images} images" for name, item in against.items()
    ]
    return Table(
        header=["dataset", "metric", "A", "B", "B - A"], rows=rows, note="; ".join(labelled)
    )


def recall_curves(against: Mapping[str, Labelled]) -> list[tuple[str, str]]:
    """Draw AR and R50 by the number of best boxes, with their captions."""
    plots = []
    for dataset, item in against.items():
        for name, heading in (("ar", "AR"), ("r50", "R50")):
            series = {
                letter: [
                    (k, 100 * metrics[f"{name}@{k}"]) for k in CURVE if f"{name}@{k}" in metrics
                ]
                for letter, metrics in zip("AB", item.metrics, strict=True)
            }
            plot = curves(
                series, x="boxes of an image, best first", y=f"{heading}, %", logarithmic=True
            )
            plots.append((f"{dataset}: {heading} by number of boxes", plot))
    return plots


def agreement_table(agreed: Sequence[Agreement]) -> Table:
    """Lay out how far A and B give the same boxes, a row for each of `TOPS`."""
    rows = []
    for top, item in zip(TOPS, agreed, strict=True):
        shares = [*item.shares(item.matched), *item.shares(item.matched_closely)]
        mean = "-" if item.mean_iou is None else f"{item.mean_iou:.3f}"
        counts = [*map(str, item.boxes), str(item.matched)]
        rows.append(
            ["all" if top is None else f"best {top}", *counts, mean, *(percent(s) for s in shares)]
        )
    header = [
        "boxes",
        "A",
        "B",
        "pairs",
        "mean IoU",
        "A paired, %",
        "B paired, %",
        "A from 0.75, %",
        "B from 0.75, %",
    ]
    note = f"over {agreed[0].images} images that both looked at"
    return Table(header=header, rows=rows, note=note)


def calibration_table(against: Mapping[str, Labelled]) -> Table:
    """Lay out how well the scores of A and of B tell hits from misses."""
    rows = []
    for dataset, item in against.items():
        first, second = item.calibrations
        hits = percent(first.hits), percent(second.hits)
        rows.append([dataset, "boxes on an object, %", *hits])
        for heading, name in (
            ("calibration error", "error"),
            ("rank correlation", "rank_correlation"),
        ):
            values = (getattr(judged, name) for judged in item.calibrations)
            rows.append([dataset, heading, *("-" if v is None else f"{v:.3f}" for v in values)])
    return Table(header=["dataset", "metric", "A", "B"], rows=rows)


def reliability_plots(against: Mapping[str, Labelled]) -> list[tuple[str, str]]:
    """Draw the share of hits by mean score of each bin, with captions."""
    plots = []
    for dataset, item in against.items():
        bins = {
            letter: (judged.bin_scores, judged.bin_hits, judged.counts)
            for letter, judged in zip("AB", item.calibrations, strict=True)
        }
        plots.append(
            (f"{dataset}: hits by score", reliability(bins, x="mean score", y="share on an object"))
        )
    return plots


def bin_tables(against: Mapping[str, Labelled]) -> list[Table]:
    """Lay out the bins behind the plots of `reliability_plots`, a table a dataset."""
    tables = []
    for dataset, item in against.items():
        rows = []
        for index in range(BINS):
            row = [f"{index / BINS:.1f} to {(index + 1) / BINS:.1f}"]
            for judged in item.calibrations:
                filled = judged.counts[index] > 0
                values = (judged.bin_scores[index], judged.bin_hits[index])
                row += [
                    str(judged.counts[index]),
                    *(f"{value:.2f}" if filled else "-" for value in values),
                ]
            rows.append(row)
        header = [
            "score",
            *(
                f"{letter} {what}"
                for letter in "AB"
                for what in ("boxes", "mean score", "on an object")
            ),
        ]
        note = f"{dataset}: boxes by score; on an object: the share of them that is"
        tables.append(Table(header=header, rows=rows, note=note))
    return tables
