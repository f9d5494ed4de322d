"""COCO instances JSON and everything in its form: images, categories and boxes of one file, grouped by image.

The file is read once, front to back, whatever the order of its arrays, into a temporary database beside no
other file: memory stays the same for a thousand boxes and for thirty million. Segmentations are never kept;
what else a dataset needs of a record is named in `fields`.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import (
    BoxGuard,
    clean_box,
    four_numbers,
    get,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.images import check_uri
from dataset_builders.readers.json_files import stream_array, stream_arrays
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.record_counter import Tally
from dataset_builders.records import BadRecord, ImageRef, Object, Reject
from dataset_builders.spec import ImageSource
from dataset_builders.validation import check_label

MAX_IMAGE_SIDE = 100_000
_TABLES = """
    CREATE TABLE images (id INTEGER PRIMARY KEY, position INTEGER, uri TEXT, width INTEGER, height INTEGER,
                         more TEXT);
    CREATE TABLE lost_images (id INTEGER PRIMARY KEY);
    CREATE TABLE boxes (image INTEGER, position INTEGER, id INTEGER, category INTEGER,
                        a REAL, b REAL, c REAL, d REAL, crowd INTEGER, more TEXT);
    CREATE TABLE doubts (image INTEGER, category INTEGER, more TEXT);
    CREATE TABLE rejects (record TEXT, reason TEXT, detail TEXT, unit TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class CocoForm:
    """How one kind of file differs from COCO's own."""

    name_of: Callable[[Mapping[str, Any]], str] = lambda category: get(category, "name")
    """Name of a category from its record."""
    uri_of: Callable[[Mapping[str, Any]], str] = lambda image: get(image, "file_name")
    """Uri of an image from its record, below the picture folder."""
    image_fields: tuple[str, ...] = ()
    """Further fields of an image record that the builder reads."""
    box_fields: tuple[str, ...] = ()
    """Further fields of an annotation that the builder reads."""
    one_category: str = ""
    """Label of every box, for files whose categories say nothing; empty: as the file says."""


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image of a file."""

    facts: ImageFacts
    """Its boxes; `ids` are annotation ids, or positions in the file where it gives none."""
    fields: Mapping[str, Any]
    """`CocoForm.image_fields` as stored, those that are there."""
    box_fields: tuple[Mapping[str, Any], ...]
    """`CocoForm.box_fields` as stored, one mapping an object."""
    lost_fields: tuple[Mapping[str, Any], ...] = ()
    """`CocoForm.box_fields` of its boxes that were rejected."""


@dataclass(kw_only=True)
class CocoFile:
    """A COCO file in a temporary database; `open_coco` makes it."""

    database: sqlite3.Connection
    source: ImageSource
    folder: str
    form: CocoForm
    guard: BoxGuard
    categories: dict[int, str] = field(default_factory=dict)
    """Category id -> name; those whose record was rejected are not there."""
    records: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Category id -> its record."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories in the file's order, each once."""
        return tuple(dict.fromkeys(self.categories.values()))

    def images(self, tally: Tally) -> Iterator[CocoImage | Reject]:
        """Yield every image in the file's order, with the rejects of its boxes before it; then the other
        rejects.

        Records are counted in `tally`: boxes and categories whole, images only when they are rejected; the
        caller counts those that it uses.
        """
        for row in self.database.execute("SELECT * FROM images ORDER BY position"):
            rejects, image = self._image(row)
            for reject in rejects:
                yield tally.reject(reject.record_id, BadRecord(reject.reason, reject.detail), "box")
            tally.use("box", len(image.facts.objects))
            yield image
        yield from self.rejects(tally)

    def rejects(self, tally: Tally) -> Iterator[Reject]:
        """Yield the rejects that belong to no image, and count the categories."""
        tally.use("category", len(self.categories))
        for record, reason, detail, unit in self.database.execute(
            "SELECT * FROM rejects ORDER BY rowid"
        ):
            yield tally.reject(record, BadRecord(reason, detail), unit)
        orphans = """
            SELECT position, image, lost_images.id IS NOT NULL FROM boxes
            LEFT JOIN lost_images ON lost_images.id = image
            WHERE image NOT IN (SELECT id FROM images) ORDER BY position
        """
        for position, image, lost in self.database.execute(orphans):
            error = BadRecord("image_rejected" if lost else "unknown_image", f"image {image}")
            yield tally.reject(f"annotations/{position}", error, "box")

    def image(self, image_id: int) -> CocoImage:
        """Return one image by its id, for records of other files that refer to it; nothing is counted.

        Raises BadRecord with reason unknown_image.
        """
        query = "SELECT * FROM images WHERE id = ?"
        # sqlite takes no bigger number, and no image has one
        row = (
            self.database.execute(query, (image_id,)).fetchone() if abs(image_id) < 2**62 else None
        )
        if row is None:
            raise BadRecord("unknown_image", f"image {image_id}")
        return self._image(row)[1]

    def label_sets(self) -> Iterator[frozenset[str]]:
        """Yield the labels of every image that has boxes, for `absence.LabelStatistics`."""
        query = "SELECT group_concat(DISTINCT category) FROM boxes GROUP BY image"
        for (listed,) in self.database.execute(query):
            numbers = map(int, (listed or "").split(",")) if listed else ()
            yield frozenset(
                self.categories[number] for number in numbers if number in self.categories
            )

    def _image(self, row: tuple[Any, ...]) -> tuple[list[Reject], CocoImage]:
        image_id, _, uri, width, height, more = row
        ref = self.source.ref(str(image_id), uri, width, height)
        rejects, objects, ids, extra = [], [], [], []
        query = "SELECT category, more FROM doubts WHERE image = ? ORDER BY rowid"
        lost = self.database.execute(query, (image_id,)).fetchall()
        doubts = {category for category, _ in lost}
        query = """
            SELECT position, id, category, a, b, c, d, crowd, more FROM boxes WHERE image = ?
            ORDER BY position
        """
        for position, number, category, *stored, crowd, fields in self.database.execute(
            query, (image_id,)
        ):
            try:
                if self.form.one_category == "" and category not in self.categories:
                    raise BadRecord("unknown_category", f"category {category}")
                corners = [float("nan") if value is None else value for value in stored]
                self.guard.look(corners, width, height)
                box = clean_box(xywh_to_xyxy(corners), width, height)
            except BadRecord as error:
                # a category whose record was itself rejected is never asked for, so it casts no doubt
                doubts.add(category if category in self.records else None)
                lost.append((category, fields))
                rejects.append(Reject.of(f"annotations/{position}", error, "box"))
                continue
            label = self.form.one_category or self.categories[category]
            objects.append(Object(box=box, label=label, ignore=bool(crowd)))
            ids.append(position if number is None else number)
            extra.append({} if fields is None else json.loads(fields))
        names = (
            self.names
            if None in doubts
            else [self.categories[c] for c in doubts if c in self.categories]
        )
        facts = ImageFacts(
            ref=ref, objects=tuple(objects), ids=tuple(ids), uncertain=frozenset(names)
        )
        fields = {} if more is None else json.loads(more)
        lost_fields = tuple(json.loads(kept) for _, kept in lost if kept is not None)
        return rejects, CocoImage(
            facts=facts, fields=fields, box_fields=tuple(extra), lost_fields=lost_fields
        )


def list_coco(
    folders: DataFolders,
    *,
    file: str,
    folder: str,
    source: ImageSource,
    form: CocoForm | None = None,
) -> Iterator[ImageRef | Reject]:
    """Yield every image that a COCO file lists, or its reject. Arguments as for `open_coco`."""
    seen: set[int] = set()
    for position, record in enumerate(stream_array(folders.path(file), "images")):
        try:
            number, uri, width, height = _image_row(record, folder, form or CocoForm())
            if number in seen:
                raise BadRecord("duplicate_id", f"image id {number}")
            seen.add(number)
            yield source.ref(str(number), uri, width, height)
        except BadRecord as error:
            yield Reject.of(f"images/{position}", error, "image")


@contextmanager
def open_coco(
    folders: DataFolders,
    *,
    file: str,
    folder: str,
    source: ImageSource,
    form: CocoForm | None = None,
) -> Iterator[CocoFile]:
    """Read a COCO file into a temporary database, which goes away at the end of the `with` block.

    file: the JSON. folder: its pictures, in front of every file_name. source: what its images belong to.
    Raises ValueError when it is not JSON, has no usable images or categories, or its boxes are not xywh.
    """
    path = folders.path(file)
    with scratch_database(_TABLES) as database:
        guard = BoxGuard("xywh", source=path.name)
        coco = CocoFile(
            database=database, source=source, folder=folder, form=form or CocoForm(), guard=guard
        )
        _Reader(coco).read(path)
        yield coco
        guard.check()


class _Reader:
    """One pass over the file: into the tables, or into rejects that leave their label in doubt."""

    def __init__(self, coco: CocoFile) -> None:
        self.coco = coco
        self.execute = coco.database.execute
        self.form = Tally()  # notices a file of another form before it is read to its end

    def read(self, path: Path) -> None:
        positions = {"categories": 0, "images": 0, "annotations": 0}
        units = {"categories": "category", "images": "image", "annotations": "box"}
        add = {"categories": self._category, "images": self._image, "annotations": self._box}
        for key, record in stream_arrays(path, positions.keys()):
            position = positions[key]
            positions[key] += 1
            try:
                add[key](position, record)
                self.form.use(units[key])
            except BadRecord as error:
                self.form.reject(f"{key}/{position}", error, units[key])
                self._reject(f"{key}/{position}", error, units[key])
        self._drop_repeated_ids()
        self.execute("CREATE INDEX boxes_by_image ON boxes (image, position)")
        self.execute("CREATE INDEX doubts_by_image ON doubts (image)")
        usable = self.execute("SELECT count(*) FROM images").fetchone()[0]
        if not usable or not (self.coco.categories or self.coco.form.one_category):
            missing = "categories" if usable else "images"
            raise ValueError(
                f"{path.name}: no usable {missing}; a COCO file lists images, annotations, categories"
            )
        self._look_ahead()

    def _reject(self, record: str, error: BadRecord, unit: str) -> None:
        self.execute(
            "INSERT INTO rejects VALUES (?, ?, ?, ?)", (record, error.reason, error.detail, unit)
        )

    def _category(self, _: int, record: Any) -> None:
        number = whole_number(get(record, "id"), what="category id")
        if number in self.coco.records:
            raise BadRecord("duplicate_id", f"category id {number}")
        self.coco.records[number] = record
        self.coco.categories[number] = check_label(
            self.coco.form.name_of(record), what="category name"
        )

    def _image(self, position: int, record: Any) -> None:
        number = -1
        try:
            number, uri, width, height = _image_row(record, self.coco.folder, self.coco.form)
            if self.execute("SELECT 1 FROM images WHERE id = ?", (number,)).fetchone():
                number = -1
                raise BadRecord("duplicate_id", f"image id {record['id']}")
        except BadRecord:
            if number < 0 and isinstance(record, dict) and isinstance(record.get("id"), int):
                number = record["id"]
            if -(2**62) < number < 2**62:
                query = "INSERT OR IGNORE INTO lost_images SELECT ? WHERE ? NOT IN (SELECT id FROM images)"
                self.execute(query, (number, number))
            raise
        more = _kept(record, self.coco.form.image_fields)
        self.execute(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
            (number, position, uri, width, height, more),
        )

    def _box(self, position: int, record: Any) -> None:
        image = _small(whole_number(get(record, "image_id"), what="image_id"), "image_id")
        category: int | None = None
        try:
            category = (
                0
                if self.coco.form.one_category
                else _small(
                    whole_number(get(record, "category_id"), what="category_id"), "category_id"
                )
            )
            stored = four_numbers(get(record, "bbox"), what="bbox")
            number = record.get("id")
            if number is not None:
                number = _small(whole_number(number, what="annotation id"), "annotation id")
            crowd = whole_number(record.get("iscrowd", 0), what="iscrowd")
            if crowd not in (0, 1):
                raise BadRecord("malformed", f"iscrowd is {crowd}")
        except BadRecord:
            more = _kept(record, self.coco.form.box_fields)
            self.execute("INSERT INTO doubts VALUES (?, ?, ?)", (image, category, more))
            raise
        more = _kept(record, self.coco.form.box_fields)
        row = (image, position, number, category, *stored, crowd, more)
        self.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _drop_repeated_ids(self) -> None:
        """Keep of the boxes that share an annotation id the first."""
        query = """
            SELECT b.rowid, b.image, b.category, b.position, b.id, b.more FROM boxes b JOIN
            (SELECT id, min(position) AS first FROM boxes WHERE id IS NOT NULL GROUP BY id HAVING count(*) >
            1) r ON b.id = r.id AND b.position > r.first ORDER BY b.position
        """
        for row, image, category, position, number, more in self.execute(query).fetchall():
            self.execute("INSERT INTO doubts VALUES (?, ?, ?)", (image, category, more))
            self.execute("DELETE FROM boxes WHERE rowid = ?", (row,))
            self._reject(
                f"annotations/{position}",
                BadRecord("duplicate_id", f"annotation id {number}"),
                "box",
            )

    def _look_ahead(self) -> None:
        """Evaluator the form of the boxes before anything is made of them."""
        guard = BoxGuard("xywh", source=self.coco.guard.source)
        query = """
            SELECT a, b, c, d, width, height FROM boxes JOIN images ON images.id = image
            ORDER BY image LIMIT 200
        """
        for *stored, width, height in self.execute(query):
            if None not in stored:
                guard.look(stored, width, height)
        guard.check()


def _image_row(record: Any, folder: str, form: CocoForm) -> tuple[int, str, int, int]:
    number = whole_number(get(record, "id"), what="image id")
    if number < 0 or number >= 2**62:
        raise BadRecord("malformed", f"image id {number} is out of range")
    name = form.uri_of(record)
    if not isinstance(name, str):
        raise BadRecord(
            "malformed", f"file_name of image {number} is {type(name).__name__}, not text"
        )
    check_uri(name)
    width, height = (_side(get(record, name), name) for name in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"image {number} is {width}x{height}")
    return number, f"{folder}/{name}", width, height


def _side(value: Any, name: str) -> int:
    """Width or height; some files have them as text, copied from XML."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    return whole_number(value, what=name)


def _small(number: int, what: str) -> int:
    if not -(2**62) < number < 2**62:
        raise BadRecord("malformed", f"{what} {str(number)[:40]} is out of range")
    return number


def _kept(record: Mapping[str, Any], fields: tuple[str, ...]) -> str | None:
    kept = {name: record[name] for name in fields if name in record}
    return json.dumps(kept) if kept else None


def coco_source(
    name: str,
    *,
    file: str,
    folder: str,
    num_buckets: int,
    key_space: str = "",
    form: "CocoForm | None" = None,
) -> ImageSource:
    """Return a source that a COCO file lists; image ids are the file's. form: where it differs from COCO."""

    def list_them(folders: DataFolders) -> Iterator[ImageRef | Reject]:
        return list_coco(folders, file=file, folder=folder, source=source, form=form)

    source = ImageSource(
        name=name,
        num_buckets=num_buckets,
        list_images=list_them,
        files=(file,),
        pictures=(folder,),
        key_space=key_space,
    )
    return source
