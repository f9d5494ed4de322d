"""The page of `fo1 proposals diff`: two caches of proposals beside each other and beside the truth.

Agreement goes bucket by bucket; for the metrics against the truth the proposals of one labelled
dataset at a time are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from dataset_builders import DataFolders
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.evaluation.metrics.comparison import agreement, calibration, most_different
from pipelines.evaluation.metrics.detection import AREAS
from pipelines.evaluation.metrics.proposals import BUDGETS, Proposed, proposal_metrics
from pipelines.evaluation.stored_inputs import load_proposals, load_scenes
from pipelines.reports.evaluation_report import Report
from pipelines.reports.html_page import Facts, Plots, Section, Table, render_page, text_table
from pipelines.reports.proposals_cards import image_section
from pipelines.reports.proposals_tables import (
    CURVE,
    TOPS,
    Labelled,
    agreement_table,
    bin_tables,
    cache_table,
    calibration_table,
    recall_by_cache,
    recall_curves,
    reliability_plots,
)
from pipelines.schemas import proposals_by_image

_RECALL = {f"{name}@{k}": f"{name.upper()}@{k}" for k in BUDGETS for name in ("ar", "r50", "r75")}
_RECALL |= {"oracle_ap": "oracle AP"}
_SIZES = {f"ar_{size}@{CURVE[-1]}": size for size in AREAS[1:]}
_INTROS = {
    "Recall": "Share of the annotated boxes that the best 10, 100 or 300 boxes of an image cover, "
    "whatever their names, in percent. AR: mean over IoU 0.50 to 0.95; R50 and R75: at IoU 0.50 "
    "and 0.75. Oracle AP is what a model that names every box perfectly would reach: the ceiling "
    "that the boxes and their scores set for the final AP.",
    "Recall by size": "AR of 300 boxes in percent, by area of the annotated box: small below "
    "32 x 32 px, medium below 96 x 96 px, large above.",
    "Agreement": "Boxes of A and B on the same image, paired one to one from IoU 0.5 on, largest "
    "overlap first; the truth plays no part. Shares are of the detector's own boxes, in pairs from "
    "IoU 0.5 and from IoU 0.75 on.",
    "Score calibration": "How often a box of a given score overlaps an annotated one from IoU 0.5 "
    "on: on the diagonal, the score is the probability of that. The expected calibration error is "
    "the mean distance from it, weighted by boxes; the rank correlation (Spearman's, of score and "
    "best IoU) asks only whether better boxes have higher scores. Where not every object is "
    "annotated, good boxes count as misses.",
}
"""What each part of the page shows and how to read it."""


def diff_page(
    first: Artifact,
    second: Artifact,
    labelled: Mapping[str, Artifact],
    *,
    folders: DataFolders,
    num_images: int = 12,
) -> Report:
    """Compare two finished caches of proposals of one image source.

    Args:
        first: Cache A.
        second: Cache B.
        labelled: Finished samples by dataset; only their objects on images of the image source
            count.
        folders: Where the images lie.
        num_images: Number of images to draw for each dataset.

    Returns:
        The page, and its tables as text.

    Raises:
        SettingError: The caches are of different image sources, or cut into different buckets.
    """
    source = _check(first, second)
    caches = (first, second)
    table = cache_table(caches)
    agreed = agreement(_pairs(first, second), TOPS)
    # Samples may lie over other images than the caches': those datasets have nothing to say here.
    all_labelled = {
        name: _against(caches, samples, source, num_images) for name, samples in labelled.items()
    }
    against = {name: item for name, item in all_labelled.items() if item.objects}
    recall, sizes = recall_by_cache(against, _RECALL), recall_by_cache(against, _SIZES)
    agreements, calibrations = agreement_table(agreed), calibration_table(against)
    blocks: dict[str, list[Table | Plots]] = {
        "Recall": [recall, Plots(plots=recall_curves(against))],
        "Recall by size": [sizes],
        "Agreement": [agreements],
        "Score calibration": [
            calibrations,
            Plots(plots=reliability_plots(against)),
            *bin_tables(against),
        ],
    }
    without = sorted(labelled.keys() - against.keys())
    intro = f"Two caches of proposals of the images of {source}."
    if without:
        intro += f" Left out, for want of annotated objects there: {', '.join(without)}."
    sections = [
        Section(title="What is compared", intro=intro, blocks=[table, *_settings(caches)]),
        *(
            Section(title=title, intro=_INTROS[title], blocks=shown)
            for title, shown in blocks.items()
        ),
        *(image_section(name, item.differences, first, folders) for name, item in against.items()),
    ]
    titled = {"caches": table, "recall": recall, "recall by size": sizes}
    titled |= {"agreement": agreements, "calibration": calibrations}
    texts = [f"{title}\n{text_table(t.header, t.rows)}" for title, t in titled.items() if t.rows]
    html = render_page(f"Proposals: {first.name} against {second.name}", sections)
    return Report(html=html, text="\n\n".join(texts))


def image_source(proposals: Artifact) -> str:
    """Return the image source whose images a cache is of."""
    return proposals.name.partition("/")[0]


def _check(first: Artifact, second: Artifact) -> str:
    """Return the image source of both caches, which can be compared bucket by bucket."""
    sources = [image_source(cache) for cache in (first, second)]
    if sources[0] != sources[1]:
        raise SettingError(
            f"{first.name} and {second.name} are of different image sources: compare two of the "
            "same images"
        )
    # Images are paired within a bucket; another number of buckets puts them elsewhere.
    buckets = [cache.manifest()["buckets"] for cache in (first, second)]
    if buckets[0] != buckets[1]:
        raise SettingError(
            f"{first.path} has {buckets[0]} buckets, {second.path} has {buckets[1]}: make the "
            "older one anew"
        )
    return sources[0]


def _pairs(first: Artifact, second: Artifact) -> Iterator[tuple[Proposed, Proposed]]:
    """Yield the proposals of every image that has a row in both caches, bucket by bucket."""
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
    caches: tuple[Artifact, Artifact], samples: Artifact, source: str, num_images: int
) -> Labelled:
    """Judge both caches by the objects of one labelled dataset."""
    scenes, names = load_scenes(samples, source)
    ids = {scene.image_id for scene in scenes}
    first, second = (load_proposals(cache, ids) for cache in caches)
    return Labelled(
        images=len(scenes),
        objects=sum(not ignore for scene in scenes for ignore in scene.ignore),
        metrics=(
            proposal_metrics(scenes, first, names, CURVE),
            proposal_metrics(scenes, second, names, CURVE),
        ),
        calibrations=(calibration(scenes, first), calibration(scenes, second)),
        differences=most_different(
            scenes, {p.image_id: p for p in first}, {p.image_id: p for p in second}, num_images
        ),
    )


def _settings(caches: Sequence[Artifact]) -> list[Facts]:
    """Return fingerprint, inputs and config of each cache, folded away."""
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
