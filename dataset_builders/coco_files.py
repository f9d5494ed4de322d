"""COCO instances JSON: images, categories and boxes of one file, cleaned and grouped by image.

The file is streamed three times (categories, images, annotations)
because the order of its arrays is free. Kept in memory are one small row an image and 37 bytes a box;
segmentations and captions are never held.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builders.conventions import (
    GUARD_ROWS,
    check_box_form,
    clean_box,
    four_numbers,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.images import bucket_of, check_uri
from dataset_builders.json_files import stream_array
from dataset_builders.records import BadRecord, ImageRef, Ledger, Object, Reject, Sample, Turn, check_label

MAX_IMAGE_SIDE = 100_000
_EVERY = -1  # category row of "could be any"


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What one COCO file says of one image."""

    ref: ImageRef
    """Where it is."""
    objects: tuple[Object, ...]
    """Its boxes in the file's order; crowd regions are `ignore`."""
    annotation_ids: tuple[int, ...]
    """One an object."""
    uncertain: frozenset[str]
    """Labels of which a box was rejected: neither complete nor absent."""

    def present(self) -> dict[str, tuple[int, ...]]:
        """Return label -> rows of its objects, crowd regions and uncertain labels left out."""
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self.objects):
            if not item.ignore and item.label not in self.uncertain:
                rows.setdefault(item.label, []).append(row)
        return {label: tuple(found) for label, found in rows.items()}

    def crowded(self) -> frozenset[str]:
        """Return the labels with a crowd region: present, but not countable."""
        return frozenset(item.label for item in self.objects if item.ignore)

    def absent(self, categories: tuple[str, ...]) -> tuple[str, ...]:
        """Return the categories known to be absent, in their order."""
        known = {item.label for item in self.objects} | self.uncertain
        return tuple(name for name in categories if name not in known)

    def sample(
        self, *, dataset: str, task: str, number: int, turns: tuple[Turn, ...], **facts: Any
    ) -> Sample:
        """Return a sample about this image; facts: absent_labels and absent_regime where known."""
        return Sample(
            sample_id=f"{dataset}/{self.ref.image_id}/{task}/{number}",
            dataset=dataset,
            task=task,
            image_id=self.ref.image_id,
            bucket=self.ref.bucket,
            image_uri=self.ref.image_uri,
            width=self.ref.width,
            height=self.ref.height,
            objects=self.objects,
            turns=turns,
            **facts,
        )


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """A COCO file read whole; `read_coco` makes it."""

    categories: tuple[str, ...]
    """Names in the file's order, each once."""
    refs: Mapping[int, ImageRef]
    """Image id -> where it is, in the file's order."""
    rejects: tuple[Reject, ...]
    """Everything left out."""
    read: Mapping[str, int]
    """Unit -> records found."""
    columns: Mapping[str, np.ndarray]
    """By image id: image_id int64[N], id int64[N], category int32[N], crowd int8[N], box float32[N, 4]."""
    doubts: Mapping[int, set[int]]
    """Image id -> rows of `categories` of its rejected boxes; -1 for a box that could be of any."""

    def images(self) -> Iterator[ImageFacts]:
        """Yield the facts of every accepted image, in the file's order."""
        for image_id in self.refs:
            yield self.facts(image_id)

    def facts(self, image_id: int) -> ImageFacts:
        """Return the facts of one accepted image."""
        start, stop = np.searchsorted(self.columns["image_id"], (image_id, image_id + 1))
        columns = {name: column[start:stop].tolist() for name, column in self.columns.items()}
        objects = tuple(
            Object(box=tuple(box), label=self.categories[row], ignore=bool(crowd))
            for box, row, crowd in zip(columns["box"], columns["category"], columns["crowd"], strict=True)
        )
        doubts = self.doubts.get(image_id, set())
        names = self.categories if _EVERY in doubts else [self.categories[row] for row in doubts]
        return ImageFacts(
            ref=self.refs[image_id],
            objects=objects,
            annotation_ids=tuple(columns["id"]),
            uncertain=frozenset(names),
        )

    def ledger(self, *, records_read: int = 0, records_used: int = 0) -> Ledger:
        """Return the counts of images, boxes and categories, and those of the records made over them."""
        lost_categories = sum(reject.unit == "category" for reject in self.rejects)
        used = {
            "image": len(self.refs),
            "box": len(self.columns["id"]),
            "category": self.read["category"] - lost_categories,
        }
        if records_read == 0:
            return Ledger(read=self.read, used=used)
        return Ledger(read={**self.read, "record": records_read}, used={**used, "record": records_used})


