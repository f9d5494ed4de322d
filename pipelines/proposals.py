"""Graph: the images of an image source -> decode -> detector -> proposals parquet by bucket.

Every listed image gives a row of `PROPOSALS_SCHEMA`, with a status when it has no boxes. Each image is
decoded whatever the detector, so that a later step may rely on it. The driver lists the images once, into
``images-00003.parquet`` of each bucket, which workers read; records that the list itself rejects are in
``rejects-00003.parquet``. Rows are sorted by image_id; a detector's name and settings are in the metadata.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_builders import IMAGE_SOURCES, DataFolders, ImageSource
from dataset_builders.images import bucket_of, buckets_holding, decode_image, read_image_bytes
from dataset_builders.records import REJECT_SCHEMA, BadRecord, Reject, reject_to_row
from fo1_model.detectors import DetectorConfig, DetectorInput, build_detector
from pipelines.artifacts import Artifact, canonical, parquet_bytes, prepare
from pipelines.cluster import RuntimeConfig, map_buckets
from pipelines.identity import image_list_digest
from pipelines.ledgers import entry
from pipelines.records import PROPOSALS_SCHEMA
from pipelines.spill import Spill

VERSION = 2
"""Raised when the same inputs would give other proposals."""
BATCH_SIZE = 8
"""Images a detector sees at once. A detector's result for an image must not depend on the rest of its
batch."""
OK = "ok"
"""Status of an image that was decoded and looked at."""

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)


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
    *,
    samples: Artifact | None = None,
    run: Artifact | None = None,
) -> dict[str, str]:
    """Identity of what proposals are made from: the list of images and what the detector needs beside its
    config.

    samples: where a ground-truth detector finds objects. run: the training run that exported a detector's
    weights. The pictures themselves are not read: to replace one in place, use ``--force``.
    """
    _check_needs(config, samples=samples, weights=run)
    inputs = {"images": image_list_digest(IMAGE_SOURCES[config.image_source], folders, digest_cache)}
    for artifact in (samples, run):
        if artifact is not None:
            inputs[f"{artifact.kind}/{artifact.name}"] = artifact.fingerprint
    return inputs


def _check_needs(config: ProposalsConfig, *, samples: object, weights: object) -> None:
    for given, needed, name in (
        (samples, config.detector.needs_objects, "samples"),
        (weights, config.detector.needs_checkpoint, "checkpoint"),
    ):
        if (given is not None) != needed:
            verb = "needs" if needed else "takes no"
            raise ValueError(f"detector={type(config.detector).__name__} {verb} {name}: {given!r} was given")


def propose(
    config: ProposalsConfig,
    output: Artifact,
    *,
    folders: DataFolders,
    runtime: RuntimeConfig,
    inputs: Mapping[str, str],
    samples: Artifact | None = None,
    checkpoint: str | None = None,
    num_gpus: float = 0.0,
) -> dict[str, Any]:
    """Make the proposals of an image source and return their manifest; go on where a killed run stopped.

    folders: where the datasets lie. inputs: `proposals_inputs`, which gave `output` its fingerprint.
    samples: objects for a ground-truth detector. checkpoint: folder of exported weights. num_gpus: share
    of a GPU that a worker takes; 0 runs on the CPU.
    Raises ValueError before any worker starts for settings that do not fit, and afterwards when more than
    ``runtime.max_reject_fraction`` of the images could not be used.
    """
    _check_needs(config, samples=samples, weights=checkpoint)
    source = IMAGE_SOURCES[config.image_source]
    if samples is not None and samples.status() != "done":
        raise ValueError(f"samples={samples.path} is {samples.status()}: make it before its proposals")
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    waiting = sorted(set(range(source.num_buckets)) - set(output.finished()))
    _write_lists(source, folders, output, waiting)
    settings = {
        "config": config,
        "output": output,
        "folders": folders,
        "samples": samples,
        "checkpoint": checkpoint,
        "device": "cuda" if num_gpus else "cpu",
    }
    name = f"propose {output.name}"
    for _ in map_buckets(
        ProposalWorker, settings, waiting, runtime=runtime, description=name, num_gpus=num_gpus
    ):
        pass  # every worker commits its buckets itself
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=source.num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _write_lists(source: ImageSource, folders: DataFolders, output: Artifact, buckets: Sequence[int]) -> None:
    """Write the list of images, and of records it rejects, of the given buckets: the work of each."""
    with tempfile.TemporaryDirectory(prefix="fo1-images-") as folder:
        spill = Spill(Path(folder), set(buckets))
        for item in source.images(folders) if buckets else ():
            if isinstance(item, Reject):
                spill.add("rejects", bucket_of(item.record_id, source.num_buckets), reject_to_row(item))
            else:
                row = {name: getattr(item, name) for name in IMAGES_SCHEMA.names}
                spill.add("images", bucket_of(item.image_id, source.num_buckets), row)
        for bucket in buckets:
            listed = sorted(spill.rows("images", bucket), key=lambda row: row["image_id"])
            table = pa.Table.from_pylist(listed, schema=IMAGES_SCHEMA)
            output.write_bytes(f"images-{bucket:05d}.parquet", parquet_bytes(table))
            lost = sorted(spill.rows("rejects", bucket), key=lambda row: tuple(row.values()))
            table = pa.Table.from_pylist(lost, schema=REJECT_SCHEMA)
            output.write_bytes(f"rejects-{bucket:05d}.parquet", parquet_bytes(table))


class ProposalWorker:
    """Holds one detector and looks at the images of one bucket a call."""

    def __init__(
        self,
        config: ProposalsConfig,
        output: Artifact,
        folders: DataFolders,
        samples: Artifact | None,
        checkpoint: str | None,
        device: str,
    ) -> None:
        import torch

        torch.set_num_threads(1)  # the pool is the parallelism, and sums do not depend on a thread count
        self.detector = build_detector(config.detector, checkpoint, device)
        self.config, self.output, self.folders, self.samples = config, output, folders, samples
        described = {
            "detector": json.dumps(canonical(config.detector), sort_keys=True),
            "fingerprint": output.fingerprint,
        }
        self.schema = PROPOSALS_SCHEMA.with_metadata(described)

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Look at the images of the bucket, commit their proposals and return the ledger."""
        images = self.output.read_table(f"images-{bucket:05d}.parquet").to_pylist()
        lost = self.output.read_table(f"rejects-{bucket:05d}.parquet").to_pylist()
        objects = None if self.samples is None else objects_by_image(self.samples, self.config, bucket)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), BATCH_SIZE):
            rows += self._rows(images[start : start + BATCH_SIZE], bucket, objects)
        part = f"part-{bucket:05d}.parquet"
        kept = (f"images-{bucket:05d}.parquet", f"rejects-{bucket:05d}.parquet")
        files = {name: self.output.read_bytes(name) for name in kept}
        files[part] = parquet_bytes(pa.Table.from_pylist(rows, schema=self.schema))
        reasons = [row["status"] for row in rows if row["status"] != OK] + [row["reason"] for row in lost]
        good = sum(row["status"] == OK for row in rows)
        ledger = entry(len(images) + len(lost), good, reasons)
        ledger["boxes"] = sum(len(row["boxes"]) for row in rows)
        self.output.commit_bucket(bucket, files, ledger, rows={part: len(rows)})
        return ledger

    def _rows(
        self, images: list[dict[str, Any]], bucket: int, objects: Mapping[str, np.ndarray] | None
    ) -> list[dict[str, Any]]:
        """Rows of `PROPOSALS_SCHEMA` for a batch of images, in its order."""
        rows = []
        batch: list[tuple[dict[str, Any], DetectorInput]] = []
        for listed in images:
            row: dict[str, Any] = {"image_id": listed["image_id"], "bucket": bucket, "width": 0, "height": 0}
            row |= {"boxes": [], "scores": [], "status": OK, "error": None}
            rows.append(row)
            try:
                image = decode_image(read_image_bytes(self.folders, listed["image_uri"]))
                row["width"], row["height"] = image.size
                annotated = (listed["width"], listed["height"])
                if 0 not in annotated and annotated != image.size:
                    sizes = "{}x{} annotated, {}x{} decoded".format(*annotated, *image.size)
                    raise BadRecord("size_mismatch", sizes)
            except BadRecord as error:
                row["status"], row["error"] = error.reason, error.detail
                continue
            known = None if objects is None else objects.get(row["image_id"], np.zeros((0, 4), np.float32))
            batch.append((row, DetectorInput(image_id=row["image_id"], image=image, objects=known)))
        found = self.detector.detect([item for _, item in batch]) if batch else []
        for (row, _), detections in zip(batch, found, strict=True):
            row["boxes"], row["scores"] = detections.boxes.tolist(), detections.scores.tolist()
        return rows


def objects_by_image(samples: Artifact, config: ProposalsConfig, bucket: int) -> dict[str, np.ndarray]:
    """Annotated boxes float32[N, 4] by image_id of one bucket of an image source, ignore regions left out."""
    num_buckets = IMAGE_SOURCES[config.image_source].num_buckets
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for part in buckets_holding(bucket, num_buckets, int(samples.manifest()["buckets"])):
        columns = ["image_source", "image_id", "window", "objects"]
        seen: set[tuple[str, str]] = set()
        for row in samples.read_table(f"part-{part:05d}.parquet", columns=columns).to_pylist():
            view = (row["image_id"], str(row["window"]))
            if row["image_source"] != config.image_source or view in seen:
                continue  # every sample of an image, or of a window into it, lists all its objects
            seen.add(view)
            found[row["image_id"]] += [tuple(o["box"]) for o in row["objects"] if not o["ignore"]]
    return {
        image_id: np.array(list(dict.fromkeys(boxes)), np.float32).reshape(-1, 4)
        for image_id, boxes in found.items()
    }
