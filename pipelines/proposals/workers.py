"""The stages of a proposals run: load images on CPUs, detect where the model sits, or both in one.

Tasks are slices of a bucket (`slices`). Between the stages a row is an image: its proposals so far,
and what the detector needs of it (`Prepared`) as plain columns, so that pixels cross processes
without being copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_builders import DataFolders
from dataset_builders.images import decode_image, exif_orientation, read_image_bytes
from dataset_builders.records import BadRecord
from fo1_model.detectors import (
    Detections,
    DetectorConfig,
    DetectorInput,
    Prepared,
    as_known,
    build_detector,
    preparation,
)
from pipelines.artifacts import Artifact
from pipelines.proposals.detector_inputs import local_checkpoints
from pipelines.schemas import PROPOSALS_SCHEMA

SLICE = 16
"""Images of a task.

It is a detector's batch, and what is done again when a process is lost.
"""
OK = "ok"
"""Status of an image that was decoded and shown to the detector."""
IMAGES_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        # Why the list itself rejects the image, else ok.
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        # Flat xyxy px, null where nothing is known.
        pa.field("known_boxes", pa.list_(pa.float32())),
        pa.field("known_scores", pa.list_(pa.float32())),
    ]
)
"""Schema of ``images-00003.parquet``: the images of a bucket, by id, and what is known of each."""
LOADED_SCHEMA = pa.schema(
    [
        *PROPOSALS_SCHEMA,
        pa.field("start", pa.int32(), nullable=False),  # first image of its slice
        pa.field("pixels", pa.large_binary()),  # null for an image that no detector sees
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("dtype", pa.string()),
        pa.field("scale", pa.list_(pa.float64())),
        pa.field("known_boxes", pa.list_(pa.float32())),
        pa.field("known_scores", pa.list_(pa.float32())),
    ]
)
"""Schema of the table between the two stages."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What the workers of a run are told."""

    detector: DetectorConfig
    """Detector whose boxes are wanted."""
    checkpoint: str | tuple[str | None, ...] | None
    """Path of its weights, or one for each member of a union."""
    output: Artifact
    """Artifact that is being made; it holds the lists of images."""
    folders: DataFolders
    """Folders where the datasets lie."""
    device: str
    """Device of the model, ``cpu`` or ``cuda``."""


def slices(bucket: int, num_images: int) -> list[dict[str, int]]:
    """Return the tasks of a bucket: ``bucket``, ``start`` and ``stop`` of each slice."""
    starts = range(0, num_images, SLICE)
    return [
        {"bucket": bucket, "start": start, "stop": min(start + SLICE, num_images)}
        for start in starts
    ]


