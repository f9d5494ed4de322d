"""Referring expressions in MDETR's form: COCO-like JSON with one "image" an expression.

Its boxes stand beside it as annotations. Expressions become referring and captions of the regions,
and rejections where nothing fits. Facts:

- https://github.com/ashkamath/mdetr (scripts/fine-tuning/refexp_coco_format.py);
- https://github.com/henghuiding/gRefCOCO (mdetr/scripts/fine-tuning/grefexp_coco_format.py), which
  writes an annotation with `empty: true`, `iscrowd: -1` and a box of zeros where nothing fits the
  expression;
- https://github.com/liujunzhuo/FineCops-Ref (evaluation/), whose ids may be text.
"""

import json
from collections.abc import Callable, Iterator, Mapping
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
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import COCO_TRAIN, coco_id, coco_uri
from dataset_builders.readers.json_files import stream_array, stream_arrays
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.expression_table import (
    UNNAMED,
    ExpressionRow,
    ExpressionTable,
    Target,
    open_table,
    stored_size,
)
from dataset_builders.validation import check_label

_KEPT = ("bbox", "category_id", "iscrowd")
"""Fields of an annotation that every file's reader needs."""
_TABLE = """
    CREATE TABLE annotations (
        sentence TEXT, position INTEGER, content TEXT, used INTEGER DEFAULT 0
    )
"""
Refer = Callable[[Mapping[str, Any], list[Mapping[str, Any]]], tuple[ImageSource, str, str]]
"""Returns source, id and uri of the image, from an image record and its annotations."""


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    files: list[str],
    sources: tuple[ImageSource, ...],
    image_of: Refer,
    says_nothing: Callable[[Mapping[str, Any]], bool],
    more: tuple[str, ...] = (),
) -> Iterator[Item]:
    """Yield the samples of some MDETR files, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        files: The JSON files, below the data root.
        sources: Image sources that `image_of` gives.
        image_of: Finds the image of an expression.
        says_nothing: Returns whether an annotation says that nothing fits the expression; its box
            means nothing then.
        more: Further fields of annotations that `image_of` and `says_nothing` read.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    with open_table() as table:
        for file in files:
            reader = _Reader(folders.path(file), table, counter, (*_KEPT, *more))
            yield from reader.read(image_of, says_nothing)
        name = Path(files[0]).name
        yield from table.items(
            folders,
            options,
            dataset=dataset,
            sources=sources,
            form="xyxy",
            file=name,
            counter=counter,
            captions=True,
        )
    yield counter.ledger()


class _Reader:
    """Reads a file in two passes: annotations into a table, then sentences with what they name."""

    def __init__(
        self, path: Path, table: ExpressionTable, counter: RecordCounter, fields: tuple[str, ...]
    ) -> None:
        self.path, self.table, self.counter, self.fields = path, table, counter, fields
        self.execute = table.database.execute
        self.categories: dict[int, str] = {}
        self.guard = BoxGuard("xywh", source=path.name)

    def read(
        self, image_of: Refer, says_nothing: Callable[[Mapping[str, Any]], bool]
    ) -> Iterator[Reject]:
        """Fill the table of expressions, and yield the rejects."""
        self.execute("DROP TABLE IF EXISTS annotations")
        self.execute(_TABLE)
        yield from self._annotations()
        self.execute("CREATE INDEX annotations_by_sentence ON annotations (sentence, position)")
        position = -1
        for position, record in enumerate(stream_array(self.path, "images")):
            name = f"{self.path.name}/images/{position}"
            try:
                number = _key(get(record, "id"), what="id")
                yield from self._sentence(name, number, record, image_of, says_nothing)
            except BadRecord as error:
                yield self.counter.reject(name, error)
        if position < 0:
            raise SettingError(
                f"{self.path.name} lists no images; MDETR's files have one for each expression, "
                "with caption"
            )
        for position, sentence in self.execute(
            "SELECT position, sentence FROM annotations WHERE used = 0"
        ):
            orphan = BadRecord(
                "unknown_image", f"image {sentence[:80]}, not listed or itself rejected"
            )
            yield self.counter.reject(f"{self.path.name}/annotations/{position}", orphan, "box")
        self.guard.check()

    def _annotations(self) -> Iterator[Reject]:
        positions = {"annotations": 0, "categories": 0}
        for kind, record in stream_arrays(self.path, positions.keys()):
            name, position = f"{self.path.name}/{kind}/{positions[kind]}", positions[kind]
            positions[kind] += 1
            try:
                if kind == "categories":
                    number = whole_number(get(record, "id"), what="category id")
                    if number in self.categories:
                        raise BadRecord("duplicate_id", f"category id {number}")
                    self.categories[number] = check_label(get(record, "name"), what="category name")
                    self.counter.use("category")
                else:
                    sentence = json.dumps(_key(get(record, "image_id"), what="image_id"))
                    kept = json.dumps(
                        {field: record[field] for field in self.fields if field in record}
                    )
                    row = (sentence, position, kept)
                    self.execute(
                        "INSERT INTO annotations (sentence, position, content) VALUES (?, ?, ?)",
                        row,
                    )
            except BadRecord as error:
                yield self.counter.reject(
                    name, error, "category" if kind == "categories" else "box"
                )

    def _sentence(
        self,
        name: str,
        number: int | str,
        record: Mapping[str, Any],
        image_of: Refer,
        says_nothing: Callable[[Mapping[str, Any]], bool],
    ) -> Iterator[Reject]:
        """Add an expression to the table, counting its annotations.

        Raises:
            BadRecord: The expression itself cannot be used.
        """
        said = get(record, "caption")
        if not isinstance(said, str):
            raise BadRecord("malformed", f"caption is {type(said).__name__}, not text")
        width, height = stored_size(record)
        self.table.check_new(number)
        query = """
            SELECT rowid, position, content FROM annotations
            WHERE sentence = ? AND used = 0 ORDER BY position
        """
        listed = [
            (*ids, json.loads(kept)) for *ids, kept in self.execute(query, (json.dumps(number),))
        ]
        source, image_id, uri = image_of(record, [kept for *_, kept in listed])
        ref = source.ref(image_id, uri, width, height)
        targets, lost, empty = [], [], False
        for row, position, kept in listed:
            # used also when the expression is rejected below: its annotations are no orphans
            self.execute("UPDATE annotations SET used = 1 WHERE rowid = ?", (row,))
            try:
                if says_nothing(kept):
                    empty = True
                else:
                    targets.append(self._target(kept, ref))
                self.counter.use("box")
            except BadRecord as error:
                lost.append(error)
                yield self.counter.reject(f"{self.path.name}/annotations/{position}", error, "box")
        if lost:
            raise BadRecord("unknown_object", f"its box was rejected: {lost[0]}")
        if empty == bool(targets):
            raise BadRecord(
                "contradiction" if empty else "unknown_object", f"{len(targets)} boxes, {empty=}"
            )
        self.table.add(
            ExpressionRow(record=name, number=number, said=said, image=ref, targets=tuple(targets))
        )

    def _target(self, kept: Mapping[str, Any], ref: ImageRef) -> Target:
        stored = four_numbers(get(kept, "bbox"), what="bbox")
        crowd = whole_number(kept.get("iscrowd", 0), what="iscrowd")
        if crowd not in (0, 1):
            raise BadRecord("malformed", f"iscrowd is {crowd}")
        label = UNNAMED
        if self.categories:
            category = whole_number(get(kept, "category_id"), what="category_id")
            if category not in self.categories:
                raise BadRecord("unknown_category", f"category {category}")
            label = self.categories[category]
        self.guard.look(stored, ref.width, ref.height)
        box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
        return Target(box=box, label=label, ignore=bool(crowd))


def _key(value: Any, *, what: str) -> int | str:
    """Return an id, a whole number or text."""
    return value if isinstance(value, str) and value else whole_number(value, what=what)


def _coco_image(
    record: Mapping[str, Any], _: list[Mapping[str, Any]]
) -> tuple[ImageSource, str, str]:
    name = get(record, "file_name")
    if not isinstance(name, str):
        raise BadRecord("malformed", f"file_name is {type(name).__name__}, not text")
    number = coco_id(name)
    if whole_number(get(record, "original_id"), what="original_id") != int(number):
        raise BadRecord(
            "contradiction", f"original_id {record['original_id']}, file_name {name[:80]!r}"
        )
    return COCO_TRAIN, number, coco_uri(number)


def _empty(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation has gRefCOCO's mark that nothing fits.

    The `iscrowd` of -1 beside it is true to Python, and no crowd.
    """
    if annotation.get("empty") is not True:
        return False
    if annotation.get("bbox") != [0, 0, 0, 0]:
        raise BadRecord("contradiction", f"empty, with box {str(annotation.get('bbox'))[:80]}")
    return True


