"""From proposals and annotated objects to the regions of one example: where region indices are born. Pure.

The rules are ours (the paper says only "top 100 proposals", 3.1): one-to-one matching at an IoU threshold,
ambiguous duplicates dropped, referenced objects without a proposal injected, a budget that never cuts a
referenced object, a seeded order.

Boxes are xyxy in pixels of the original image. G: objects, P: proposals, N: regions of the example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataset_builders.records import BadRecord
from pipelines.boxes import Frame, area, clip, intersection, iou_matrix
from pipelines.schemas import GROUND_TRUTH, PROPOSAL

MIN_SIDE_PX = 1.0


@dataclass(frozen=True, kw_only=True)
class AssignConfig:
    """How proposals and objects become regions. The defaults are for training."""

    match_iou: float = 0.5
    """Least IoU of an object and its proposal (0.7 suits text boxes, whose neighbours are close). ours"""
    max_regions: int = 100
    """Budget of regions (paper 3.1: at most 100)."""
    duplicates: Literal["drop", "keep_as_negative", "keep"] = "drop"
    """What to do with an unmatched proposal of IoU >= match_iou to an object: ``drop`` it, so that an
    answer is complete and names nothing twice; ``keep_as_negative`` drops it from IoU 0.5 on; ``keep`` for
    evaluation."""
    inject: bool = True
    """Add objects that no proposal covers. Objects that a question points at are added in any case."""
    p_ground_truth: float = 0.2
    """Probability that a matched region gets the annotated box instead of the proposal's. ours"""
    ignore_overlap: float | None = 0.5
    """Drop an unmatched proposal when this share of its area lies in an ignore region; None keeps all."""
    merge_iou: float = 0.95
    """Objects that overlap so much are one region with several labels (as MDETR's flickr_combined.py)."""
    order: Literal["shuffle", "score"] = "shuffle"
    """Order of regions: a seeded permutation, or descending score with unscored boxes last."""

    def __post_init__(self) -> None:
        for name in ("match_iou", "merge_iou"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no IoU threshold: use a value in (0, 1]"
                )
        if not 0.0 <= self.p_ground_truth <= 1.0:
            raise ValueError(f"p_ground_truth={self.p_ground_truth} is no probability: use 0 to 1")
        if self.max_regions < 1:
            raise ValueError(f"max_regions={self.max_regions}: use at least 1")


def evaluation_config(max_regions: int = 100, match_iou: float = 0.5) -> AssignConfig:
    """Config of evaluation: the proposals as they are, by score; nothing injected, dropped or replaced."""
    return AssignConfig(
        match_iou=match_iou,
        max_regions=max_regions,
        duplicates="keep",
        inject=False,
        p_ground_truth=0.0,
        ignore_overlap=None,
        order="score",
    )


MIN_KEPT_SHARE = 0.5
"""A proposal of which the frame holds less of its area is none of the frame. ours"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """Regions of one example, and which object each stands for."""

    boxes: np.ndarray
    """float32[N, 4]."""
    scores: tuple[float | None, ...]
    """Detector confidence by region; None for an injected object."""
    sources: tuple[str, ...]
    """``proposal`` or ``gt`` by region."""
    region_of: dict[int, int]
    """Object -> region; objects that were merged share one; an object that has no region is not a key."""
    num_objects: int
    """Distinct objects that are no ignore regions, after merging."""
    num_matched: int
    """How many of them a proposal covers at `match_iou`."""
    num_injected: int
    """How many regions were injected."""


NO_REGIONS = Assignment(
    boxes=np.zeros((0, 4), np.float32),
    scores=(),
    sources=(),
    region_of={},
    num_objects=0,
    num_matched=0,
    num_injected=0,
)
"""Of an example without any region."""


@dataclass(frozen=True)
class _Candidate:
    box: np.ndarray
    score: float | None  # None: injected
    group: int | None  # the merged object it stands for
    priority: tuple[int, float, int]  # what the budget keeps first: smallest


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Proposals and objects of one image or window, matched: the same for every question about it."""

    found: np.ndarray
    """float32[P, 4]: cleaned proposals."""
    scores: np.ndarray
    """float32[P]."""
    truth: np.ndarray
    """float32[T, 4]: one box a merged object."""
    groups: list[list[int]]
    """Merged object -> the objects it stands for."""
    ignore: np.ndarray
    """bool[G]: crowd and don't-care regions among the objects."""
    proposal_of: dict[int, int]
    """Merged object -> its proposal."""
    background: tuple[_Candidate, ...]
    """Proposals that are neither matched nor ambiguous."""