def list_images(
    root: Path, *, annotations: str, images: str, num_buckets: int
) -> Iterator[ImageRef | Reject]:
    """Return every image that a COCO file lists, or its reject. Arguments as for `read_coco`."""
    return (item for _, item in _read_images(Path(root) / annotations, images, num_buckets))


def read_coco(path: Path, *, images: str, num_buckets: int) -> CocoFile:
    """Read a COCO file.

    path: the JSON. images: folder of its pictures in the dataset's. num_buckets: of the image source.
    Raises ValueError when it is not JSON, has no usable images or categories, or its boxes are not xywh.
    """
    rejects: list[Reject] = []
    rows, names, num_categories = _read_categories(path, rejects)
    refs: dict[int, ImageRef] = {}
    lost: set[int] = set()
    num_images = 0
    for image_id, item in _read_images(path, images, num_buckets):
        num_images += 1
        if isinstance(item, ImageRef):
            refs[image_id] = item
        else:
            rejects.append(item)
            lost.add(image_id)
    if not refs or not names:
        missing = "categories" if refs else "images"
        raise ValueError(
            f"{path.name}: no usable {missing}; a COCO file lists images, annotations, categories"
        )
    boxes = _BoxReader(refs, rows, lost, rejects, source=path.name)
    columns = boxes.read(path)
    return CocoFile(
        categories=names,
        refs=refs,
        rejects=tuple(rejects),
        read={"image": num_images, "box": boxes.num_read, "category": num_categories},
        columns=columns,
        doubts=boxes.doubts,
    )


def _read_categories(path: Path, rejects: list[Reject]) -> tuple[dict[int, int | None], tuple[str, ...], int]:
    """Return category id -> row (None for one that was rejected), the names by row, and the number read."""
    names: dict[str, int] = {}
    rows: dict[int, int | None] = {}
    num_read = 0
    for position, record in enumerate(stream_array(path, "categories")):
        num_read += 1
        try:
            number = whole_number(_get(record, "id"), what="category id")
            if number in rows:
                raise BadRecord("duplicate_id", f"category id {number}")
            rows[number] = None
            name = check_label(_get(record, "name"), what="category name")
            rows[number] = names.setdefault(name, len(names))
        except BadRecord as error:
            rejects.append(Reject.of(f"categories/{position}", error, "category"))
    return rows, tuple(names), num_read


def _read_images(path: Path, folder: str, num_buckets: int) -> Iterator[tuple[int, ImageRef | Reject]]:
    """Yield (image id, its place or its reject); id -1 when the record has none."""
    seen: set[int] = set()
    for position, record in enumerate(stream_array(path, "images")):
        number = -1
        try:
            number = whole_number(_get(record, "id"), what="image id")
            if number < 0 or number >= 2**62:
                raise BadRecord("malformed", f"image id {number} is out of range")
            if number in seen:
                raise BadRecord("duplicate_id", f"image id {number}")
            seen.add(number)
            yield number, _image_ref(record, number, folder, num_buckets)
        except BadRecord as error:
            yield number, Reject.of(f"images/{position}", error, "image")


