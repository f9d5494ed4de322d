"""What every detector takes and gives. Boxes are xyxy, absolute pixels of the original image, float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class DetectorInput:
    """One image to look at.

    image_id: seeds detectors that draw. image: decoded, upright, RGB.
    objects: float32[N, 4] annotated boxes without ignore regions; only the ground-truth detectors need them.
    """

    image_id: str
    image: Image.Image
    objects: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes of one image, best first: boxes float32[N, 4], scores float32[N] in [0, 1]."""

    boxes: np.ndarray
    scores: np.ndarray


class Detector(Protocol):
    """A batch callable; holds its weights, keeps no state between calls."""

    def detect(self, batch: Sequence[DetectorInput]) -> list[Detections]:
        """One Detections an input, in order, already selected. An image's result depends
        on the rest of the batch by float rounding at most."""
        ...
