"""The drawn world as datasets: detection, referring expressions and counting over its files."""

from collections.abc import Iterator
from typing import Any

from dataset_builders.data_folders import DataFolders
from dataset_builders.readers.coco_images import coco_source
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks import counting, detection, referring

_FACTS: dict[str, Any] = {
    "licence": "Apache-2.0",
    "source": "python -m dataset_builders.drawn_world DIR",
}


def _file(split: str) -> str:
    """Return the name of the COCO file of a split."""
    return f"drawn/annotations/instances_{split}.json"


IMAGES: dict[str, ImageSource] = {
    split: coco_source(
        f"drawn_{split}",
        file=_file(split),
        folder=f"drawn/{split}",
        num_buckets=buckets,
        key_space="drawn",
    )
    for split, buckets in {"train": 8, "val": 4}.items()
}
"""Split -> its images."""


def _boxes(split: str, *, ask: str = "present") -> DatasetSpec:
    """Return the detection dataset of one split."""
    name = f"drawn_{split}" + ("_all" if ask == "all" else "")

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return detection.build(
            folders,
            options,
            dataset=name,
            file=_file(split),
            folder=f"drawn/{split}",
            source=IMAGES[split],
            ask=ask,
        )

    return DatasetSpec(
        name=name,
        images=(IMAGES[split],),
        build=build,
        files=(_file(split),),
        tasks=("detection",) if ask == "all" else detection.ALL_TASKS,
        layout=f"{_file(split)}   COCO instances JSON\ndrawn/{split}/   its images",
        **_FACTS,
    )


def _refs(split: str) -> DatasetSpec:
    """Return the referring dataset of one split: REFER expressions."""
    files = ("drawn/refs/refs(drawn).p", "drawn/refs/instances.json")

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return referring.build(
            folders,
            options,
            dataset=f"drawn_refs_{split}",
            refs=files[0],
            instances=files[1],
            folder=f"drawn/{split}",
            source=IMAGES[split],
            split=split,
        )

    return DatasetSpec(
        name=f"drawn_refs_{split}",
        images=(IMAGES[split],),
        build=build,
        files=files,
        tasks=("referring",),
        layout=(
            f"{files[0]}   REFER's pickled list\n{files[1]}   COCO instances JSON\n"
            f"drawn/{split}/   its images"
        ),
        **_FACTS,
    )


def _tally(split: str) -> DatasetSpec:
    """Return the counting dataset of one split: TallyQA questions."""
    questions = f"drawn/tally/{split}.json"

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return counting.build(
            folders,
            options,
            dataset=f"drawn_tally_{split}",
            questions=questions,
            instances=_file(split),
            folder=f"drawn/{split}",
            source=IMAGES[split],
        )

    return DatasetSpec(
        name=f"drawn_tally_{split}",
        images=(IMAGES[split],),
        build=build,
        files=(questions, _file(split)),
        tasks=("counting",),
        layout=(
            f"{questions}   TallyQA's list\n{_file(split)}   COCO instances JSON\n"
            f"drawn/{split}/   its images"
        ),
        **_FACTS,
    )


DATASETS = (
    _boxes("train"),
    _boxes("val"),
    _boxes("val", ask="all"),
    _refs("train"),
    _refs("val"),
    _tally("train"),
    _tally("val"),
)
"""Every dataset over the drawn world."""
