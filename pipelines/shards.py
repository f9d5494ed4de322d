"""Graph: samples and proposals of a bucket -> tars of region examples with an index (`pipelines.tars`).

Each bucket gives one tar a task, and ``rejects-00003.parquet``. The ledger of the manifest counts rows of
samples, ``rejection`` those of the rejection examples made beside them, ``examples`` what came out by task,
``regions`` and ``injected`` all regions and those injected, ``regions_histogram`` examples by tens of
regions, and, once an image, annotated ``objects`` and how many of them a proposal matched: the recall of
the proposals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dataset_builders.images import decode_image, read_image_bytes
from dataset_builders.records import (
    REJECT_SCHEMA,
    BadRecord,
    Reject,
    Sample,
    reject_to_row,
    sample_from_row,
)
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.assign import AssignConfig, Assignment, assign, evaluation_config
from pipelines.cluster import RuntimeConfig, map_buckets
from pipelines.interleave import interleave, join_samples, referenced_objects
from pipelines.ledgers import add_ledgers, entry
from pipelines.records import GROUND_TRUTH, RegionExample, proposals_by_image
from pipelines.rejection import RejectionConfig, rejection_sample
from pipelines.tars import ShardSet, TarWriter, decode_member, tasks_of

__all__ = ["ShardSet", "ShardsConfig", "decode_member", "shards_inputs", "tasks_of", "write_shards"]

VERSION = 2
"""Raised when the same inputs would give other shards."""
REGIONS = ("proposals", "proposals_scored", "ground_truth")


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


def shards_inputs(samples: Artifact, proposals: Artifact | None) -> dict[str, str]:
    """Fingerprints of what shards are made from."""
    used = [samples] if proposals is None else [samples, proposals]
    return {f"{artifact.kind}/{artifact.name}": artifact.fingerprint for artifact in used}


def write_shards(
    config: ShardsConfig,
    samples: Artifact,
    proposals: Artifact | None,
    output: Artifact,
    *,
    dataset_root: str,
    runtime: RuntimeConfig,
) -> dict[str, Any]:
    """Write the shards of a dataset and return their manifest; go on where a killed run stopped.

    dataset_root: folder that the samples' image_uri starts from.
    Raises ValueError before any worker starts for inputs that are not complete or do not fit together, and
    afterwards when more than ``runtime.max_reject_fraction`` of the rows were rejected.
    """
    inputs = shards_inputs(samples, proposals)
    if (proposals is None) != (config.regions == "ground_truth"):
        need = "takes no proposals" if proposals else "needs proposals"
        raise ValueError(f"regions={config.regions!r} {need}: change `regions` or the artifact passed in")
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    num_buckets = _num_buckets(samples, proposals)
    waiting = sorted(set(range(num_buckets)) - set(output.finished()))
    settings = {
        "config": config,
        "samples": samples,
        "proposals": proposals,
        "output": output,
        "dataset_root": dataset_root,
    }
    for _ in map_buckets(ShardWorker, settings, waiting, runtime=runtime, description=f"shard {output.name}"):
        pass  # every worker commits its buckets itself
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _num_buckets(samples: Artifact, proposals: Artifact | None) -> int:
    counts = {}
    for artifact in [samples] if proposals is None else [samples, proposals]:
        if artifact.status() != "done":
            raise ValueError(f"{artifact.path} is {artifact.status()}: make it before its shards")
        counts[f"{artifact.kind}/{artifact.name}"] = int(artifact.manifest()["buckets"])
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"num_buckets differ: {counts}; datasets of one image source must share their number"
        )
    return min(counts.values())


class ShardWorker:
    """Writes the tars of one bucket a call."""

    def __init__(
        self,
        config: ShardsConfig,
        samples: Artifact,
        proposals: Artifact | None,
        output: Artifact,
        dataset_root: str,
    ) -> None:
        self.config, self.samples, self.proposals, self.output = config, samples, proposals, output
        # Several samples of an image follow each other; 16 files of up to a few MB are no burden.
        self.read_image: Callable[[str], bytes] = lru_cache(16)(partial(read_image_bytes, dataset_root))
        self.rules = config.assign
        if config.regions == "proposals_scored":
            self.rules = evaluation_config(config.assign.max_regions, config.assign.match_iou)

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Make the examples of the bucket, commit its tars and return its ledger."""
        part = f"part-{bucket:05d}.parquet"
        samples = [sample_from_row(row) for row in self.samples.read_table(part).to_pylist()]
        writer = _BucketWriter()
        if self.proposals is None:
            self._ground_truth(samples, writer)
        else:
            rows = proposals_by_image(self.proposals.read_table(part))
            self._conversations(samples, rows, writer)
        files, counts = writer.files(bucket)
        ledger = writer.ledger()
        self.output.commit_bucket(bucket, files, ledger, rows=counts)
        return ledger

    def _conversations(
        self, samples: list[Sample], rows: dict[str, dict[str, Any]], writer: _BucketWriter
    ) -> None:
        seen: set[str] = set()
        for origin, group in self._groups(samples):
            writer.begin(origin, len(group))
            joined = join_samples(group)
            try:
                assignment = self._assign(joined, rows.get(joined.image_id))
                example = interleave(joined, assignment, answer=self.config.regions == "proposals")
                writer.add(origin, example, self.read_image(joined.image_uri), len(group))
            except BadRecord as error:
                for sample in group:
                    writer.reject(origin, Reject.of(sample.sample_id, error))
                continue
            if joined.image_id not in seen:
                seen.add(joined.image_id)
                writer.count({"objects": assignment.num_objects, "matched": assignment.num_matched})

    def _groups(self, samples: list[Sample]) -> Iterator[tuple[str, list[Sample]]]:
        """Samples, and rejection samples made of them, that become one example each; origin before them."""
        waiting: dict[tuple[str, str, str], list[Sample]] = {}
        for sample in samples:
            variants = [("samples", sample)]
            if self.config.rejection is not None and sample.task == "detection":
                made = rejection_sample(sample, self.config.rejection)
                variants += [("rejection", made)] if made is not None else []
            for origin, variant in variants:
                group = waiting.setdefault((origin, variant.task, variant.image_id), [])
                group.append(variant)
                if len(group) == self.config.turns:
                    yield origin, waiting.pop((origin, variant.task, variant.image_id))
        for (origin, _, _), group in waiting.items():
            yield origin, group

    def _assign(self, sample: Sample, row: dict[str, Any] | None) -> Assignment:
        if row is None:
            raise BadRecord("missing_proposals", f"image {sample.image_id}")
        if row["status"] != "ok":
            raise BadRecord(row["status"], row["error"] or f"image {sample.image_id}")
        _check_size(sample, (row["width"], row["height"]))
        return assign(
            sample_id=sample.sample_id,
            width=sample.width,
            height=sample.height,
            proposals=row["boxes"],
            scores=row["scores"],
            objects=_boxes(sample),
            ignore=np.array([item.ignore for item in sample.objects], bool),
            referenced=referenced_objects(sample.turns),
            pointed_at=referenced_objects(sample.turns, role="user"),
            config=self.rules,
            seed=self.config.seed,
        )

    def _ground_truth(self, samples: list[Sample], writer: _BucketWriter) -> None:
        # Every sample of an image lists all its objects, so the first one will do.
        first = {sample.image_id: sample for sample in reversed(samples)}
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
            "size_mismatch", f"{sample.width}x{sample.height} annotated, {size[0]}x{size[1]} decoded"
        )