def meet(
    *,
    frame: Frame,
    proposals: np.ndarray,
    scores: np.ndarray,
    objects: np.ndarray,
    ignore: np.ndarray,
    config: AssignConfig,
) -> Matching:
    """Clean, merge and match what an image shows.

    frame: the image or a window. proposals: float32[P, 4]; scores: float32[P].
    objects: float32[G, 4]; ignore: bool[G], crowd and don't-care regions.
    """
    found, found_scores = _clean_proposals(proposals, scores, frame)
    groups = _merge(objects, ignore, config.merge_iou)
    truth = clip(
        np.array([objects[group[0]] for group in groups], np.float32).reshape(-1, 4), frame
    )
    overlap = iou_matrix(truth, found)
    proposal_of = match(overlap, config.match_iou)
    return Matching(
        found=found,
        scores=found_scores,
        truth=truth,
        groups=groups,
        ignore=ignore,
        proposal_of=proposal_of,
        background=tuple(
            _Candidate(found[i], float(found_scores[i]), None, (3, -float(found_scores[i]), int(i)))
            for i in _background(found, objects[ignore], overlap, proposal_of, config)
        ),
    )


def assign(
    met: Matching,
    *,
    sample_id: str,
    referenced: Collection[int],
    pointed_at: Collection[int],
    config: AssignConfig,
    seed: int = 0,
) -> Assignment:
    """Choose and order the regions of one example.

    sample_id: seeds the draws, together with `seed`.
    referenced: objects that the conversation names; each gets a region when `config.inject` is set.
    pointed_at: objects that a question names; each gets a region with its annotated box, always.
    Raises BadRecord ``too_many_regions`` when the budget cannot hold what must be kept, ``empty_box`` when a
    referenced object has no area inside the image, and ValueError when an ignore region is referenced.
    """
    generator = _generator(sample_id, seed)
    pointed = [not set(pointed_at).isdisjoint(group) for group in met.groups]
    must = [
        points or (config.inject and not set(referenced).isdisjoint(group))
        for points, group in zip(pointed, met.groups, strict=True)
    ]
    _check_named(
        sample_id, {*referenced, *pointed_at}, met.ignore, met.truth[must], config.max_regions
    )
    candidates = _candidates(met, pointed, must, config, generator)
    kept = sorted(candidates, key=lambda c: c.priority)[: config.max_regions]
    if config.order == "score":
        kept.sort(key=lambda c: (c.score is None, -(c.score or 0.0), c.priority))
    else:
        kept = [kept[i] for i in generator.permutation(len(kept))]
    return Assignment(
        boxes=np.array([c.box for c in kept], np.float32).reshape(-1, 4),
        scores=tuple(c.score for c in kept),
        sources=tuple(PROPOSAL if c.score is not None else GROUND_TRUTH for c in kept),
        region_of={
            member: region
            for region, candidate in enumerate(kept)
            if candidate.group is not None
            for member in met.groups[candidate.group]
        },
        num_objects=len(met.groups),
        num_matched=len(met.proposal_of),
        num_injected=sum(c.score is None for c in kept),
    )


