"""Images on disk: the bucket of an image, where its bytes lie, and how they become pixels.

The uri of an image starts with the usual name of its dataset's folder (`DataFolders`):

    coco/train2017/000000000009.jpg             a file
    grit/00000.tar#1536+20480                   bytes 1536 to 22016 of a tar (`containers`)
    humanref_cot/images.tsv#90112               the line at byte 90112 of a TSV, whose second
                                                column is base64
    cauldron/ai2d/train-00000.parquet#3/17/0    row group 3, row 17 in it, image 0 of its list
"""

import hashlib
import io
import re
import struct
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from dataset_builders import containers
from dataset_builders.data_folders import DataFolders
from dataset_builders.records import BadRecord

__all__ = [
    "BadImage",
    "bucket_of",
    "buckets_holding",
    "check_uri",
    "decode_image",
    "exif_orientation",
    "image_size",
    "read_image_bytes",
    "read_image_size",
    "safe_join",
]

MAX_IMAGE_PIXELS = 80_000_000
"""Most pixels of an image that is decoded: 240 MB of RGB. It lies below the size at which Pillow
starts to warn by itself."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Most bytes of a file that is read."""

# What Pillow's decoders raise on broken input: OSError for a truncated file, SyntaxError for a PNG
# chunk.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(BadRecord):
    """An image that cannot be read.

    Its reason is unsafe_path, missing_image, image_too_large or undecodable_image.
    """


def bucket_of(image_id: str, num_buckets: int) -> int:
    """Return the bucket of an image, the unit in which work is done and resumed.

    Only what stands before a "#" counts: images of one row group of a container are read together.
    The way to hash is ours.
    """
    group = image_id.partition("#")[0]
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % num_buckets


def buckets_holding(bucket: int, num_buckets: int, others: int) -> list[int]:
    """Return which of `others` buckets hold the images of one of `num_buckets`.

    Both numbers are powers of two, so that buckets of one lie whole in those of the other.
    """
    return [bucket % others] if others <= num_buckets else list(range(bucket, others, num_buckets))


def check_uri(uri: str) -> str:
    """Return `uri` when it is a clean relative posix path that stays below its root by its text.

    Raises:
        BadImage: The reason is unsafe_path.
    """
    if (
        not isinstance(uri, str)
        or not uri
        or any(c in uri for c in "\\\0:")
        or not uri.isprintable()
    ):
        raise BadImage(
            "unsafe_path", f"image path {ascii(uri)[:200]} is empty or has a forbidden character"
        )
    path = PurePosixPath(uri)
    if path.is_absolute() or ".." in path.parts or str(path) != uri or path.name == "":
        raise BadImage("unsafe_path", f"image path {uri[:200]!r} is not a plain relative path")
    return uri


def safe_join(root: str | Path, uri: str) -> Path:
    """Return the path of `uri` below `root`, following no link out of it.

    Args:
        root: Local folder of the dataset.
        uri: Posix path relative to it.

    Raises:
        BadImage: The reason is unsafe_path: absolute, `..`, backslash, null byte, or a link that
            leaves the root.
    """
    base = Path(root).resolve()
    path = base / check_uri(uri)
    try:
        resolved = path.resolve()
    # a loop of links, or a name that the file system cannot hold
    except (OSError, RuntimeError) as error:
        raise BadImage(
            "unsafe_path", f"image path {uri[:200]!r}: {type(error).__name__}"
        ) from error
    if not resolved.is_relative_to(base):
        raise BadImage("unsafe_path", f"image path {uri[:200]!r} leads out of its root")
    return resolved


def read_image_bytes(folders: DataFolders, uri: str) -> bytes:
    """Return the bytes of an image file, exactly as stored.

    Raises:
        BadImage: The reason is unsafe_path, missing_image, image_too_large or undecodable_image.
    """
    name, mark, place = uri.partition("#")
    first, _, rest = name.partition("/")
    path = safe_join(folders.root(first), rest)
    try:
        if mark and path.suffix in containers.READERS:
            return containers.READERS[path.suffix](path, place, MAX_IMAGE_BYTES)
        if mark:
            path = safe_join(folders.root(first), uri.partition("/")[2])
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise BadImage("image_too_large", f"{uri}: more than {MAX_IMAGE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(
            "missing_image", f"{uri}: {error.strerror or type(error).__name__}"
        ) from error


def read_image_size(folders: DataFolders, uri: str) -> tuple[int, int]:
    """Return width and height of an image in pixels, as `decode_image` gives it.

    Of an image in a file of its own, only the header is read.

    Raises:
        BadImage: As `read_image_bytes` and `image_size` raise it.
    """
    if "#" in uri:
        return image_size(read_image_bytes(folders, uri))
    first, _, rest = uri.partition("/")
    path = safe_join(folders.root(first), rest)
    try:
        with path.open("rb") as stream:
            return image_size(stream)
    except OSError as error:
        raise BadImage(
            "missing_image", f"{uri}: {error.strerror or type(error).__name__}"
        ) from error


def image_size(data: bytes | IO[bytes]) -> tuple[int, int]:
    """Return width and height in pixels, turned as the EXIF orientation says; nothing is decoded.

    Raises:
        BadImage: The reason is image_too_large or undecodable_image.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            # of a TIFF Pillow gives the turned size by itself
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8) and image.format != "TIFF"
            return (image.height, image.width) if turned else image.size
    except Image.DecompressionBombError as error:
        raise BadImage("image_too_large", _clean(error)) from error
    except _DECODER_ERRORS as error:
        raise BadImage("undecodable_image", _clean(error)) from error


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 (upright) to 8, that `decode_image` undoes; 1 without one."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(0x0112, 1)
    except (*_DECODER_ERRORS, Image.DecompressionBombError):
        return 1
    return value if value in range(1, 9) else 1


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return the image as RGB, turned the way its EXIF orientation says.

    Args:
        data: The bytes of a JPEG, PNG or any other file that Pillow reads.
        max_pixels: Most pixels; checked before anything is decoded.

    Raises:
        BadImage: The reason is image_too_large or undecodable_image; no message holds a memory
            address, so that rejects are the same in every run.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage(
                    "image_too_large", f"{image.width}x{image.height} pixels, limit {max_pixels}"
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("image_too_large", _clean(error)) from error
    except _DECODER_ERRORS as error:
        raise BadImage("undecodable_image", _clean(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as RGB; of 16-bit grey the high byte is kept."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip every value above 255 to white
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _clean(error: Exception) -> str:
    """Return the error's text without object addresses, which differ from run to run."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "data", str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
