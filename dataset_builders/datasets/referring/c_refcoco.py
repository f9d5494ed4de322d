"""C-RefCOCO, C-RefCOCO+ and C-RefCOCOg: expressions, half of them changed so that none fits.

Files: one JSON object a dataset, and COCO's train2017. The object maps a split to a list of records
with `iid` (COCO id), `bbox` (xywh, zeros where nothing fits), `query` (the expression; a text or
its tokens), `refs` (the true expressions) and `cf_id` (1: nothing fits). They become referring,
captions of the regions, and rejections. Records have no sizes and no ids: images are opened, and a
record is known by its position.

Facts: https://github.com/Glacier0012/CREC (README; crec/datasets/dataset.py, utils.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import four_numbers, get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import COCO_TRAIN, coco_uri
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.expression_table import ExpressionRow, Target, open_table

_MAX_COCO_ID = 10**12
"""Ids from here on are no COCO ids, and would not fit its file names of twelve digits."""


def build(
    folders: DataFolders, options: BuildOptions, *, dataset: str, file: str, split: str
) -> Iterator[Item]:
    """Yield the samples of one split, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: The JSON, below the data root.
        split: Key of the split in the file.

    Raises:
        SettingError: The file has no such split, or its boxes are not xywh.
    """
    counter = RecordCounter()
    name = Path(file).name
    with open_table() as table:
        for position, record in enumerate(stream_array(folders.path(file), split)):
            try:
                table.add(_row(record, split, position))
            except BadRecord as error:
                yield counter.reject(f"{split}/{position}", error)
        yield from table.items(
            folders,
            options,
            dataset=dataset,
            sources=(COCO_TRAIN,),
            form="xywh",
            file=name,
            counter=counter,
            captions=True,
        )
    if not counter.num_read:
        raise SettingError(
            f"{name} holds no records of split {split!r}; C-REC's files are keyed by split"
        )
    yield counter.ledger()


def _row(record: Any, split: str, position: int) -> ExpressionRow:
    number = whole_number(get(record, "iid"), what="iid")
    if not 0 <= number < _MAX_COCO_ID:
        raise BadRecord("unknown_image", f"iid {str(number)[:40]} is no COCO id")
    said = _text(get(record, "query"), what="query")
    box = four_numbers(get(record, "bbox"), what="bbox")
    polarity = whole_number(get(record, "cf_id"), what="cf_id")
    if polarity not in (0, 1):
        raise BadRecord("malformed", f"cf_id is {polarity}, neither 0 nor 1")
    if polarity == 1 and any(box):
        raise BadRecord("contradiction", f"nothing fits it, but it has box {list(box)}")
    # a changed expression that is one of the true ones was not changed: it would teach to reject it
    if polarity == 1 and _same(said) in {_same(text) for text in _true_expressions(record)}:
        raise BadRecord(
            "contradiction", f"{said[:80]!r} is marked counterfactual, and stands among its refs"
        )
    return ExpressionRow(
        record=f"{split}/{position}",
        number=f"{split}-{position}",
        said=said,
        image=COCO_TRAIN.ref(str(number), coco_uri(number), 0, 0),
        targets=() if polarity == 1 else (Target(box=box),),
    )


def _text(value: Any, *, what: str) -> str:
    """Return an expression that is a text or a list of its tokens."""
    if isinstance(value, list) and value and all(isinstance(token, str) for token in value):
        return " ".join(value)
    if not isinstance(value, str):
        raise BadRecord("malformed", f"{what} is {str(value)[:80]!r}, neither text nor tokens")
    return value


def _true_expressions(record: Any) -> list[str]:
    refs = record.get("refs", [])
    return [ref for ref in (refs if isinstance(refs, list) else [refs]) if isinstance(ref, str)]


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _dataset(name: str, file: str, num_samples: int) -> DatasetSpec:
    def samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(folders, options, dataset=name, file=file, split="train")

    return DatasetSpec(
        name=name,
        images=(COCO_TRAIN,),
        build=samples,
        files=(file,),
        tasks=("referring", "region_caption", "rejection"),
        stages=(2,),
        licence="annotations Apache-2.0; images under their own Flickr licences",
        source="https://github.com/Glacier0012/CREC",
        layout=(
            f"{file}   split -> records with iid, bbox, query, refs, cf_id\n"
            "coco/train2017/   images of COCO 2017; those of train2014 are among them"
        ),
        num_samples=num_samples,
    )


DATASETS = (
    _dataset("c_refcoco", "crec/c_refcoco.json", 92_000),
    _dataset("c_refcocop", "crec/c_refcoco+.json", 89_000),
    _dataset("c_refcocog", "crec/c_refcocog.json", 45_000),
)
