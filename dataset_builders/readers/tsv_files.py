"""The TSV files of IDEA Research's datasets: images in one file, annotations that point into it.

    image TSV         a line an image: KEY <tab> BASE64, sometimes written b'BASE64'
    its .lineidx      a line an image: the byte at which its line starts
    annotation TSV    a line a record: BYTE <tab> JSON, the byte at which its image's line starts

A big image TSV is published cut into files ``..._part_0.tsv``, ``..._part_1.tsv`` ... at any byte:
offsets count in all of them one behind the other, and a line may go on in the next part.

Source: https://github.com/IDEA-Research/Rex-Thinker (tools/visualize_humanref_cot.py)
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np

from dataset_builders.box_checks import GUARD_ROWS, four_numbers
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.images import read_image_size
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import ImageSource

MAX_LINE_BYTES = 1 << 24
"""Longest annotation line that is read, 16 MB."""
PEEK_LINES = 400
"""Number of lines of an annotation file that are looked at before anything is made of it."""


@dataclass(frozen=True)
class ImageTsv:
    """An image TSV, whole or in parts."""

    names: tuple[str, ...]
    """Names of its files in order."""
    ends: tuple[int, ...]
    """Bytes of each file and all before it."""

    @classmethod
    def of(cls, folders: DataFolders, pattern: str, lineidx: str) -> "ImageTsv":
        """Find the parts of an image TSV.

        Args:
            folders: Where the datasets lie.
            pattern: Name of the file, or a pattern for its parts.
            lineidx: Name of its index.

        Raises:
            SettingError: A part is missing, or the index is another file's.
        """
        numbered = {_part_number(name): name for name in folders.matches(pattern)}
        names = tuple(numbered[number] for number in sorted(numbered))
        if sorted(numbered) != list(range(len(numbered))) or not names:
            raise SettingError(
                f"{pattern}: parts {sorted(numbered)} are there, want all of them from 0 on"
            )
        sizes = [folders.path(name).stat().st_size for name in names]
        images = cls(names, tuple(accumulate(sizes)))
        last = _last_line(folders, lineidx)
        if last is None or last >= images.ends[-1]:
            raise SettingError(
                f"{lineidx} ends with the byte {last}, but {', '.join(names)} hold "
                f"{images.ends[-1]} bytes: a part is missing, or the index is of another file"
            )
        return images

    def uri(self, offset: int) -> str:
        """Return the uri of the image whose line starts at a byte of the whole.

        Raises:
            BadRecord: The reason is unknown_image: the files end before it.
        """
        part = bisect_right(self.ends, offset)
        if part == len(self.names):
            raise BadRecord(
                "unknown_image", f"byte {offset} of image files of {self.ends[-1]} bytes"
            )
        return f"{self.names[part]}#{offset - (self.ends[part - 1] if part else 0)}"

    def open(self, folders: DataFolders, source: ImageSource, offset: int) -> ImageRef:
        """Return a reference to an image by its byte, which is its image id; its size is read.

        Raises:
            BadRecord: The reason is unknown_image, or one of `images.read_image_size`.
        """
        uri = self.uri(offset)
        return source.ref(str(offset), uri, *read_image_size(folders, uri))


def _part_number(name: str) -> int:
    """Return the number of a part of a file; 0 for a file that is whole."""
    found = re.search(r"_part_(\d{1,6})\.tsv\Z", name)
    return int(found[1]) if found else 0


def tsv_source(name: str, *, images: str, lineidx: str, num_buckets: int) -> ImageSource:
    """Return the source of the images of an image TSV; image ids are their bytes in the whole.

    Args:
        name: Name of the source.
        images: Name of the file, or a pattern for its parts.
        lineidx: Name of its index.
        num_buckets: Units of work, see `ImageSource`.
    """

    def list_them(folders: DataFolders) -> Iterator[ImageRef | Reject]:
        return _list_images(folders, source=source, images=images, lineidx=lineidx)

    source = ImageSource(
        name=name,
        num_buckets=num_buckets,
        list_images=list_them,
        files=(lineidx,),
        image_paths=(images,),
    )
    return source


def _list_images(
    folders: DataFolders, *, source: ImageSource, images: str, lineidx: str
) -> Iterator[ImageRef | Reject]:
    """Yield every image of the index; none is opened, sizes stay 0."""
    tsv = ImageTsv.of(folders, images, lineidx)
    before = -1
    with folders.path(lineidx).open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(1000), b"")):
            offset = _offset(line)
            if offset is None or offset <= before:
                raise SettingError(
                    f"{lineidx}: line {number + 1} is {line[:40]!r}, not a byte after {before}"
                )
            before = offset
            yield source.ref(str(offset), tsv.uri(offset), 0, 0)


def _last_line(folders: DataFolders, lineidx: str) -> int | None:
    """Return the byte in the last line of an index; None when that is no number."""
    path = folders.path(lineidx)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 1000))
        lines = stream.read().split()
    return _offset(lines[-1]) if lines else None


def _offset(text: bytes) -> int | None:
    """Return the number that a text of a file is; None when it is none."""
    text = text.strip()
    return int(text) if text.isdigit() and len(text) < 16 else None


@dataclass(frozen=True)
class AnnotationLine:
    """A line of an annotation TSV."""

    number: int
    """Number of the line, counted from 0."""
    offset: int
    """Byte of its image's line in the whole image TSV."""
    record: Any
    """The JSON of its second column."""


