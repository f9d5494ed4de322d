"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as distributed: a list of refs beside a COCO file.

Files: ``instances.json`` in COCO's form, ``refs(SPLITTER).p`` (a pickled list) or, for gRefCOCO,
JSON or a pickle, and COCO's images. The images are those of train2014, which are among those of
train2017 under the same numbers, so the names are changed to theirs. The train splits give captions
of regions too; the others are for evaluation and give expressions only. Expressions of gRefCOCO
that fit nothing become rejections.

Facts: https://github.com/lichengunc/refer (data/README.md, refer.py);
https://github.com/henghuiding/gRefCOCO (README, grefer.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_sources import COCO_TRAIN, coco_id
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.records import BadRecord
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks import referring

_LICENCE = "annotations Apache-2.0 (REFER's code); images under their own Flickr licences"
_REFER = "https://github.com/lichengunc/refer"
_GREFCOCO = "https://github.com/henghuiding/gRefCOCO"


def train2017_name(image: Mapping[str, Any]) -> str:
    """Return the file name of a train2014 image in train2017.

    Raises:
        BadRecord: malformed, or contradiction when name and id differ.
    """
    name = get(image, "file_name")
    if not isinstance(name, str):
        raise BadRecord("malformed", f"file_name is {type(name).__name__}, not text")
    number = int(coco_id(name))
    if number != get(image, "id"):
        raise BadRecord("contradiction", f"image {image['id']} has file_name {name[:80]!r}")
    return f"{number:012d}.jpg"


_FORM = CocoForm(uri_of=train2017_name)


def _dataset(
    name: str,
    refs: str,
    split: str,
    num_samples: int,
    *,
    tasks: tuple[str, ...] = ("referring",),
    stages: tuple[int, ...] = (),
    source: str = _REFER,
) -> DatasetSpec:
    """Return the dataset of one split.

    `refs` is the list's file, with a star for its suffix where it may be JSON or a pickle.
    """
    folder = refs.partition("/")[0]
    instances = f"{folder}/instances.json"

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return referring.build(
            folders,
            options,
            dataset=name,
            refs=folders.matches(refs)[0],
            instances=instances,
            folder="coco/train2017",
            source=COCO_TRAIN,
            split=split,
            form=_FORM,
            captions="region_caption" in tasks,
        )

    return DatasetSpec(
        name=name,
        images=(COCO_TRAIN,),
        build=build,
        files=(instances, refs),
        tasks=tasks,
        stages=stages,
        licence=_LICENCE
        if source == _REFER
        else "see its repository; images under Flickr licences",
        source=source,
        layout=(
            f"{instances}   COCO instances JSON of the images used\n"
            f"{refs}   "
            f"{'list of refs, .json or .p' if refs.endswith('*') else 'pickled list of refs'}, "
            f"split {split}\n"
            "coco/train2017/   images of COCO 2017; those of train2014 are among them"
        ),
        num_samples=num_samples,
    )


def _splits(name: str, refs: str, train: int, **evaluation: int) -> tuple[DatasetSpec, ...]:
    """Return the train split and those for evaluation, with their numbers of samples."""
    tasks = ("referring", "region_caption")
    return (
        _dataset(name, refs, "train", train, tasks=tasks, stages=(2,)),
        *(_dataset(f"{name}_{split}", refs, split, number) for split, number in evaluation.items()),
    )


DATASETS = (
    *_splits("refcoco", "refcoco/refs(unc).p", 227_000, val=10_834, testA=5_657, testB=5_095),
    *_splits("refcocop", "refcoco+/refs(unc).p", 226_000, val=10_758, testA=5_726, testB=4_889),
    # of RefCOCOg's two splits, that of google has images in train and val at once
    *_splits("refcocog", "refcocog/refs(umd).p", 158_000, val=4_896, test=9_602),
    _dataset(
        "grefcoco",
        "grefcoco/grefs(unc).*",
        "train",
        300_000,
        tasks=("referring", "region_caption", "rejection"),
        stages=(2,),
        source=_GREFCOCO,
    ),
)
