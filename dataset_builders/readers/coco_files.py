"""COCO instances JSON and everything in its form: images, categories and boxes of a file, by image.

The file is read once, front to back, whatever the order of its arrays, into a temporary database
(`coco_tables`) beside no other file: memory stays the same for a thousand boxes and for thirty
million. Segmentations are never kept; what else a dataset needs of a record is named in `CocoForm`.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.coco_images import ID_LIMIT, CocoForm
from dataset_builders.readers.coco_tables import TABLES, CocoTables
from dataset_builders.readers.scratch_database import scratch_database
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Object, Reject
from dataset_builders.spec import ImageSource


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image of a file."""

    facts: ImageFacts
    """Its boxes; `ids` are annotation ids, or positions in the file where it gives none."""
    fields: Mapping[str, Any]
    """The `CocoForm.image_fields` of its record as stored, those that are there."""
    box_fields: tuple[Mapping[str, Any], ...]
    """The `CocoForm.box_fields` of its boxes as stored, one mapping an object."""
    lost_fields: tuple[Mapping[str, Any], ...] = ()
    """The `CocoForm.box_fields` of its boxes that were rejected."""


@dataclass(kw_only=True)
class CocoFile:
    """A COCO file in a temporary database; `open_coco` makes it."""

    database: sqlite3.Connection
    """Holds the tables of `coco_tables`."""
    source: ImageSource
    """What the images belong to."""
    form: CocoForm
    """Where the file differs from COCO's own."""
    guard: BoxGuard
    """Looks at the boxes that are read out."""
    categories: dict[int, str]
    """Category id -> name; those whose record was rejected are not there."""
    records: dict[int, Mapping[str, Any]]
    """Category id -> its record."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories in the file's order, each once."""
        return tuple(dict.fromkeys(self.categories.values()))

    def images(self, counter: RecordCounter) -> Iterator[CocoImage | Reject]:
        """Yield the images in the file's order, each after the rejects of its boxes.

        The rejects of all other records come last.

        Args:
            counter: Counts the records: boxes and categories whole, images only when they are
                rejected; the caller counts those that it uses.
        """
        for row in self.database.execute("SELECT * FROM images ORDER BY position"):
            rejects, image = self._image(row)
            for reject in rejects:
                yield counter.reject(
                    reject.record_id, BadRecord(reject.reason, reject.detail), "box"
                )
            counter.use("box", len(image.facts.objects))
            yield image
        yield from self.rejects(counter)

    def rejects(self, counter: RecordCounter) -> Iterator[Reject]:
        """Yield the rejects that belong to no image, and count the categories."""
        counter.use("category", len(self.categories))
        for record, reason, detail, unit in self.database.execute(
            "SELECT * FROM rejects ORDER BY rowid"
        ):
            yield counter.reject(record, BadRecord(reason, detail), unit)
        orphans = """
            SELECT position, image, lost_images.id IS NOT NULL FROM boxes
            LEFT JOIN lost_images ON lost_images.id = image
            WHERE image NOT IN (SELECT id FROM images) ORDER BY position
        """
        for position, image, lost in self.database.execute(orphans):
            error = BadRecord("image_rejected" if lost else "unknown_image", f"image {image}")
            yield counter.reject(f"annotations/{position}", error, "box")

    def image(self, image_id: int) -> CocoImage:
        """Return one image by its id, for records of other files that refer to it; count nothing.

        Raises:
            BadRecord: The reason is unknown_image.
        """
        query = "SELECT * FROM images WHERE id = ?"
        held = abs(image_id) < ID_LIMIT
        row = self.database.execute(query, (image_id,)).fetchone() if held else None
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
        """Return the rejects among the boxes of an image, and the image with the others."""
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
                # a category whose record was rejected is never asked for, so it casts no doubt
                doubts.add(category if category in self.records else None)
                lost.append((category, fields))
                rejects.append(Reject.of(f"annotations/{position}", error, "box"))
                continue
            label = self.form.one_category or self.categories[category]
            objects.append(Object(box=box, label=label, ignore=bool(crowd)))
            ids.append(position if number is None else number)
            extra.append({} if fields is None else json.loads(fields))
        if None in doubts:  # a box whose category is not known puts all of them in doubt
            names = self.names
        else:
            names = tuple(self.categories[c] for c in doubts if c in self.categories)
        facts = ImageFacts(
            ref=ref, objects=tuple(objects), ids=tuple(ids), uncertain=frozenset(names)
        )
        fields = {} if more is None else json.loads(more)
        lost_fields = tuple(json.loads(kept) for _, kept in lost if kept is not None)
        return rejects, CocoImage(
            facts=facts, fields=fields, box_fields=tuple(extra), lost_fields=lost_fields
        )


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

    Args:
        folders: Where the datasets lie.
        file: The JSON, by its name below the data root.
        folder: Folder of its images, put in front of every file_name.
        source: What its images belong to.
        form: Where the file differs from COCO's own.

    Raises:
        SettingError: It is not JSON, has no usable images or categories, or its boxes are not xywh.
    """
    path = folders.path(file)
    form = form or CocoForm()
    with scratch_database(TABLES) as database:
        tables = CocoTables(database, folder, form)
        tables.read(path)
        guard = BoxGuard("xywh", source=path.name)
        yield CocoFile(
            database=database,
            source=source,
            form=form,
            guard=guard,
            categories=tables.categories,
            records=tables.records,
        )
        # a file with fewer boxes than the guard waits for is judged at its end
        guard.check()
