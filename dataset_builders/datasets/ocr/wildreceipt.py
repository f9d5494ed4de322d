"""WildReceipt: photos of receipts with every line of text boxed.

It is not among the paper's datasets: ours.

Files: `train.txt` and an image folder. A line of `train.txt` is the JSON of one image: file_name,
height, width, and annotations with `box`, eight numbers of a quadrilateral in any order of its
corners, `text`, and `label`, the kind of field. Each box becomes a question for its text (ocr); a
box that the dataset leaves out (label 0, empty text) is an ignore region.

Source: open-mmlab/mmocr (tests/data/kie_toy_dataset/wildreceipt; docs on key information
extraction).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from dataset_builders.box_checks import BoxGuard, get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import folder_source, source_of
from dataset_builders.images import check_uri
from dataset_builders.readers.json_lines import opened, stream_lines
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.ocr import (
    TextRegion,
    numbers,
    quad_corners,
    read_regions,
    reading_samples,
)

MAX_IMAGE_SIDE = 100_000
"""Pixels; a record that states a longer side is wrong."""
IGNORE = 0
"""Label of boxes that the dataset leaves out; their text is empty."""

WILDRECEIPT_IMAGES = folder_source("wildreceipt", "wildreceipt/image_files", num_buckets=16)
_FILE = "wildreceipt/train.txt"


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the readings of every receipt, the rejects, and the ledger last.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    guard = BoxGuard("xyxy", source=_FILE)
    seen: set[str] = set()
    for record, value in stream_lines(folders.path(_FILE)):
        try:
            ref, stored = _receipt(opened(value), seen)
        except BadRecord as error:
            yield counter.reject(record, error, "image")
            continue
        rejects, image = read_regions(ref, enumerate(stored), _region, counter, guard, name=record)
        yield from rejects
        yield from counter.record(
            record,
            partial(reading_samples, image, options, dataset="wildreceipt"),
            "image",
        )
    if not seen:
        raise SettingError(f"{_FILE} holds no receipts: it is one JSON object a line")
    guard.check()
    yield counter.ledger()


def _receipt(record: Any, seen: set[str]) -> tuple[ImageRef, list[Any]]:
    """Return the image of a record and its stored annotations.

    Raises:
        BadRecord: malformed, bad_size, unsafe_path or duplicate_id.
    """
    name, stored = get(record, "file_name"), get(record, "annotations")
    if not isinstance(name, str) or not isinstance(stored, list):
        raise BadRecord("malformed", "file_name is no text, or annotations are no list")
    width, height = (whole_number(get(record, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"{width}x{height}")
    uri = f"wildreceipt/{check_uri(name)}"
    source = source_of(uri, (WILDRECEIPT_IMAGES,))
    image_id = source.id_of(uri)
    if image_id in seen:
        raise BadRecord("duplicate_id", f"image {image_id}")
    seen.add(image_id)
    return source.ref(image_id, uri, width, height), stored


def _region(annotation: Any) -> TextRegion:
    corners = quad_corners(numbers(get(annotation, "box"), 8, what="box"))
    text = get(annotation, "text")
    ignored = text == "" and annotation.get("label") == IGNORE
    return TextRegion(corners=corners, text=None if ignored else text)


DATASETS = (
    DatasetSpec(
        name="wildreceipt",
        images=(WILDRECEIPT_IMAGES,),
        build=build,
        files=(_FILE,),
        tasks=("ocr",),
        licence="Apache-2.0 (mmocr's release)",
        source="https://download.openmmlab.com/mmocr/data/wildreceipt.tar",
        layout=(
            "wildreceipt/train.txt      a receipt a line, as JSON (test.txt is not read)\n"
            "wildreceipt/image_files/   Image_1/0/....jpeg, by file_name"
        ),
        match_iou=0.7,
        num_samples=4_000,
    ),
)
