"""RefCOCO's family as parquet of the Hugging Face hub: jxu124/refcoco* or lmms-lab/RefCOCO*.

- jxu124's rows are REFER's refs with the split, all sentences and the box, which is **xyxy**; the
  image record is JSON text.
- lmms-lab's rows hold the image's bytes, the box, a list of expressions (`answer`) and no split:
  the file's name says it. The form of their boxes is not documented: each file's is told from its
  boxes, and a file that could be either is refused.

Both kinds may lie in one folder; the images used are COCO's own. The expressions become referring,
and in the train split captions of the regions too.

Facts: the dataset cards of https://huggingface.co/datasets/jxu124/refcoco and
https://huggingface.co/datasets/lmms-lab/RefCOCO.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.box_checks import (
    GUARD_ROWS,
    check_box_form,
    detect_form,
    form_shares,
    four_numbers,
    get,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import COCO_TRAIN, coco_id, coco_uri
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.expression_table import ExpressionRow, Target, open_table, stored_size

_REFER_COLUMNS = ("split", "file_name", "image_id", "bbox", "sentences", "raw_image_info")
_ANSWER_COLUMNS = ("question_id", "file_name", "bbox", "answer")
_BATCH_ROWS = 1024
_NAMES = {"validation": "val"}
"""Name of a split on the Hugging Face hub -> REFER's."""


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    files: list[str],
    split: str,
    captions: bool,
) -> Iterator[Item]:
    """Yield the samples of one split, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        files: The parquet files, below the data root.
        split: The split as REFER spells it.
        captions: See `referring.expression_samples`.

    Raises:
        SettingError: A file has other columns or its boxes are of another form, or none has the
            split.
    """
    counter = RecordCounter()
    with open_table() as table:
        for file in files:
            for name, read in _sentences(folders, file, split):
                try:
                    table.add(read())
                except BadRecord as error:
                    yield counter.reject(name, error)
        yield from table.items(
            folders,
            options,
            dataset=dataset,
            sources=(COCO_TRAIN,),
            form="xyxy",
            file=Path(files[0]).parent.as_posix(),
            counter=counter,
            captions=captions,
        )
    if not counter.num_read:
        raise SettingError(
            f"no rows of split {split!r} in {', '.join(Path(file).name for file in files)}"
        )
    yield counter.ledger()


_Sentence = tuple[str, Callable[[], ExpressionRow]]
"""Readable name of an expression, and what reads it or raises BadRecord."""


def _sentences(folders: DataFolders, file: str, split: str) -> Iterator[_Sentence]:
    """Yield the expressions of a split in one file; a row that is itself bad counts as one."""
    path = folders.path(file)
    try:
        with pq.ParquetFile(path) as parquet:
            columns = set(parquet.schema_arrow.names)
            if columns.issuperset(_REFER_COLUMNS):
                yield from _each(
                    parquet, path.name, partial(_refer_row, split=split), _REFER_COLUMNS
                )
            elif not columns.issuperset(_ANSWER_COLUMNS):
                raise SettingError(
                    f"{path.name} has columns {', '.join(sorted(columns))}; "
                    f"want {', '.join(_REFER_COLUMNS)} "
                    f"(jxu124) or {', '.join(_ANSWER_COLUMNS)} (lmms-lab)"
                )
            elif _split_of(path) == split and parquet.metadata.num_rows:
                form = _form(parquet, path.name, folders)
                yield from _each(
                    parquet, path.name, partial(_answer_row, form=form), _ANSWER_COLUMNS
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path.name} cannot be read as parquet: {error}") from error


def _split_of(path: Path) -> str:
    prefix = path.name.partition("-")[0]
    return _NAMES.get(prefix, prefix)


def _each(
    parquet: pq.ParquetFile,
    name: str,
    read: Callable[[str, Mapping[str, Any]], list[_Sentence]],
    columns: tuple[str, ...],
) -> Iterator[_Sentence]:
    position = 0
    for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
        for row in batch.to_pylist():
            record = f"{name}/{position}"
            position += 1
            try:
                yield from read(record, row)
            except BadRecord as error:
                yield record, partial(_fail, error)


def _fail(error: BadRecord) -> NoReturn:
    raise error


def _refer_row(record: str, row: Mapping[str, Any], *, split: str) -> list[_Sentence]:
    """Return the sentences of jxu124's row, none when it is of another split."""
    if not isinstance(row["split"], str):
        raise BadRecord("malformed", f"split is {str(row['split'])[:80]!r}, not text")
    if _NAMES.get(row["split"], row["split"]) != split:
        return []
    ref = _image_ref(row["file_name"], *_info_size(row["raw_image_info"]))
    if whole_number(row["image_id"], what="image_id") != int(ref.image_id):
        raise BadRecord(
            "contradiction", f"image_id {row['image_id']}, file_name {row['file_name'][:80]!r}"
        )
    target = Target(box=four_numbers(row["bbox"], what="bbox"))
    if not isinstance(row["sentences"], list) or not row["sentences"]:
        raise BadRecord("malformed", "a row without sentences")

    def read(name: str, sentence: Any) -> ExpressionRow:
        number = whole_number(get(sentence, "sent_id"), what="sent_id")
        return _expression(name, number, get(sentence, "raw"), ref, target)

    names = [f"{record}/sentences/{position}" for position in range(len(row["sentences"]))]
    return [
        (name, partial(read, name, one)) for name, one in zip(names, row["sentences"], strict=True)
    ]


