"""Comparisons of what a float network computed that hold on every kind of processor.

Processors add in different orders, so the last bits of a result differ from one to another, and
with them the order of two boxes of nearly equal score, or the better of two tokens. What is the
same everywhere are the boxes, each with its score, and that scores fall, all up to rounding; and
the tokens up to the first that is a near tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from fo1_model.detectors import Detections
from fo1_model.generation import decoding


def assert_same_detections(
    found: Detections,
    expected: Detections,
    *,
    atol_px: float = 2e-3,
    atol_score: float = 1e-5,
    best_only: bool = False,
) -> None:
    """Assert the same boxes with the same scores, in an order that only near ties may change.

    Args:
        found: What was found, best first.
        expected: What should have been found, best first.
        atol_px: Rounding of a box's edge, px.
        atol_score: Rounding of a score.
        best_only: Whether `expected` is only the best part of what was found. Where its end falls
            among near ties, either of them may be the last.
    """
    for one in (found, expected):
        assert (np.diff(one.scores) <= atol_score).all(), "best first"
    most = len(found.boxes) if best_only else len(expected.boxes)
    assert len(expected.boxes) <= most == len(found.boxes)
    if not len(expected.boxes):
        return
    # Rank by rank: a swap of near ties moves no sorted score by more than rounding.
    scores = found.scores[: len(expected.scores)]
    np.testing.assert_allclose(scores, expected.scores, atol=atol_score, rtol=0)
    # A distance of at most 1 is rounding; each box has one partner, so that none counts twice.
    box_px = np.abs(expected.boxes[:, None] - found.boxes[None]).max(-1)
    score = np.abs(expected.scores[:, None] - found.scores[None])
    distance = np.maximum(box_px / atol_px, score / atol_score)
    rows, columns = linear_sum_assignment(distance > 1)
    worst = int(distance[rows, columns].argmax())
    assert distance[rows, columns].max() <= 1, (
        f"box {worst}, {expected.boxes[worst]} with score {expected.scores[worst]}, has no "
        f"partner; its nearest are {np.sort(box_px[worst])[:3]} px away"
    )


@dataclass(kw_only=True)
class Said:
    """The tokens of one greedy answer, its stop token included, and how sure each was."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """How far the logit of each token was ahead of the second best."""

    def add(self, logits: torch.Tensor) -> None:
        """Say the best token of one row of logits, float[V]."""
        best = logits.topk(2)
        self.tokens.append(int(best.indices[0]))
        self.margins.append(float(best.values[0] - best.values[1]))


def greedy(
    model: Any,
    processor: Any,
    samples: Sequence[Any],
    config: decoding.GenerationConfig,
    **options: Any,
) -> list[Said]:
    """Return what `fo1_model.generation.generate` says of each sample, and how sure it was."""
    assert config.temperature == 0
    said = [Said() for _ in samples]
    choose = decoding._choose

    def noted(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        for one, row in zip(said, logits, strict=True):
            if not one.tokens or one.tokens[-1] not in processor.stop_ids:
                one.add(row)
        return choose(logits, *rest)

    with mock.patch.object(decoding, "_choose", noted):
        answers = decoding.generate(model, processor, samples, config, **options)
    for one, answer in zip(said, answers, strict=True):
        assert processor.decode(one.tokens) == answer.text
    return said


def assert_same_tokens(found: list[int], expected: Said, *, atol: float = 1e-4) -> None:
    """Assert that greedy tokens are the same as far as rounding decides none of them.

    Args:
        found: Tokens of one answer.
        expected: What should have been said.
        atol: Rounding of a difference of logits. From the first token that was ahead by less,
            either answer may be said, and nothing is compared any more.
    """
    ties = [place for place, margin in enumerate(expected.margins) if margin < atol]
    sure = min(ties, default=len(expected.tokens))
    assert sure > 0, "the first token is a tie already: nothing would be compared"
    assert found[:sure] == expected.tokens[:sure]
    assert ties or len(found) == len(expected.tokens)
