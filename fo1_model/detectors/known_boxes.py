"""Boxes that are known already as proposals: annotated ones, exact or jittered, or a file's."""

from collections.abc import Sequence

import numpy as np
import torch

from fo1_model.boxes import iou
from fo1_model.detectors.configs import BoxFileConfig, GroundTruthConfig, GroundTruthJitterConfig
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import Detections, Prepare, Prepared, without_pixels
from fo1_model.seeds import seed_of

KnownBoxesConfig = GroundTruthConfig | GroundTruthJitterConfig | BoxFileConfig
"""Config of a detector whose boxes are known before anybody looks."""
DISTRACTOR_SIDES = (0.08, 0.6)
"""Range of a distractor's sides as a share of the image's, drawn log-uniformly."""
SCORE_NOISE = 0.15
"""Share of a score that is noise; the rest is the box's IoU with its nearest object."""


class KnownBoxesDetector:
    """A detector that gives back the known boxes of each image.

    An image that comes without them is a ValueError that names it.
    """

    def __init__(
        self,
        config: KnownBoxesConfig,
        checkpoint: None = None,  # noqa: ARG002
        device: str = "cpu",  # noqa: ARG002
    ) -> None:
        self.config, self.prepare = config, preparation(config)

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return [self._detect(item) for item in batch]

    def _detect(self, item: Prepared) -> Detections:
        """Return the known boxes of one image that the selection keeps."""
        if item.known is None:
            raise ValueError(
                f"image {item.image_id}: {type(self.config).__name__} needs its boxes "
                "(empty if none)"
            )
        boxes, scores = item.known.boxes, item.known.scores
        if isinstance(self.config, GroundTruthJitterConfig):
            boxes, scores = jittered(boxes, item.width, item.height, item.image_id, self.config)
        return select(
            boxes, scores, width=item.width, height=item.height, selection=self.config.selection
        )


def preparation(_: KnownBoxesConfig, checkpoint: None = None) -> Prepare:  # noqa: ARG001
    """Return the CPU half of the detector, as `fo1_model.detectors.preparation`."""
    return without_pixels


def jittered(
    objects: np.ndarray, width: int, height: int, image_id: str, config: GroundTruthJitterConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return moved objects and distractors, with scores that mostly follow IoU.

    The draws depend on the seed and the image id alone, not on batch or worker.

    Args:
        objects: The annotated boxes, float32[M, 4] xyxy px.
        width: Width of the image, px.
        height: Height of the image, px.
        image_id: Draws, together with the config's seed.
        config: How far objects move, how many are missed, how many distractors there are.

    Returns:
        Boxes float32[N, 4] xyxy px and scores float32[N].
    """
    rng = np.random.default_rng(seed_of(config.seed, image_id))
    found = objects[rng.random(len(objects)) >= config.miss_rate]
    sides = np.tile(found[:, 2:] - found[:, :2], 2)
    moved = found + rng.uniform(-config.jitter, config.jitter, found.shape) * sides
    low, high = np.log(DISTRACTOR_SIDES)
    size = np.array([width, height])
    distractor_sides = np.exp(rng.uniform(low, high, (config.num_distractors, 2))) * size
    corners = rng.random((config.num_distractors, 2)) * (size - distractor_sides)
    distractors = np.concatenate([corners, corners + distractor_sides], 1)
    boxes = np.concatenate([moved, distractors]).astype(np.float32)
    quality = np.zeros(len(boxes))
    if len(objects):
        overlaps = iou(
            torch.from_numpy(boxes), torch.from_numpy(np.array(objects, dtype=np.float32))
        )
        quality = overlaps.amax(1).numpy()
    scores = (1 - SCORE_NOISE) * quality + SCORE_NOISE * rng.random(len(boxes))
    return boxes, scores.astype(np.float32)
