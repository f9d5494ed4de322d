"""Objects365: 365 categories of everyday things, meant to be boxed wherever they are.

Files (https://www.objects365.org; loaders: mmdet/datasets/objects365.py in
https://github.com/open-mmlab/mmdetection): COCO's instances JSON, one a split, and image folders,
cut into patches in version 2. Every image becomes the questions of `tasks.detection`.

The JSON has habits of its own, which `CocoForm` takes up:

- names are misspelt or padded, and some hold two names at once (`objects365_names`);
- of a path in version 2 only the last two parts count (patch and file);
- three images that the file lists were never published;
- categories go by their id within a file: those of the training and the validation file of version
  1 do not agree.

Its labels are meant to be complete but visibly are not for names that are easily confused, so where
one of such a group is boxed none of the rest is called absent.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.detection.objects365_names import confused_with, mended, spellings
from dataset_builders.images import check_uri
from dataset_builders.readers.coco_images import CocoForm, coco_source
from dataset_builders.records import BadRecord
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks import detection

UNPUBLISHED = frozenset(
    {
        "patch16/objects365_v2_00908726.jpg",
        "patch6/objects365_v1_00320532.jpg",
        "patch6/objects365_v1_00320534.jpg",
    }
)
"""Images of `zhiyuan_objv2_train.json` that are in no patch."""

_LICENCE = "images under their own Flickr licences; annotations for research, non-commercial"
_SOURCE = "https://www.objects365.org/download.html"


def _name(category: Mapping[str, Any]) -> str:
    name = get(category, "name")
    return mended(name) if isinstance(name, str) else name


def _last_parts(count: int) -> Callable[[Mapping[str, Any]], str]:
    """Return a reader of the last `count` parts of an image's path.

    The path is checked whole first, so that a part that is cut off cannot lead out of the folder.
    """

    def uri_of(image: Mapping[str, Any]) -> str:
        parts = PurePosixPath(check_uri(get(image, "file_name"))).parts
        if len(parts) < count:
            raise BadRecord("malformed", f"file_name {'/'.join(parts)!r} names no patch")
        uri = "/".join(parts[-count:])
        if uri in UNPUBLISHED:
            raise BadRecord("missing_image", f"{uri} was never published")
        return uri

    return uri_of


def _objects365(
    name: str,
    *,
    file: str,
    folder: str,
    path_parts: int,
    num_buckets: int,
    layout: str,
    stages: tuple[int, ...] = (),
    num_samples: int = 0,
) -> DatasetSpec:
    form = CocoForm(name_of=_name, uri_of=_last_parts(path_parts))
    images = coco_source(name, file=file, folder=folder, num_buckets=num_buckets, form=form)

    def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return detection.build(
            folders,
            options,
            dataset=name,
            file=file,
            folder=folder,
            source=images,
            form=form,
            related=confused_with,
            spelled_by=lambda coco: spellings(coco.names),
        )

    return DatasetSpec(
        name=name,
        images=(images,),
        build=build,
        files=(file,),
        tasks=detection.ALL_TASKS,
        stages=stages,
        licence=_LICENCE,
        source=_SOURCE,
        layout=f"{file}   COCO instances JSON\n{layout}",
        num_samples=num_samples,
    )


DATASETS = (
    _objects365(
        "objects365",
        file="objects365/annotations/zhiyuan_objv2_train.json",
        folder="objects365/train",
        path_parts=2,
        num_buckets=1024,
        stages=(1, 2),
        num_samples=12_500_000,
        layout="objects365/train/patchN/   its images: patch0 to patch50, unpacked side by side",
    ),
    _objects365(
        "objects365_val",
        file="objects365/annotations/zhiyuan_objv2_val.json",
        folder="objects365/val",
        path_parts=2,
        num_buckets=64,
        num_samples=580_000,
        layout=(
            "objects365/val/patchN/   its images: patch0 to patch43, "
            "those of v1/ and v2/ side by side"
        ),
    ),
    _objects365(
        "objects365_v1",
        file="objects365_v1/objects365_train.json",
        folder="objects365_v1/train",
        path_parts=1,
        num_buckets=512,
        stages=(1, 2),
        layout="objects365_v1/train/   its images, in one folder",
    ),
)
