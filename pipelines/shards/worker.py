"""Makes the examples of one bucket: rejects, rejection examples, turns joined, regions assigned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from dataset_builders import IMAGE_SOURCES, DataFolders
from dataset_builders.benchmark_leakage import Key
from dataset_builders.images import buckets_holding, decode_image, read_image_bytes
from dataset_builders.records import BadRecord, Reject, Sample, sample_from_row
from dataset_builders.seeds import seed_of
from pipelines.artifacts import Artifact
from pipelines.schemas import GROUND_TRUTH, RegionExample, proposals_by_image
from pipelines.shards import rejection
from pipelines.shards.assign import NO_REGIONS, Assignment, assign
from pipelines.shards.bucket_writer import BucketWriter
from pipelines.shards.config import ShardsConfig, evaluation_config
from pipelines.shards.interleave import interleave, join_samples, referenced_objects
from pipelines.shards.matching import Matching, match_image
from pipelines.shards.rejection import rejection_sample

PLAIN_TASKS = ("caption", "instruction")
"""Conversations without regions: trained with a list of regions in front of them and without."""
OPEN_IMAGES = 16
"""Image files kept in memory: the samples of an image follow each other, and each has a few MB."""
KEPT_MATCHINGS = 64
"""Images or windows whose matching is kept for the next question about them."""


class ShardWorker:
    """A process of the shard step, which writes the tars of one bucket a call."""

    def __init__(
        self,
        config: ShardsConfig,
        samples: Artifact,
        proposals: Mapping[str, Artifact],
        output: Artifact,
        folders: DataFolders,
        excluded: Mapping[Key, str],
        quotas: list[int],
    ) -> None:
        self.config, self.samples, self.proposals, self.output = config, samples, proposals, output
        self.excluded, self.quotas = excluded, quotas
        self.num_buckets = len(quotas)
        self.read_image: Callable[[str], bytes] = lru_cache(OPEN_IMAGES)(
            partial(read_image_bytes, folders)
        )
        self.rules = config.assign
        if config.regions == "proposals_scored":
            self.rules = evaluation_config(config.assign.max_regions, config.assign.match_iou)
        self._matchings: dict[tuple[object, ...], Matching] = {}

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Make the examples of the bucket, commit its tars and return its ledger."""
        table = self.samples.read_table(f"part-{bucket:05d}.parquet")
        writer = BucketWriter(self.config.max_side_px)
        samples = [
            s for s in map(sample_from_row, table.to_pylist()) if not self._left_out(s, writer)
        ]
        if not self.proposals:
            self._ground_truth(samples, writer)
        else:
            self._conversations(samples, bucket, writer)
        files, counts = writer.files(bucket)
        ledger = writer.ledger()
        self.output.commit_bucket(bucket, files, ledger, rows=counts)
        return ledger

    def _left_out(self, sample: Sample, writer: BucketWriter) -> bool:
        """Return whether the sample shows an image of a benchmark; it is rejected and counted."""
        if not self.excluded or not sample.image_source:
            return False
        space = IMAGE_SOURCES[sample.image_source].key_space or sample.image_source
        benchmark = self.excluded.get((space, sample.image_id))
        if benchmark is None:
            return False
        writer.begin("samples")
        error = BadRecord(
            "benchmark_image", f"image {sample.image_id} of {sample.image_source} is in {benchmark}"
        )
        writer.reject("samples", Reject.of(sample.sample_id, error))
        writer.count({"excluded": {benchmark: 1}})
        return True

    def _proposals(
        self, samples: list[Sample], bucket: int
    ) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the rows of the proposals of a bucket's images by (image source, image id)."""
        rows = {}
        for source in {sample.image_source for sample in samples} & self.proposals.keys():
            artifact, others = self.proposals[source], IMAGE_SOURCES[source].num_buckets
            # A source may have another number of buckets than the dataset.
            for part in buckets_holding(bucket, self.num_buckets, others):
                found = proposals_by_image(artifact.read_table(f"part-{part:05d}.parquet"))
                rows.update({(source, image_id): row for image_id, row in found.items()})
        return rows

    def _conversations(self, samples: list[Sample], bucket: int, writer: BucketWriter) -> None:
        """Write an example of each conversation about the bucket's images."""
        rows = self._proposals(samples, bucket)
        self._matchings.clear()
        for origin, group in self._groups(samples, bucket, writer):
            writer.begin(origin, len(group))
            joined = join_samples(group)
            try:
                assignment = self._assign(
                    joined, rows.get((joined.image_source, joined.image_id)), writer
                )
                example = interleave(joined, assignment, answer=self.config.regions == "proposals")
                image = self.read_image(joined.image_uri) if joined.image_uri else b""
                writer.add(origin, example, image, len(group))
            except BadRecord as error:
                for sample in group:
                    writer.reject(origin, Reject.of(sample.sample_id, error))

    def _groups(
        self, samples: list[Sample], bucket: int, writer: BucketWriter
    ) -> Iterator[tuple[str, list[Sample]]]:
        """Yield the samples that become one example each, and where they are from.

        That is ``samples``, or ``rejection`` for samples made of those.
        """
        styles: dict[str, rejection.Style] = {}
        rejecting = self.config.rejection
        if rejecting is not None:
            detection = [sample for sample in samples if sample.task == "detection"]
            styles = rejection.choose(detection, self.quotas[bucket], rejecting)
            by_style = {str(style): count for style, count in Counter(styles.values()).items()}
            made = {"wanted": self.quotas[bucket], "made": len(styles), **by_style}
            writer.count({"rejection_quota": made})
        waiting: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in samples:
            variants = [("samples", sample)]
            if rejecting is not None and sample.sample_id in styles:
                variants.append(
                    ("rejection", rejection_sample(sample, rejecting, styles[sample.sample_id]))
                )
            for origin, variant in variants:
                alike = (
                    origin,
                    variant.task,
                    variant.image_source,
                    variant.image_id,
                    variant.window,
                )
                group = waiting.setdefault(alike, [])
                group.append(variant)
                if len(group) == self.config.turns:
                    yield origin, waiting.pop(alike)
        for (origin, *_), group in waiting.items():
            yield origin, group

    def _assign(
        self, sample: Sample, row: dict[str, Any] | None, writer: BucketWriter
    ) -> Assignment:
        """Return the regions of a sample; BadRecord when its image has no usable proposals."""
        if not sample.image_uri:
            return NO_REGIONS
        if row is None:
            raise BadRecord(
                "missing_proposals", f"image {sample.image_id} of {sample.image_source}"
            )
        if row["status"] != "ok":
            raise BadRecord(row["status"], row["error"] or f"image {sample.image_id}")
        _check_size(sample, (row["width"], row["height"]))
        if (
            sample.task in PLAIN_TASKS
            and not referenced_objects(sample.turns)
            and self._without_list(sample)
        ):
            return NO_REGIONS
        view = (sample.image_source, sample.image_id, sample.window, sample.objects)
        if view not in self._matchings:
            if len(self._matchings) >= KEPT_MATCHINGS:
                self._matchings.clear()
            self._matchings[view] = self._match(sample, row)
            matching = self._matchings[view]
            if writer.is_new(view[:3]):
                writer.count(
                    {"objects": len(matching.groups), "matched": len(matching.proposal_of)}
                )
        return assign(
            self._matchings[view],
            sample_id=sample.sample_id,
            referenced=referenced_objects(sample.turns),
            pointed_at=referenced_objects(sample.turns, role="user"),
            config=self.rules,
            seed=self.config.seed,
        )

    def _match(self, sample: Sample, row: dict[str, Any]) -> Matching:
        return match_image(
            frame=sample.window or (0, 0, sample.width, sample.height),
            proposals=row["boxes"],
            scores=row["scores"],
            objects=_boxes(sample),
            ignore=np.array([item.ignore for item in sample.objects], bool),
            config=self.rules,
        )

    def _without_list(self, sample: Sample) -> bool:
        """Return whether a conversation without regions goes without the list of proposals.

        It is drawn from the id of the sample.
        """
        drawn = seed_of("plain", self.config.seed, sample.sample_id) % 10_000
        return drawn >= self.config.plain_with_regions * 10_000

    def _ground_truth(self, samples: list[Sample], writer: BucketWriter) -> None:
        """Write an example of the annotated boxes of each image or window."""
        # Every sample of an image or window lists all its objects, so the first one will do.
        first: dict[tuple[Any, ...], Sample] = {}
        for sample in samples:
            if sample.image_uri:
                first.setdefault(
                    (sample.image_source, sample.image_id, sample.window or ()), sample
                )
        for _, sample in sorted(first.items()):
            writer.begin("samples")
            try:
                data = self.read_image(sample.image_uri)
                _check_size(sample, decode_image(data).size)
                writer.add("samples", _detector_example(sample), data)
            except BadRecord as error:
                writer.reject("samples", Reject.of(sample.sample_id, error))


