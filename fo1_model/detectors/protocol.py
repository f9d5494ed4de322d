"""What every detector takes and gives.

Boxes are xyxy, absolute pixels of the original image, float32. Looking at an image has two halves,
which may run in different processes: a **preparation** on a CPU, which needs no weights
(`Prepare`), and the detector, which holds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes of one image, best first."""

    boxes: np.ndarray
    """Boxes, float32[N, 4] xyxy original px."""
    scores: np.ndarray
    """Scores in [0, 1], float32[N]."""


@dataclass(frozen=True, kw_only=True)
class DetectorInput:
    """One image to look at."""

    image_id: str
    """Name of the image; it seeds detectors that draw."""
    image: Image.Image
    """The image, decoded, upright, RGB."""
    known: Detections | None = None
    """Boxes that are known before anybody looks, for detectors whose config `needs` them.

    Annotated objects without ignore regions (score 1), or boxes from a file.
    """


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image as a detector wants it."""

    image_id: str
    """Name of the image, as in `DetectorInput`."""
    width: int
    """Width of the original image, px."""
    height: int
    """Height of the original image, px."""
    pixels: np.ndarray | None = None
    """RGB, uint8 or float32[3, H, W]; None for detectors that look at no image."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Px of `pixels` per px of the original image, (x, y); padding lies right and below."""
    known: Detections | None = None
    """Boxes that are known before anybody looks, as in `DetectorInput`."""


Prepare = Callable[[DetectorInput], Prepared]
"""Function that makes an image ready; picklable, without weights, blind to what is beside it."""


class Detector(Protocol):
    """What finds boxes: it holds its weights and keeps no state between calls."""

    @property
    def prepare(self) -> Prepare:
        """Preparation that its images must go through first."""

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, at most `selection.max_boxes`, in `batch`'s order.

        An image's result does not depend on the others of its batch.
        """


def as_known(boxes: object, scores: object = None) -> Detections:
    """Return known boxes float32[N, 4] with scores float32[N]; without scores all have 1."""
    rows = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    values = np.ones(len(rows)) if scores is None else scores
    return Detections(boxes=rows, scores=np.asarray(values, dtype=np.float32).reshape(-1))


def without_pixels(item: DetectorInput) -> Prepared:
    """Prepare an image for a detector that does not look at it."""
    width, height = item.image.size
    return Prepared(image_id=item.image_id, width=width, height=height, known=item.known)


def with_all_pixels(item: DetectorInput) -> Prepared:
    """Prepare an image for a detector that scales it itself: all its pixels, uint8."""
    width, height = item.image.size
    pixels = np.ascontiguousarray(np.asarray(item.image.convert("RGB")).transpose(2, 0, 1))
    return Prepared(
        image_id=item.image_id, width=width, height=height, pixels=pixels, known=item.known
    )