def _detector_example(sample: Sample) -> RegionExample:
    num_objects = len(sample.objects)
    return RegionExample(
        sample_id=sample.image_id,
        dataset=sample.dataset,
        task="detection",
        image_id=sample.image_id,
        width=sample.width,
        height=sample.height,
        boxes=_boxes(sample),
        scores=(None,) * num_objects,
        box_sources=(GROUND_TRUTH,) * num_objects,
        ignore=tuple(item.ignore for item in sample.objects),
    )


class _BucketWriter:
    """Collects the tars, rejects and counters of one bucket in memory. `origin`: samples or rejection."""

    def __init__(self) -> None:
        self._tars: dict[str, TarWriter] = {}
        self._rejects: list[Reject] = []
        self._rows_in: Counter[str] = Counter()
        self._rows_out: Counter[str] = Counter()
        self._reasons: dict[str, list[str]] = {"samples": [], "rejection": []}
        zeros: dict[str, Any] = dict.fromkeys(("objects", "matched", "regions", "injected"), 0)
        self._counters = {**zeros, "examples": {}, "regions_histogram": {}}

    def begin(self, origin: str, rows: int = 1) -> None:
        """Count rows in; `add` or `reject` must follow."""
        self._rows_in[origin] += rows

    def add(self, origin: str, example: RegionExample, image: bytes, rows: int = 1) -> None:
        """Write an example made of so many rows; image: the bytes of its file."""
        self._tars.setdefault(example.task, TarWriter()).add(example, image)
        self._rows_out[origin] += rows
        tens = len(example.boxes) // 10 * 10
        self.count(
            {
                "regions": len(example.boxes),
                "injected": sum(score is None for score in example.scores),
                "examples": {example.task: 1},
                "regions_histogram": {f"{tens:03d}-{tens + 9:03d}": 1},
            }
        )

    def reject(self, origin: str, reject: Reject) -> None:
        """Leave a row out."""
        self._rejects.append(reject)
        self._reasons[origin].append(reject.reason)

    def count(self, counters: dict[str, Any]) -> None:
        """Add to the counters of the ledger."""
        self._counters = add_ledgers(self._counters, counters)

    def ledger(self) -> dict[str, Any]:
        """Ledger of the bucket; see the module."""
        rows = {
            o: entry(self._rows_in[o], self._rows_out[o], reasons) for o, reasons in self._reasons.items()
        }
        return {**rows["samples"], "rejection": rows["rejection"], **self._counters}

    def files(self, bucket: int) -> tuple[dict[str, bytes], dict[str, int]]:
        """Contents of the bucket's files by name, and the number of rows of some."""
        rejects = pa.Table.from_pylist([reject_to_row(r) for r in self._rejects], schema=REJECT_SCHEMA)
        files = {f"rejects-{bucket:05d}.parquet": parquet_bytes(rejects)}
        counts = {f"rejects-{bucket:05d}.parquet": len(self._rejects)}
        for task, tar in sorted(self._tars.items()):
            counts[f"{task}-{bucket:05d}.tar"] = len(tar)
            files[f"{task}-{bucket:05d}.tar"], files[f"{task}-{bucket:05d}.index.parquet"] = tar.finish()
        return files, counts