class ImageLoader:
    """CPU stage: slices of buckets -> their images, read, decoded, upright and prepared."""

    def __init__(self, settings: WorkerSettings) -> None:
        with local_checkpoints(settings.checkpoint) as checkpoint:
            self._prepare = preparation(settings.detector, checkpoint)
        self._settings = settings
        self._listed: tuple[int, pa.Table] | None = None

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Load the images of some tasks, rows of `slices`, into a table of `LOADED_SCHEMA`."""
        rows = [
            row | _packed(prepared) | {"start": task["start"]}
            for task in tasks.to_pylist()
            for row, prepared in self.load(**task)
        ]
        return pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)

    def load(
        self, bucket: int, start: int, stop: int
    ) -> list[tuple[dict[str, Any], Prepared | None]]:
        """Load the images of a slice.

        Args:
            bucket: Number of the bucket.
            start: First image of the slice, in the order of the bucket's list.
            stop: The one after its last.

        Returns:
            For each image the row of `PROPOSALS_SCHEMA`, without boxes yet, and what the detector
            gets, None for an image that cannot be used.
        """
        if self._listed is None or self._listed[0] != bucket:
            self._listed = bucket, self._settings.output.read_table(f"images-{bucket:05d}.parquet")
        return [
            self._load(listed, bucket)
            for listed in self._listed[1].slice(start, stop - start).to_pylist()
        ]

    def _load(
        self, listed: Mapping[str, Any], bucket: int
    ) -> tuple[dict[str, Any], Prepared | None]:
        row: dict[str, Any] = {
            "image_id": listed["image_id"],
            "bucket": bucket,
            "width": 0,
            "height": 0,
            "rotation": 0,
            "boxes": [],
            "scores": [],
            "status": listed["status"],
            "error": listed["error"],
        }
        if row["status"] != OK:
            return row, None
        try:
            data = read_image_bytes(self._settings.folders, listed["image_uri"])
            image = decode_image(data)
            row["width"], row["height"] = image.size
            row["rotation"] = exif_orientation(data)
            annotated = (listed["width"], listed["height"])
            if 0 not in annotated and annotated != image.size:
                sizes = "{}x{} annotated, {}x{} decoded".format(*annotated, *image.size)
                raise BadRecord("size_mismatch", sizes)
        except BadRecord as error:
            row["status"], row["error"] = error.reason, error.detail
            return row, None
        return row, self._prepare(
            DetectorInput(image_id=listed["image_id"], image=image, known=_known(listed))
        )


class DetectorWorker:
    """Detector stage: loaded images -> rows of `PROPOSALS_SCHEMA`."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        # The pool is the parallelism, and sums do not depend on a thread count.
        torch.set_num_threads(1)
        with local_checkpoints(settings.checkpoint) as checkpoint:
            self._detector = build_detector(settings.detector, checkpoint, settings.device)

    def __call__(self, loaded: pa.Table) -> pa.Table:
        """Detect in the images that `ImageLoader` gives.

        Ray may hand on several slices as one table. Each is a batch all the same: the last bits of
        a sum depend on its batch.
        """
        rows = loaded.select([*PROPOSALS_SCHEMA.names, "start"]).to_pylist()
        images = zip(rows, _unpacked(loaded), strict=True)
        parts = groupby(images, key=lambda image: (image[0]["bucket"], image[0]["start"]))
        detected = [self.detect(list(part)) for _, part in parts]
        return pa.concat_tables([PROPOSALS_SCHEMA.empty_table(), *detected])

    def detect(self, images: Sequence[tuple[dict[str, Any], Prepared | None]]) -> pa.Table:
        """Return the rows of a batch, with the boxes of the images that can be used filled in."""
        batch = [prepared for _, prepared in images if prepared is not None]
        found = iter(self._detector.detect(batch) if batch else [])
        for row, prepared in images:
            if prepared is not None:
                detections = next(found)
                row["boxes"], row["scores"] = detections.boxes.tolist(), detections.scores.tolist()
        return pa.Table.from_pylist([row for row, _ in images], schema=PROPOSALS_SCHEMA)


class LoadAndDetectWorker:
    """Both stages in one process, for a detector on a CPU.

    There handing pixels on costs more than it hides.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._images, self._detector = ImageLoader(settings), DetectorWorker(settings)

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Load and detect in the images of some tasks, rows of `slices`."""
        return pa.concat_tables(
            self._detector.detect(self._images.load(**task)) for task in tasks.to_pylist()
        )


def _known(listed: Mapping[str, Any]) -> Detections | None:
    if listed["known_boxes"] is None:
        return None
    return as_known(listed["known_boxes"], listed["known_scores"])


def _packed(prepared: Prepared | None) -> dict[str, Any]:
    if prepared is None:
        return dict.fromkeys(("pixels", "shape", "dtype", "scale", "known_boxes", "known_scores"))
    known, pixels = prepared.known, prepared.pixels
    return {
        "pixels": b"" if pixels is None else np.ascontiguousarray(pixels).tobytes(),
        "shape": None if pixels is None else list(pixels.shape),
        "dtype": None if pixels is None else str(pixels.dtype),
        "scale": list(prepared.scale),
        "known_boxes": None if known is None else known.boxes.reshape(-1).tolist(),
        "known_scores": None if known is None else known.scores.tolist(),
    }


def _unpacked(loaded: pa.Table) -> Iterator[Prepared | None]:
    """Yield the prepared image of each row; its pixels are those of the table, not a copy."""
    rows = loaded.drop_columns(["pixels"]).to_pylist()
    for row, data in zip(rows, _contents(loaded["pixels"]), strict=True):
        if data is None:
            yield None
            continue
        pixels = None
        if row["shape"] is not None:
            pixels = np.frombuffer(data, dtype=row["dtype"]).reshape(row["shape"])
        yield Prepared(
            image_id=row["image_id"],
            width=row["width"],
            height=row["height"],
            pixels=pixels,
            scale=(row["scale"][0], row["scale"][1]),
            known=_known(row),
        )


def _contents(column: pa.ChunkedArray) -> Iterator[pa.Buffer | None]:
    """Yield what each row of a column of large_binary holds, where it lies.

    Its scalars, the ordinary way to a row, would be copies.
    """
    for chunk in column.chunks:
        if not len(chunk):
            continue
        _, offsets, data = chunk.buffers()
        whole = pa.py_buffer(b"") if data is None else data
        edges = np.frombuffer(offsets, np.int64)[chunk.offset :].tolist()
        for index, valid in enumerate(chunk.is_valid().to_pylist()):
            yield whole.slice(edges[index], edges[index + 1] - edges[index]) if valid else None
