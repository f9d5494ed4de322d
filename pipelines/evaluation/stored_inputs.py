"""What scoring and the pages read from artifacts: samples, their truth, proposals, examples.

Only finished artifacts are read. Everything comes as the plain records that metrics and pages take,
in an order that depends on the artifact alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dataset_builders.records import Sample, sample_from_row
from pipelines.artifacts import Artifact
from pipelines.evaluation.metrics.cases import Scene, as_boxes
from pipelines.evaluation.metrics.proposals import Proposed
from pipelines.schemas import RegionExample, proposals_by_image
from pipelines.shards.tar_format import ShardSet, decode_member


def read_rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Yield the rows of an artifact's parquet parts, bucket by bucket."""
    for bucket in range(artifact.manifest()["buckets"]):
        yield from artifact.read_table(f"part-{bucket:05d}.parquet").to_pylist()


def load_samples(samples: Artifact) -> Iterator[Sample]:
    """Yield the samples of an artifact, bucket by bucket."""
    for row in read_rows(samples):
        yield sample_from_row(row)


def load_scenes(
    samples: Artifact, image_source: str | None = None
) -> tuple[list[Scene], list[str]]:
    """Read the true objects of every image, and all names.

    Args:
        samples: The samples that state them. Windows into images are left out, and texts without
            an image.
        image_source: Source whose images are wanted; None takes all.

    Returns:
        One scene an image, by image_id, and the sorted names that are present or known to be
        absent anywhere.
    """
    scenes: dict[str, Scene] = {}
    names: set[str] = set()
    for sample in load_samples(samples):
        if sample.window or not sample.image_uri or image_source not in (None, sample.image_source):
            continue
        names.update(item.label for item in sample.objects)
        names.update(sample.absent_labels or ())
        # Every sample of an image lists all its objects, so any of them will do.
        scenes[sample.image_id] = Scene(
            image_id=sample.image_id,
            boxes=as_boxes([item.box for item in sample.objects]),
            labels=tuple(item.label for item in sample.objects),
            ignore=tuple(item.ignore for item in sample.objects),
        )
    return [scenes[image_id] for image_id in sorted(scenes)], sorted(names)


def load_proposals(proposals: Artifact, image_ids: Collection[str]) -> list[Proposed]:
    """Return the proposals of some images; an image without a row has none."""
    found = []
    for bucket in range(proposals.manifest()["buckets"]):
        rows = proposals_by_image(proposals.read_table(f"part-{bucket:05d}.parquet"))
        found += [
            Proposed(image_id=image_id, boxes=row["boxes"], scores=row["scores"])
            for image_id, row in rows.items()
            if image_id in image_ids
        ]
    return found


def read_examples(shards: Artifact, tasks: Sequence[str]) -> Iterator[tuple[RegionExample, bytes]]:
    """Yield every example of some tasks with the bytes of its image, in stored order."""
    for task in tasks:
        source = ShardSet(shards, task)
        for name, count in source.shards:
            for row in range(count):
                yield decode_member(source.read(name, row))
