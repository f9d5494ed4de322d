"""Records of big files brought together by image, where no file keeps them so.

They lie in a temporary database meanwhile.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dataset_builders.box_checks import whole_number
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.records import BadRecord

_TABLE = "CREATE TABLE records (kind TEXT, image INTEGER, position INTEGER, record TEXT);"


class GroupedRecords:
    """JSON records by kind and image id, on disk: memory stays the same however many there are."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def add(self, kind: str, image_id: int, position: int, record: Any) -> None:
        """Keep a record.

        Args:
            kind: Which file it is of.
            image_id: Image that it is about.
            position: Tells the order within an image.
            record: Anything that JSON can hold.
        """
        row = (kind, image_id, position, json.dumps(record))
        self._database.execute("INSERT INTO records VALUES (?, ?, ?, ?)", row)

    def index(self) -> None:
        """Make reading by image fast; called once, after the last `add`."""
        self._database.execute("CREATE INDEX by_image ON records (kind, image, position)")

    def images(self, kind: str) -> Iterator[int]:
        """Yield the images that have records of a kind, by ascending id."""
        query = "SELECT DISTINCT image FROM records WHERE kind = ? ORDER BY image"
        yield from (image for (image,) in self._database.execute(query, (kind,)))

    def of(self, kind: str, image_id: int) -> list[tuple[int, Any]]:
        """Return (position, record) of all records of one kind and image, in order of positions."""
        query = (
            "SELECT position, record FROM records WHERE kind = ? AND image = ? ORDER BY position"
        )
        found = self._database.execute(query, (kind, image_id))
        return [(position, json.loads(record)) for position, record in found]


@contextmanager
def grouped_records() -> Iterator[GroupedRecords]:
    """Open an empty collection, which goes away at the end of the `with` block."""
    with scratch_database(_TABLE) as database:
        yield GroupedRecords(database)


def id_number(value: Any, *, what: str = "image_id") -> int:
    """Return an id or size that some files write as text: 2410408 of "2410408".

    Raises:
        BadRecord: The reason is malformed.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    number = whole_number(value, what=what)
    if not 0 <= number < 2**62:
        raise BadRecord("malformed", f"{what} {str(value)[:40]} is out of range")
    return number
