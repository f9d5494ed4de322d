"""Images of the generated datasets: drawn scenes, whole or broken in the ways of real files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_builders.drawn_world.drawing import Scene, draw_scene


@dataclass(frozen=True, kw_only=True)
class Format:
    """Writes the files of some datasets below a data root."""

    datasets: tuple[str, ...]
    """Names in DATASETS."""
    write: Callable[[Path, int], None]
    """Called with the data root and a seed; the same seed gives the same bytes."""
    records: dict[str, str]
    """Annotation files (patterns below the data root) -> how they are taken apart to be mutated:
    json, jsonl, text, pickle, tsv, parquet, tar."""


def scene(seed: int, number: int, *, empty: bool = False) -> Scene:
    """A scene of its own for each number; boxes as drawn, labels such as "red circle"."""
    return draw_scene((seed, number), empty=1.0 if empty else 0.0, crowd=0.0)


def jpeg(image: Image.Image, *, quality: int = 90, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def truncated(image: Image.Image) -> bytes:
    """A JPEG that breaks off in the middle; its header is whole."""
    data = jpeg(image)
    return data[: len(data) // 2]


def rotated(image: Image.Image) -> bytes:
    """A JPEG stored on its side with EXIF orientation 6: shown, it is `image` again."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


def cmyk(image: Image.Image) -> bytes:
    return jpeg(image.convert("CMYK"))


def grey16(image: Image.Image) -> bytes:
    """A PNG of 16-bit grey."""
    return png(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257))


def palette(image: Image.Image) -> bytes:
    """A PNG with a palette and a transparent colour."""
    buffer = io.BytesIO()
    image.quantize(32).save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> None:
    """Write a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        path.write_text(data, encoding="utf-8")
    else:
        path.write_bytes(data)
