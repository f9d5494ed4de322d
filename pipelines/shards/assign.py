"""From proposals and annotated objects to the regions of one example. Pure.

This is where region indices are born. The rules are ours (the paper says only "top 100 proposals",
3.1): one-to-one matching at an IoU threshold (`pipelines.shards.matching`), ambiguous duplicates
dropped, referenced objects without a proposal injected, a budget that never cuts a referenced
object, a seeded order.

Boxes are xyxy in pixels of the original image. N: regions of the example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dataset_builders.records import BadRecord
from pipelines.schemas import GROUND_TRUTH, PROPOSAL
from pipelines.shards.config import AssignConfig
from pipelines.shards.matching import MIN_SIDE_PX, Candidate, Matching


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """Regions of one example, and which object each stands for."""

    boxes: np.ndarray
    """Boxes of the regions, float32[N, 4]."""
    scores: tuple[float | None, ...]
    """Detector confidence of each region; None for an injected object."""
    sources: tuple[str, ...]
    """``proposal`` or ``gt`` for each region: who found it."""
    region_of: dict[int, int]
    """Region of each object that has one; objects that were merged share theirs."""
    num_objects: int
    """Number of distinct objects that are no ignore regions, after merging."""
    num_matched: int
    """Number of those that a proposal covers at `match_iou`."""
    num_injected: int
    """Number of injected regions."""


NO_REGIONS = Assignment(
    boxes=np.zeros((0, 4), np.float32),
    scores=(),
    sources=(),
    region_of={},
    num_objects=0,
    num_matched=0,
    num_injected=0,
)
"""Assignment of an example without any region."""


def assign(
    matching: Matching,
    *,
    sample_id: str,
    referenced: Collection[int],
    pointed_at: Collection[int],
    config: AssignConfig,
    seed: int = 0,
) -> Assignment:
    """Choose and order the regions of one example.

    Args:
        matching: Proposals and objects of its image or window.
        sample_id: Id that seeds the draws, together with `seed`.
        referenced: Objects that the conversation names; each gets a region when `config.inject` is
            set.
        pointed_at: Objects that a question names; each gets a region with its annotated box,
            always.
        config: The rules.
        seed: Seed of the draws.

    Raises:
        BadRecord: ``too_many_regions`` when the budget cannot hold what must be kept, ``empty_box``
            when a referenced object has no area inside the image.
        ValueError: An ignore region is referenced.
    """
    generator = _generator(sample_id, seed)
    pointed = [not set(pointed_at).isdisjoint(group) for group in matching.groups]
    must = [
        points or (config.inject and not set(referenced).isdisjoint(group))
        for points, group in zip(pointed, matching.groups, strict=True)
    ]
    _check_named(
        sample_id,
        {*referenced, *pointed_at},
        matching.ignore,
        matching.truth[must],
        config.max_regions,
    )
    candidates = _candidates(matching, pointed, must, config, generator)
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
            for member in matching.groups[candidate.group]
        },
        num_objects=len(matching.groups),
        num_matched=len(matching.proposal_of),
        num_injected=sum(c.score is None for c in kept),
    )


def _check_named(
    sample_id: str, named: set[int], ignore: np.ndarray, must_keep: np.ndarray, max_regions: int
) -> None:
    """Refuse a conversation about ignore regions, objects off the image, or too many objects."""
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
    matching: Matching,
    pointed: list[bool],
    must: list[bool],
    config: AssignConfig,
    generator: np.random.Generator,
) -> list[Candidate]:
    """Return all regions that could be kept.

    Their priority: what must be kept, then matched, injected, and background by score.
    """
    truth, proposals = matching.truth, matching.proposals
    # One draw for each object, also where it has no say: the draws of the others stay the same.
    coins = generator.random(len(truth)) < config.p_ground_truth
    candidates = []
    for group in range(len(truth)):
        proposal = matching.proposal_of.get(group)
        if proposal is not None:
            box = truth[group] if pointed[group] or coins[group] else proposals[proposal]
            score = float(matching.scores[proposal])
            # In evaluation a match must not survive the budget because of its label: that would
            # leak it.
            rank = 0 if must[group] else (1 if config.inject else 3)
            candidates.append(Candidate(box, score, group, (rank, -score, proposal)))
        elif must[group] or (
            config.inject and (truth[group, 2:] - truth[group, :2]).min() >= MIN_SIDE_PX
        ):
            candidates.append(
                Candidate(truth[group], None, group, (0 if must[group] else 2, 0.0, group))
            )
    return [*candidates, *matching.background]


def _generator(sample_id: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"assign|{seed}|{sample_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
