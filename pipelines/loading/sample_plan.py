"""The global sample plan: which example of which source stands at which position of a run.

Pure functions of (shard sizes, weights, seed): no files, no clock, no worker count. Position ``p``
is found without looking at the positions before it, so the state of a run is one integer and any
number of ranks can go on from it.

Two choices make the order:

*Between sources.* The weights become whole numbers of slots in a cycle (at most `MAX_CYCLE`
positions), laid out by the earliest deadline: item ``k`` of a source of share ``w`` belongs near
position ``k / w``. This merging of one arithmetic sequence a source is the chairman assignment of
R. Tijdeman ("The chairman assignment problem", Discrete Mathematics 32, 1980), which keeps the
count of every source within one of its share at *every* prefix.

*Within a source.* Examples run in epochs, each example once an epoch. An epoch permutes the shards,
cuts that order into windows of ``shuffle_shards`` shards, and permutes the examples of each window,
all from a hash of (seed, source, epoch): reads stay within one window, and only the shard orders of
the last epochs are kept in memory. One shard is the default. A few mix better where a shard's
examples are alike, and cost as many open files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from pipelines.errors import SettingError

VERSION = 1
"""Raised when the same inputs would give another order."""
MAX_CYCLE = 10_000
"""Most positions in a cycle. Shares that need more are rounded to 1 / MAX_CYCLE."""

Mix = Mapping[str, float]
"""Weight of each source ``dataset/task``; positive, of any sum."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One position of the plan."""

    position: int
    """Place in the global order, from 0."""
    source: str
    """Name of the source, ``dataset/task``."""
    epoch: int
    """How many times the source was used up before."""
    shard: int
    """Number of the shard in the source's list."""
    index: int
    """Number of the example in that shard."""


@dataclass(frozen=True, slots=True)
class Consumed:
    """What a run took of one source up to a position."""

    examples: int
    """Positions of the source so far."""
    epochs: float
    """Passes over the source so far."""
    repeats: int
    """Most times that any one example came."""


