"""Two sets of proposals beside each other, and the scores of one against the truth.

`agreement` asks how far two detectors give the same boxes, `calibration` how well scores tell hits
from misses, `most_different` which images are worth a look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

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
    """How far two detectors give the same boxes of the same images, whatever is annotated."""

    images: int
    """Images that both looked at."""
    boxes: tuple[int, int]
    """Boxes of the first and of the second."""
    matched: int
    """Pairs of boxes from IoU 0.5 on, one to one, largest overlap first."""
    matched_closely: int
    """Pairs of these from IoU 0.75 on."""
    mean_iou: float | None
    """Mean IoU of the pairs; None without any."""

    def shares(self, matched: int) -> tuple[float | None, float | None]:
        """Return `matched` as shares of the first's and the second's boxes; None without boxes."""
        first, second = (matched / number if number else None for number in self.boxes)
        return first, second


def agreement(
    pairs: Iterable[tuple[Proposed, Proposed]], tops: Sequence[int | None] = (None,)
) -> list[Agreement]:
    """Compare the boxes of two detectors, image by image, in one pass.

    Args:
        pairs: The first's and the second's proposals of one image, for each that both looked at.
        tops: Numbers of best boxes an image to compare; None takes all.

    Returns:
        An `Agreement` for each entry of `tops`.
    """
    images = 0
    boxes = np.zeros((len(tops), 2), np.int64)
    counts = np.zeros((len(tops), 2), np.int64)  # pairs, close pairs
    total = np.zeros(len(tops))
    for first, second in pairs:
        images += 1
        overlap = iou_matrix(first.boxes, second.boxes)
        for index, top in enumerate(tops):
            # Proposals come best first, so a corner of the matrix is the best of both.
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

    A box is a hit when it overlaps any true box from IoU 0.5 on: a second box on the same object is
    one too.
    """

    boxes: int
    """Number of boxes judged."""
    hits: float | None
    """Share of the boxes that hit; None without boxes."""
    counts: np.ndarray
    """int64[10]: boxes by bin of score.

    All 0 when a score lies outside 0..1 and so is no probability.
    """
    bin_scores: np.ndarray
    """float64[10]: mean score of each bin; NaN where it is empty."""
    bin_hits: np.ndarray
    """float64[10]: share of hits in each bin; NaN where it is empty."""
    error: float | None
    """Expected calibration error: mean |score - hits| of the bins, weighted by their boxes.

    None without boxes, or with a score outside 0..1.
    """
    rank_correlation: float | None
    """Spearman's coefficient of score and best IoU; None when either is the same for all boxes."""


def calibration(scenes: Sequence[Scene], proposals: Iterable[Proposed]) -> Calibration:
    """Judge the scores of a detector against the truth.

    On an image without objects every box is a miss. A box that hits no object, but lies by half or
    more in a crowd, is left out, as in COCO's evaluation.

    Args:
        scenes: Truth of the images to judge.
        proposals: The detector's boxes; those of other images are left out.

    Returns:
        Hits, bins and rank correlation over all boxes judged.
    """
    truth = {scene.image_id: scene for scene in scenes}
    judged = [_judge(truth[p.image_id], p) for p in proposals if p.image_id in truth]
    scores = np.concatenate([score for score, _ in judged] or [np.zeros(0)]).astype(np.float64)
    overlap = np.concatenate([best for _, best in judged] or [np.zeros(0)])
    hits = overlap >= IOU
    # A detector may score by logits or distances: those have no bins, but they still rank.
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
    """Return the scores float32[N] of the boxes judged, and their best IoU float64[N]."""
    ignore = np.array(scene.ignore, bool)
    best = iou_matrix(proposed.boxes, scene.boxes[~ignore]).max(axis=1, initial=0.0)
    crowds = iou_matrix(proposed.boxes, scene.boxes[ignore], others_are_crowds=True)
    # Hits first: a box on an object counts, whatever crowd is around it.
    judged = (best >= IOU) | (crowds.max(axis=1, initial=0.0) < IOU)
    return proposed.scores[judged], best[judged]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Compute Spearman's coefficient of two float[N], ties sharing their mean rank.

    None for fewer than two values, or when either side is the same throughout: there the
    coefficient is 0 / 0, and scipy would answer NaN with a warning, which no page can show.
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How many of an image's objects two detectors find."""

    scene: Scene
    """Truth of the image."""
    proposed: tuple[Proposed, Proposed]
    """The first's and the second's proposals."""
    objects: int
    """Number of objects, crowds aside."""
    found: tuple[int, int]
    """Objects found by the first's and by the second's boxes, one to one from IoU 0.5 on."""
    shown: int
    """Number of best boxes of each detector that are worth drawing."""
    found_shown: tuple[int, int]
    """Objects found by the boxes worth drawing alone."""


def most_different(
    scenes: Sequence[Scene],
    first: Mapping[str, Proposed],
    second: Mapping[str, Proposed],
    number: int,
) -> list[Difference]:
    """Choose the images whose recall at IoU 0.5 differs most between two detectors.

    Equal ones are ordered by the recall of the boxes worth drawing (twice the objects, at least
    ten), then by a hash of the image_id, so that the choice favours nothing and is the same every
    time.

    Args:
        scenes: Truth of the images; those without objects are left out.
        first: The first detector's proposals by image_id.
        second: The second's; images that either lacks are left out.
        number: Most images to choose.

    Returns:
        The chosen images, largest difference first.
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
