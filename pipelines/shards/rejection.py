"""Samples that ask for what is known to be absent. Pure.

The paper makes 20 % of the detection data rejection samples (4.1) and says no more. Ours: half of
them ask for absent names only, half for present and absent names together; a small share asks for
many names at once, as the COCO protocol does. All these shares are quotas, kept to the sample. Only
`absent_labels` licenses a name, and `absent_weights` says how likely it is asked for: a label that
is merely not annotated is never asked for. Proposals stay in the prompt, so that few regions are no
cue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from dataset_builders.records import Sample
from dataset_builders.seeds import seed_of
from dataset_builders.tasks import prompts
from pipelines.errors import SettingError

TASK = "rejection"
"""Task of the samples made here, and of those that a builder makes itself."""


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """How rejection samples are composed."""

    share: float = 0.2
    """Share of rejection samples among these and the detection samples (paper 4.1: 20 %)."""
    pure_share: float = 0.5
    """Share of rejection samples that ask for absent names only. ours"""
    max_absent: int = 5
    """Most absent names in a question. ours"""
    max_present: int = 4
    """Most present names in a mixed question. ours"""
    many_share: float = 0.1
    """Share of questions with up to `max_many` absent names beside every present one. ours"""
    max_many: int = 80
    """Most absent names in a question with many (COCO asks for 80 at once)."""
    paraphrases: bool = False
    """Whether the wording is drawn from `prompts.TEMPLATES`.

    Set it as for the positive samples, or the wording is a cue.
    """
    seed: int = 0
    """Seed of every draw, together with the sample id."""

    def __post_init__(self) -> None:
        for name in ("pure_share", "many_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingError(f"{name}={getattr(self, name)} is no share: use 0 to 1")
        if not 0.0 <= self.share < 1.0:
            raise SettingError(
                f"share={self.share} is no share of rejection samples: use 0 to below 1"
            )
        for name in ("max_absent", "max_present", "max_many"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)}: use at least 1")


Style = Literal["pure", "mixed", "many"]
"""Style of a question.

``pure`` has absent names alone, ``mixed`` present names among them, ``many`` up to `max_many`
absent names beside every present one.
"""


def quotas(positives: Sequence[int], negatives: Sequence[int], share: float) -> list[int]:
    """Return how many rejection samples each bucket makes.

    Together they are `share` of the whole dataset, to the sample: counts are rounded on their
    running sum, so that no bucket's rounding is lost.

    Args:
        positives: Detection samples of each bucket.
        negatives: Rejection samples of each bucket that the builder made itself.
        share: Share of rejection samples among all of these.
    """
    wanted = max(0, round(share / (1.0 - share) * sum(positives)) - sum(negatives))
    total = max(1, sum(positives))
    ends = [wanted * running // total for running in accumulate(positives)]
    return [end - before for before, end in zip([0, *ends], ends, strict=False)]


def choose(samples: Sequence[Sample], quota: int, config: RejectionConfig) -> dict[str, Style]:
    """Choose which of a bucket's detection samples become rejection samples, too.

    Args:
        samples: Detection samples; those with nothing known to be absent cannot.
        quota: How many are wanted; fewer are returned when there are too few.
        config: Shares of the styles, and the seed.

    Returns:
        The style of each chosen sample, by id.
    """
    able = sorted(
        (sample for sample in samples if sample.absent_labels),
        key=lambda sample: seed_of("choose", config.seed, sample.sample_id),
    )[:quota]
    num_many = round(config.many_share * len(able))
    num_pure = round(config.pure_share * (len(able) - num_many))
    order: list[Style] = ["many", "pure", "mixed"]
    counts = (num_many, num_pure, len(able) - num_many - num_pure)
    styles = (style for style, count in zip(order, counts, strict=True) for _ in range(count))
    return {sample.sample_id: style for sample, style in zip(able, styles, strict=True)}


def rejection_sample(sample: Sample, config: RejectionConfig, style: Style) -> Sample:
    """Make the rejection sample of a detection sample with absent labels.

    Present names are taken from the sample's own answer, which is known to be complete for them;
    without any the question asks for absent names only, whatever the style.
    """
    absent = list(sample.absent_labels or ())
    weights = sample.absent_weights or (1.0,) * len(absent)
    seed = seed_of(TASK, config.seed, sample.sample_id)
    generator = np.random.default_rng(seed)
    present = {
        p.text: p.objects for p in sample.turns[-1].parts if p.text is not None and p.objects
    }
    shown: list[str] = []
    if present and style != "pure":
        limit = len(present) if style == "many" else min(config.max_present, len(present))
        count = limit if style == "many" else int(generator.integers(1, limit + 1))
        shown = [str(name) for name in generator.choice(sorted(present), count, replace=False)]
    most = min(len(absent), config.max_many if style == "many" else config.max_absent)
    number = most if style == "many" else int(generator.integers(1, most + 1))
    asked = shown + _draw(absent, weights, number, generator)
    asked = [asked[i] for i in generator.permutation(len(asked))]
    names = prompts.JOINER.join(asked)
    return dataclasses.replace(
        sample,
        sample_id=f"{sample.sample_id}/{TASK}",
        task=TASK,
        turns=prompts.conversation(
            prompts.question("detection", names, seed=seed, paraphrases=config.paraphrases),
            prompts.grounded_answer([(n, present[n]) for n in asked if n in present]),
        ),
    )


def _draw(
    absent: Sequence[str], weights: Sequence[float], number: int, generator: np.random.Generator
) -> list[str]:
    """Draw `number` distinct absent labels, one after the other by weight.

    They are those with the largest keys u ** (1 / weight): P. Efraimidis, P. Spirakis, "Weighted
    random sampling with a reservoir", 2006. A weight of 0 comes last.
    """
    chances = np.maximum(np.asarray(weights, np.float64), 1e-12)
    keys = np.log(generator.random(len(absent))) / chances
    return [absent[row] for row in np.argsort(-keys, kind="stable")[:number]]
