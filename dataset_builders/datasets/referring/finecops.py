"""FineCops-Ref: expressions over GQA's images, with negative ones and edited images.

Its `*_coco_format.json` are in MDETR's form. They become referring, captions of the regions, and
rejections. Traps:

- An annotation with `negative_type` says that nothing fits the expression, whatever its box.
- `negative_cate` says whether the text was changed, and the image is GQA's, or the image was, and
  lies in a folder of its own.
- The splits are told apart by the names of the files, such as
  expression_all_train_set_coco_format.json: only those of the train set are read.

Facts: https://github.com/liujunzhuo/FineCops-Ref (README; training/, evaluation/).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.refcoco_mdetr import build
from dataset_builders.image_sources import GQA, folder_source
from dataset_builders.images import check_uri
from dataset_builders.records import BadRecord
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item

_FILES = "finecops/*train*coco_format.json"
_GQA_FOLDER = "gqa/images"
_NEGATIVE_FOLDER = "finecops/negative_images"
NEGATIVE_IMAGES = folder_source("finecops_negative_images", _NEGATIVE_FOLDER, num_buckets=16)
"""Images edited so that the expression fits nothing in them."""


def _image_of(
    record: Mapping[str, Any], annotations: list[Mapping[str, Any]]
) -> tuple[ImageSource, str, str]:
    name = get(record, "file_name")
    check_uri(name)
    edited = {annotation.get("negative_cate") == "image" for annotation in annotations}
    if len(edited) > 1:
        raise BadRecord("contradiction", "its annotations differ in whether the image was edited")
    source, folder = (NEGATIVE_IMAGES, _NEGATIVE_FOLDER) if True in edited else (GQA, _GQA_FOLDER)
    uri = f"{folder}/{name}"
    return source, source.id_of(uri), uri


def _is_negative(annotation: Mapping[str, Any]) -> bool:
    kind, changed = annotation.get("negative_type"), annotation.get("negative_cate")
    if (kind is None) != (changed is None) or changed not in (None, "text", "image"):
        raise BadRecord(
            "contradiction", f"negative_type {kind!r:.80}, negative_cate {changed!r:.80}"
        )
    return kind is not None


def _samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    return build(
        folders,
        options,
        dataset="finecops_ref",
        files=folders.matches(_FILES),
        sources=(GQA, NEGATIVE_IMAGES),
        image_of=_image_of,
        says_nothing=_is_negative,
        more=("negative_type", "negative_cate"),
    )


DATASETS = (
    DatasetSpec(
        name="finecops_ref",
        images=(GQA, NEGATIVE_IMAGES),
        build=_samples,
        files=(_FILES,),
        tasks=("referring", "region_caption", "rejection"),
        stages=(2,),
        licence="not stated; GQA's images are Visual Genome's, under their own Flickr licences",
        source="https://figshare.com/s/e323fe078924c8b36043",
        layout=(
            f"{_FILES}   MDETR's form, positive and negative expressions; leave out a file whose "
            "records another one repeats\n"
            f"{_NEGATIVE_FOLDER}/   edited images, by file_name of the records with "
            "negative_cate image\n"
            f"{_GQA_FOLDER}/   GQA's images, by number"
        ),
    ),
)