class SamplePlan:
    """The order of examples of a run, with random access."""

    def __init__(
        self,
        shard_sizes: Mapping[str, Sequence[int]],
        weights: Mix,
        *,
        seed: int,
        shuffle_shards: int = 1,
    ) -> None:
        """Lay out one cycle of the sources.

        Args:
            shard_sizes: Examples in each shard, in shard order, by source.
            weights: The mix; its sources must all be in `shard_sizes`.
            seed: Seed of every shuffle.
            shuffle_shards: Shards whose examples are shuffled together.

        Raises:
            SettingError: A weight is not positive and finite, a source has no examples, or a share
                is too small for a cycle; the message names the source.
        """
        check_weights(weights)
        for source in weights:
            if sum(shard_sizes.get(source, ())) == 0:
                raise SettingError(
                    f"mix: source {source!r} has no examples; take it out of the mix or build it"
                )
        self.sources = sorted(weights)
        self.seed, self._window = seed, shuffle_shards
        self._sizes = [np.asarray(shard_sizes[source], dtype=np.int64) for source in self.sources]
        self._slots = _whole_slots(
            [float(weights[source]) for source in self.sources], self.sources
        )
        self._cycle = _lay_out(self._slots)
        self._rank_in_cycle = np.zeros_like(self._cycle)
        for number, slots in enumerate(self._slots):
            self._rank_in_cycle[self._cycle == number] = np.arange(slots)
        self._keep_layouts()

    @property
    def shares(self) -> dict[str, Fraction]:
        """Exact share of each source; they add up to one."""
        return {
            s: Fraction(n, len(self._cycle)) for s, n in zip(self.sources, self._slots, strict=True)
        }

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any position of the plan could."""
        content = {
            "version": VERSION,
            "seed": self.seed,
            "sources": self.sources,
            "sizes": [sizes.tolist() for sizes in self._sizes],
            "slots": self._slots,
        }
        if self._window > 1:  # one is how plans were before there was a choice
            content["shuffle_shards"] = self._window
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def __getitem__(self, position: int) -> Draw:
        """Return the example at `position`; there is no end.

        Raises:
            IndexError: The position is below zero.
        """
        if position < 0:
            raise IndexError(f"position {position} is before the start of the plan")
        cycle, place = divmod(position, len(self._cycle))
        source = int(self._cycle[place])
        taken = cycle * self._slots[source] + int(self._rank_in_cycle[place])
        epoch, rest = divmod(taken, int(self._sizes[source].sum()))
        order, ends = self._epoch_layout(source, epoch)
        # The window that holds it, and its place among the window's examples.
        turn = int(np.searchsorted(ends, rest, side="right"))
        first = turn - turn % self._window
        start = int(ends[first - 1]) if first else 0
        size = int(ends[min(first + self._window, len(ends)) - 1]) - start
        key = f"{self.seed}|{self.sources[source]}|{epoch}|{order[first]}"
        place = start + int(_permutation(size, key)[rest - start])
        turn = int(np.searchsorted(ends, place, side="right"))
        shard = int(order[turn])
        index = place - (int(ends[turn]) - int(self._sizes[source][shard]))
        return Draw(position, self.sources[source], epoch, shard, index)

    def counts(self, num_positions: int) -> dict[str, int]:
        """Return how often each source occurs among the first `num_positions` positions."""
        cycles, rest = divmod(num_positions, len(self._cycle))
        head = np.bincount(self._cycle[:rest], minlength=len(self.sources))
        return {s: cycles * self._slots[i] + int(head[i]) for i, s in enumerate(self.sources)}

    def consumed(self, num_positions: int) -> dict[str, Consumed]:
        """Return what the first `num_positions` positions take of each source."""
        taken = self.counts(num_positions)
        sizes = {s: int(sizes.sum()) for s, sizes in zip(self.sources, self._sizes, strict=True)}
        return {s: Consumed(n, n / sizes[s], -(-n // sizes[s])) for s, n in taken.items()}

    def _keep_layouts(self) -> None:
        # Two of each source, for the ranks of a step may stand on both sides of an epoch's end.
        self._epoch_layout = lru_cache(maxsize=2 * len(self.sources))(self._lay_out_epoch)

    def __getstate__(self) -> dict[str, Any]:
        # A cache does not pickle; every process makes its own.
        return {name: value for name, value in self.__dict__.items() if name != "_epoch_layout"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep_layouts()

    def _lay_out_epoch(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch's shard order, int64[shards], and the running sums of their examples."""
        sizes = self._sizes[source]
        order = _permutation(len(sizes), f"{self.seed}|{self.sources[source]}|{epoch}")
        return order, np.cumsum(sizes[order])


def rank_positions(step: int, *, batch_size: int, rank: int, world_size: int) -> range:
    """Return the positions that `rank` reads for `step`.

    Args:
        step: From 0.
        batch_size: Examples a step over all ranks.
        rank: From 0.
        world_size: Number of ranks.

    Returns:
        A near-equal piece of ``[step * batch_size, (step + 1) * batch_size)``.

    Raises:
        SettingError: There are more ranks than examples in a batch.
    """
    if batch_size < world_size:
        raise SettingError(
            f"batch_size={batch_size} is less than the {world_size} workers: raise it"
        )
    start = step * batch_size
    return range(
        start + batch_size * rank // world_size, start + batch_size * (rank + 1) // world_size
    )


def check_weights(weights: Mix) -> None:
    """Refuse a mix that is empty or has a weight that is not a positive finite number.

    Raises:
        SettingError: The message names the source.
    """
    if not weights:
        raise SettingError(
            "mix is empty: name at least one source, such as {'drawn_train/detection': 1.0}"
        )
    for source, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise SettingError(
                f"mix: weight of {source!r} is {weight}; use a positive number or leave it out"
            )


