"""Image sources that several datasets share, and how a folder of images is listed."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from dataset_builders.data_folders import DataFolders
from dataset_builders.images import check_uri
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import ImageSource, path_id

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes of files that are taken for images."""


def stem(uri: str) -> str:
    """Return the file name without its suffix: "2410408" for "vg/VG_100K_2/2410408.jpg"."""
    return PurePosixPath(uri).stem


def coco_id(uri: str) -> str:
    """Return the COCO id of a file name of any year: "9" for "COCO_train2014_000000000009.jpg".

    REFER's names carry a further number behind the id.

    Raises:
        BadRecord: The reason is malformed.
    """
    found = re.search(r"(?:^|_)(\d{12})(?:_\d+)?\Z", stem(uri))
    if not found:
        raise BadRecord("malformed", f"{uri[:120]!r} is no name of a COCO image")
    return str(int(found[1]))


def list_folder(folders: DataFolders, *, source: ImageSource) -> Iterator[ImageRef | Reject]:
    """Yield every image below some folders, in the order of names; none is opened, sizes stay 0."""
    seen: set[str] = set()
    for folder in source.image_paths:
        for name in _files(folders.path(folder)):
            if PurePosixPath(name).suffix.lower() not in SUFFIXES:
                continue
            uri = f"{folder}/{name}"
            try:
                check_uri(uri)
                image_id = source.id_of(uri)
                if image_id in seen:
                    raise BadRecord("duplicate_id", f"image id {image_id}")
                seen.add(image_id)
                yield source.ref(image_id, uri, 0, 0)
            except BadRecord as error:
                yield Reject.of(ascii(uri), error, "image")


def _files(root: Path) -> Iterator[str]:
    """Yield the files below a folder by posix paths relative to it, in one order everywhere."""
    for place, folders, files in os.walk(root, followlinks=False):
        folders.sort()
        below = Path(place).relative_to(root).as_posix()
        yield from (name if below == "." else f"{below}/{name}" for name in sorted(files))


def folder_source(
    name: str,
    *image_paths: str,
    num_buckets: int,
    id_of: Callable[[str], str] = path_id,
    key_space: str = "",
) -> ImageSource:
    """Return a source that is all images below some folders.

    Args:
        name: Name of the source.
        *image_paths: The folders, by their names below the data root.
        num_buckets: Units of work, see `ImageSource`.
        id_of: Returns the image id of a uri; unique over all the folders.
        key_space: Whose ids the image ids are, see `ImageSource`.
    """

    def list_them(folders: DataFolders) -> Iterator[ImageRef | Reject]:
        return list_folder(folders, source=source)

    source = ImageSource(
        name=name,
        num_buckets=num_buckets,
        list_images=list_them,
        image_paths=image_paths,
        id_of=id_of,
        key_space=key_space,
    )
    return source


_coco2017 = partial(folder_source, id_of=coco_id, key_space="coco")
COCO_TRAIN = _coco2017("coco_train2017", "coco/train2017", num_buckets=256)
"""Images of COCO train2017. Those of train2014 are among them, under the same ids and with the same
pixels."""
COCO_VAL = _coco2017("coco_val2017", "coco/val2017", num_buckets=16)
VISUAL_GENOME = folder_source(
    "visual_genome", "vg/VG_100K", "vg/VG_100K_2", num_buckets=256, id_of=stem, key_space="vg"
)
GQA = folder_source("gqa", "gqa/images", num_buckets=256, id_of=stem, key_space="vg")
"""Images of GQA, which carry Visual Genome's ids."""
FLICKR30K = folder_source("flickr30k", "flickr30k/flickr30k-images", num_buckets=64, id_of=stem)


def coco_uri(image_id: int | str) -> str:
    """Return the uri of a COCO train2017 image by its id."""
    return f"coco/train2017/{int(image_id):012d}.jpg"


OCR_VQA = folder_source("ocr_vqa", "ocr_vqa/images", num_buckets=256, id_of=stem)
TEXTVQA = folder_source("textvqa", "textvqa/train_images", num_buckets=32, id_of=stem)
LLAVA_PRETRAIN = folder_source("llava_pretrain", "llava/llava_pretrain/images", num_buckets=512)
SAM = folder_source("sam", "sam/images", num_buckets=64, id_of=stem)
WEB_CELEBRITY = folder_source("web_celebrity", "web-celebrity/images", num_buckets=16)
WEB_LANDMARK = folder_source("web_landmark", "web-landmark/images", num_buckets=16)
WIKIART = folder_source("wikiart", "wikiart/images", num_buckets=16)
SHARE_TEXTVQA = folder_source("share_textvqa", "share_textvqa/images", num_buckets=16)


def source_of(uri: str, sources: Iterable[ImageSource]) -> ImageSource:
    """Return the source below whose folder a uri lies.

    Raises:
        BadRecord: The reason is unknown_image.
    """
    for source in sources:
        if any(uri.startswith(f"{folder}/") for folder in source.image_paths):
            return source
    raise BadRecord("unknown_image", f"{ascii(uri)[:160]} lies in no folder of images known here")
