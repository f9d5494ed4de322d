"""Images on disk: which bucket an image belongs to, where its bytes lie, and how bytes become pixels."""

import hashlib
import io
import re
import struct
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from dataset_builders.records import BadRecord, ImageRef

__all__ = ["BadImage", "ImageRef", "bucket_of", "check_uri", "decode_image", "read_image_bytes", "safe_join"]

MAX_IMAGE_PIXELS = 80_000_000
"""Largest image that is decoded: 240 MB of RGB. Below the size at which Pillow starts to warn by itself."""
MAX_IMAGE_BYTES = 256 * 2**20
"""Largest file that is read."""

# What Pillow's decoders raise on broken input: OSError for a truncated file, SyntaxError for a PNG chunk.
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
    """An image that cannot be read: unsafe_path, missing_image, image_too_large or undecodable_image."""


def bucket_of(image_id: str, num_buckets: int) -> int:
    """Return the bucket of an image, the unit in which work is done and resumed. ours"""
    return int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16) % num_buckets


def check_uri(uri: str) -> str:
    """Return `uri` when it is a clean relative posix path that stays below its root by its text alone.

    Raises BadImage with reason unsafe_path.
    """
    if not isinstance(uri, str) or not uri or any(c in uri for c in "\\\0:") or not uri.isprintable():
        raise BadImage("unsafe_path", f"image path {ascii(uri)[:200]} is empty or has a forbidden character")
    path = PurePosixPath(uri)
    if path.is_absolute() or ".." in path.parts or str(path) != uri or path.name == "":
        raise BadImage("unsafe_path", f"image path {uri[:200]!r} is not a plain relative path")
    return uri


def safe_join(root: str | Path, uri: str) -> Path:
    """Return the path of `uri` below `root`, following no link out of it.

    root: local folder of the dataset. uri: posix path relative to it.
    Raises BadImage with reason unsafe_path: absolute, `..`, backslash, null byte, link that leaves the root.
    """
    base = Path(root).resolve()
    path = base / check_uri(uri)
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or a name the file system cannot hold
        raise BadImage("unsafe_path", f"image path {uri[:200]!r}: {type(error).__name__}") from error
    if not resolved.is_relative_to(base):
        raise BadImage("unsafe_path", f"image path {uri[:200]!r} leads out of its root")
    return resolved


def read_image_bytes(root: str | Path, uri: str) -> bytes:
    """Return the bytes of an image file, exactly as stored.

    Raises BadImage with reason unsafe_path, missing_image or image_too_large.
    """
    path = safe_join(root, uri)
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise BadImage("image_too_large", f"{uri}: more than {MAX_IMAGE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage("missing_image", f"{uri}: {error.strerror}") from error


def decode_image(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return the picture as RGB, turned the way its EXIF orientation says.

    data: the bytes of a JPEG, PNG or any other file that Pillow reads. max_pixels: checked before decoding.
    Raises BadImage with reason image_too_large or undecodable_image; no message holds a memory address.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise BadImage("image_too_large", f"{image.width}x{image.height} pixels, limit {max_pixels}")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("image_too_large", _clean(error)) from error
    except _DECODER_ERRORS as error:
        raise BadImage("undecodable_image", _clean(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip every value above 255 to white
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _clean(error: Exception) -> str:
    """Return the error's text without object addresses, which differ from run to run."""
    text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "data", str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