def _image_ref(record: Mapping[str, Any], number: int, folder: str, num_buckets: int) -> ImageRef:
    name = _get(record, "file_name")
    if not isinstance(name, str):
        raise BadRecord("malformed", f"file_name of image {number} is {type(name).__name__}, not text")
    check_uri(name)
    width, height = (whole_number(_get(record, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"image {number} is {width}x{height}")
    image_id = str(number)
    return ImageRef(
        image_id=image_id,
        image_uri=f"{folder}/{name}",
        width=width,
        height=height,
        bucket=bucket_of(image_id, num_buckets),
    )


class _BoxReader:
    """One pass over the annotations: into columns, or into rejects that leave their label in doubt."""

    def __init__(
        self,
        refs: Mapping[int, ImageRef],
        category_rows: Mapping[int, int | None],
        lost_images: set[int],
        rejects: list[Reject],
        *,
        source: str,
    ) -> None:
        self.refs = refs
        self.category_rows = category_rows
        self.lost_images = lost_images
        self.rejects = rejects
        self.source = source
        self.num_read = 0
        self.doubts: dict[int, set[int]] = {}
        self._columns = {
            "image_id": array("q"),
            "id": array("q"),
            "category": array("i"),
            "crowd": array("b"),
        }
        self._boxes = array("f")
        self._guard: list[tuple[float, ...]] = []

    def read(self, path: Path) -> dict[str, np.ndarray]:
        """Return the columns of `CocoFile`."""
        for position, record in enumerate(stream_array(path, "annotations")):
            self.num_read += 1
            try:
                self._add(record)
            except BadRecord as error:
                self.rejects.append(Reject.of(f"annotations/{position}", error, "box"))
        self._check_form()
        columns = {name: np.array(column) for name, column in self._columns.items()}
        columns["box"] = np.array(self._boxes, np.float32).reshape(-1, 4)
        keep = self._drop_repeated_ids(columns)
        order = keep[np.argsort(columns["image_id"][keep], kind="stable")]
        return {name: column[order] for name, column in columns.items()}

    def _add(self, record: object) -> None:
        image_id = whole_number(_get(record, "image_id"), what="image_id")
        ref = self.refs.get(image_id)
        if ref is None:
            known = image_id in self.lost_images
            raise BadRecord("image_rejected" if known else "unknown_image", f"image {image_id}")
        row: int | None = _EVERY
        try:
            number = whole_number(_get(record, "category_id"), what="category_id")
            row = self.category_rows.get(number, _EVERY)
            if row is None or row == _EVERY:
                raise BadRecord("unknown_category", f"category {number}")
            stored = four_numbers(_get(record, "bbox"), what="bbox")
            self._look(stored, ref)
            box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
            annotation_id = whole_number(_get(record, "id"), what="annotation id")
            crowd = whole_number(record.get("iscrowd", 0), what="iscrowd")  # type: ignore[attr-defined]
            if crowd not in (0, 1) or not -(2**62) < annotation_id < 2**62:
                raise BadRecord(
                    "malformed", f"iscrowd {crowd} or annotation id {annotation_id} is out of range"
                )
        except BadRecord:
            if row is not None:  # a category that was itself rejected is never asked for
                self.doubts.setdefault(image_id, set()).add(row)
            raise
        for name, value in zip(self._columns, (image_id, annotation_id, row, crowd), strict=True):
            self._columns[name].append(value)
        self._boxes.extend(box)

    def _look(self, stored: tuple[float, ...], ref: ImageRef) -> None:
        if len(self._guard) < GUARD_ROWS and all(abs(value) < 1e6 for value in stored):
            self._guard.append((*stored, ref.width, ref.height))
            if len(self._guard) == GUARD_ROWS:
                self._check_form()  # at once: a file of several GB should not be read to its end first

    def _check_form(self) -> None:
        rows = np.array(self._guard, np.float64).reshape(-1, 6)
        check_box_form(rows[:, :4], rows[:, 4:], declared="xywh", source=self.source)

    def _drop_repeated_ids(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the rows to keep: of those that share an annotation id, the first."""
        _, first = np.unique(columns["id"], return_index=True)
        keep = np.sort(first)
        for row in np.setdiff1d(np.arange(len(columns["id"])), keep).tolist():
            image_id, number = int(columns["image_id"][row]), int(columns["id"][row])
            self.doubts.setdefault(image_id, set()).add(int(columns["category"][row]))
            error = BadRecord("duplicate_id", f"annotation id {number} of image {image_id}")
            self.rejects.append(Reject.of(f"annotation_ids/{number}", error, "box"))
        return keep


def _get(record: object, name: str) -> Any:
    if not isinstance(record, dict):
        raise BadRecord("malformed", f"record is {type(record).__name__}, not an object")
    if name not in record:
        raise BadRecord("malformed", f"no field {name!r}")
    return record[name]