def _check_named(
    sample_id: str, named: set[int], ignore: np.ndarray, must_keep: np.ndarray, max_regions: int
) -> None:
    """Refuse a conversation about ignore regions, about objects off the image, or about too many objects."""
    wrong = sorted(index for index in named if ignore[index])
    if wrong:
        raise ValueError(f"{sample_id}: the conversation names ignore regions {wrong}")
    if len(must_keep) and (must_keep[:, 2:] - must_keep[:, :2]).min() < MIN_SIDE_PX:
        raise BadRecord(
            "empty_box", "an object that the conversation names has no area inside the image"
        )
    if len(must_keep) > max_regions:
        raise BadRecord("too_many_regions", f"{len(must_keep)} objects named, budget {max_regions}")


def _candidates(
    met: Matching,
    pointed: list[bool],
    must: list[bool],
    config: AssignConfig,
    generator: np.random.Generator,
) -> list[_Candidate]:
    """All regions that could be kept; priority: must keep, matched, injected, background by score."""
    truth, found = met.truth, met.found
    coins = generator.random(len(truth)) < config.p_ground_truth
    candidates = []
    for group in range(len(truth)):
        proposal = met.proposal_of.get(group)
        if proposal is not None:
            box = truth[group] if pointed[group] or coins[group] else found[proposal]
            score = float(met.scores[proposal])
            # In evaluation a match must not survive the budget because of its label: that would leak it.
            rank = 0 if must[group] else (1 if config.inject else 3)
            candidates.append(_Candidate(box, score, group, (rank, -score, proposal)))
        elif must[group] or (
            config.inject and (truth[group, 2:] - truth[group, :2]).min() >= MIN_SIDE_PX
        ):
            candidates.append(
                _Candidate(truth[group], None, group, (0 if must[group] else 2, 0.0, group))
            )
    return [*candidates, *met.background]


def _background(
    found: np.ndarray,
    ignored: np.ndarray,
    overlap: np.ndarray,
    proposal_of: dict[int, int],
    config: AssignConfig,
) -> np.ndarray:
    """Unmatched proposals that are neither an object's duplicate nor part of an ignore region."""
    keep = np.ones(len(found), bool)
    keep[list(proposal_of.values())] = False
    if config.duplicates != "keep" and len(overlap):
        lenient = config.duplicates == "keep_as_negative"
        keep &= overlap.max(0) < (max(0.5, config.match_iou) if lenient else config.match_iou)
    if config.ignore_overlap is not None and len(ignored) and len(found):
        # A matched proposal stays: people are annotated one by one in front of a crowd, too.
        inside = intersection(found, ignored) / area(found)[:, None]
        keep &= inside.max(1) < config.ignore_overlap
    return np.flatnonzero(keep)


def match(overlap: np.ndarray, threshold: float) -> dict[int, int]:
    """One-to-one matching of rows to columns with the greatest sum of IoU over pairs at or above `threshold`.

    overlap: float[G, P], IoU of objects and proposals. Returns object -> proposal.
    """
    valid = np.where(overlap >= threshold, overlap, 0.0)
    from scipy.optimize import (
        linear_sum_assignment,
    )  # slow to import, and `fo1 plan` needs only the config

    rows, columns = linear_sum_assignment(valid, maximize=True)
    return {
        int(r): int(c) for r, c in zip(rows, columns, strict=True) if overlap[r, c] >= threshold
    }


def _clean_proposals(
    boxes: np.ndarray, scores: np.ndarray, frame: Frame
) -> tuple[np.ndarray, np.ndarray]:
    keep = np.isfinite(boxes).all(1) & np.isfinite(scores)
    boxes, scores = boxes[keep], scores[keep]
    inside = clip(boxes, frame)
    keep = (inside[:, 2:] - inside[:, :2] >= MIN_SIDE_PX).all(1)
    keep &= area(inside) >= MIN_KEPT_SHARE * area(boxes)
    return inside[keep], scores[keep]


def _merge(objects: np.ndarray, ignore: np.ndarray, threshold: float) -> list[list[int]]:
    """Groups of objects that are one region, each sorted, in order of their first member (union-find)."""
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


def _generator(sample_id: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"assign|{seed}|{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
