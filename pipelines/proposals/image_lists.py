"""The lists that a proposals run works through: the images of each bucket, what is known of each.

The driver writes them before any worker starts, because an image source is one stream in which a
bucket may come anywhere. Files: ``images-00003.parquet`` (`workers.IMAGES_SCHEMA`, sorted by
image_id) and ``rejects-00003.parquet`` (`REJECT_SCHEMA`: records that the list itself rejects); for
a file of boxes also ``unmatched.json``, which counts the names in it that no image has.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_builders import IMAGE_SOURCES, DataFolders, ImageSource
from dataset_builders.images import bucket_of, buckets_holding
from dataset_builders.records import REJECT_SCHEMA, BadRecord, ImageRef, Reject, reject_to_row
from pipelines.artifacts import Artifact, parquet_bytes
from pipelines.bucket_spill import Spill
from pipelines.proposals.box_files import BoxFile, open_box_file
from pipelines.proposals.detector_inputs import Supply
from pipelines.proposals.workers import IMAGES_SCHEMA, OK


def file_name(kind: str, bucket: int) -> str:
    """Return the name of a bucket's file: ``part-00003.parquet``."""
    return f"{kind}-{bucket:05d}.parquet"


def write_lists(
    source: ImageSource,
    folders: DataFolders,
    output: Artifact,
    buckets: Sequence[int],
    samples: Supply,
    box_file: Supply,
) -> None:
    """Write the list of images, and of the records that it rejects, of some buckets.

    Args:
        source: The image source.
        folders: Where the datasets lie.
        output: The artifact that is being made.
        buckets: Numbers of the buckets.
        samples: Samples with the objects that are known of each image; None where none are.
        box_file: Path of the file of boxes that are known; None where there is none.
    """
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
            output.write_bytes(file_name("images", bucket), parquet_bytes(table))
            lost = sorted(spill.rows("rejects", bucket), key=lambda row: tuple(row.values()))
            table = pa.Table.from_pylist(lost, schema=REJECT_SCHEMA)
            output.write_bytes(file_name("rejects", bucket), parquet_bytes(table))


def _listed(image: ImageRef) -> dict[str, Any]:
    """Return the row of `IMAGES_SCHEMA` of an image of which nothing is known yet."""
    names = ("image_id", "image_uri", "width", "height")
    row: dict[str, Any] = {name: getattr(image, name) for name in names}
    return row | {"status": OK, "error": None, "known_boxes": None, "known_scores": None}


def _from_file(boxes: BoxFile, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of boxes says of a listed image: columns of its row."""
    try:
        known = boxes.boxes_of(row["image_id"], row["image_uri"])
    except BadRecord as error:
        return {"status": error.reason, "error": error.detail}
    flat = [edge for box in known["boxes"] for edge in box]
    # The size that a file was made for is checked like an annotated one, when the image is decoded.
    size = {name: known[name] for name in ("width", "height") if name in known}
    return {"known_boxes": flat, "known_scores": known["scores"]} | size


def objects_by_image(samples: Artifact, image_source: str, bucket: int) -> dict[str, np.ndarray]:
    """Return the annotated boxes of one bucket of an image source.

    Args:
        samples: Samples over these images.
        image_source: Name of the source.
        bucket: Number of the bucket, as the source counts buckets.

    Returns:
        float32[N, 4], xyxy px, by image_id; each box once, ignore regions left out.
    """
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
