"""Graph: samples and proposals of a bucket -> tars of region examples with an index (`pipelines.shards.tar_format`).

Each bucket gives one tar a task, and ``rejects-00003.parquet``. The ledger of the manifest counts rows of
samples, ``rejection`` those of the rejection examples made beside them, ``rejection_quota`` how many were
wanted and made, by style, ``excluded`` rows left out by the benchmark that their image belongs to,
``examples`` what came out by task, ``regions`` and ``injected`` all regions and those injected,
``text_chars`` characters of the conversations by task, ``regions_histogram`` examples by tens of regions,
and, once an image or window, annotated ``objects`` and how many of them a proposal matched: the recall of
the proposals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from dataset_builders import IMAGE_SOURCES, DataFolders
from dataset_builders.benchmark_leakage import Key
from dataset_builders.images import buckets_holding, decode_image, read_image_bytes
from dataset_builders.records import BadRecord, Reject, Sample, sample_from_row
from dataset_builders.tasks.prompts import seed_of
from pipelines.artifacts import Artifact, prepare
from pipelines.cluster import RuntimeConfig
from pipelines.schemas import GROUND_TRUTH, RegionExample, proposals_by_image
from pipelines.shards import rejection
from pipelines.shards.assign import (
    NO_REGIONS,
    AssignConfig,
    Assignment,
    Matching,
    assign,
    evaluation_config,
    meet,
)
from pipelines.shards.bucket_writer import BucketWriter
from pipelines.shards.interleave import interleave, join_samples, referenced_objects
from pipelines.shards.rejection import RejectionConfig, rejection_sample
from pipelines.shards.tar_format import ShardSet, decode_member, tasks_of
from pipelines.worker_pools import map_buckets

__all__ = ["ShardSet", "ShardsConfig", "decode_member", "shards_inputs", "tasks_of", "write_shards"]

VERSION = 4
"""Raised when the same inputs would give other shards."""
REGIONS = ("proposals", "proposals_scored", "ground_truth")
PLAIN_TASKS = ("caption", "instruction")
"""Conversations without regions: they are trained with a list of regions in front of them and without."""


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """How samples become examples; all of it changes the bytes of the shards."""

    regions: Literal["proposals", "proposals_scored", "ground_truth"] = "proposals"
    """``proposals`` for training; ``proposals_scored`` for evaluation (score order, nothing injected, the
    last answer left out); ``ground_truth`` for training a detector (one example an image, no
    conversation)."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Rules of ``proposals``; of them `max_regions` and `match_iou` count for ``proposals_scored`` too."""
    rejection: RejectionConfig | None = field(default_factory=RejectionConfig)
    """Make a rejection example of each detection sample with labels known to be absent; None makes none."""
    exclude: tuple[str, ...] = ()
    """Benchmarks (`dataset_builders.benchmark_leakage`) whose images are left out; never for ``proposals_scored``."""
    plain_with_regions: float = 0.5
    """Share of the conversations without regions that get the list of proposals all the same, so that the
    list is no cue. ours"""
    max_side_px: int | None = None
    """Longer side of the pictures; larger ones are encoded anew. None keeps the original bytes of all."""
    turns: int = 1
    """Most questions about one picture in a training example. They share its regions, so that the picture is
    encoded once for all of them. ours"""
    seed: int = 0
    """Of the order of regions and of the choice between annotated and proposed boxes."""

    def __post_init__(self) -> None:
        if self.regions not in REGIONS:
            raise ValueError(f"regions={self.regions!r}: use one of {', '.join(REGIONS)}")
        if self.turns < 1 or (self.turns > 1 and self.regions != "proposals"):
            raise ValueError(f"turns={self.turns}: use 1, or more with regions='proposals'")
        if not 0.0 <= self.plain_with_regions <= 1.0:
            raise ValueError(
                f"plain_with_regions={self.plain_with_regions} is no share: use 0 to 1"
            )
        if self.max_side_px is not None and self.max_side_px < 28:
            raise ValueError(f"max_side_px={self.max_side_px}: use 28 or more, or none")
        if self.regions == "proposals_scored" and (self.exclude or self.max_side_px):
            raise ValueError("regions='proposals_scored' takes neither `exclude` nor `max_side_px`")