def _boxes(sample: Sample) -> np.ndarray:
    return np.array([item.box for item in sample.objects], np.float32).reshape(-1, 4)


def _check_size(sample: Sample, size: tuple[int, int]) -> None:
    if size != (sample.width, sample.height):
        raise BadRecord(
            "size_mismatch",
            f"{sample.width}x{sample.height} annotated, {size[0]}x{size[1]} decoded",
        )


def _detector_example(sample: Sample) -> RegionExample:
    """Return the example that a detector is trained on: an image's objects, no conversation."""
    num_objects = len(sample.objects)
    by_label: dict[str, list[int]] = {}
    for index, item in enumerate(sample.objects):
        by_label.setdefault(item.label, []).append(index)
    place = "" if sample.window is None else "@" + "-".join(map(str, sample.window))
    return RegionExample(
        sample_id=f"{sample.image_source}/{sample.image_id}{place}",
        dataset=sample.dataset,
        task="detection",
        image_id=sample.image_id,
        window=sample.window,
        width=sample.width,
        height=sample.height,
        boxes=_boxes(sample),
        scores=(None,) * num_objects,
        box_sources=(GROUND_TRUTH,) * num_objects,
        targets=tuple(
            {"text": label, "regions": regions, "boxes": [sample.objects[i].box for i in regions]}
            for label, regions in by_label.items()
        ),
        ignore=tuple(item.ignore for item in sample.objects),
        complete=sample.absent_regime == "exhaustive",
    )
