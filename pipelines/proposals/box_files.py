"""Boxes that somebody else's detector found, in a file: which forms are read, and which image each is of.

=================  ====================================================================================
COCO results       JSON array, an object a box: ``image_id``, ``bbox`` [x, y, w, h], ``score``. An image
                   that no box names has none.
an object a image  JSON lines, or a JSON array: ``image`` (path) or ``image_id``, ``bbox_list`` or ``boxes``
                   [[x1, y1, x2, y2]], ``score_list`` or ``scores`` (optional), ``width``, ``height``
                   (optional). The released evaluation files have this form.
parquet            a row an image, the columns named as above; our own proposals are such files
=================  ====================================================================================

Boxes are in pixels of the original image, scores from 0 to 1; without scores all have 1. An image is found
by its id, its uri or the end of it (``val2017/000000000139.jpg``), its file name, or that without suffix; a
number stands for the id of a COCO image. The boxes lie in a temporary database meanwhile: memory does not
grow with the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.containers import READERS
from dataset_builders.image_sources import coco_id
from dataset_builders.readers.json_files import stream_array
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.records import BadRecord

_TABLES = """
CREATE TABLE boxes (key TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE names (key TEXT PRIMARY KEY, images INTEGER NOT NULL) WITHOUT ROWID;
"""
_NAMES = {
    "boxes": ("boxes", "bbox_list"),
    "scores": ("scores", "score_list"),
    "key": ("image_id", "image"),
}
PARQUET_ROWS = 1024
MAX_COORDINATE = 1e9
"""Beyond it a number is no pixel."""


class BoxFile:
    """An opened file of boxes; made by `open_box_file`. All images are claimed before any is asked for."""

    def __init__(self, name: str, database: sqlite3.Connection, *, lists_boxes: bool) -> None:
        self._name, self._database, self._lists_boxes = name, database, lists_boxes

    def claim(self, image_id: str, image_uri: str) -> None:
        """Say that there is such an image. Of several with one name in the file, none gets the boxes."""
        if (named := self._find(image_id, image_uri)) is not None:
            self._database.execute("UPDATE names SET images = images + 1 WHERE key = ?", named[:1])

    def boxes_of(self, image_id: str, image_uri: str) -> dict[str, Any]:
        """Known boxes of an image, ``{"boxes", "scores"}``, and ``{"width", "height"}`` where the file says.

        Raises BadRecord: not_in_file, malformed_boxes, ambiguous_key (another image has the name as well).
        """
        named = self._find(image_id, image_uri)
        if named is None and self._lists_boxes:
            return {"boxes": [], "scores": []}
        if named is None:
            raise BadRecord("not_in_file", f"{image_uri} is not in {self._name}")
        key, images = named
        if images > 1:
            raise BadRecord(
                "ambiguous_key", f"{key!r} is the name of {images} images; use their uris"
            )
        query = "SELECT value FROM boxes WHERE key = ? ORDER BY rowid"
        values = [json.loads(value) for (value,) in self._database.execute(query, (key,))]
        for value in values:
            if isinstance(value, str):
                raise BadRecord("malformed_boxes", value)
        if self._lists_boxes:
            return {"boxes": [box for box, _ in values], "scores": [score for _, score in values]}
        if len(values) > 1:
            raise BadRecord("malformed_boxes", f"{key!r} occurs {len(values)} times")
        return values[0]

    def close_books(self, num_images: int) -> int:
        """Number of names in the file that no image had.

        Raises ValueError when none of `num_images` images was found in it: it is about other pictures.
        """
        query = "SELECT COUNT(*), SUM(images = 0) FROM names"
        named, unused = self._database.execute(query).fetchone()
        if named == unused and num_images:
            [(example,)] = self._database.execute("SELECT key FROM names LIMIT 1").fetchall()
            raise ValueError(
                f"{self._name} names none of the {num_images} images (it has {example!r}, say): is it of "
                "another image source?"
            )
        return unused

    def _find(self, image_id: str, image_uri: str) -> tuple[str, int] | None:
        """The name that the file has for an image, and how many images have claimed it."""
        query = "SELECT key, images FROM names WHERE key = ?"
        found = (
            self._database.execute(query, (key,)).fetchone() for key in _keys(image_id, image_uri)
        )
        return next((row for row in found if row), None)


@contextmanager
def open_box_file(path: str | Path) -> Iterator[BoxFile]:
    """Read a file of boxes. Raises ValueError naming a file that has none of the known forms."""
    path = Path(path)
    with scratch_database(_TABLES) as database:
        forms: set[bool] = set()
        for is_box, key, value in _records(path):
            forms.add(is_box)
            if len(forms) > 1:
                raise ValueError(
                    f"{path.name}: some records are boxes, others images; write one or the other"
                )
            database.execute(
                "INSERT INTO boxes (key, value) VALUES (?, ?)", (key, json.dumps(value))
            )
        if not forms:
            raise ValueError(
                f"{path.name}: holds no record; write a JSON array, JSON lines or parquet rows"
            )
        database.execute("INSERT INTO names SELECT DISTINCT key, 0 FROM boxes")
        database.execute("CREATE INDEX by_key ON boxes (key)")
        yield BoxFile(path.name, database, lists_boxes=forms == {True})


def _records(path: Path) -> Iterator[tuple[bool, str, Any]]:
    """Yield (whether the file is a list of boxes, key, value) for each record.

    value: ``[box xyxy, score]`` in a list of boxes, else ``{"boxes", "scores", ...}``; of a malformed record
    a text that says what is wrong, for its image to be rejected.
    """
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".jsonl":
        rows = _lines(path)
    elif path.suffix == ".json":
        rows = stream_array(path, None)
    else:
        raise ValueError(f"{path.name}: write the boxes as .json, .jsonl or .parquet")
    for number, row in enumerate(rows):
        where = f"{path.name}, record {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not an object")
        key = next((row[name] for name in _NAMES["key"] if row.get(name) not in (None, "")), None)
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise ValueError(f"{where}: neither image_id nor image names a picture")
        is_box = "bbox" in row
        if not is_box and not any(name in row for name in _NAMES["boxes"]):
            raise ValueError(f"{where}: none of bbox, boxes, bbox_list")
        try:
            value: Any = _one_box(row) if is_box else _all_boxes(row)
        except BadRecord as error:
            value = f"record {number}: {error.detail}"
        # half of a surrogate pair is valid JSON, and no text that a database takes
        yield is_box, str(key).encode("utf-8", "backslashreplace").decode(), value


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    wanted = {name for names in _NAMES.values() for name in names} | {"width", "height"}
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not a parquet file: {error}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path.name}, line {number} is not JSON: {error}") from error


def _keys(image_id: str, image_uri: str) -> Iterator[str]:
    """Names that a file may know an image by, the most exact first."""
    yield image_id
    yield image_uri
    container, mark, _ = image_uri.partition("#")
    path = PurePosixPath(image_uri)
    if mark and PurePosixPath(container).suffix in READERS:
        return  # the file name is that of many images
    names = [PurePosixPath(*path.parts[start:]).as_posix() for start in range(1, len(path.parts))]
    names.append(path.stem)
    with suppress(BadRecord):  # no name of a COCO image: it has no number
        names.append(coco_id(image_uri))
    for name in names:
        # A number is an id: picture 7.jpg whose id is 6 has nothing to do with "7".
        if not (_is_number_text(image_id) and _is_number_text(name)):
            yield name


def _is_number_text(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))


def _one_box(row: Mapping[str, Any]) -> list[Any]:
    """``[box xyxy, score]`` of a COCO result. Raises BadRecord with reason malformed_boxes."""
    box, score = row["bbox"], row.get("score")
    if _are_numbers(box, 4):
        x, y, width, height = box
        box = [x, y, x + width, y + height]
    boxes, scores = _checked([box], None if score is None else [score])
    return [boxes[0], scores[0]]


def _all_boxes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Boxes, scores and size of an image. Raises BadRecord with reason malformed_boxes."""
    boxes = next(row[name] for name in _NAMES["boxes"] if name in row)
    scores = next((row[name] for name in _NAMES["scores"] if row.get(name) is not None), None)
    boxes, scores = _checked(boxes, scores)
    size = {name: row[name] for name in ("width", "height") if row.get(name) not in (None, 0)}
    for name, value in size.items():
        if not _are_numbers([value], 1) or value < 1 or value != int(value):
            raise BadRecord("malformed_boxes", f"{name} {str(value)[:40]!r} is no number of pixels")
        size[name] = int(value)
    return {"boxes": boxes, "scores": scores, **size}


def _checked(boxes: Any, scores: Any) -> tuple[list[Any], list[Any]]:
    """Boxes and scores, 1 where there are none. Raises BadRecord with reason malformed_boxes."""
    if not isinstance(boxes, list) or not all(_are_numbers(box, 4) for box in boxes):
        raise BadRecord("malformed_boxes", "a box is not four numbers that could be pixels")
    if any(right < left or bottom < top for left, top, right, bottom in boxes):
        raise BadRecord(
            "malformed_boxes", "a box has a negative side: are its numbers in another order?"
        )
    scores = [1.0] * len(boxes) if scores is None else scores
    if not _are_numbers(scores, len(boxes)) or not all(0 <= score <= 1 for score in scores):
        raise BadRecord("malformed_boxes", f"the scores are not {len(boxes)} numbers from 0 to 1")
    return boxes, scores


def _are_numbers(values: Any, count: int) -> bool:
    """Whether this is a list of so many numbers, each of which could be a pixel."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(-MAX_COORDINATE < value < MAX_COORDINATE for value in values)
    )
