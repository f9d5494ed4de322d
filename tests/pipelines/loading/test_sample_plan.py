"""The sample plan: exact shares at every prefix, any world size, any restart."""

import pickle
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import SettingError
from pipelines.loading.sample_plan import (
    MAX_CYCLE,
    Consumed,
    SamplePlan,
    capped_weights,
    rank_positions,
)

sizes = st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0)
weight = st.one_of(
    st.integers(1, 30).map(float),
    st.floats(0.5, 5.0).map(lambda w: round(w, 2)),
    st.sampled_from([0.1, 0.2, 0.7]),
)
mixes = st.lists(st.tuples(sizes, weight), min_size=1, max_size=6).map(
    lambda items: (
        {f"d{i}/t": s for i, (s, _) in enumerate(items)},
        {f"d{i}/t": w for i, (_, w) in enumerate(items)},
    )
)


def test_worked_order() -> None:
    """Shares 3/4 and 1/4: the rare source stands once in every four, near their middle."""
    plan = SamplePlan({"a/x": [4], "b/x": [2]}, {"a/x": 3.0, "b/x": 1.0}, seed=0)
    assert "".join(plan[p].source[0] for p in range(8)) == "aabaaaba"
    assert [plan[p].epoch for p in range(8) if plan[p].source == "b/x"] == [0, 0]
    assert [plan[p].epoch for p in range(8) if plan[p].source == "a/x"] == [0, 0, 0, 0, 1, 1]
    assert plan.shares == {"a/x": Fraction(3, 4), "b/x": Fraction(1, 4)}


@settings(max_examples=25, deadline=None)
@given(mixes, st.integers(0, 5), st.integers(1, 400))
def test_every_prefix_is_within_one_of_the_shares(mix, seed: int, length: int) -> None:
    plan = SamplePlan(*mix, seed=seed)
    total = sum(mix[1].values())
    counts: Counter[str] = Counter()
    for position in range(length):
        counts[plan[position].source] += 1
        for source, share in plan.shares.items():
            assert abs(counts[source] - share * (position + 1)) < 1
            # of the weights themselves: they are rounded to a share of a cycle
            wanted = mix[1][source] / total * (position + 1)
            assert abs(counts[source] - wanted) < 1 + (position + 1) / MAX_CYCLE
    assert plan.counts(length) == {source: counts[source] for source in plan.sources}


@settings(max_examples=25, deadline=None)
@given(mixes, st.integers(0, 5), st.integers(1, 6))
def test_each_example_once_an_epoch(mix, seed: int, shuffle_shards: int) -> None:
    shard_sizes, weights = mix
    plan = SamplePlan(shard_sizes, weights, seed=seed, shuffle_shards=shuffle_shards)
    seen: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for position in range(300):
        draw = plan[position]
        seen.setdefault((draw.source, draw.epoch), []).append((draw.shard, draw.index))
    for (source, epoch), found in seen.items():
        whole = {(s, i) for s, count in enumerate(shard_sizes[source]) for i in range(count)}
        assert len(set(found)) == len(found)
        assert set(found) <= whole
        if (source, epoch + 1) in seen:
            assert set(found) == whole


