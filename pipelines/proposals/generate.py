"""Graph: the images of an image source -> load -> detector -> proposals parquet by bucket.

Every listed image gives a row of `PROPOSALS_SCHEMA`, with a status when it has no boxes. Each image
is decoded whatever the detector, so that a later step may rely on it. The driver lists the images
once, into ``images-00003.parquet`` of each bucket (`pipelines.proposals.image_lists`), which
workers read; records that the list itself rejects are in ``rejects-00003.parquet``. Workers take
slices of a bucket (`pipelines.proposals.workers`); the driver gathers them and commits a bucket
when it is whole. Rows are sorted by image_id; a detector's name and settings are in the metadata of
the parquet file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders import IMAGE_SOURCES, DataFolders
from fo1_model.detectors import DetectorConfig, leaves, preparation
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.cluster import RuntimeConfig, cluster_resources, pool_sizes
from pipelines.errors import SettingError
from pipelines.fingerprints import canonical
from pipelines.input_digests import image_list_digest
from pipelines.progress import Progress
from pipelines.proposals.detector_inputs import (
    Supply,
    check_supplies,
    checkpoints,
    local_checkpoints,
    supplied_inputs,
    supply_for,
)
from pipelines.proposals.image_lists import file_name, write_lists
from pipelines.proposals.workers import (
    OK,
    DetectorWorker,
    ImageLoader,
    LoadAndDetectWorker,
    WorkerSettings,
    slices,
)
from pipelines.row_accounting import entry
from pipelines.schemas import PROPOSALS_SCHEMA
from pipelines.worker_pools import Stage, run_stages

VERSION = 3
"""Version of this step; it is raised when the same inputs would give other proposals."""


@dataclass(frozen=True, kw_only=True)
class ProposalsConfig:
    """Which images get proposals, and of which detector."""

    image_source: str
    """Name in IMAGE_SOURCES; every dataset over these images shares the proposals."""
    detector: DetectorConfig
    """Config of the detector (`fo1_model.detectors`), which boxes it keeps included."""

    def __post_init__(self) -> None:
        if self.image_source not in IMAGE_SOURCES:
            known = ", ".join(IMAGE_SOURCES)
            raise SettingError(f"image_source={self.image_source!r} is unknown: use one of {known}")


def proposals_inputs(
    config: ProposalsConfig,
    folders: DataFolders,
    digest_cache: str | Path,
    supplies: Sequence[Supply],
) -> dict[str, str]:
    """Return the identity of what proposals are made from, by name.

    That is the list of images and the detector's supplies. The images themselves are not read: to
    replace one in place, use ``--force``.

    Args:
        config: Which images, and of which detector.
        folders: Where the datasets lie.
        digest_cache: Local folder that remembers file digests.
        supplies: What each detector of the config needs (`pipelines.proposals.detector_inputs`).

    Raises:
        SettingError: The supplies are not what the detector needs.
    """
    supplied = supplied_inputs(config.detector, supplies, digest_cache)
    return {
        "images": image_list_digest(IMAGE_SOURCES[config.image_source], folders, digest_cache)
    } | supplied


def propose(
    config: ProposalsConfig,
    output: Artifact,
    *,
    folders: DataFolders,
    runtime: RuntimeConfig,
    inputs: Mapping[str, str],
    supplies: Sequence[Supply],
) -> dict[str, Any]:
    """Make the proposals of an image source; go on where a killed run stopped.

    Args:
        config: Which images, and of which detector.
        output: The artifact to make.
        folders: Where the datasets lie.
        runtime: Where it runs, how much may be rejected, whether to begin anew.
        inputs: What `proposals_inputs` gave, and `output` has its fingerprint from.
        supplies: What each detector of the config needs (`pipelines.proposals.detector_inputs`).

    Returns:
        The manifest.

    Raises:
        SettingError: The settings do not fit together; raised before any worker starts.
        LedgerError: More than ``runtime.max_reject_fraction`` of the images could not be used.
    """
    check_supplies(config.detector, supplies)
    source = IMAGE_SOURCES[config.image_source]
    samples = supply_for(config.detector, supplies, "objects")
    if isinstance(samples, Artifact) and samples.status() != "done":
        raise SettingError(
            f"samples={samples.path} is {samples.status()}: make it before its proposals"
        )
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    weights = checkpoints(config.detector, supplies)
    if any(leaf.needs in ("run", "weights") for leaf in leaves(config.detector)):
        # A folder of something else fails here, not in every worker.
        with local_checkpoints(weights) as local:
            preparation(config.detector, local)
    waiting = sorted(set(range(source.num_buckets)) - set(output.finished()))
    if waiting:
        box_file = supply_for(config.detector, supplies, "boxes")
        write_lists(source, folders, output, waiting, samples, box_file)
        settings = WorkerSettings(
            detector=config.detector,
            checkpoint=weights,
            output=output,
            folders=folders,
            device="cpu",
        )
        _detect(settings, waiting, runtime)
    unmatched = output.read_bytes("unmatched.json") if output.exists("unmatched.json") else b"{}"
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        ledger=json.loads(unmatched),
        num_buckets=source.num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _detect(settings: WorkerSettings, buckets: Sequence[int], runtime: RuntimeConfig) -> None:
    """Detect in the images of some buckets; commit each bucket when all its rows are there."""
    waiting = {
        b: settings.output.read_table(file_name("images", b), columns=["image_id"]).num_rows
        for b in buckets
    }
    gathered: dict[int, list[pa.Table]] = defaultdict(list)
    progress = Progress(f"propose {settings.output.name}", sum(waiting.values()), unit="images")
    tasks = [task for bucket, count in waiting.items() for task in slices(bucket, count)]
    stages = _stages(settings, runtime, len(tasks))
    for bucket in [bucket for bucket, count in waiting.items() if count == 0]:
        _commit(settings, bucket, [])
    for table in run_stages(stages, tasks, runtime=runtime) if tasks else ():
        for bucket in set(table["bucket"].to_pylist()):
            gathered[bucket].append(table.filter(pc.equal(table["bucket"], bucket)))
        progress.update(
            table.num_rows, rejects=sum(status != OK for status in table["status"].to_pylist())
        )
        whole = [
            b for b, parts in gathered.items() if sum(part.num_rows for part in parts) == waiting[b]
        ]
        for bucket in whole:
            _commit(settings, bucket, gathered.pop(bucket))
    progress.close()
    if gathered:
        raise RuntimeError(
            f"{settings.output.path}: buckets {sorted(gathered)[:10]} came back in part"
        )


def _stages(settings: WorkerSettings, runtime: RuntimeConfig, num_tasks: int) -> list[Stage]:
    """Return the pools of a run, told where the model sits."""
    if runtime.workers == 0:
        settings = replace(settings, device=_local_device(runtime))
        return [Stage(worker=LoadAndDetectWorker, kwargs={"settings": settings}, size=1)]
    pools = pool_sizes(cluster_resources(runtime), runtime, with_helpers=True)
    workers = min(pools.workers, max(1, num_tasks))
    if not pools.num_gpus:
        return [Stage(worker=LoadAndDetectWorker, kwargs={"settings": settings}, size=workers)]
    settings = replace(settings, device="cuda")
    helpers = min(pools.helpers, max(1, num_tasks))
    return [
        Stage(worker=ImageLoader, kwargs={"settings": settings}, size=helpers),
        Stage(
            worker=DetectorWorker,
            kwargs={"settings": settings},
            size=workers,
            num_gpus=pools.num_gpus,
        ),
    ]


def _local_device(runtime: RuntimeConfig) -> str:
    """Return where the model of a run without Ray sits."""
    if runtime.gpus_per_worker == 0:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _commit(settings: WorkerSettings, bucket: int, parts: Sequence[pa.Table]) -> None:
    """Write the proposals of a bucket and its ledger."""
    described = {
        "detector": json.dumps(canonical(settings.detector), sort_keys=True),
        "fingerprint": settings.output.fingerprint,
    }
    schema = PROPOSALS_SCHEMA.with_metadata(described)
    table = pa.concat_tables(parts) if parts else PROPOSALS_SCHEMA.empty_table()
    rows = sorted(table.to_pylist(), key=lambda row: row["image_id"])
    kept = (file_name("images", bucket), file_name("rejects", bucket))
    files = {name: settings.output.read_bytes(name) for name in kept}
    files[file_name("part", bucket)] = parquet_bytes(pa.Table.from_pylist(rows, schema=schema))
    lost = settings.output.read_table(file_name("rejects", bucket)).to_pylist()
    reasons = [row["status"] for row in rows if row["status"] != OK] + [
        row["reason"] for row in lost
    ]
    good = sum(row["status"] == OK for row in rows)
    ledger = entry(len(rows) + len(lost), good, reasons)
    ledger["boxes"] = sum(len(row["boxes"]) for row in rows)
    settings.output.commit_bucket(
        bucket, files, ledger, rows={file_name("part", bucket): len(rows)}
    )
