"""What the model sees of an example: its image, or the window into it.

Boxes go with it: they are in pixels of what is seen.
"""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

import numpy as np

from dataset_builders.images import decode_image
from pipelines.schemas import RegionExample

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 95
"""JPEG quality of an image that is made smaller; one that is small enough keeps its bytes."""


def view(example: RegionExample, data: bytes) -> tuple[Image | None, np.ndarray]:
    """Return the RGB image that the model gets and the boxes in its pixels.

    Args:
        example: The example.
        data: Bytes of its image file; empty for a conversation without image.

    Returns:
        The image, None for a conversation without one, and its boxes, float32[N, 4], xyxy px.
    """
    if not data:
        return None, example.boxes
    image = decode_image(data)
    if example.window is None:
        return image, example.boxes
    x1, y1, _, _ = example.window
    return image.crop(example.window), example.boxes - np.array([x1, y1, x1, y1], np.float32)


def shrink(example: RegionExample, data: bytes, max_side_px: int) -> tuple[RegionExample, bytes]:
    """Return the example over an image whose longer side is at most `max_side_px`.

    A larger image is encoded anew, and the smaller one becomes the original of the example: boxes,
    window and size are in its pixels.

    Args:
        example: The example.
        data: Bytes of its image file.
        max_side_px: Longest side allowed, in px.

    Returns:
        The example and the bytes of its image, both unchanged where the image is small enough.
    """
    from PIL import Image

    image = decode_image(data)
    scale = max_side_px / max(image.size)
    if scale >= 1.0:
        return example, data
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    factors = np.array([size[0] / image.width, size[1] / image.height] * 2, np.float32)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=JPEG_QUALITY)
    smaller = dataclasses.replace(
        example,
        width=size[0],
        height=size[1],
        window=None if example.window is None else _scaled_window(example.window, factors, size),
        boxes=(example.boxes * factors).astype(np.float32),
        targets=tuple(
            {
                **target,
                "boxes": (
                    np.asarray(target["boxes"], np.float32).reshape(-1, 4) * factors
                ).tolist(),
            }
            for target in example.targets
        ),
    )
    return smaller, buffer.getvalue()


def _scaled_window(
    window: tuple[int, int, int, int], factors: np.ndarray, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the smallest window of whole pixels that holds the scaled one."""
    x1, y1, x2, y2 = (float(side * factor) for side, factor in zip(window, factors, strict=True))
    return int(x1), int(y1), min(size[0], int(np.ceil(x2))), min(size[1], int(np.ceil(y2)))
