"""A sample that asks for what is known to be absent. Pure.

The paper makes 20 % of the detection data rejection samples (4.1) and says no more. Ours: half of them ask
for absent names only, half for present and absent names together; a small share asks for many names at
once, as the COCO protocol does. Only `absent_labels` licenses a name: a label that is merely not annotated
is never asked for. Proposals stay in the prompt, so that few regions are no cue. How many of these samples
a training run sees is the weight of ``dataset/rejection`` in its mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dataset_builders import prompts
from dataset_builders.records import Sample, Turn

TASK = "rejection"


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """How rejection samples are composed."""

    pure_share: float = 0.5
    """Share that asks for absent names only. ours"""
    max_absent: int = 5
    """Most absent names in a question. ours"""
    max_present: int = 4
    """Most present names in a mixed question. ours"""
    many_share: float = 0.1
    """Share whose question takes up to `max_many` absent names beside every present one. ours"""
    max_many: int = 80
    """Most absent names in a question with many (COCO asks for 80 at once)."""
    hard_share: float = 0.5
    """Probability that a name is drawn among those that share a word with a present label. ours"""
    paraphrases: bool = False
    """Draw the wording from `prompts.TEMPLATES`. Set it as for the positive samples, or the wording is a
    cue."""
    seed: int = 0
    """Of every draw, together with the sample id."""

    def __post_init__(self) -> None:
        for name in ("pure_share", "many_share", "hard_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is no share: use 0 to 1")
        for name in ("max_absent", "max_present", "max_many"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use at least 1")


def rejection_sample(
    sample: Sample, config: RejectionConfig, *, weights: Mapping[str, float] | None = None
) -> Sample | None:
    """Make the rejection sample of a detection sample; None when nothing is known to be absent.

    weights: relative chance of absent labels (co-occurrence, say), 1 where missing; they license nothing.
    Present names are taken from the sample's own answer, which is known to be complete for them.
    """
    absent = sorted(set(sample.absent_labels or ()))
    if not absent:
        return None
    seed = prompts.seed_of(TASK, config.seed, sample.sample_id)
    generator = np.random.default_rng(seed)
    present = {p.text: p.objects for p in sample.turns[-1].parts if p.text is not None and p.objects}
    style = generator.random(2)
    many = style[0] < config.many_share
    shown: list[str] = []
    if present and (many or style[1] >= config.pure_share):
        limit = len(present) if many else min(config.max_present, len(present))
        count = limit if many else int(generator.integers(1, limit + 1))
        shown = [str(name) for name in generator.choice(sorted(present), count, replace=False)]
    most = min(len(absent), config.max_many if many else config.max_absent)
    number = most if many else int(generator.integers(1, most + 1))
    labels = {item.label for item in sample.objects}
    asked = shown + _draw(absent, number, labels, config.hard_share, weights or {}, generator)
    asked = [asked[i] for i in generator.permutation(len(asked))]
    names = prompts.JOINER.join(asked)
    return dataclasses.replace(
        sample,
        sample_id=f"{sample.sample_id}/{TASK}",
        task=TASK,
        turns=(
            Turn("user", prompts.question("detection", names, seed=seed, paraphrases=config.paraphrases)),
            Turn("assistant", prompts.grounded_answer([(n, present[n]) for n in asked if n in present])),
        ),
    )


def shares_word(label: str, present: set[str]) -> bool:
    """Whether a label has a word in common with a present one: "red circle" with "red square"."""
    words = set(label.lower().split())
    return any(words & set(other.lower().split()) for other in present)


def _draw(
    absent: list[str],
    number: int,
    present: set[str],
    hard_share: float,
    weights: Mapping[str, float],
    generator: np.random.Generator,
) -> list[str]:
    """`number` distinct absent labels, each drawn among the hard ones with probability `hard_share`."""
    remaining = list(absent)
    drawn = []
    for _ in range(number):
        hard = [label for label in remaining if shares_word(label, present)]
        pool = hard if hard and generator.random() < hard_share else remaining
        chances = np.array([max(weights.get(label, 1.0), 0.0) for label in pool])
        chances = chances / chances.sum() if chances.sum() > 0 else np.full(len(pool), 1 / len(pool))
        label = pool[int(generator.choice(len(pool), p=chances))]
        remaining.remove(label)
        drawn.append(label)
    return drawn
