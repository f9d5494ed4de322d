"""Graph: the images of an image source -> open -> detector -> proposals parquet by bucket.

Every listed image gives a row of `PROPOSALS_SCHEMA`, with a status when it has no boxes. Each image is
decoded whatever the detector, so that a later step may rely on it. The driver lists the images once, into
``images-00003.parquet`` of each bucket, which workers read; records that the list itself rejects are in
``rejects-00003.parquet``. Workers look at slices of a bucket (`pipelines.proposals.workers`); the driver gathers them
and commits a bucket when it is whole. Rows are sorted by image_id; a detector's name and settings are in the
metadata.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders import IMAGE_SOURCES, DataFolders, ImageSource
from dataset_builders.images import bucket_of, buckets_holding
from dataset_builders.records import REJECT_SCHEMA, BadRecord, ImageRef, Reject, reject_to_row
from fo1_model.detectors import DetectorConfig, leaves, preparation
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.bucket_spill import Spill
from pipelines.cluster import RuntimeConfig, cluster_resources, pool_sizes
from pipelines.fingerprints import canonical
from pipelines.input_digests import image_list_digest
from pipelines.progress import Progress
from pipelines.proposals.box_files import BoxFile, open_box_file
from pipelines.proposals.detector_inputs import (
    Supply,
    check_supplies,
    checkpoints,
    supplied_inputs,
    supply_for,
)
from pipelines.proposals.workers import (
    IMAGES_SCHEMA,
    OK,
    DetectorWorker,
    ImageLoader,
    LoadingDetectorWorker,
    Look,
    slices,
)
from pipelines.row_accounting import entry
from pipelines.schemas import PROPOSALS_SCHEMA
from pipelines.worker_pools import Stage, run_stages

VERSION = 3
"""Raised when the same inputs would give other proposals."""


@dataclass(frozen=True, kw_only=True)
class ProposalsConfig:
    """Which images are looked at, and by what."""

    image_source: str
    """Name in IMAGE_SOURCES; every dataset over these images shares the proposals."""
    detector: DetectorConfig
    """One of fo1_model.detectors.DETECTORS, which boxes it keeps included."""

    def __post_init__(self) -> None:
        if self.image_source not in IMAGE_SOURCES:
            known = ", ".join(IMAGE_SOURCES)
            raise ValueError(f"image_source={self.image_source!r} is unknown: use one of {known}")


def proposals_inputs(
    config: ProposalsConfig,
    folders: DataFolders,
    digest_cache: str | Path,
    supplies: Sequence[Supply],
) -> dict[str, str]:
    """Identity of what proposals are made from: the list of images and the detector's supplies.

    The pictures themselves are not read: to replace one in place, use ``--force``.
    Raises ValueError for supplies that are not what the detector needs.
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
    """Make the proposals of an image source and return their manifest; go on where a killed run stopped.

    folders: where the datasets lie. inputs: `proposals_inputs`, which gave `output` its fingerprint.
    supplies: what each detector of the config needs (`pipelines.proposals.detector_inputs`).
    Raises ValueError before any worker starts for settings that do not fit, and afterwards when more than
    ``runtime.max_reject_fraction`` of the images could not be used.
    """
    check_supplies(config.detector, supplies)
    source = IMAGE_SOURCES[config.image_source]
    samples = supply_for(config.detector, supplies, "objects")
    if isinstance(samples, Artifact) and samples.status() != "done":
        raise ValueError(
            f"samples={samples.path} is {samples.status()}: make it before its proposals"
        )
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    weights = checkpoints(config.detector, supplies)
    if any(leaf.needs in ("run", "weights") for leaf in leaves(config.detector)):
        preparation(
            config.detector, weights
        )  # a folder of something else fails here, not in every worker
    waiting = sorted(set(range(source.num_buckets)) - set(output.finished()))
    if waiting:
        box_file = supply_for(config.detector, supplies, "boxes")
        _write_lists(source, folders, output, waiting, samples, box_file)
        look = Look(
            detector=config.detector,
            checkpoint=weights,
            output=output,
            folders=folders,
            device="cpu",
        )
        _look_at(look, waiting, runtime)
    unmatched = output.read_bytes("unmatched.json") if output.exists("unmatched.json") else b"{}"
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        ledger=json.loads(unmatched),
        num_buckets=source.num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _write_lists(
    source: ImageSource,
    folders: DataFolders,
    output: Artifact,
    buckets: Sequence[int],
    samples: Supply,
    box_file: Supply,
) -> None:
    """Write the list of images, and of records it rejects, of the given buckets: the work of each."""
    with ExitStack() as stack:
        spill = Spill(
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fo1-images-"))),
            set(buckets),
        )
        boxes = stack.enter_context(open_box_file(box_file)) if isinstance(box_file, str) else None
        num_images = 0
        for item in source.images(folders):
            if isinstance(item, Reject):
                spill.add(
                    "rejects", bucket_of(item.record_id, source.num_buckets), reject_to_row(item)
                )
            else:
                num_images += 1
                if boxes is not None:
                    boxes.claim(item.image_id, item.image_uri)
                spill.add("images", bucket_of(item.image_id, source.num_buckets), _listed(item))
        if boxes is not None:
            counts = {"unmatched_in_file": boxes.close_books(num_images)}
            output.write_bytes("unmatched.json", json.dumps(counts).encode())
        for bucket in buckets:
            objects = {}
            if isinstance(samples, Artifact):
                objects = objects_by_image(samples, source.name, bucket)
            listed = sorted(spill.rows("images", bucket), key=lambda row: row["image_id"])
            for row in listed:
                if isinstance(samples, Artifact):
                    row["known_boxes"] = (
                        objects.get(row["image_id"], np.zeros(0)).reshape(-1).tolist()
                    )
                if boxes is not None:
                    row.update(_from_file(boxes, row))
            table = pa.Table.from_pylist(listed, schema=IMAGES_SCHEMA)
            output.write_bytes(_file("images", bucket), parquet_bytes(table))
            lost = sorted(spill.rows("rejects", bucket), key=lambda row: tuple(row.values()))
            table = pa.Table.from_pylist(lost, schema=REJECT_SCHEMA)
            output.write_bytes(_file("rejects", bucket), parquet_bytes(table))


