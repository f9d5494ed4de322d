"""Records of a file of boxes: which forms are read, and what a box and a score must be.

=================  =================================================================================
COCO results       JSON array, an object a box: ``image_id``, ``bbox`` [x, y, w, h], ``score``. An
                   image that no box names has none.
an object a image  JSON lines, or a JSON array: ``image`` (path) or ``image_id``, ``bbox_list`` or
                   ``boxes`` [[x1, y1, x2, y2]], ``score_list`` or ``scores`` (optional), ``width``,
                   ``height`` (optional). The released evaluation files have this form.
parquet            a row an image, the columns named as above; our own proposals are such files
=================  =================================================================================

Boxes are in pixels of the original image, scores from 0 to 1; without scores all have 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.readers.json_files import stream_array
from dataset_builders.records import BadRecord
from pipelines.errors import SettingError

PARQUET_ROWS = 1024
"""Rows of a parquet file that are read at once."""
MAX_COORDINATE = 1e9
"""Largest number that could be a pixel; beyond it a box is malformed."""
_NAMES = {
    "boxes": ("boxes", "bbox_list"),
    "scores": ("scores", "score_list"),
    "key": ("image_id", "image"),
}


def read_records(path: Path) -> Iterator[tuple[bool, str, Any]]:
    """Read a file of boxes, record by record.

    Args:
        path: File with suffix ``.json``, ``.jsonl`` or ``.parquet``.

    Yields:
        Whether the record is a box rather than an image; the key of its image; and its value,
        ``[box xyxy, score]`` of a box, ``{"boxes", "scores", ...}`` of an image. The value of a
        malformed record is a text that says what is wrong, for its image to be rejected.

    Raises:
        SettingError: The file has none of the known forms; the message names file and record.
    """
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".jsonl":
        rows = _lines(path)
    elif path.suffix == ".json":
        rows = stream_array(path, None)
    else:
        raise SettingError(f"{path.name}: write the boxes as .json, .jsonl or .parquet")
    for number, row in enumerate(rows):
        where = f"{path.name}, record {number}"
        if not isinstance(row, dict):
            raise SettingError(f"{where}: not an object")
        key = next((row[name] for name in _NAMES["key"] if row.get(name) not in (None, "")), None)
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise SettingError(f"{where}: neither image_id nor image names an image")
        is_box = "bbox" in row
        if not is_box and not any(name in row for name in _NAMES["boxes"]):
            raise SettingError(f"{where}: none of bbox, boxes, bbox_list")
        try:
            value: Any = _one_box(row) if is_box else _all_boxes(row)
        except BadRecord as error:
            value = f"record {number}: {error.detail}"
        # Half of a surrogate pair is valid JSON, and no text that a database takes.
        yield is_box, str(key).encode("utf-8", "backslashreplace").decode(), value


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    wanted = {name for names in _NAMES.values() for name in names} | {"width", "height"}
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path.name} is not a parquet file: {error}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise SettingError(
                        f"{path.name}, line {number} is not JSON: {error}"
                    ) from error


def _one_box(row: Mapping[str, Any]) -> list[Any]:
    """Return ``[box xyxy, score]`` of a COCO result; BadRecord ``malformed_boxes`` otherwise."""
    box, score = row["bbox"], row.get("score")
    if _are_numbers(box, 4):
        x, y, width, height = box
        box = [x, y, x + width, y + height]
    boxes, scores = _checked([box], None if score is None else [score])
    return [boxes[0], scores[0]]


def _all_boxes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return boxes, scores and size of an image; BadRecord ``malformed_boxes`` if it has none."""
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
    """Return boxes and scores, 1 where none is given; BadRecord ``malformed_boxes`` otherwise."""
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
    """Return whether this is a list of so many numbers, each of which could be a pixel."""
    return (
        isinstance(values, list)
        and len(values) == count
        # To Python True is the number 1.
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(-MAX_COORDINATE < value < MAX_COORDINATE for value in values)
    )
