"""What every detector takes and gives. Boxes are xyxy, absolute pixels of the original image, float32.

Looking at an image has two halves, which may run in different processes: a **preparation** on a CPU, which
needs no weights (`Prepare`), and the detector, which holds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes of one image, best first: boxes float32[N, 4], scores float32[N] in [0, 1]."""

    boxes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, kw_only=True)
class DetectorInput:
    """One image to look at.

    image_id: seeds detectors that draw. image: decoded, upright, RGB.
    known: boxes that are known before anybody looks, for detectors whose config `needs` them: annotated
    objects without ignore regions (score 1), or boxes from a file.
    """

    image_id: str
    image: Image.Image
    known: Detections | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image as a detector wants it.

    image_id, known: as in `DetectorInput`. width, height: of the original image, px.
    pixels: uint8 or float32[3, H, W], RGB; None for detectors that look at no picture.
    scale: (x, y), px of `pixels` per px of the original image; padding lies right and below.
    """

    image_id: str
    width: int
    height: int
    pixels: np.ndarray | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    known: Detections | None = None


Prepare = Callable[[DetectorInput], Prepared]
"""Makes an image ready; picklable, without weights, the same for an image whatever is beside it."""


class Detector(Protocol):
    """Holds its weights, keeps no state between calls."""

    @property
    def prepare(self) -> Prepare:
        """What its images must go through first."""

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Proposals of each image, at most `selection.max_boxes`, in the order of `batch`.

        An image's result does not depend on the others of its batch.
        """


def as_known(boxes: object, scores: object = None) -> Detections:
    """Known boxes float32[N, 4] with their scores float32[N]; without scores all have 1."""
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
