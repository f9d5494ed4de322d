"""Expressions that come one by one, brought together by image in a temporary database.

MDETR's JSON, Hugging Face's parquet and C-REC's JSON have a record for each expression, with its
own boxes, in any order. A sample lists everything that is known of its image, so all records of an
image are read before its samples are made.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, get, whole_number, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.coco_images import MAX_IMAGE_SIDE
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Reject, Sample
from dataset_builders.spec import BuildOptions, ImageSource
from dataset_builders.tasks.referring import Expression, expression_samples
from dataset_builders.validation import check_label

Box = tuple[float, float, float, float]
UNNAMED = "object"
"""Label of an object where the file has expressions for it, but no category."""
_TABLES = """
    CREATE TABLE images (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
    CREATE TABLE rows (id INTEGER PRIMARY KEY, number TEXT UNIQUE, image INTEGER, content TEXT);
    CREATE INDEX rows_by_image ON rows (image, id);
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An object that an expression names, as stored."""

    box: Box
    """Four numbers in the form of the file; checked when the image's size is known."""
    label: str = UNNAMED
    """What the file calls the object."""
    ignore: bool = False
    """True for a crowd region."""


@dataclass(frozen=True, kw_only=True)
class ExpressionRow:
    """One expression, as stored."""

    record: str
    """Readable name of the record in its file."""
    number: int | str
    """Id of the expression, unique in the dataset."""
    said: str
    """The expression."""
    image: ImageRef
    """The image; its width and height are 0 where the file does not say."""
    targets: tuple[Target, ...]
    """Objects that it names; none: nothing fits it."""


def stored_size(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height of an image record in pixels.

    Raises:
        BadRecord: The reason is malformed or bad_size.
    """
    width, height = (whole_number(get(record, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"{str(width)[:20]}x{str(height)[:20]}")
    return width, height


class ExpressionTable:
    """Rows by image; `open_table` makes it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        """Readers may keep tables of their own in it."""

    def add(self, row: ExpressionRow) -> None:
        """Keep a row.

        Raises:
            BadRecord: The reason is duplicate_id: its number was already seen.
        """
        ref = row.image
        # as JSON, since text of a file may hold what a database refuses: half a surrogate pair
        name, number = json.dumps([ref.image_source, ref.image_id]), json.dumps(row.number)
        self.check_new(row.number)
        self.database.execute("INSERT OR IGNORE INTO images (name) VALUES (?)", (name,))
        targets = [[target.box, target.label, target.ignore] for target in row.targets]
        content = [row.record, row.number, row.said, ref.image_uri, ref.width, ref.height, targets]
        query = """
            INSERT INTO rows (number, image, content)
            SELECT ?, id, ? FROM images WHERE name = ?
        """
        self.database.execute(query, (number, json.dumps(content), name))

    def check_new(self, number: int | str) -> None:
        """Raise when the table has an expression of this number.

        Raises:
            BadRecord: The reason is duplicate_id.
        """
        query = "SELECT 1 FROM rows WHERE number = ?"
        if self.database.execute(query, (json.dumps(number),)).fetchone():
            raise BadRecord("duplicate_id", f"expression {str(number)[:80]}")

    def items(
        self,
        folders: DataFolders,
        options: BuildOptions,
        *,
        dataset: str,
        sources: tuple[ImageSource, ...],
        form: str,
        file: str,
        counter: RecordCounter,
        captions: bool,
    ) -> Iterator[Sample | Reject]:
        """Yield the samples of all rows, image by image, or their rejects; each row is one record.

        Args:
            folders: Where the datasets lie.
            options: What can be chosen about the samples.
            dataset: Name of the dataset.
            sources: What the images belong to; those whose size no file says are opened.
            form: Form of the boxes, "xyxy" or "xywh".
            file: Name of the file, for the message.
            counter: Counts the rows.
            captions: Whether expressions are captions too, see `referring.expression_samples`.

        Raises:
            SettingError: The boxes are not of that form.
        """
        guard = BoxGuard(form, source=file)
        by_name = {source.name: source for source in sources}
        for image, name in self.database.execute("SELECT id, name FROM images ORDER BY id"):
            source_name, image_id = json.loads(name)
            rows = self._rows(image, by_name[source_name], image_id)
            try:
                ref = _sized(rows, by_name[source_name], folders)
            except BadRecord as error:
                for row in rows:
                    yield counter.reject(row.record, error)
                continue
            objects: dict[tuple[Box, bool], Object] = {}
            found = []
            for row in rows:
                try:
                    named = _objects(row, ref, objects, guard, form)
                    found.append(
                        Expression(record=row.record, number=row.number, said=row.said, rows=named)
                    )
                except BadRecord as error:
                    yield counter.reject(row.record, error)
            facts = ImageFacts(
                ref=ref, objects=tuple(objects.values()), ids=tuple(range(len(objects)))
            )
            yield from expression_samples(
                facts, found, options, dataset=dataset, counter=counter, captions=captions
            )
        guard.check()

    def _rows(self, image: int, source: ImageSource, image_id: str) -> list[ExpressionRow]:
        """Return the rows of an image, in the order in which they were added."""
        rows = []
        query = "SELECT content FROM rows WHERE image = ? ORDER BY id"
        for (content,) in self.database.execute(query, (image,)):
            record, number, said, uri, width, height, stored = json.loads(content)
            rows.append(
                ExpressionRow(
                    record=record,
                    number=number,
                    said=said,
                    image=source.ref(image_id, uri, width, height),
                    targets=tuple(
                        Target(box=tuple(box), label=label, ignore=i) for box, label, i in stored
                    ),
                )
            )
        return rows


def _sized(rows: list[ExpressionRow], source: ImageSource, folders: DataFolders) -> ImageRef:
    """Return the image of some rows with its size, which the file says or its own header."""
    ref = rows[0].image
    return ref if ref.width and ref.height else source.open(folders, ref.image_uri)


def _objects(
    row: ExpressionRow,
    ref: ImageRef,
    objects: dict[tuple[Box, bool], Object],
    guard: BoxGuard,
    form: str,
) -> tuple[int, ...]:
    """Return the rows of a record's targets among the objects of its image; add new objects.

    Records of an image repeat each other's boxes; one object stands for equal boxes.

    Raises:
        BadRecord: A box or label is bad, or the record gives the image another size than others do.
    """
    if row.image not in (ref, replace(ref, width=0, height=0)):
        size = f"{row.image.width}x{row.image.height}"
        raise BadRecord("contradiction", f"{size} here, {ref.width}x{ref.height} in another record")
    named = []
    for target in row.targets:
        guard.look(target.box, ref.width, ref.height)
        corners = xywh_to_xyxy(target.box) if form == "xywh" else target.box
        box = clean_box(corners, ref.width, ref.height)
        check_label(target.label)
        named.append(Object(box=box, label=target.label, ignore=target.ignore))
    # added only now, so that a bad record leaves nothing behind
    for item in named:
        objects.setdefault((item.box, item.ignore), item)
    order = list(objects)
    return tuple(dict.fromkeys(order.index((item.box, item.ignore)) for item in named))


@contextmanager
def open_table() -> Iterator[ExpressionTable]:
    """Make an empty table in a temporary file, which goes away at the end of the `with` block."""
    with scratch_database(_TABLES) as database:
        yield ExpressionTable(database)
