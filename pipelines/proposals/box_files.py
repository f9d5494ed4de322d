"""Boxes that somebody else's detector found, in a file: which image each belongs to.

The forms of such files are those of `pipelines.proposals.box_records`. An image is found by its id,
its uri or the end of it (``val2017/000000000139.jpg``), its file name, or that without suffix; a
number stands for the id of a COCO image. The boxes lie in a temporary database meanwhile: memory
does not grow with the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_builders.containers import READERS
from dataset_builders.image_sources import coco_id
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.records import BadRecord
from pipelines.errors import SettingError
from pipelines.proposals.box_records import read_records

_TABLES = """
CREATE TABLE boxes (key TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE names (key TEXT PRIMARY KEY, images INTEGER NOT NULL) WITHOUT ROWID;
"""


class BoxFile:
    """An opened file of boxes, made by `open_box_file`.

    All images are claimed before any is asked for: only then is it known which names are ambiguous.
    """

    def __init__(self, name: str, database: sqlite3.Connection, *, lists_boxes: bool) -> None:
        self._name, self._database, self._lists_boxes = name, database, lists_boxes

    def claim(self, image_id: str, image_uri: str) -> None:
        """Note that there is such an image.

        Of several images that have one name in the file, none gets the boxes.
        """
        if (named := self._find(image_id, image_uri)) is not None:
            self._database.execute("UPDATE names SET images = images + 1 WHERE key = ?", named[:1])

    def boxes_of(self, image_id: str, image_uri: str) -> dict[str, Any]:
        """Return the known boxes of an image.

        Returns:
            ``boxes``, lists of four numbers, xyxy px; ``scores``, numbers from 0 to 1; and, where
            the file says them, ``width`` and ``height`` in px.

        Raises:
            BadRecord: ``not_in_file``, ``malformed_boxes``, or ``ambiguous_key`` (another image has
                the name as well).
        """
        named = self._find(image_id, image_uri)
        if named is None and self._lists_boxes:  # a list of boxes has nothing of an empty image
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
        """Return the number of names in the file that no image had.

        Args:
            num_images: Images that were claimed.

        Raises:
            SettingError: None of them was found in the file, which is about other images.
        """
        query = "SELECT COUNT(*), SUM(images = 0) FROM names"
        named, unused = self._database.execute(query).fetchone()
        if named == unused and num_images:
            [(example,)] = self._database.execute("SELECT key FROM names LIMIT 1").fetchall()
            raise SettingError(
                f"{self._name} names none of the {num_images} images (it has {example!r}, say): is "
                "it of another image source?"
            )
        return unused

    def _find(self, image_id: str, image_uri: str) -> tuple[str, int] | None:
        """Return the name that the file has for an image, and how many images have claimed it."""
        query = "SELECT key, images FROM names WHERE key = ?"
        found = (
            self._database.execute(query, (key,)).fetchone() for key in _keys(image_id, image_uri)
        )
        return next((row for row in found if row), None)


@contextmanager
def open_box_file(path: str | Path) -> Iterator[BoxFile]:
    """Open a file of boxes.

    Args:
        path: File with suffix ``.json``, ``.jsonl`` or ``.parquet``.

    Yields:
        The opened file, for the time of the context.

    Raises:
        SettingError: The file has none of the known forms; the message names it.
    """
    path = Path(path)
    with scratch_database(_TABLES) as database:
        forms: set[bool] = set()
        for is_box, key, value in read_records(path):
            forms.add(is_box)
            if len(forms) > 1:
                raise SettingError(
                    f"{path.name}: some records are boxes, others images; write one or the other"
                )
            database.execute(
                "INSERT INTO boxes (key, value) VALUES (?, ?)", (key, json.dumps(value))
            )
        if not forms:
            raise SettingError(
                f"{path.name}: holds no record; write a JSON array, JSON lines or parquet rows"
            )
        database.execute("INSERT INTO names SELECT DISTINCT key, 0 FROM boxes")
        # After the rows: the index is built once, not row by row.
        database.execute("CREATE INDEX by_key ON boxes (key)")
        yield BoxFile(path.name, database, lists_boxes=forms == {True})


def _keys(image_id: str, image_uri: str) -> Iterator[str]:
    """Yield the names that a file may know an image by, the most exact first."""
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
        # A number is an id: image 7.jpg whose id is 6 has nothing to do with "7".
        if not (_is_number_text(image_id) and _is_number_text(name)):
            yield name


def _is_number_text(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))
