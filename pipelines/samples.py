"""Graph: a builder over a dataset -> samples parquet by bucket, rejects counted.

A builder is one stream in one process (annotation files are read front to back), but a bucket may
come anywhere in it. So rows are spilled to a local file a bucket while the builder runs, and each
bucket is then sorted and written. Memory holds `SPILL_ROWS` rows and one bucket. A killed run
starts the stream again and writes unfinished buckets only.

Files: ``part-00003.parquet`` (`SAMPLE_SCHEMA`, sorted by sample_id) and ``rejects-00003.parquet``
(`REJECT_SCHEMA`; a reject goes to a bucket by a hash of its record id). The ledger of the manifest
counts every record the builder read, over all units together and, nested, for each: ``image``,
``box``, ``record``; and samples by task.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from dataset_builders import DATASETS, BuildOptions, DataFolders, DatasetSpec
from dataset_builders.images import bucket_of
from dataset_builders.records import (
    REJECT_SCHEMA,
    SAMPLE_SCHEMA,
    BadRecord,
    Ledger,
    Reject,
    Sample,
    reject_to_row,
    sample_to_row,
)
from dataset_builders.validation import validate
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.bucket_spill import Spill
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.input_digests import dataset_digests
from pipelines.progress import Progress
from pipelines.row_accounting import entry

VERSION = 2
"""Version of this step; it is raised when the same inputs would give other samples."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Which dataset becomes samples, and how."""

    dataset: str
    """Name of the dataset in DATASETS."""
    options: BuildOptions = field(default_factory=BuildOptions)
    """Choices that the builder leaves open."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise SettingError(
                f"dataset={self.dataset!r} is unknown: use one of {', '.join(DATASETS)}"
            )


def samples_inputs(
    config: SamplesConfig, folders: DataFolders, digest_cache: str | Path
) -> dict[str, str]:
    """Return the identity of what samples are made from, by name.

    That is the builder's version and its annotation files. A file that is not there is a wrong
    setting; the error names it.

    Args:
        config: Which dataset, and how.
        folders: Where the datasets lie.
        digest_cache: Local folder that remembers file digests.
    """
    spec = DATASETS[config.dataset]
    return {"builder": str(spec.version), **dataset_digests(spec, folders, digest_cache)}


def build_samples(
    config: SamplesConfig,
    output: Artifact,
    *,
    folders: DataFolders,
    runtime: RuntimeConfig,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Build the samples of a dataset; go on where a killed run stopped.

    Args:
        config: Which dataset, and how.
        output: The artifact to make.
        folders: Where the datasets lie; a wrong folder is refused at once.
        runtime: How much may be rejected, and whether to begin anew.
        inputs: What `samples_inputs` gave, and `output` has its fingerprint from.

    Returns:
        The manifest.

    Raises:
        LedgerError: A unit lost more than ``runtime.max_reject_fraction`` of its records.
        RuntimeError: The builder's own counts do not add up, or its samples break the rules.
    """
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    spec = DATASETS[config.dataset]
    waiting = set(range(spec.num_buckets)) - set(output.finished())
    with tempfile.TemporaryDirectory(prefix="fo1-samples-") as folder:
        spill = Spill(Path(folder), waiting)
        ledger = _stream(spec, config, folders, spill, f"build {output.name}")
        for bucket in sorted(waiting):
            _write_bucket(output, bucket, spill)
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=spec.num_buckets,
        ledger=ledger,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _stream(
    spec: DatasetSpec, config: SamplesConfig, folders: DataFolders, spill: Spill, description: str
) -> dict[str, Any]:
    """Run the builder to its end, spill its rows, and return the ledger of the whole stream."""
    progress = Progress(description, None, unit="samples")
    reasons: dict[str, list[str]] = defaultdict(list)
    closing: Ledger | None = None
    sources = {source.name for source in spec.sources(folders)} | {""}
    for item in spec.samples(folders, config.options):
        if closing is not None:
            raise RuntimeError(f"{spec.name}: the builder yields {item!r} after its ledger")
        if isinstance(item, Ledger):
            closing = item
        elif isinstance(item, Reject):
            reasons[item.unit].append(item.reason)
            spill.add("rejects", bucket_of(item.record_id, spec.num_buckets), reject_to_row(item))
        else:
            _check_sample(item, spec, sources)
            bucket = bucket_of(item.image_id, spec.num_buckets)
            spill.add("samples", bucket, sample_to_row(item, bucket=bucket))
            progress.update(1)
    progress.close()
    if closing is None:
        raise RuntimeError(f"{spec.name}: the builder ended without a ledger")
    closing.check({unit: len(listed) for unit, listed in reasons.items()})
    units = {
        unit: entry(closing.read.get(unit, 0), closing.used.get(unit, 0), reasons.get(unit, []))
        for unit in sorted({*closing.read, *closing.used, *reasons})
    }
    every = [reason for listed in reasons.values() for reason in listed]
    return {**entry(sum(closing.read.values()), sum(closing.used.values()), every), "units": units}


def _check_sample(sample: Sample, spec: DatasetSpec, sources: Collection[str]) -> None:
    """Raise RuntimeError for a sample that breaks the rules: it is the builder's mistake."""
    try:
        validate(sample)
    except BadRecord as error:
        raise RuntimeError(
            f"{sample.sample_id}: the builder yields a bad sample ({error})"
        ) from error
    told = (sample.dataset == spec.name, sample.task in spec.tasks, sample.image_source in sources)
    if not all(told):
        raise RuntimeError(
            f"{sample.sample_id}: dataset {sample.dataset!r}, task {sample.task!r} or image source "
            f"{sample.image_source!r} is none that {spec.name} declares"
        )


def _write_bucket(output: Artifact, bucket: int, spill: Spill) -> None:
    """Sort and commit one bucket; its bytes do not depend on the order of the stream."""
    samples = sorted(spill.rows("samples", bucket), key=lambda row: row["sample_id"])
    for before, after in pairwise(samples):
        if before["sample_id"] == after["sample_id"]:
            raise RuntimeError(f"{after['sample_id']}: two samples have this id")
    rejects = sorted(spill.rows("rejects", bucket), key=lambda row: tuple(row.values()))
    part, lost = f"part-{bucket:05d}.parquet", f"rejects-{bucket:05d}.parquet"
    files = {
        part: parquet_bytes(pa.Table.from_pylist(samples, schema=SAMPLE_SCHEMA)),
        lost: parquet_bytes(pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA)),
    }
    tasks = Counter(row["task"] for row in samples)
    ledger = {"samples": len(samples), "tasks": dict(sorted(tasks.items()))}
    output.commit_bucket(bucket, files, ledger, rows={part: len(samples), lost: len(rejects)})
