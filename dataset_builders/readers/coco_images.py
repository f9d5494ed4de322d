"""The list of images of a file in COCO's form, and how such files differ from COCO's own.

An image source needs no more than this: the boxes of the file are left unread. `coco_files` reads
those.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.images import check_uri
from dataset_builders.readers.json_files import stream_array
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import ImageSource

MAX_IMAGE_SIDE = 100_000
"""Largest width or height in pixels; a bigger one is garbage."""
ID_LIMIT = 2**62
"""Ids stay below it: sqlite holds no bigger number than 2**63 - 1."""


@dataclass(frozen=True, kw_only=True)
class CocoForm:
    """How one kind of file differs from COCO's own."""

    name_of: Callable[[Mapping[str, Any]], str] = lambda category: get(category, "name")
    """Returns the name of a category from its record."""
    uri_of: Callable[[Mapping[str, Any]], str] = lambda image: get(image, "file_name")
    """Returns the uri of an image from its record, below the image folder."""
    image_fields: tuple[str, ...] = ()
    """Further fields of an image record that the builder reads."""
    box_fields: tuple[str, ...] = ()
    """Further fields of an annotation that the builder reads."""
    one_category: str = ""
    """Label of every box, for files whose categories say nothing; empty: as the file says."""


def coco_source(
    name: str,
    *,
    file: str,
    folder: str,
    num_buckets: int,
    key_space: str = "",
    form: CocoForm | None = None,
) -> ImageSource:
    """Return a source whose images a COCO file lists; image ids are the file's.

    Args:
        name: Name of the source.
        file: The JSON, by its name below the data root.
        folder: Folder of its images, put in front of every file_name.
        num_buckets: Units of work, see `ImageSource`.
        key_space: Whose ids the image ids are, see `ImageSource`.
        form: Where the file differs from COCO's own.
    """

    def list_them(folders: DataFolders) -> Iterator[ImageRef | Reject]:
        return list_coco(folders, file=file, folder=folder, source=source, form=form)

    source = ImageSource(
        name=name,
        num_buckets=num_buckets,
        list_images=list_them,
        files=(file,),
        image_paths=(folder,),
        key_space=key_space,
    )
    return source


def list_coco(
    folders: DataFolders,
    *,
    file: str,
    folder: str,
    source: ImageSource,
    form: CocoForm | None = None,
) -> Iterator[ImageRef | Reject]:
    """Yield every image that a COCO file lists, or its reject.

    Args:
        folders: Where the datasets lie.
        file: The JSON, by its name below the data root.
        folder: Folder of its images, put in front of every file_name.
        source: What the images belong to.
        form: Where the file differs from COCO's own.

    Raises:
        SettingError: The file is not JSON.
    """
    seen: set[int] = set()
    for position, record in enumerate(stream_array(folders.path(file), "images")):
        try:
            number, uri, width, height = image_row(record, folder, form or CocoForm())
            if number in seen:
                raise BadRecord("duplicate_id", f"image id {number}")
            seen.add(number)
            yield source.ref(str(number), uri, width, height)
        except BadRecord as error:
            yield Reject.of(f"images/{position}", error, "image")


def image_row(record: Any, folder: str, form: CocoForm) -> tuple[int, str, int, int]:
    """Return id, uri, width and height (pixels) of an image record.

    Raises:
        BadRecord: The reason is malformed, unsafe_path or bad_size.
    """
    number = whole_number(get(record, "id"), what="image id")
    if number < 0 or number >= ID_LIMIT:
        raise BadRecord("malformed", f"image id {number} is out of range")
    name = form.uri_of(record)
    if not isinstance(name, str):
        raise BadRecord(
            "malformed", f"file_name of image {number} is {type(name).__name__}, not text"
        )
    check_uri(name)
    width, height = (_side(get(record, name), name) for name in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"image {number} is {width}x{height}")
    return number, f"{folder}/{name}", width, height


def _side(value: Any, name: str) -> int:
    """Return a width or height; some files have them as text, copied from XML."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    return whole_number(value, what=name)
