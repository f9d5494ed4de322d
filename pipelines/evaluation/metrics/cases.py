"""What metrics are computed from: questions with truth and answer, images with their truth.

Plain frozen records without storage or models, so that every metric is a pure function that a test
can feed by hand. Boxes are xyxy in absolute pixels of the original image, float32[N, 4].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


def as_boxes(boxes: object) -> np.ndarray:
    """Return boxes as float32[N, 4], also when there are none."""
    # Without the reshape an empty list would become float32[0], which has no columns to slice.
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One phrase of the true answer."""

    text: str
    """The phrase, stripped."""
    regions: tuple[int, ...]
    """Proposals that stand for the true objects; an object without a matching proposal has none."""
    boxes: np.ndarray
    """float32[K, 4]: every true box of the phrase, whether a proposal covers it or not."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One phrase of the model's answer with the regions it named, each region once."""

    text: str
    """The phrase, stripped."""
    regions: tuple[int, ...]
    """Indices into the proposals, ascending."""
    boxes: np.ndarray
    """float32[K, 4]: the boxes of `regions`, in the same order."""
    scores: np.ndarray
    """float32[K]: the detector's scores of `regions`, in the same order."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One evaluated question: what was asked, what is true, what was answered."""

    sample_id: str
    """Identity of the sample."""
    image_id: str
    """Join key of the image."""
    task: str
    """Task of the sample, e.g. "detection"."""
    targets: tuple[Target, ...]
    """True phrases; empty when nothing asked for is present."""
    answers: tuple[Answer, ...]
    """Phrases that the model said."""
    text: str
    """The model's answer as generated."""
    reference: str
    """The true answer as text."""
    problem: str | None = None
    """Why the answer could not be read cleanly; None when it could."""
    asked: tuple[str, ...] | None = None
    """Names in the question; None when unknown."""
    ignored: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Label to float32[K, 4] of its don't-care areas (crowds).

    A region there is neither right nor wrong.
    """


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The true objects of one image, all categories."""

    image_id: str
    """Join key of the image."""
    boxes: np.ndarray
    """float32[N, 4]: the true boxes, xyxy in pixels of the original image."""
    labels: tuple[str, ...]
    """Category name of each box."""
    ignore: tuple[bool, ...]
    """True for a crowd or don't-care area (COCO's iscrowd)."""
