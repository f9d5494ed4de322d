"""Several detectors as one: the boxes of all, with their own scores, and one more selection."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fo1_model.detectors.configs import UnionConfig
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import (
    Detections,
    Detector,
    DetectorInput,
    Prepared,
    with_all_pixels,
)


class UnionDetector:
    """Detectors that look at the same image one after the other, each in its own preparation."""

    def __init__(self, config: UnionConfig, members: Sequence[Detector]) -> None:
        self.config, self.members = config, tuple(members)
        self.prepare = with_all_pixels

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        inputs = [_input(item) for item in batch]
        found = [
            member.detect([member.prepare(item) for item in inputs]) for member in self.members
        ]
        return [
            select(
                np.concatenate([one.boxes for one in of_image]),
                np.concatenate([one.scores for one in of_image]),
                width=item.width,
                height=item.height,
                selection=self.config.selection,
            )
            for item, of_image in zip(batch, zip(*found, strict=True), strict=True)
        ]


def _input(item: Prepared) -> DetectorInput:
    """Return the image as it was before its preparation, which kept all pixels."""
    if item.pixels is None:
        raise ValueError(f"image {item.image_id}: a union needs its pixels")
    image = Image.fromarray(np.ascontiguousarray(item.pixels.transpose(1, 2, 0)))
    return DetectorInput(image_id=item.image_id, image=image, known=item.known)
