"""COCO 2017 and any folder in its layout: detection datasets whose labels are exhaustive.

Layout: one COCO instances JSON (`annotations/instances_SPLIT2017.json`) and a folder of its images
by `file_name` (`SPLIT2017/`). Every image becomes questions of `tasks.detection`: names to find,
objects to count, regions to name. The `_all` datasets ask each image for all categories at once, as
COCO AP is measured. A category without a box on an image is absent there, because the labels are
exhaustive.

`coco` and `coco_all` read the training paths too, but claim nothing of COCO: they serve a sample of
it or a user's own data. So their image source is their own, and their proposals never mix with
COCO's.
"""

from collections.abc import Iterator
from typing import Any

from dataset_builders.data_folders import DataFolders
from dataset_builders.image_sources import COCO_TRAIN, COCO_VAL
from dataset_builders.readers.coco_images import coco_source
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks import detection

_COCO: dict[str, Any] = {
    "licence": "annotations CC BY 4.0; images under their own Flickr licences",
    "source": "https://cocodataset.org/#download",
}
_ANY: dict[str, Any] = {"licence": "that of the data", "source": "any folder in COCO's layout"}


def coco_form(
    name: str,
    *,
    file: str,
    folder: str,
    images: ImageSource,
    licence: str,
    source: str,
    ask: str = "present",
    stages: tuple[int, ...] = (),
    num_samples: int = 0,
) -> DatasetSpec:
    """Return a dataset in COCO's form.

    Args:
        name: Name of the dataset.
        file: COCO instances JSON, below the data root.
        folder: Image folder, below the data root.
        images: The image source that the images belong to.
        licence: Licence of annotations and images.
        source: Official place to get the dataset.
        ask: "present" or "all", see `detection.build`.
        stages: Stages whose mix has it in Table 10 of the paper.
        num_samples: About how many samples it gives; 0 when unknown.
    """

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return detection.build(
            folders, options, dataset=name, file=file, folder=folder, source=images, ask=ask
        )

    return DatasetSpec(
        name=name,
        images=(images,),
        build=build,
        files=(file,),
        tasks=("detection",) if ask == "all" else detection.ALL_TASKS,
        stages=stages,
        licence=licence,
        source=source,
        layout=f"{file}   COCO instances JSON\n{folder}/   its images, by file_name",
        num_samples=num_samples,
    )


_ANY_IMAGES = coco_source(
    "coco", file="coco/annotations/instances_train2017.json", folder="coco/train2017", num_buckets=8
)


def _coco2017(
    split: str, images: ImageSource, *, ask: str = "present", **facts: Any
) -> DatasetSpec:
    return coco_form(
        f"coco_{split}" + ("_all" if ask == "all" else ""),
        file=f"coco/annotations/instances_{split}2017.json",
        folder=f"coco/{split}2017",
        images=images,
        ask=ask,
        **_COCO,
        **facts,
    )


def _any_coco(name: str, *, ask: str = "present") -> DatasetSpec:
    """Return the dataset of any folder in COCO's layout: a sample of COCO, or a user's own data."""
    return coco_form(
        name,
        file="coco/annotations/instances_train2017.json",
        folder="coco/train2017",
        images=_ANY_IMAGES,
        ask=ask,
        **_ANY,
    )


DATASETS = (
    _coco2017("train", COCO_TRAIN, stages=(1, 2), num_samples=800_000),
    _coco2017("val", COCO_VAL),
    _coco2017("val", COCO_VAL, ask="all"),
    _any_coco("coco"),
    _any_coco("coco_all", ask="all"),
)
