"""The TSV files of IDEA Research's datasets: pictures in one file, annotations in others that point into it.

    image TSV             a line a picture: KEY <tab> BASE64, sometimes written b'BASE64'
    its .lineidx          a line a picture: the byte at which its line starts
    annotation TSV        a line a record: BYTE <tab> JSON, the byte at which its picture's line starts

A big image TSV is published cut into files ``..._part_0.tsv``, ``..._part_1.tsv`` ... at any byte: offsets
count in all of them one behind the other, and a line may go on in the next part.

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
from dataset_builders.images import read_image_size
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import ImageSource

MAX_LINE_BYTES = 1 << 24
"""Longest annotation line that is read, 16 MB."""
PEEK_LINES = 400
"""Lines of an annotation file that are looked at before anything is made of it."""


@dataclass(frozen=True)
class ImageTsv:
    """An image TSV, whole or in parts."""

    names: tuple[str, ...]
    """Its files in order."""
    ends: tuple[int, ...]
    """Bytes of each file and all before it."""

    @classmethod
    def of(cls, folders: DataFolders, pattern: str, lineidx: str) -> "ImageTsv":
        """Find the parts of an image TSV. Raises ValueError when one is missing, or its index is
        another's."""
        numbered = {_part_number(name): name for name in folders.matches(pattern)}
        names = tuple(numbered[number] for number in sorted(numbered))
        if sorted(numbered) != list(range(len(numbered))) or not names:
            raise ValueError(
                f"{pattern}: parts {sorted(numbered)} are there, want all of them from 0 on"
            )
        sizes = [folders.path(name).stat().st_size for name in names]
        images = cls(names, tuple(accumulate(sizes)))
        last = _last_line(folders, lineidx)
        if last is None or last >= images.ends[-1]:
            raise ValueError(
                f"{lineidx} ends with the byte {last}, but {', '.join(names)} hold {images.ends[-1]} bytes: "
                f"a part is missing, or the index is of another file"
            )
        return images

    def uri(self, offset: int) -> str:
        """Return the uri of the picture whose line starts at a byte of the whole.

        Raises BadRecord with reason unknown_image when the files end before it.
        """
        part = bisect_right(self.ends, offset)
        if part == len(self.names):
            raise BadRecord(
                "unknown_image", f"byte {offset} of image files of {self.ends[-1]} bytes"
            )
        return f"{self.names[part]}#{offset - (self.ends[part - 1] if part else 0)}"

    def open(self, folders: DataFolders, source: ImageSource, offset: int) -> ImageRef:
        """Refer to a picture by its byte, which is its image id; its size is read. Raises BadRecord."""
        uri = self.uri(offset)
        return source.ref(str(offset), uri, *read_image_size(folders, uri))


def _part_number(name: str) -> int:
    found = re.search(r"_part_(\d{1,6})\.tsv\Z", name)
    return int(found[1]) if found else 0


def tsv_source(name: str, *, pictures: str, lineidx: str, num_buckets: int) -> ImageSource:
    """Return the source of the pictures of an image TSV; image ids are their bytes in the whole.

    pictures: its file, or a pattern for its parts. lineidx: its index.
    """

    def list_them(folders: DataFolders) -> Iterator[ImageRef | Reject]:
        return _list_images(folders, source=source, pictures=pictures, lineidx=lineidx)

    source = ImageSource(
        name=name,
        num_buckets=num_buckets,
        list_images=list_them,
        files=(lineidx,),
        pictures=(pictures,),
    )
    return source


def _list_images(
    folders: DataFolders, *, source: ImageSource, pictures: str, lineidx: str
) -> Iterator[ImageRef | Reject]:
    images = ImageTsv.of(folders, pictures, lineidx)
    before = -1
    with folders.path(lineidx).open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(1000), b"")):
            offset = _offset(line)
            if offset is None or offset <= before:
                raise ValueError(
                    f"{lineidx}: line {number + 1} is {line[:40]!r}, not a byte after {before}"
                )
            before = offset
            yield source.ref(str(offset), images.uri(offset), 0, 0)


def _last_line(folders: DataFolders, lineidx: str) -> int | None:
    path = folders.path(lineidx)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 1000))
        lines = stream.read().split()
    return _offset(lines[-1]) if lines else None


def _offset(text: bytes) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() and len(text) < 16 else None


@dataclass(frozen=True)
class AnnotationLine:
    """A line of an annotation TSV."""

    number: int
    """Counted from 0."""
    offset: int
    """Byte of its picture's line in the whole image TSV."""
    record: Any
    """Its JSON."""


def annotation_lines(
    folders: DataFolders, file: str
) -> Iterator[tuple[str, AnnotationLine | BadRecord]]:
    """Yield (record id, line) for each line that is not blank; a BadRecord in place of one of another form.

    The record id names file and line, counted from 0.
    """
    path = folders.path(file)
    with path.open("rb") as stream:
        number = -1
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
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
            "malformed", f"line starts with {head[:40]!r}, not with the byte of a picture"
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
    """Return boxes as stored, float64[N, 4], and sizes of their images, float64[N, 2], of a file's first
    lines.

    boxes_of: boxes of a record; it raises BadRecord for a record of another form. Lines, boxes and images
    that cannot be read are passed over: they become rejects later.
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
    try:
        numbers = four_numbers(box, what="box")
    except BadRecord:
        return None
    return numbers if all(abs(number) < 1e6 for number in numbers) else None
