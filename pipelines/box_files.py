"""Boxes that somebody else's detector found, in a file: which forms are read, and which image each is of.

=================  ====================================================================================
COCO results       JSON array, an object a box: ``image_id``, ``bbox`` [x, y, w, h], ``score``. An image
                   that no box names has none.
an object a image  JSON lines, or a JSON array: ``image`` (path) or ``image_id``, ``bbox_list`` or ``boxes``
                   [[x1, y1, x2, y2]], ``score_list`` or ``scores`` (optional), ``width``, ``height``
                   (optional). The released evaluation files have this form.
parquet            a row an image, the columns named as above; our own proposals are such files
=================  ====================================================================================

Boxes are in pixels of the original image; without scores all have 1. An image is found by its id, its uri or
the end of it (``val2017/000000000139.jpg``), its file name, or that without suffix; a number stands for the
id of a COCO image. The boxes lie in a temporary database meanwhile: memory does not grow with the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from dataset_builders.json_files import stream_array
from dataset_builders.records import BadRecord, ImageRef
from dataset_builders.scratch import scratch_database

_TABLE = "CREATE TABLE boxes (key TEXT NOT NULL, value TEXT NOT NULL, used INTEGER NOT NULL DEFAULT 0);"
_NAMES = {"boxes": ("boxes", "bbox_list"), "scores": ("scores", "score_list"), "key": ("image_id", "image")}
PARQUET_ROWS = 1024


class BoxFile:
    """An opened file of boxes; made by `open_box_file`."""

    def __init__(self, name: str, database: sqlite3.Connection, *, lists_boxes: bool) -> None:
        self._name, self._database, self._lists_boxes = name, database, lists_boxes

    def boxes_of(self, image: ImageRef) -> dict[str, Any]:
        """Known boxes of an image, ``{"boxes", "scores"}``, and ``{"width", "height"}`` where the file says.

        Raises BadRecord: not_in_file, malformed_boxes, ambiguous_key (a second image of the same name).
        """
        for key in _keys(image):
            rows = self._database.execute("SELECT value, used FROM boxes WHERE key = ?", (key,)).fetchall()
            if not rows:
                continue
            if any(used for _, used in rows):
                raise BadRecord("ambiguous_key", f"{key!r} is the name of several images; use their uris")
            self._database.execute("UPDATE boxes SET used = 1 WHERE key = ?", (key,))
            values = [json.loads(value) for value, _ in rows]
            if self._lists_boxes:
                return _checked({"boxes": [v[0] for v in values], "scores": [v[1] for v in values]})
            if len(values) > 1:
                raise BadRecord("malformed_boxes", f"{key!r} occurs {len(values)} times")
            return _checked(values[0])
        if self._lists_boxes:
            return {"boxes": [], "scores": []}
        raise BadRecord("not_in_file", f"{image.image_uri} is not in {self._name}")

    def close_books(self, num_images: int) -> int:
        """Number of names in the file that no image had.

        Raises ValueError when none of `num_images` images was found in it: it is about other pictures.
        """
        query = "SELECT COUNT(DISTINCT key), COUNT(DISTINCT CASE WHEN used = 0 THEN key END) FROM boxes"
        named, unused = self._database.execute(query).fetchone()
        if named and named == unused and num_images:
            [(example,)] = self._database.execute("SELECT key FROM boxes LIMIT 1").fetchall()
            raise ValueError(
                f"{self._name} names none of the {num_images} images (it has {example!r}, say): is it of "
                "another image source?"
            )
        return unused


@contextmanager
def open_box_file(path: str | Path) -> Iterator[BoxFile]:
    """Read a file of boxes. Raises ValueError naming a file that has none of the known forms."""
    path = Path(path)
    with scratch_database(_TABLE) as database:
        forms: set[bool] = set()
        for is_box, key, value in _records(path):
            forms.add(is_box)
            if len(forms) > 1:
                raise ValueError(
                    f"{path.name}: some records are boxes, others images; write one or the other"
                )
            database.execute("INSERT INTO boxes (key, value) VALUES (?, ?)", (key, json.dumps(value)))
        database.execute("CREATE INDEX by_key ON boxes (key)")
        yield BoxFile(path.name, database, lists_boxes=forms == {True})


def _records(path: Path) -> Iterator[tuple[bool, str, Any]]:
    """Yield (whether the file is a list of boxes, key, value) for each record.

    value: ``[box xyxy, score]`` in a list of boxes, else ``{"boxes", "scores", ...}`` as it stands there.
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
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, record {number}: not an object")
        key = next((str(row[name]) for name in _NAMES["key"] if row.get(name) not in (None, "")), None)
        if key is None:
            raise ValueError(f"{path.name}, record {number}: neither image_id nor image")
        if "bbox" in row:
            yield True, key, [_corners(row["bbox"]), row.get("score", 1.0)]
            continue
        boxes = next((row[name] for name in _NAMES["boxes"] if name in row), None)
        if boxes is None:
            raise ValueError(f"{path.name}, record {number}: none of bbox, boxes, bbox_list")
        scores = next((row[name] for name in _NAMES["scores"] if row.get(name) is not None), None)
        size = {name: row[name] for name in ("width", "height") if row.get(name)}
        yield False, key, {"boxes": boxes, "scores": scores, **size}


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow's own classes
        raise ValueError(f"{path.name} is not a parquet file: {error}") from error
    wanted = {name for names in _NAMES.values() for name in names} | {"width", "height"}
    columns = [name for name in file.schema_arrow.names if name in wanted]
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
        yield from batch.to_pylist()


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path.name}, line {number} is not JSON: {error}") from error


def _corners(box: Any) -> Any:
    """Corners of [x, y, w, h]; what is no such box stays as it is, for its image to be rejected."""
    if not _is_box(box):
        return box
    x, y, width, height = box
    return [x, y, x + width, y + height]


def _keys(image: ImageRef) -> Iterator[str]:
    """Names that a file may know an image by, the most exact first."""
    yield image.image_id
    path = PurePosixPath(image.image_uri.partition("#")[0])
    for start in range(len(path.parts)):
        yield PurePosixPath(*path.parts[start:]).as_posix()
    yield path.stem
    digits = path.stem.rpartition("_")[2]
    if digits.isascii() and digits.isdigit():
        yield str(int(digits))


def _checked(known: dict[str, Any]) -> dict[str, Any]:
    """The record of an image with its scores filled in; raises BadRecord with reason malformed_boxes."""
    boxes, scores = known["boxes"], known["scores"]
    if not isinstance(boxes, list) or not all(map(_is_box, boxes)):
        raise BadRecord("malformed_boxes", "a box is not four numbers that could be pixels")
    scores = [1.0] * len(boxes) if scores is None else scores
    if not isinstance(scores, list) or len(scores) != len(boxes) or not all(map(_is_number, scores)):
        raise BadRecord("malformed_boxes", f"the scores are not a number for each of {len(boxes)} boxes")
    return {**known, "scores": scores}


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