def _listed(image: ImageRef) -> dict[str, Any]:
    """Row of `IMAGES_SCHEMA`; nothing is known yet."""
    names = ("image_id", "image_uri", "width", "height")
    row: dict[str, Any] = {name: getattr(image, name) for name in names}
    return row | {"status": OK, "error": None, "known_boxes": None, "known_scores": None}


def _from_file(boxes: BoxFile, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of boxes says of a listed image: columns of its row."""
    try:
        known = boxes.boxes_of(row["image_id"], row["image_uri"])
    except BadRecord as error:
        return {"status": error.reason, "error": error.detail}
    flat = [edge for box in known["boxes"] for edge in box]
    # The size that a file was made for is checked like an annotated one, when the image is decoded.
    size = {name: known[name] for name in ("width", "height") if name in known}
    return {"known_boxes": flat, "known_scores": known["scores"]} | size


def _look_at(look: Look, buckets: Sequence[int], runtime: RuntimeConfig) -> None:
    """Look at the images of some buckets and commit each bucket when all its rows are there."""
    waiting = {
        b: look.output.read_table(_file("images", b), columns=["image_id"]).num_rows
        for b in buckets
    }
    gathered: dict[int, list[pa.Table]] = defaultdict(list)
    progress = Progress(f"propose {look.output.name}", sum(waiting.values()), unit="images")
    tasks = [task for bucket, count in waiting.items() for task in slices(bucket, count)]
    stages = _stages(look, runtime, len(tasks))
    for bucket in [bucket for bucket, count in waiting.items() if count == 0]:
        _commit(look, bucket, [])
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
            _commit(look, bucket, gathered.pop(bucket))
    progress.close()
    if gathered:
        raise RuntimeError(f"{look.output.path}: buckets {sorted(gathered)[:10]} came back in part")


def _stages(look: Look, runtime: RuntimeConfig, num_tasks: int) -> list[Stage]:
    """The pools of a run, told where the model sits."""
    if runtime.workers == 0:
        look = replace(look, device=_local_device(runtime))
        return [Stage(worker=LoadingDetectorWorker, kwargs={"look": look}, size=1)]
    pools = pool_sizes(cluster_resources(runtime), runtime, with_helpers=True)
    workers = min(pools.workers, max(1, num_tasks))
    if not pools.num_gpus:
        return [Stage(worker=LoadingDetectorWorker, kwargs={"look": look}, size=workers)]
    look = replace(look, device="cuda")
    helpers = min(pools.helpers, max(1, num_tasks))
    return [
        Stage(worker=ImageLoader, kwargs={"look": look}, size=helpers),
        Stage(worker=DetectorWorker, kwargs={"look": look}, size=workers, num_gpus=pools.num_gpus),
    ]


def _local_device(runtime: RuntimeConfig) -> str:
    """Where the model of a run without Ray sits."""
    if runtime.gpus_per_worker == 0:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _commit(look: Look, bucket: int, parts: Sequence[pa.Table]) -> None:
    """Write the proposals of a bucket and its ledger."""
    described = {
        "detector": json.dumps(canonical(look.detector), sort_keys=True),
        "fingerprint": look.output.fingerprint,
    }
    schema = PROPOSALS_SCHEMA.with_metadata(described)
    table = pa.concat_tables(parts) if parts else PROPOSALS_SCHEMA.empty_table()
    rows = sorted(table.to_pylist(), key=lambda row: row["image_id"])
    kept = (_file("images", bucket), _file("rejects", bucket))
    files = {name: look.output.read_bytes(name) for name in kept}
    files[_file("part", bucket)] = parquet_bytes(pa.Table.from_pylist(rows, schema=schema))
    lost = look.output.read_table(_file("rejects", bucket)).to_pylist()
    reasons = [row["status"] for row in rows if row["status"] != OK] + [
        row["reason"] for row in lost
    ]
    good = sum(row["status"] == OK for row in rows)
    ledger = entry(len(rows) + len(lost), good, reasons)
    ledger["boxes"] = sum(len(row["boxes"]) for row in rows)
    look.output.commit_bucket(bucket, files, ledger, rows={_file("part", bucket): len(rows)})


def _file(kind: str, bucket: int) -> str:
    return f"{kind}-{bucket:05d}.parquet"


def objects_by_image(samples: Artifact, image_source: str, bucket: int) -> dict[str, np.ndarray]:
    """Annotated boxes float32[N, 4] by image_id of one bucket of an image source, ignore regions left out."""
    num_buckets = IMAGE_SOURCES[image_source].num_buckets
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for part in buckets_holding(bucket, num_buckets, int(samples.manifest()["buckets"])):
        columns = ["image_source", "image_id", "window", "objects"]
        seen: set[tuple[str, str]] = set()
        for row in samples.read_table(f"part-{part:05d}.parquet", columns=columns).to_pylist():
            view = (row["image_id"], str(row["window"]))
            if row["image_source"] != image_source or view in seen:
                continue  # every sample of an image, or of a window into it, lists all its objects
            seen.add(view)
            found[row["image_id"]] += [tuple(o["box"]) for o in row["objects"] if not o["ignore"]]
    return {
        image_id: np.array(list(dict.fromkeys(boxes)), np.float32).reshape(-1, 4)
        for image_id, boxes in found.items()
    }
