"""The `fo1 proposals diff` page: two caches of proposals beside each other and beside the truth.

Agreement goes bucket by bucket; for the figures against the truth the proposals of one labelled dataset at a
time are in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from dataset_builders import DataFolders
from pipelines.artifacts import Artifact
from pipelines.evaluation.metrics.comparison import (
    BINS,
    Agreement,
    Calibration,
    Difference,
    agreement,
    calibration,
    most_different,
)
from pipelines.evaluation.metrics.detection import AREAS
from pipelines.evaluation.metrics.proposals import BUDGETS, Proposed, proposal_figures
from pipelines.evaluation.score import load_proposals, load_scenes
from pipelines.proposals.workers import OK
from pipelines.reports.evaluation_report import Report, percent
from pipelines.reports.html_page import Facts, Plots, Section, Table, render_page, text_table
from pipelines.reports.plots import curves, reliability
from pipelines.reports.proposals_cards import picture_section
from pipelines.schemas import proposals_by_image

TOPS = (None, 10)
"""Agreement is given over all boxes of a picture, and over so many of the best."""
CURVE = tuple(sorted({1, 3, 10, 30, 100, 300, *BUDGETS}))
"""Budgets of the curve of recall."""
_RECALL = {f"{name}@{k}": f"{name.upper()}@{k}" for k in BUDGETS for name in ("ar", "r50", "r75")}
_RECALL |= {"oracle_ap": "oracle AP"}
_SIZES = {f"ar_{size}@{CURVE[-1]}": size for size in AREAS[1:]}
_INTROS = {
    "Recall": "Share of the annotated boxes that the best 10, 100 or 300 boxes of a picture cover, "
    "whatever they are called, in percent. AR: mean over IoU 0.50 to 0.95. Oracle AP is what a"
    " model that names every box perfectly would reach: the ceiling that the boxes and their "
    "scores set for the final AP.",
    "Recall by size": "AR of 300 boxes by area of the annotated box: below 32 x 32 px, below 96 x 96, above.",
    "Agreement": "Boxes of A and B on the same picture, paired one to one from IoU 0.5 on, largest overlap "
    "first; the truth plays no part. Shares are of the detector's own boxes.",
    "Score calibration": "How often a box of a given score overlaps an annotated one from IoU 0.5 on: on the "
    "diagonal, the score is the probability of that. The expected calibration error is the "
    "mean distance from it, weighted by boxes; the rank correlation (Spearman's, of score and "
    "best IoU) asks only whether better boxes have higher scores. Where not every object is "
    "annotated, good boxes count as misses.",
}
"""What each part of the page shows and how to read it."""


@dataclass(frozen=True, kw_only=True)
class _Labelled:
    """Two caches against one labelled dataset."""

    pictures: int
    """Pictures of the image source that it labels."""
    objects: int
    """True boxes on them, crowds aside."""
    figures: tuple[dict[str, float], dict[str, float]]
    """`proposal_figures` of A and B."""
    calibrations: tuple[Calibration, Calibration]
    """Of A and B."""
    differences: Sequence[Difference]
    """Pictures to look at."""


def diff_page(
    first: Artifact,
    second: Artifact,
    labelled: Mapping[str, Artifact],
    *,
    folders: DataFolders,
    num_pictures: int = 12,
) -> Report:
    """Compare two finished caches, A and B, of one image source; return the page and the tables as text.

    labelled: dataset -> its finished samples; only their objects on pictures of the image source count.
    folders: where the pictures lie. num_pictures: drawn for each dataset.
    Raises ValueError when the caches are of different image sources, or cut into different buckets.
    """
    source = _check(first, second)
    caches = (first, second)
    table = _cache_table(caches)
    agreed = agreement(_pairs(first, second), TOPS)
    all_labelled = {
        name: _against(caches, samples, source, num_pictures) for name, samples in labelled.items()
    }
    against = {name: item for name, item in all_labelled.items() if item.objects}
    recall, sizes = _recall_table(against, _RECALL), _recall_table(against, _SIZES)
    agreements, calibrations = _agreement_table(agreed), _calibration_table(against)
    blocks: dict[str, list[Table | Plots]] = {
        "Recall": [recall, Plots(plots=_curves(against))],
        "Recall by size": [sizes],
        "Agreement": [agreements],
        "Score calibration": [
            calibrations,
            Plots(plots=_reliabilities(against)),
            *_bin_tables(against),
        ],
    }
    without = sorted(labelled.keys() - against.keys())
    intro = f"Two caches of proposals of the pictures of {source}."
    if without:
        intro += f" Left out, for want of annotated objects there: {', '.join(without)}."
    sections = [
        Section(title="What is compared", intro=intro, blocks=[table, *_settings(caches)]),
        *(
            Section(title=title, intro=_INTROS[title], blocks=shown)
            for title, shown in blocks.items()
        ),
        *(
            picture_section(name, item.differences, first, folders)
            for name, item in against.items()
        ),
    ]
    titled = {"caches": table, "recall": recall, "recall by size": sizes}
    titled |= {"agreement": agreements, "calibration": calibrations}
    texts = [f"{title}\n{text_table(t.header, t.rows)}" for title, t in titled.items() if t.rows]
    html = render_page(f"Proposals: {first.name} against {second.name}", sections)
    return Report(html=html, text="\n\n".join(texts))


def image_source(proposals: Artifact) -> str:
    """Image source whose pictures a cache is of."""
    return proposals.name.partition("/")[0]


def _check(first: Artifact, second: Artifact) -> str:
    sources = [image_source(cache) for cache in (first, second)]
    if sources[0] != sources[1]:
        raise ValueError(
            f"{first.name} and {second.name} are of different image sources: compare two of the same pictures"
        )
    buckets = [cache.manifest()["buckets"] for cache in (first, second)]
    if buckets[0] != buckets[1]:
        raise ValueError(
            f"{first.path} has {buckets[0]} buckets, {second.path} has {buckets[1]}: make the older one anew"
        )
    return sources[0]


def _pairs(first: Artifact, second: Artifact) -> Iterator[tuple[Proposed, Proposed]]:
    """Proposals of every picture that has a row in both caches, bucket by bucket."""
    for bucket in range(first.manifest()["buckets"]):
        rows, others = (
            proposals_by_image(cache.read_table(f"part-{bucket:05d}.parquet"))
            for cache in (first, second)
        )
        for image_id in sorted(rows.keys() & others.keys()):
            pair = [
                Proposed(image_id=image_id, boxes=row["boxes"], scores=row["scores"])
                for row in (rows[image_id], others[image_id])
            ]
            yield pair[0], pair[1]


def _against(
    caches: tuple[Artifact, Artifact], samples: Artifact, source: str, num_pictures: int
) -> _Labelled:
    scenes, names = load_scenes(samples, source)
    ids = {scene.image_id for scene in scenes}
    first, second = (load_proposals(cache, ids) for cache in caches)
    return _Labelled(
        pictures=len(scenes),
        objects=sum(not ignore for scene in scenes for ignore in scene.ignore),
        figures=(
            proposal_figures(scenes, first, names, CURVE),
            proposal_figures(scenes, second, names, CURVE),
        ),
        calibrations=(calibration(scenes, first), calibration(scenes, second)),
        differences=most_different(
            scenes, {p.image_id: p for p in first}, {p.image_id: p for p in second}, num_pictures
        ),
    )


def _cache_table(caches: Sequence[Artifact]) -> Table:
    """What each cache holds, whatever is annotated."""
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
        "pictures",
        "not in the other",
        "rejected",
        "boxes, mean",
        "median",
        "max",
    ]
    return Table(header=[*header, "why rejected"], rows=rows)


def _settings(caches: Sequence[Artifact]) -> list[Facts]:
    """Fingerprint, inputs and config of each, folded away."""
    blocks = []
    for letter, cache in zip("AB", caches, strict=True):
        manifest = cache.manifest()
        facts = {"fingerprint": cache.fingerprint, "version": str(manifest["version"])}
        facts |= {f"made from {name}": key for name, key in manifest["inputs"].items()}
        facts |= {name: _text(value) for name, value in manifest["config"].items()}
        blocks.append(
            Facts(facts=facts, summary=f"Settings of {letter}: {cache.name} {cache.fingerprint}")
        )
    return blocks


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _recall_table(against: Mapping[str, _Labelled], names: Mapping[str, str]) -> Table:
    """Lay out some of the figures, a row each; one that neither cache has is left out."""
    rows = []
    for dataset, item in against.items():
        first, second = item.figures
        for name, heading in names.items():
            pair = first.get(name), second.get(name)
            if pair[0] is not None and pair[1] is not None:
                # Adding 0.0 turns a rounded -0.0 into 0.0.
                points = f"{round(100 * (pair[1] - pair[0]), 1) + 0.0:+.1f}"
                rows.append([dataset, heading, percent(pair[0]), percent(pair[1]), points])
    labelled = [
        f"{name}: {item.objects} objects on {item.pictures} pictures"
        for name, item in against.items()
    ]
    return Table(
        header=["dataset", "figure", "A", "B", "B - A"], rows=rows, note="; ".join(labelled)
    )


def _curves(against: Mapping[str, _Labelled]) -> list[tuple[str, str]]:
    plots = []
    for dataset, item in against.items():
        for name, heading in (("ar", "AR"), ("r50", "R50")):
            series = {
                letter: [
                    (k, 100 * figures[f"{name}@{k}"]) for k in CURVE if f"{name}@{k}" in figures
                ]
                for letter, figures in zip("AB", item.figures, strict=True)
            }
            plot = curves(
                series, x="boxes of a picture, best first", y=f"{heading}, %", logarithmic=True
            )
            plots.append((f"{dataset}: {heading} by number of boxes", plot))
    return plots


def _agreement_table(agreed: Sequence[Agreement]) -> Table:
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
        "A at 0.75, %",
        "B at 0.75, %",
    ]
    note = f"over {agreed[0].images} pictures that both looked at"
    return Table(header=header, rows=rows, note=note)


def _calibration_table(against: Mapping[str, _Labelled]) -> Table:
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
    return Table(header=["dataset", "figure", "A", "B"], rows=rows)


def _reliabilities(against: Mapping[str, _Labelled]) -> list[tuple[str, str]]:
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


def _bin_tables(against: Mapping[str, _Labelled]) -> list[Table]:
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
            *(f"{letter} {what}" for letter in "AB" for what in ("boxes", "mean score", "hits")),
        ]
        tables.append(Table(header=header, rows=rows, note=dataset))
    return tables