def shards_inputs(
    samples: Artifact, proposals: Mapping[str, Artifact], excluded: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Identity of what shards are made from.

    proposals: artifact of each image source. excluded: digest of the images of each benchmark left out.
    """
    used = [samples, *proposals.values()]
    return {
        **{f"{artifact.kind}/{artifact.name}": artifact.fingerprint for artifact in used},
        **{f"exclude/{name}": digest for name, digest in (excluded or {}).items()},
    }


def write_shards(
    config: ShardsConfig,
    samples: Artifact,
    proposals: Mapping[str, Artifact],
    output: Artifact,
    *,
    folders: DataFolders,
    runtime: RuntimeConfig,
    inputs: Mapping[str, str],
    excluded: Mapping[Key, str] | None = None,
) -> dict[str, Any]:
    """Write the shards of a dataset and return their manifest; go on where a killed run stopped.

    proposals: artifact of each image source of the dataset; none for ``ground_truth``. folders: where the
    datasets lie. inputs: `shards_inputs`, which gave `output` its fingerprint. excluded: image -> benchmark,
    of ``config.exclude`` (`leakage.excluded_images`).
    Raises ValueError before any worker starts for inputs that are not complete or do not fit together, and
    afterwards when more than ``runtime.max_reject_fraction`` of the rows were rejected.
    """
    if bool(proposals) == (config.regions == "ground_truth"):
        need = "takes no proposals" if proposals else "needs proposals"
        raise ValueError(
            f"regions={config.regions!r} {need}: change `regions` or the artifacts passed in"
        )
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    for artifact in (samples, *proposals.values()):
        if artifact.status() != "done":
            raise ValueError(f"{artifact.path} is {artifact.status()}: make it before its shards")
    num_buckets = int(samples.manifest()["buckets"])
    waiting = sorted(set(range(num_buckets)) - set(output.finished()))
    settings = {
        "config": config,
        "samples": samples,
        "proposals": dict(proposals),
        "output": output,
        "folders": folders,
        "excluded": dict(excluded or {}),
        "quotas": _quotas(config, samples, num_buckets),
    }
    for _ in map_buckets(
        ShardWorker, settings, waiting, runtime=runtime, description=f"shard {output.name}"
    ):
        pass  # every worker commits its buckets itself
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _quotas(config: ShardsConfig, samples: Artifact, num_buckets: int) -> list[int]:
    """Rejection samples that each bucket makes."""
    if config.rejection is None or config.regions == "ground_truth":
        return [0] * num_buckets
    markers = samples.finished()
    tasks = [markers[bucket]["ledger"]["tasks"] for bucket in range(num_buckets)]
    positives = [counts.get("detection", 0) for counts in tasks]
    negatives = [counts.get(rejection.TASK, 0) for counts in tasks]
    return rejection.quotas(positives, negatives, config.rejection.share)


class ShardWorker:
    """Writes the tars of one bucket a call."""

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
        # Several samples of an image follow each other; 16 files of up to a few MB are no burden.
        self.read_image: Callable[[str], bytes] = lru_cache(16)(partial(read_image_bytes, folders))
        self.rules = config.assign
        if config.regions == "proposals_scored":
            self.rules = evaluation_config(config.assign.max_regions, config.assign.match_iou)
        self._met: dict[tuple[object, ...], Matching] = {}

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
        """Whether the sample shows an image of a benchmark; it is rejected then, and counted."""
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
        """Rows of the proposals of a bucket's images by (image source, image id)."""
        rows = {}
        for source in {sample.image_source for sample in samples} & self.proposals.keys():
            artifact, others = self.proposals[source], IMAGE_SOURCES[source].num_buckets
            for part in buckets_holding(bucket, self.num_buckets, others):
                found = proposals_by_image(artifact.read_table(f"part-{part:05d}.parquet"))
                rows.update({(source, image_id): row for image_id, row in found.items()})
        return rows

    def _conversations(self, samples: list[Sample], bucket: int, writer: BucketWriter) -> None:
        rows = self._proposals(samples, bucket)
        self._met.clear()
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
        """Samples, and rejection samples made of them, that become one example each; origin before them."""
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
        if view not in self._met:
            if len(self._met) >= 64:
                self._met.clear()
            self._met[view] = self._meet(sample, row)
            met = self._met[view]
            if writer.is_new(view[:3]):
                writer.count({"objects": len(met.groups), "matched": len(met.proposal_of)})
        return assign(
            self._met[view],
            sample_id=sample.sample_id,
            referenced=referenced_objects(sample.turns),
            pointed_at=referenced_objects(sample.turns, role="user"),
            config=self.rules,
            seed=self.config.seed,
        )

    def _meet(self, sample: Sample, row: dict[str, Any]) -> Matching:
        return meet(
            frame=sample.window or (0, 0, sample.width, sample.height),
            proposals=row["boxes"],
            scores=row["scores"],
            objects=_boxes(sample),
            ignore=np.array([item.ignore for item in sample.objects], bool),
            config=self.rules,
        )

    def _without_list(self, sample: Sample) -> bool:
        """Whether a conversation without regions goes without the list of proposals: drawn from its id."""
        drawn = seed_of("plain", self.config.seed, sample.sample_id) % 10_000
        return drawn >= self.config.plain_with_regions * 10_000

    def _ground_truth(self, samples: list[Sample], writer: BucketWriter) -> None:
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