def annotation_lines(
    folders: DataFolders, file: str
) -> Iterator[tuple[str, AnnotationLine | BadRecord]]:
    """Yield (record id, line) for each line that is not blank.

    The record id names file and line, counted from 0. A BadRecord stands in place of a line of
    another form.
    """
    path = folders.path(file)
    with path.open("rb") as stream:
        number = -1
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            # the rest of a line that is too long is read past in pieces, never held whole
            too_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
            while too_long and line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            try:
                if too_long:
                    raise BadRecord("text_too_long", f"the line is over {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield f"{path.name}/{number}", _read_line(number, line)
            except BadRecord as error:
                yield f"{path.name}/{number}", error


def _read_line(number: int, line: bytes) -> AnnotationLine:
    head, _, body = line.partition(b"\t")
    if (offset := _offset(head)) is None:
        raise BadRecord(
            "malformed", f"line starts with {head[:40]!r}, not with the byte of an image"
        )
    try:
        return AnnotationLine(number, offset, json.loads(body.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise BadRecord(
            "malformed", f"the second column is not JSON: {type(error).__name__}"
        ) from error


def first_boxes(
    folders: DataFolders,
    file: str,
    *,
    boxes_of: Callable[[Any], list[Any]],
    open_image: Callable[[int], ImageRef],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of a file's first lines as stored, and the sizes of their images.

    Lines, boxes and images that cannot be read are passed over: they become rejects later.

    Args:
        folders: Where the datasets lie.
        file: Name of the annotation TSV.
        boxes_of: Returns the boxes of a record; raises BadRecord for a record of another form.
        open_image: Returns the image at a byte; raises BadRecord when it cannot be read.

    Returns:
        Boxes, float64[N, 4] in any form, and sizes, float64[N, 2] width and height in pixels.
    """
    values: list[tuple[float, ...]] = []
    sizes: list[tuple[int, int]] = []
    for _, line in islice(annotation_lines(folders, file), PEEK_LINES):
        if len(values) >= GUARD_ROWS:
            break
        try:
            if isinstance(line, BadRecord):
                raise line
            stored = [_finite(box) for box in boxes_of(line.record)]
            image = open_image(line.offset)
        except BadRecord:
            continue  # rejected, and counted, when the file is read
        values += [box for box in stored if box]
        sizes += [(image.width, image.height) for box in stored if box]
    return np.array(values, np.float64).reshape(-1, 4), np.array(sizes, np.float64).reshape(-1, 2)


def _finite(box: Any) -> tuple[float, ...] | None:
    """Return the four numbers of a box; None for what `BoxGuard` would not look at."""
    try:
        numbers = four_numbers(box, what="box")
    except BadRecord:
        return None
    return numbers if all(abs(number) < 1e6 for number in numbers) else None
