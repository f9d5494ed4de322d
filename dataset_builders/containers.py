"""Images inside bigger files: members of a tar, lines of a TSV, cells of a parquet file.

An image's uri says where to look (`images`), so that reading one image reads no index and unpacks
nothing.
"""

import base64
import binascii
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.records import BadRecord

IMAGE_COLUMNS = ("images", "image")
"""Columns of a parquet file that may hold images, as `{bytes, path}` or a list of them."""
_MAX_LINE_FACTOR = 1.4  # base64 makes 4 bytes of 3, a key stands before it


def tar_place(offset: int, size: int) -> str:
    """Return the part of a uri after "#" for a tar member whose content starts at byte `offset`."""
    return f"{offset}+{size}"


def parquet_place(row_group: int, row: int, position: int) -> str:
    """Return the part of a uri after "#" for an image of a parquet row.

    Args:
        row_group: Number of the row group in the file.
        row: Number of the row in its row group.
        position: Number of the image in the list of the row; 0 where it is not a list.
    """
    return f"{row_group}/{row}/{position}"


def _numbers(place: str, separator: str, count: int) -> list[int]:
    """Return the numbers of a place, which came from a file and may be anything."""
    parts = place.split(separator)
    if len(parts) != count or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise BadRecord("unsafe_path", f"{place[:80]!r} is no place in a container")
    return [int(part) for part in parts]


def _read_tar(path: Path, place: str, limit: int) -> bytes:
    offset, size = _numbers(place, "+", 2)
    if size > limit:
        raise BadRecord("image_too_large", f"{path.name}#{place}: more than {limit} bytes")
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise BadRecord("undecodable_image", f"{path.name} ends before byte {offset + size}")
    return data


def _read_tsv(path: Path, place: str, limit: int) -> bytes:
    (offset,) = _numbers(place, "+", 1)
    return decode_cell(read_line(path, offset, int(limit * _MAX_LINE_FACTOR)))


def read_line(path: Path, offset: int, limit: int) -> bytes:
    """Return the line at a byte offset, without its end.

    A line cut by the end of a file called ``..._part_3.tsv`` goes on in ``..._part_4.tsv``.

    Args:
        path: The file.
        offset: Byte at which the line starts.
        limit: Most bytes of a line.

    Raises:
        BadRecord: The reason is image_too_large or malformed.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        line = stream.readline(limit + 1)
    part = path
    while line and len(line) <= limit and line[-1:] != b"\n" and (following := _next_part(part)):
        part = following
        with part.open("rb") as stream:
            line += stream.readline(limit + 1 - len(line))
    if len(line) > limit:
        raise BadRecord(
            "image_too_large", f"the line at byte {offset} of {path.name} is over {limit} bytes"
        )
    if not line:
        raise BadRecord("malformed", f"{path.name} has no line at byte {offset}")
    return line.rstrip(b"\r\n")


def _next_part(path: Path) -> Path | None:
    """Return the file that goes on where a part of a split file ends; None where there is none."""
    found = re.fullmatch(r"(.*_part_)(\d{1,6})(\.\w+)", path.name)
    following = path.with_name(f"{found[1]}{int(found[2]) + 1}{found[3]}") if found else path
    return following if found and following.is_file() else None


def decode_cell(line: bytes) -> bytes:
    """Return the image file in the last column of an image TSV's line.

    Some files wrap the base64 in a literal ``b'...'``.

    Raises:
        BadRecord: The reason is undecodable_image.
    """
    cell = line.rpartition(b"\t")[2].strip()
    if cell[:2] in (b"b'", b'b"') and cell[-1:] == cell[1:2]:
        cell = cell[2:-1]
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise BadRecord("undecodable_image", f"not base64: {error}") from error


def _read_parquet(path: Path, place: str, limit: int) -> bytes:
    row_group, row, position = _numbers(place, "/", 3)
    # the time of the last change is part of the cache's key: a file written anew is read anew
    column = _image_column(str(path), path.stat().st_mtime_ns, row_group)
    if row >= len(column):
        raise BadRecord("missing_image", f"{path.name} has no row {row} in row group {row_group}")
    try:
        cell = column[row].as_py()
    except ValueError as error:  # a column of text that is not UTF-8
        raise BadRecord("undecodable_image", f"{path.name}#{place}: {error}") from error
    cells = cell if isinstance(cell, list) else [cell]
    image = cells[position] if position < len(cells) else None
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise BadRecord("missing_image", f"{path.name}#{place} holds no bytes")
    if len(data) > limit:
        raise BadRecord("image_too_large", f"{path.name}#{place}: more than {limit} bytes")
    return data


@lru_cache(2)  # images of a row group are asked for one after the other
def _image_column(path: str, _modified: int, row_group: int) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in IMAGE_COLUMNS if name in file.schema_arrow.names]
            if not names or row_group >= file.num_row_groups:
                raise BadRecord("missing_image", f"{path} has no images in row group {row_group}")
            return file.read_row_group(row_group, columns=names[:1]).column(0)
    except pa.ArrowException as error:
        raise BadRecord(
            "undecodable_image", f"{Path(path).name}: {type(error).__name__}"
        ) from error


READERS: dict[str, Callable[[Path, str, int], bytes]] = {
    ".tar": _read_tar,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""Suffix of the container -> reader of (path, place after "#", most bytes)."""
