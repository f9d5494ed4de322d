"""Annotated boxes as proposals: exact, or jittered among distractors. No weights, no training."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from fo1_model.boxes import iou
from fo1_model.detectors.configs import GroundTruthConfig, GroundTruthJitterConfig
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import Detections, DetectorInput

DISTRACTOR_SIDES = (0.08, 0.6)
"""Range of a distractor's sides as a share of the image's, drawn log-uniformly."""
SCORE_NOISE = 0.15
"""Share of a score that is noise; the rest is the box's IoU with its nearest object."""


class GroundTruthDetector:
    """Gives back the objects of each input; raises ValueError naming the image when it has none attached."""

    def __init__(self, config: GroundTruthConfig | GroundTruthJitterConfig) -> None:
        self.config = config

    def detect(self, batch: Sequence[DetectorInput]) -> list[Detections]:
        """See `Detector.detect`."""
        return [self._detect(item) for item in batch]

    def _detect(self, item: DetectorInput) -> Detections:
        if item.objects is None:
            raise ValueError(
                f"image {item.image_id}: a ground-truth detector needs its objects (empty if none)"
            )
        boxes = np.array(item.objects, dtype=np.float32).reshape(-1, 4)
        width, height = item.image.size
        scores = np.ones(len(boxes), dtype=np.float32)
        if isinstance(self.config, GroundTruthJitterConfig):
            boxes, scores = jittered(boxes, width, height, item.image_id, self.config)
        return select(boxes, scores, width=width, height=height, selection=self.config.selection)


def jittered(
    objects: np.ndarray, width: int, height: int, image_id: str, config: GroundTruthJitterConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Moved objects and distractors: boxes float32[N, 4] xyxy px, scores float32[N] that mostly follow IoU.

    The draws depend on the seed and the image id alone, not on batch or worker.
    """
    digest = hashlib.sha256(f"{config.seed}:{image_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
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
        overlaps = iou(torch.from_numpy(boxes), torch.from_numpy(np.array(objects, dtype=np.float32)))
        quality = overlaps.amax(1).numpy()
    scores = (1 - SCORE_NOISE) * quality + SCORE_NOISE * rng.random(len(boxes))
    return boxes, scores.astype(np.float32)