def _dataset(name: str, file: str, *, num_samples: int, empty: bool = False) -> DatasetSpec:
    def samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(
            folders,
            options,
            dataset=name,
            files=[file],
            sources=(COCO_TRAIN,),
            image_of=_coco_image,
            says_nothing=_empty if empty else lambda _: False,
            more=("empty",),
        )

    return DatasetSpec(
        name=name,
        images=(COCO_TRAIN,),
        build=samples,
        files=(file,),
        tasks=("referring", "region_caption", *(("rejection",) if empty else ())),
        licence="annotations Apache-2.0 (REFER's code); images under their own Flickr licences",
        source=(
            "mdetr/scripts/fine-tuning/grefexp_coco_format.py of "
            "https://github.com/henghuiding/gRefCOCO"
            if empty
            else "https://zenodo.org/record/4729015/files/mdetr_annotations.tar.gz"
        ),
        layout=(
            f"{file}   MDETR's conversion: one image entry an expression (caption), "
            "its boxes as xywh\n"
            "coco/train2017/   images of COCO 2017; those of train2014 are among them"
        ),
        num_samples=num_samples,
    )


DATASETS = (
    _dataset("refcoco_mdetr", "mdetr_annotations/finetune_refcoco_train.json", num_samples=227_000),
    _dataset(
        "refcocop_mdetr", "mdetr_annotations/finetune_refcoco+_train.json", num_samples=226_000
    ),
    _dataset(
        "refcocog_mdetr", "mdetr_annotations/finetune_refcocog_train.json", num_samples=158_000
    ),
    _dataset(
        "grefcoco_mdetr",
        "mdetr_annotations/finetune_grefcoco_train.json",
        num_samples=300_000,
        empty=True,
    ),
)
"""The train splits of RefCOCO's family and gRefCOCO in another form.

The expressions are those of `refcoco`, so no stage has them twice.
"""