@settings(max_examples=25, deadline=None)
@given(
    mixes,
    st.integers(1, 12),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_ranks_cover_the_plan_whatever_the_world_and_the_restarts(
    mix, batch_size, worlds, seed, shuffle_shards
) -> None:
    """A run stopped after any step reads what was left, once, on another number of workers."""
    plan = SamplePlan(*mix, seed=seed, shuffle_shards=shuffle_shards)
    read = []
    for step, world in enumerate(min(w, batch_size) for w in worlds):
        for rank in reversed(range(world)):
            piece = rank_positions(step, batch_size=batch_size, rank=rank, world_size=world)
            assert len(piece) in (batch_size // world, -(-batch_size // world))
            read += [plan[p] for p in piece]
    fresh = pickle.loads(pickle.dumps(SamplePlan(*mix, seed=seed, shuffle_shards=shuffle_shards)))
    assert sorted(read, key=lambda d: d.position) == [
        fresh[p] for p in range(batch_size * len(worlds))
    ]


def test_epochs_and_seeds_differ_and_reads_stay_in_a_shard() -> None:
    plan = SamplePlan({"a/x": [50] * 8}, {"a/x": 1.0}, seed=1)
    first = [(plan[p].shard, plan[p].index) for p in range(400)]
    assert [shard for shard, _ in first] == [
        s for s in dict.fromkeys(s for s, _ in first) for _ in range(50)
    ]
    assert first != [(plan[p].shard, plan[p].index) for p in range(400, 800)]
    other = SamplePlan({"a/x": [50] * 8}, {"a/x": 1.0}, seed=2)
    assert first != [(other[p].shard, other[p].index) for p in range(400)]
    assert abs(np.corrcoef([i for _, i in first[:50]], np.arange(50))[0, 1]) < 0.5


def test_a_window_mixes_its_shards_and_no_others() -> None:
    plan = SamplePlan({"a/x": [50] * 8}, {"a/x": 1.0}, seed=1, shuffle_shards=3)
    alone = SamplePlan({"a/x": [50] * 8}, {"a/x": 1.0}, seed=1)
    drawn = [plan[p].shard for p in range(400)]
    order = list(dict.fromkeys(alone[p].shard for p in range(400)))
    for first in range(0, 8, 3):
        window = order[first : first + 3]
        read = drawn[50 * first : 50 * (first + 3)]
        assert Counter(read) == dict.fromkeys(window, 50)
        # a half of the window has about as much of each of its shards; 25 is the even share
        assert all(15 <= n <= 35 for n in Counter(read[: len(read) // 2]).values())


def test_what_was_consumed_by_hand() -> None:
    """Six positions hold a's five examples once each; a ninth one begins its second pass."""
    plan = SamplePlan({"a/x": [3, 2], "b/y": [4]}, {"a/x": 0.75, "b/y": 0.25}, seed=7)
    assert plan.consumed(0) == {"a/x": Consumed(0, 0.0, 0), "b/y": Consumed(0, 0.0, 0)}
    assert plan.consumed(8) == {"a/x": Consumed(6, 1.2, 2), "b/y": Consumed(2, 0.5, 1)}
    assert plan.consumed(64) == {"a/x": Consumed(48, 9.6, 10), "b/y": Consumed(16, 4.0, 4)}


@settings(max_examples=25, deadline=None)
@given(mixes, st.integers(0, 200), st.integers(1, 3))
def test_what_was_consumed_is_what_was_drawn(mix, length: int, shuffle_shards: int) -> None:
    plan = SamplePlan(*mix, seed=0, shuffle_shards=shuffle_shards)
    seen: dict[str, Counter[tuple[int, int]]] = {source: Counter() for source in plan.sources}
    for draw in map(plan.__getitem__, range(length)):
        seen[draw.source][draw.shard, draw.index] += 1
    for source, consumed in plan.consumed(length).items():
        assert consumed.examples == seen[source].total()
        assert consumed.repeats == max(seen[source].values(), default=0)
        assert consumed.epochs == consumed.examples / sum(mix[0][source])


def test_golden_order_never_changes() -> None:
    """A changed order would silently break the resumption of runs: then raise mixing.VERSION."""
    plan = SamplePlan({"a/x": [3, 2], "b/y": [4]}, {"a/x": 0.8, "b/y": 0.2}, seed=7)
    assert plan.fingerprint == "7142d4a271c5a2e9"
    assert [(plan[p].source[0], plan[p].shard, plan[p].index) for p in range(6)] == [
        *[("a", 0, 2), ("a", 0, 1), ("b", 0, 1), ("a", 0, 0), ("a", 1, 1), ("a", 1, 0)]
    ]


def test_fingerprint_follows_every_input() -> None:
    base = SamplePlan({"a/x": [3], "b/x": [4]}, {"a/x": 1.0, "b/x": 1.0}, seed=0)
    assert (
        base.fingerprint
        == SamplePlan(
            {"a/x": [3], "b/x": [4]}, {"a/x": 1.0, "b/x": 1.0}, seed=0, shuffle_shards=1
        ).fingerprint
    )
    same = SamplePlan({"b/x": [4], "a/x": [3]}, {"b/x": 2.0, "a/x": 2.0}, seed=0)
    others = [
        SamplePlan({"a/x": [3], "b/x": [4]}, {"a/x": 1.0, "b/x": 1.0}, seed=1),
        SamplePlan({"a/x": [3], "b/x": [5]}, {"a/x": 1.0, "b/x": 1.0}, seed=0),
        SamplePlan({"a/x": [3], "b/x": [4]}, {"a/x": 1.0, "b/x": 2.0}, seed=0),
        SamplePlan({"a/x": [3], "b/x": [4]}, {"a/x": 1.0, "b/x": 1.0}, seed=0, shuffle_shards=2),
        SamplePlan({"a/x": [3], "c/x": [4]}, {"a/x": 1.0, "c/x": 1.0}, seed=0),
    ]
    assert base.fingerprint == same.fingerprint
    assert len({base.fingerprint, *(p.fingerprint for p in others)}) == 6


def test_ten_thousand_shards_are_planned_not_opened() -> None:
    tracemalloc.start()
    plan = SamplePlan(
        {"a/x": [1000] * 10_000, "b/x": [7]}, {"a/x": 1.0, "b/x": 1 / 3}, seed=0, shuffle_shards=8
    )
    assert plan[12_345_678].epoch == (0 if plan[12_345_678].source == "a/x" else 440_917)
    for position in range(0, 40_000_000, 100_003):
        plan[position]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan._cycle) <= MAX_CYCLE
    assert peak < 40 * 2**20


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({}, "empty"),
        ({"a/x": 0.0}, "a/x"),
        ({"a/x": float("nan")}, "a/x"),
        ({"a/x": 1.0, "b/x": -1.0}, "b/x"),
        ({"gone/x": 1.0}, "gone/x"),
        ({"a/x": 1.0, "b/x": 1e-7}, "b/x"),
    ],
)
def test_bad_mixes_are_refused_by_name(weights: dict[str, float], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        SamplePlan({"a/x": [3], "b/x": [1]}, weights, seed=0)


def test_bad_positions() -> None:
    plan = SamplePlan({"a/x": [3]}, {"a/x": 1.0}, seed=0)
    with pytest.raises(IndexError):
        plan[-1]
    with pytest.raises(SettingError, match="batch_size=2"):
        rank_positions(0, batch_size=2, rank=0, world_size=3)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(1, 200)), min_size=1, max_size=6),
    st.integers(1, 500),
    st.floats(0.1, 20),
)
def test_capped_shares_hold_the_cap_and_the_order_of_the_weights(
    sources, num_positions, repeats
) -> None:
    weights = {f"d/{i}": weight for i, (weight, _) in enumerate(sources)}
    sizes = {f"d/{i}": size for i, (_, size) in enumerate(sources)}
    if sum(sizes.values()) * repeats < num_positions:
        with pytest.raises(SettingError, match="max_repeats"):
            capped_weights(weights, sizes, num_positions=num_positions, max_repeats=repeats)
        return
    shares = capped_weights(weights, sizes, num_positions=num_positions, max_repeats=repeats)
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert share * num_positions <= repeats * sizes[name] * (1 + 1e-9)
    free = [n for n in shares if shares[n] * num_positions < repeats * sizes[n] * (1 - 1e-9)]
    ratios = [shares[n] / weights[n] for n in free]  # what is not capped keeps its proportions
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


def test_capped_shares_by_hand() -> None:
    sizes = {"a/x": 10, "b/x": 1000, "c/x": 1000}
    weights = {"a/x": 2.0, "b/x": 1.0, "c/x": 1.0}
    # a may be seen 2 * 10 times in 100 positions; the rest goes half and half
    assert capped_weights(weights, sizes, num_positions=100, max_repeats=2) == {
        "a/x": 0.2,
        "b/x": 0.4,
        "c/x": 0.4,
    }
