"""Two sets of proposals: how far they agree, how well scores tell hits from misses, which pictures differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Scene
from pipelines.evaluation.metrics.matching import greedy_pairs
from pipelines.evaluation.metrics.proposals import Proposed

IOU = 0.5
"""From here on two boxes show the same thing, and a box has hit an object."""
CLOSE_IOU = 0.75
"""From here on two boxes lie close to each other (COCO's AP75)."""
BINS = 10
"""Bins of a score in 0..1, of equal width."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two detectors give the same boxes of the same pictures, whatever is annotated."""

    images: int
    """Pictures that both looked at."""
    boxes: tuple[int, int]
    """Boxes of the first and of the second."""
    matched: int
    """Pairs of boxes from IoU 0.5 on, one to one, largest overlap first."""
    matched_closely: int
    """Those from IoU 0.75 on."""
    mean_iou: float | None
    """Of the pairs; None without any."""

    def shares(self, matched: int) -> tuple[float | None, float | None]:
        """The part of the first's and of the second's boxes that so many pairs are; None without boxes."""
        first, second = (matched / number if number else None for number in self.boxes)
        return first, second


def agreement(
    pairs: Iterable[tuple[Proposed, Proposed]], tops: Sequence[int | None] = (None,)
) -> list[Agreement]:
    """Compare the boxes of two detectors, picture by picture, in one pass.

    pairs: the first's and the second's proposals of one picture, for each that both looked at.
    tops: for each entry an `Agreement` over the so many best boxes of a picture; None takes all.
    """
    images = 0
    boxes = np.zeros((len(tops), 2), np.int64)
    counts = np.zeros((len(tops), 2), np.int64)  # pairs, close pairs
    total = np.zeros(len(tops))
    for first, second in pairs:
        images += 1
        overlap = iou_matrix(first.boxes, second.boxes)
        for index, top in enumerate(tops):
            part = overlap[:top, :top]
            matched = np.array([part[pair] for pair in greedy_pairs(part, IOU)])
            boxes[index] += part.shape
            counts[index] += len(matched), int((matched >= CLOSE_IOU).sum())
            total[index] += matched.sum()
    return [
        Agreement(
            images=images,
            boxes=(int(boxes[index, 0]), int(boxes[index, 1])),
            matched=int(counts[index, 0]),
            matched_closely=int(counts[index, 1]),
            mean_iou=float(total[index] / counts[index, 0]) if counts[index, 0] else None,
        )
        for index in range(len(tops))
    ]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well a detector's scores tell boxes that hit an object from those that do not.

    A box is a hit when it overlaps any true box from IoU 0.5 on: a second box on the same object is one too.
    """

    boxes: int
    """Boxes judged."""
    hits: float | None
    """Share of them that hit; None without boxes, as below."""
    counts: np.ndarray
    """int64[10]: boxes by bin of score. All 0 when a score lies outside 0..1 and so is no probability."""
    bin_scores: np.ndarray
    """float64[10]: mean score of each bin; NaN where it is empty."""
    bin_hits: np.ndarray
    """float64[10]: share of hits in each bin; NaN where it is empty."""
    error: float | None
    """Expected calibration error: mean |score - hits| of the bins, weighted by their boxes. None without any,
    or with a score outside 0..1."""
    rank_correlation: float | None
    """Spearman's, of score and best IoU; None when either is the same for all boxes."""


def calibration(scenes: Sequence[Scene], proposals: Iterable[Proposed]) -> Calibration:
    """Evaluator the scores of the proposals of some pictures; others' are left out.

    On a picture without objects every box is a miss. A box that hits no object, but lies by half or more in
    a crowd, is left out, as in COCO's evaluation.
    """
    truth = {scene.image_id: scene for scene in scenes}
    judged = [_judge(truth[p.image_id], p) for p in proposals if p.image_id in truth]
    scores = np.concatenate([score for score, _ in judged] or [np.zeros(0)]).astype(np.float64)
    overlap = np.concatenate([best for _, best in judged] or [np.zeros(0)])
    hits = overlap >= IOU
    inside = bool(((scores >= 0) & (scores <= 1)).all())
    bins = (
        np.minimum((scores * BINS).astype(np.int64), BINS - 1) if inside else np.zeros(0, np.int64)
    )
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin
        bin_scores = np.bincount(bins, scores if inside else None, BINS) / counts
        bin_hits = np.bincount(bins, hits if inside else None, BINS) / counts
    gaps = np.abs(bin_scores - bin_hits)[counts > 0]
    return Calibration(
        boxes=len(scores),
        hits=float(hits.mean()) if len(hits) else None,
        counts=counts,
        bin_scores=bin_scores,
        bin_hits=bin_hits,
        error=float(np.average(gaps, weights=counts[counts > 0])) if counts.any() else None,
        rank_correlation=rank_correlation(scores, overlap),
    )


def _judge(scene: Scene, proposed: Proposed) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32[N] of the boxes judged, and the best IoU float64[N] of each with an object."""
    ignore = np.array(scene.ignore, bool)
    best = iou_matrix(proposed.boxes, scene.boxes[~ignore]).max(axis=1, initial=0.0)
    crowds = iou_matrix(proposed.boxes, scene.boxes[ignore], others_are_crowds=True)
    judged = (best >= IOU) | (crowds.max(axis=1, initial=0.0) < IOU)
    return proposed.scores[judged], best[judged]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's coefficient of two float[N], ties sharing their mean rank; None when either is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How many of a picture's objects two detectors find."""

    scene: Scene
    """Its truth."""
    proposed: tuple[Proposed, Proposed]
    """The first's and the second's proposals."""
    objects: int
    """Objects, crowds aside."""
    found: tuple[int, int]
    """Those found by the first's and by the second's boxes, one to one from IoU 0.5 on."""
    shown: int
    """Number of best boxes of each that are worth drawing."""
    found_shown: tuple[int, int]
    """Objects found by these alone."""


def most_different(
    scenes: Sequence[Scene],
    first: Mapping[str, Proposed],
    second: Mapping[str, Proposed],
    number: int,
) -> list[Difference]:
    """Choose the pictures whose recall at IoU 0.5 differs most between two detectors.

    first, second: proposals by image_id; pictures that one of them lacks, or without objects, are left out.
    Equal ones are ordered by the recall of the boxes worth drawing (twice the objects, at least ten), then
    by a hash of the image_id, so that the choice favours nothing and is the same every time.
    """

    def order(item: Difference) -> tuple[float, float, bytes]:
        gap, gap_shown = (abs(a - b) / item.objects for a, b in (item.found, item.found_shown))
        return -gap, -gap_shown, hashlib.sha256(item.scene.image_id.encode()).digest()

    kept: list[Difference] = []
    for scene in scenes:
        pair = first.get(scene.image_id), second.get(scene.image_id)
        if pair[0] is not None and pair[1] is not None and not all(scene.ignore):
            kept.append(_difference(scene, (pair[0], pair[1])))
    return sorted(kept, key=order)[:number]


def _difference(scene: Scene, proposed: tuple[Proposed, Proposed]) -> Difference:
    objects = scene.boxes[~np.array(scene.ignore, bool)]
    shown = max(10, 2 * len(objects))
    found, found_shown = (
        tuple(len(greedy_pairs(iou_matrix(p.boxes[:top], objects), IOU)) for p in proposed)
        for top in (None, shown)
    )
    return Difference(
        scene=scene,
        proposed=proposed,
        objects=len(objects),
        found=(found[0], found[1]),
        shown=shown,
        found_shown=(found_shown[0], found_shown[1]),
    )
