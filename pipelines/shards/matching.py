"""Proposals and annotated objects of one image, matched one to one. Pure.

What is matched here is the same for every question about the image, so it is done once for all of
them; the regions of one example are chosen from it in `pipelines.shards.assign`.

Boxes are xyxy in pixels of the original image. G: objects, T: merged objects, P: proposals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.boxes import Frame, area, clip, intersection, iou_matrix
from pipelines.shards.config import AssignConfig

MIN_SIDE_PX = 1.0
"""Shortest side of a box that shows anything."""
MIN_KEPT_SHARE = 0.5
"""A proposal of which the frame holds less of its area is none of the frame. ours"""


@dataclass(frozen=True)
class Candidate:
    """A box that may become a region of an example."""

    box: np.ndarray
    score: float | None  # None: injected
    group: int | None  # the merged object that it stands for
    priority: tuple[int, float, int]  # what the budget keeps first: smallest


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Proposals and objects of one image or window, matched; the same for every question."""

    proposals: np.ndarray
    """Cleaned proposals, float32[P, 4]."""
    scores: np.ndarray
    """Scores of the proposals, float32[P]."""
    truth: np.ndarray
    """One box for each merged object, float32[T, 4]."""
    groups: list[list[int]]
    """Objects that each merged object stands for."""
    ignore: np.ndarray
    """Whether each object is a crowd or don't-care region, bool[G]."""
    proposal_of: dict[int, int]
    """Proposal of each merged object that has one."""
    background: tuple[Candidate, ...]
    """Proposals that are neither matched nor ambiguous."""


def match_image(
    *,
    frame: Frame,
    proposals: np.ndarray,
    scores: np.ndarray,
    objects: np.ndarray,
    ignore: np.ndarray,
    config: AssignConfig,
) -> Matching:
    """Clean, merge and match what an image shows.

    Args:
        frame: The image or a window into it.
        proposals: float32[P, 4], as the detector gave them.
        scores: float32[P].
        objects: float32[G, 4], the annotated boxes.
        ignore: bool[G], which of them are crowd or don't-care regions.
        config: The rules.
    """
    proposals, scores = _clean_proposals(proposals, scores, frame)
    groups = _merge(objects, ignore, config.merge_iou)
    truth = clip(
        np.array([objects[group[0]] for group in groups], np.float32).reshape(-1, 4), frame
    )
    overlap = iou_matrix(truth, proposals)
    proposal_of = match(overlap, config.match_iou)
    return Matching(
        proposals=proposals,
        scores=scores,
        truth=truth,
        groups=groups,
        ignore=ignore,
        proposal_of=proposal_of,
        background=tuple(
            Candidate(proposals[i], float(scores[i]), None, (3, -float(scores[i]), int(i)))
            for i in _background(proposals, objects[ignore], overlap, proposal_of, config)
        ),
    )


def _background(
    proposals: np.ndarray,
    ignored: np.ndarray,
    overlap: np.ndarray,
    proposal_of: dict[int, int],
    config: AssignConfig,
) -> np.ndarray:
    """Return which unmatched proposals are no object's duplicate and in no ignore region."""
    keep = np.ones(len(proposals), bool)
    keep[list(proposal_of.values())] = False
    if config.duplicates != "keep" and len(overlap):
        lenient = config.duplicates == "keep_as_negative"
        keep &= overlap.max(0) < (max(0.5, config.match_iou) if lenient else config.match_iou)
    if config.ignore_overlap is not None and len(ignored) and len(proposals):
        # A matched proposal stays: people are annotated one by one in front of a crowd, too.
        inside = intersection(proposals, ignored) / area(proposals)[:, None]
        keep &= inside.max(1) < config.ignore_overlap
    return np.flatnonzero(keep)


def match(overlap: np.ndarray, threshold: float) -> dict[int, int]:
    """Match rows to columns one to one, with the greatest sum of IoU.

    Args:
        overlap: float[T, P], IoU of objects and proposals.
        threshold: Least IoU of a pair.

    Returns:
        The proposal of each object that has one.
    """
    # Slow to import, and `fo1 plan` needs only the config.
    from scipy.optimize import linear_sum_assignment

    # Pairs below the threshold are worth nothing, so that none is chosen at the cost of a good one.
    valid = np.where(overlap >= threshold, overlap, 0.0)
    rows, columns = linear_sum_assignment(valid, maximize=True)
    return {
        int(r): int(c) for r, c in zip(rows, columns, strict=True) if overlap[r, c] >= threshold
    }


def _clean_proposals(
    boxes: np.ndarray, scores: np.ndarray, frame: Frame
) -> tuple[np.ndarray, np.ndarray]:
    """Return the proposals that lie in the frame, cut at its borders, and their scores."""
    keep = np.isfinite(boxes).all(1) & np.isfinite(scores)
    boxes, scores = boxes[keep], scores[keep]
    inside = clip(boxes, frame)
    keep = (inside[:, 2:] - inside[:, :2] >= MIN_SIDE_PX).all(1)
    keep &= area(inside) >= MIN_KEPT_SHARE * area(boxes)
    return inside[keep], scores[keep]


def _merge(objects: np.ndarray, ignore: np.ndarray, threshold: float) -> list[list[int]]:
    """Return the groups of objects that are one region, found by union-find.

    Each group is sorted; they come in the order of their first members.
    """
    parent = list(range(len(objects)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    counted = np.flatnonzero(~ignore)
    overlap = iou_matrix(objects[counted], objects[counted])
    for a, b in np.argwhere(np.triu(overlap >= threshold, 1)):
        left, right = root(int(counted[a])), root(int(counted[b]))
        parent[max(left, right)] = min(left, right)
    groups: dict[int, list[int]] = {}
    for index in counted:
        groups.setdefault(root(int(index)), []).append(int(index))
    return list(groups.values())