def capped_weights(
    weights: Mix, sizes: Mapping[str, int], *, num_positions: int, max_repeats: float
) -> dict[str, float]:
    """Return the mix with no source drawn more than `max_repeats` times its examples.

    What a capped source gives up goes to the others in proportion to their weights, until no share
    is over its cap.

    Args:
        weights: The mix.
        sizes: Examples of each source.
        num_positions: Examples that are drawn in all.
        max_repeats: Most times that a source is drawn in full.

    Returns:
        Weight of each source; they add up to one.

    Raises:
        SettingError: All sources together are too small for so few repeats.
    """
    check_weights(weights)
    if not (math.isfinite(max_repeats) and max_repeats > 0):
        raise SettingError(f"max_repeats={max_repeats}: use a positive number")
    caps = {source: Fraction(max_repeats) * sizes[source] / num_positions for source in weights}
    if sum(caps.values()) < 1:
        most = int(sum(sizes[source] for source in weights) * max_repeats)
        raise SettingError(
            f"max_repeats={max_repeats:g}: the sources of the mix give {most} examples, steps * "
            f"batch_size asks for {num_positions}: train for fewer steps, raise max_repeats, or "
            "add data"
        )
    shares: dict[str, Fraction] = {}
    free = {source: Fraction(repr(float(weight))) for source, weight in weights.items()}
    # What a capped source gives up may put another over its cap.
    while free:
        room = 1 - sum(shares.values())
        total = sum(free.values())
        over = [source for source, weight in free.items() if room * weight / total > caps[source]]
        shares |= {source: caps[source] for source in over}
        if not over:
            shares |= {source: room * weight / total for source, weight in free.items()}
        free = {} if not over else {s: w for s, w in free.items() if s not in over}
    return {source: float(shares[source]) for source in weights}


def _whole_slots(weights: Sequence[float], sources: Sequence[str]) -> list[int]:
    """Return each source's slots in a cycle: exact where the decimal weights allow it."""
    # By way of the text: 0.1 is one tenth, and not the binary number next to it.
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    slots = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*slots)
    slots = [count // divisor for count in slots]
    if sum(slots) <= MAX_CYCLE:
        return slots
    total = sum(exact)
    ideal = [weight * MAX_CYCLE / total for weight in exact]
    slots = [int(value) for value in ideal]
    # Largest remainders first, of equals in the order of the sources.
    by_remainder = sorted(range(len(slots)), key=lambda i: (slots[i] - ideal[i], i))
    for i in by_remainder[: MAX_CYCLE - sum(slots)]:
        slots[i] += 1
    for source, count in zip(sources, slots, strict=True):
        if count == 0:
            raise SettingError(
                f"mix: the share of {source!r} is below 1 in {MAX_CYCLE}: raise its weight"
            )
    return slots


def _lay_out(slots: Sequence[int]) -> np.ndarray:
    """Return source numbers in the order of a cycle, int64[sum(slots)], after Tijdeman.

    Deadlines are compared as ratios of whole numbers, so no rounding adds up along the cycle.
    """
    shares = np.asarray(slots, dtype=np.int64)
    cycle = int(shares.sum())
    spread = max(2 * len(slots) - 2, 1)
    order = np.zeros(cycle, dtype=np.int64)
    taken = np.zeros_like(shares)
    for place in range(cycle):
        owed = ((place + 1) * shares - taken * cycle) * spread
        urgency = np.where(owed >= cycle, (owed - (spread - 1) * cycle) / shares, -np.inf)
        order[place] = chosen = int(np.argmax(urgency)) if len(slots) > 1 else 0
        taken[chosen] += 1
    return order


@lru_cache(maxsize=256)
def _permutation(size: int, key: str) -> np.ndarray:
    """Return a permutation of ``range(size)`` drawn from a hash of `key`, int64[size].

    It is the same on every platform: it sorts SplitMix64 values (S. Vigna,
    https://prng.di.unimi.it/splitmix64.c), where numpy's own shuffles may change between its
    versions.
    """
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = seed + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable")
