"""One pass over a file in COCO's form, into the tables of a temporary database.

| table       | a row
|
| ----------- | -----------------------------------------------------------------------------------
|
| images      | an image that can be used; `position` is its place in the file, from 0
|
| lost_images | the id of an image that was rejected: its boxes are rejected for another reason
|
| boxes       | a box as stored (a, b, c, d: left, top, width, height in pixels), not yet checked
|
| doubts      | a rejected box: its image may show its category after all (null: any category)
|
| rejects     | a record that was rejected, to be yielded when the file is read out
|

`more` is JSON of the further fields that the builder asked for (`CocoForm`), null where it has
none.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import BoxGuard, four_numbers, get, whole_number
from dataset_builders.errors import SettingError
from dataset_builders.readers.coco_images import ID_LIMIT, CocoForm, image_row
from dataset_builders.readers.json_files import stream_arrays
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord
from dataset_builders.validation import check_label

TABLES = """
    CREATE TABLE images (id INTEGER PRIMARY KEY, position INTEGER, uri TEXT,
                         width INTEGER, height INTEGER, more TEXT);
    CREATE TABLE lost_images (id INTEGER PRIMARY KEY);
    CREATE TABLE boxes (image INTEGER, position INTEGER, id INTEGER, category INTEGER,
                        a REAL, b REAL, c REAL, d REAL, crowd INTEGER, more TEXT);
    CREATE TABLE doubts (image INTEGER, category INTEGER, more TEXT);
    CREATE TABLE rejects (record TEXT, reason TEXT, detail TEXT, unit TEXT);
"""
_UNITS = {"categories": "category", "images": "image", "annotations": "box"}


class CocoTables:
    """The tables of one file, filled by `read`."""

    def __init__(self, database: sqlite3.Connection, folder: str, form: CocoForm) -> None:
        self.execute = database.execute
        self.folder = folder
        self.form = form
        self.categories: dict[int, str] = {}
        """Category id -> name; those whose record was rejected are not there."""
        self.records: dict[int, Mapping[str, Any]] = {}
        """Category id -> its record."""
        # notices a file of another form before it is read to its end
        self._counter = RecordCounter()

    def read(self, path: Path) -> None:
        """Read the file into the tables.

        Raises:
            SettingError: It is not JSON, has no usable images or categories, or its boxes are not
                xywh.
        """
        positions = dict.fromkeys(_UNITS, 0)
        add = {"categories": self._category, "images": self._image, "annotations": self._box}
        for key, record in stream_arrays(path, positions.keys()):
            position = positions[key]
            positions[key] += 1
            try:
                add[key](position, record)
                self._counter.use(_UNITS[key])
            except BadRecord as error:
                self._counter.reject(f"{key}/{position}", error, _UNITS[key])
                self._reject(f"{key}/{position}", error, _UNITS[key])
        self._drop_repeated_ids()
        # indexed only now: rows go in several times faster without
        self.execute("CREATE INDEX boxes_by_image ON boxes (image, position)")
        self.execute("CREATE INDEX doubts_by_image ON doubts (image)")
        usable = self.execute("SELECT count(*) FROM images").fetchone()[0]
        if not usable or not (self.categories or self.form.one_category):
            missing = "categories" if usable else "images"
            raise SettingError(
                f"{path.name}: no usable {missing}; "
                "a COCO file lists images, annotations, categories"
            )
        self._look_ahead(path.name)

    def _reject(self, record: str, error: BadRecord, unit: str) -> None:
        self.execute(
            "INSERT INTO rejects VALUES (?, ?, ?, ?)", (record, error.reason, error.detail, unit)
        )

    def _category(self, _: int, record: Any) -> None:
        number = whole_number(get(record, "id"), what="category id")
        if number in self.records:
            raise BadRecord("duplicate_id", f"category id {number}")
        # kept before its name is checked: boxes of a bad category are known to be of a listed one
        self.records[number] = record
        self.categories[number] = check_label(self.form.name_of(record), what="category name")

    def _image(self, position: int, record: Any) -> None:
        number = -1
        try:
            number, uri, width, height = image_row(record, self.folder, self.form)
            if self.execute("SELECT 1 FROM images WHERE id = ?", (number,)).fetchone():
                number = -1
                raise BadRecord("duplicate_id", f"image id {record['id']}")
        except BadRecord:
            if number < 0 and isinstance(record, dict) and isinstance(record.get("id"), int):
                number = record["id"]
            if -ID_LIMIT < number < ID_LIMIT:
                # not for the second of two images with one id: the first is there
                query = """
                    INSERT OR IGNORE INTO lost_images
                    SELECT ? WHERE ? NOT IN (SELECT id FROM images)
                """
                self.execute(query, (number, number))
            raise
        more = _kept(record, self.form.image_fields)
        self.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
            (number, position, uri, width, height, more),
        )

    def _box(self, position: int, record: Any) -> None:
        image = _small(whole_number(get(record, "image_id"), what="image_id"), "image_id")
        category: int | None = None
        try:
            if self.form.one_category:
                category = 0
            else:
                stored_id = whole_number(get(record, "category_id"), what="category_id")
                category = _small(stored_id, "category_id")
            stored = four_numbers(get(record, "bbox"), what="bbox")
            number = record.get("id")
            if number is not None:
                number = _small(whole_number(number, what="annotation id"), "annotation id")
            crowd = whole_number(record.get("iscrowd", 0), what="iscrowd")
            if crowd not in (0, 1):
                raise BadRecord("malformed", f"iscrowd is {crowd}")
        except BadRecord:
            # the image may show this category, so nobody may call it absent or complete there
            more = _kept(record, self.form.box_fields)
            self.execute("INSERT INTO doubts VALUES (?, ?, ?)", (image, category, more))
            raise
        more = _kept(record, self.form.box_fields)
        row = (image, position, number, category, *stored, crowd, more)
        self.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _drop_repeated_ids(self) -> None:
        """Keep the first of the boxes that share an annotation id; reject the others."""
        query = """
            SELECT b.rowid, b.image, b.category, b.position, b.id, b.more FROM boxes b JOIN
            (SELECT id, min(position) AS first FROM boxes
             WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1) r
            ON b.id = r.id AND b.position > r.first ORDER BY b.position
        """
        for row, image, category, position, number, more in self.execute(query).fetchall():
            self.execute("INSERT INTO doubts VALUES (?, ?, ?)", (image, category, more))
            self.execute("DELETE FROM boxes WHERE rowid = ?", (row,))
            error = BadRecord("duplicate_id", f"annotation id {number}")
            self._reject(f"annotations/{position}", error, "box")

    def _look_ahead(self, file_name: str) -> None:
        """Check the form of the boxes before any sample is made of them."""
        guard = BoxGuard("xywh", source=file_name)
        query = """
            SELECT a, b, c, d, width, height FROM boxes JOIN images ON images.id = image
            ORDER BY image LIMIT 200
        """
        for *stored, width, height in self.execute(query):
            if None not in stored:
                guard.look(stored, width, height)
        guard.check()


def _small(number: int, what: str) -> int:
    """Return a number that the database can hold."""
    if not -ID_LIMIT < number < ID_LIMIT:
        raise BadRecord("malformed", f"{what} {str(number)[:40]} is out of range")
    return number


def _kept(record: Mapping[str, Any], fields: tuple[str, ...]) -> str | None:
    """Return the named fields of a record as JSON; None when it has none of them."""
    kept = {name: record[name] for name in fields if name in record}
    return json.dumps(kept) if kept else None