def _answer_row(record: str, row: Mapping[str, Any], *, form: str) -> list[_Sentence]:
    """Return the expressions of lmms-lab's row, whose box is of `form`."""
    ref = _image_ref(row["file_name"], 0, 0)
    stored = four_numbers(row["bbox"], what="bbox")
    target = Target(box=xywh_to_xyxy(stored) if form == "xywh" else stored)
    if not isinstance(row["answer"], list) or not row["answer"]:
        raise BadRecord("malformed", "a row without expressions in answer")
    if not isinstance(row["question_id"], str | int):
        raise BadRecord("malformed", f"question_id is {str(row['question_id'])[:80]!r}")
    return [
        (
            f"{record}/answer/{position}",
            partial(
                _expression,
                f"{record}/answer/{position}",
                f"{row['question_id']}-{position}",
                said,
                ref,
                target,
            ),
        )
        for position, said in enumerate(row["answer"])
    ]


def _expression(
    record: str, number: int | str, said: Any, ref: ImageRef, target: Target
) -> ExpressionRow:
    if not isinstance(said, str):
        raise BadRecord("malformed", f"the expression is {type(said).__name__}, not text")
    return ExpressionRow(record=record, number=number, said=said, image=ref, targets=(target,))


def _image_ref(name: Any, width: int, height: int) -> ImageRef:
    if not isinstance(name, str):
        raise BadRecord("malformed", f"file_name is {type(name).__name__}, not text")
    number = coco_id(name)
    return COCO_TRAIN.ref(number, coco_uri(number), width, height)


def _info_size(info: Any) -> tuple[int, int]:
    """Return width and height of the image record that jxu124's rows hold as JSON text."""
    try:
        record = json.loads(info)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRecord("malformed", f"raw_image_info is {str(info)[:80]!r}, not JSON") from error
    return stored_size(record)


def _form(parquet: pq.ParquetFile, name: str, folders: DataFolders) -> str:
    """Return the form of the boxes of lmms-lab's file, told from the first usable ones."""
    values, sizes = [], []
    rows = next(
        parquet.iter_batches(batch_size=GUARD_ROWS, columns=["file_name", "bbox"])
    ).to_pylist()
    for row in rows:
        try:
            stored = four_numbers(row["bbox"], what="bbox")
            ref = _image_ref(row["file_name"], 0, 0)
            ref = COCO_TRAIN.open(folders, ref.image_uri)
        except BadRecord:  # it is read again, and rejected, with the other rows
            continue
        shares = form_shares(np.array([stored]), np.array([[ref.width, ref.height]], np.float64))
        if shares["xyxy"] or shares["xywh"]:
            values.append(stored)
            sizes.append((ref.width, ref.height))
    if not values:
        raise SettingError(
            f"{name}: none of the first {len(rows)} boxes fits its image as xyxy or as xywh"
        )
    stored_boxes, image_sizes = np.array(values), np.array(sizes, np.float64)
    form = detect_form(stored_boxes, image_sizes, forms=("xyxy", "xywh"), source=name)
    # they may be normalised, which would pass for either
    check_box_form(stored_boxes, image_sizes, declared=form, source=name)
    return form


def _dataset(
    name: str, folder: str, hub: str, split: str, num_samples: int, *, captions: bool = False
) -> DatasetSpec:
    files = f"{folder}/data/*.parquet"

    def samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(
            folders,
            options,
            dataset=name,
            files=folders.matches(files),
            split=split,
            captions=captions,
        )

    return DatasetSpec(
        name=name,
        images=(COCO_TRAIN,),
        build=samples,
        files=(files,),
        tasks=("referring", "region_caption") if captions else ("referring",),
        licence="annotations Apache-2.0 (REFER's code); images under their own Flickr licences",
        source=f"https://huggingface.co/datasets/{hub}",
        layout=(
            f"{files}   split {split} of {hub}: REFER's refs with xyxy boxes; or of\n"
            "    lmms-lab's repository of the same data: no train split; "
            "its files are named by split\n"
            "coco/train2017/   images of COCO 2017; those of train2014 are among them"
        ),
        num_samples=num_samples,
    )


def _splits(name: str, hub: str, train: int, **evaluation: int) -> tuple[DatasetSpec, ...]:
    return (
        _dataset(name, name, hub, "train", train, captions=True),
        *(
            _dataset(f"{name}_{split}", name, hub, split, number)
            for split, number in evaluation.items()
        ),
    )


DATASETS = (
    *_splits("refcoco_hf", "jxu124/refcoco", 227_000, val=10_834, testA=5_657, testB=5_095),
    *_splits("refcocop_hf", "jxu124/refcocoplus", 226_000, val=10_758, testA=5_726, testB=4_889),
    *_splits("refcocog_hf", "jxu124/refcocog", 158_000, val=4_896, test=9_602),
)
"""The splits of RefCOCO's family in another form.

The expressions are those of `refcoco`, so no stage has them twice.
"""
