"""Which names may be asked for as absent, and how likely: hard ones oftener than easy ones.

A dataset's annotation regime licenses a name (`records.ABSENT_REGIMES`); nothing here makes one
absent. What is done here is to take away names that could mean something present, and to weigh the
rest. The weights are a mixture of three ways to draw a name, each adding up to one (for the paper's
20 % of rejection samples; the paper, 4.1, does not say how names are drawn, so this is ours):

    hard        by how often it occurs together with what is present, and how near it is in the
                category tree
    frequent    by the square root of the number of images that show it
    uniform     every name alike: alone it would teach little among thousands of names
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from dataset_builders.names import normalised

HARD, FREQUENT, UNIFORM = 0.5, 0.3, 0.2
"""Shares of the three ways in the mixture. ours"""
MAX_ABSENT = 128
"""Most absent names listed for one image; the likeliest are kept. COCO's 80 fit, V3Det's 13,204 do
not. ours"""

Nearness = Callable[[str, str], float]
"""How near two names are in a category tree: 0 (nothing in common) to 1 (the same)."""
Related = Callable[[str], Collection[str]]
"""Names that a present name makes unsafe to call absent: synonyms, ancestors, descendants."""


@dataclass(kw_only=True)
class LabelStatistics:
    """How many images show each label, and each pair of labels."""

    images: Counter[str] = field(default_factory=Counter)
    """Label -> number of images that show it."""
    pairs: dict[str, Counter[str]] = field(default_factory=dict)
    """Label -> other label -> number of images that show both."""

    @classmethod
    def of(cls, label_sets: Iterable[Collection[str]]) -> "LabelStatistics":
        """Return the counts of images, given one set of labels an image."""
        counted = cls()
        for labels in label_sets:
            counted.images.update(labels)
            for one, other in combinations(sorted(labels), 2):
                counted.pairs.setdefault(one, Counter())[other] += 1
                counted.pairs.setdefault(other, Counter())[one] += 1
        return counted

    def together(self, label: str, present: Collection[str]) -> float:
        """Return the highest share of the images of a present label that show `label` too."""
        highest = 0.0
        for name in present:
            both = self.pairs[name].get(label, 0) if name in self.pairs else 0
            if both:
                highest = max(highest, both / self.images[name])
        return highest


def shares_word(one: str, other: str) -> float:
    """Return the nearness of two names where there is no tree: 1 when they have a word in common.

    So "red circle" is near "red square".
    """
    return float(not _words(one).isdisjoint(_words(other)))


@lru_cache(1 << 16)
def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().split())


def safe_names(
    names: Iterable[str], present: Collection[str], *, related: Related | None = None
) -> tuple[str, ...]:
    """Return the names that no present one could stand for, in their order.

    Left out are names equal to a present one after `normalised`, and those that `related` says of a
    present one.

    Args:
        names: Names that the regime licenses.
        present: Labels of the image.
        related: Names that a present one makes unsafe.
    """
    taken = {normalised(name) for name in present}
    for name in present if related is not None else ():
        taken |= {normalised(other) for other in related(name)}  # type: ignore[misc]
    return tuple(name for name in names if normalised(name) not in taken)


def weigh(
    absent: Sequence[str],
    present: Collection[str],
    statistics: LabelStatistics,
    *,
    nearness: Nearness = shares_word,
) -> tuple[float, ...]:
    """Return the chance of each absent name to be asked for; they add up to 1.

    Args:
        absent: The names.
        present: Labels of the image.
        statistics: Counts of labels over the dataset.
        nearness: How near two names are.
    """
    hard = [
        statistics.together(name, present) + max((nearness(name, p) for p in present), default=0.0)
        for name in absent
    ]
    frequent = [math.sqrt(statistics.images[name]) for name in absent]
    even = [1.0] * len(absent)
    total = [0.0] * len(absent)
    for share, chances in ((HARD, hard), (FREQUENT, frequent), (UNIFORM, even)):
        # a way of drawing that knows nothing of these names draws evenly
        whole = sum(chances)
        for row, chance in enumerate(chances if whole > 0 else even):
            total[row] += share * chance / (whole if whole > 0 else len(absent))
    return _float32(total)


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest numbers that a samples table holds."""
    return tuple(np.asarray(values, np.float32).tolist())


def absent_fields(
    absent: Sequence[str],
    present: Collection[str],
    statistics: LabelStatistics,
    *,
    regime: str,
    nearness: Nearness = shares_word,
    related: Related | None = None,
) -> dict[str, Any]:
    """Return absent_labels, absent_weights and absent_regime of a sample.

    Args:
        absent: Names that the regime licenses.
        present: Labels of the image, uncertain ones included.
        statistics: Counts of labels over the dataset.
        regime: Key of `records.ABSENT_REGIMES`.
        nearness: How near two names are.
        related: Names that a present one makes unsafe.
    """
    safe = safe_names(absent, present, related=related)
    weights = weigh(safe, present, statistics, nearness=nearness)
    if len(safe) > MAX_ABSENT:
        kept = sorted(sorted(range(len(safe)), key=lambda row: (-weights[row], row))[:MAX_ABSENT])
        safe, weights = tuple(safe[row] for row in kept), tuple(weights[row] for row in kept)
        # those that are left add up to 1 again
        weights = _float32([weight / sum(weights) for weight in weights])
    return {"absent_labels": safe, "absent_weights": weights, "absent_regime": regime}


def tree_nearness(parent: Mapping[str, str]) -> Nearness:
    """Return nearness by the paths to the root of a tree.

    It is 2 * shared / sum of lengths (Wu and Palmer, ACL 1994).

    Args:
        parent: Name -> the name above it.
    """

    @cache
    def path(name: str) -> tuple[str, ...]:
        found = [name]
        # a file's tree may run in a circle: no name twice
        while found[-1] in parent and parent[found[-1]] not in found:
            found.append(parent[found[-1]])
        return tuple(found[::-1])

    def near(one: str, other: str) -> float:
        left, right = path(one), path(other)
        shared = 0
        for a, b in zip(left, right, strict=False):
            if a != b:
                break
            shared += 1
        return 2 * shared / (len(left) + len(right))

    return near
