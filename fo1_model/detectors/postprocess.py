"""From a detector's raw boxes to proposals: one selection for every detector."""

import numpy as np
import torch
from torchvision.ops import nms

from fo1_model.boxes import clip
from fo1_model.detectors.configs import Selection
from fo1_model.detectors.protocol import Detections

MIN_SIDE_PX = 1.0
"""Boxes with a shorter side after clipping are dropped."""


def select(
    boxes: np.ndarray, scores: np.ndarray, *, width: int, height: int, selection: Selection
) -> Detections:
    """Clip, drop, sort, suppress, cut; the inputs are left as they are.

    The order of work: boxes that are not finite are dropped, the others clipped to the image; sides
    under 1 px and scores under the floor are dropped; the rest is sorted by score (ties by original
    position) and goes through class-agnostic NMS; the best `max_boxes` stay.

    Args:
        boxes: float32[N, 4], xyxy original px.
        scores: float32[N].
        width: Width of the image, px.
        height: Height of the image, px.
        selection: Score floor, NMS threshold and number of boxes.

    Raises:
        ValueError: The lengths of boxes and scores differ.
    """
    box = torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    score = torch.from_numpy(np.array(scores, dtype=np.float32).reshape(-1))
    if len(box) != len(score):
        raise ValueError(f"select: {len(box)} boxes but {len(score)} scores")
    finite = box.isfinite().all(1) & score.isfinite()
    box, score = box[finite], score[finite]
    box = clip(box, width, height)
    kept = ((box[:, 2:] - box[:, :2]) >= MIN_SIDE_PX).all(1) & (score >= selection.score_min)
    box, score = box[kept], score[kept]
    order = torch.argsort(score, descending=True, stable=True)
    box, score = box[order], score[order]
    if selection.nms_iou is not None:
        # The order among ties is ours to keep: nms promises none.
        kept = nms(box, score, selection.nms_iou).sort().values
        box, score = box[kept], score[kept]
    box, score = box[: selection.max_boxes], score[: selection.max_boxes]
    return Detections(boxes=box.numpy(), scores=score.numpy())
