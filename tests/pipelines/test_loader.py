"""The loader: every rank reads its part of each step, whatever the world size, the cutting and the start."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_learner import record

from pipelines.learners import Example
from pipelines.loader import Loader, make_plan, num_micro_batches, permute_regions, split
from pipelines.train_job import TrainConfig

MIX = {"d/detection": 0.7, "d/counting": 0.3}


class MemorySource:
    """Two shards in memory."""

    def __init__(self, numbers: range, task: str) -> None:
        half = len(numbers) // 2
        self._shards = {f"{task}-0": numbers[:half], f"{task}-1": numbers[half:]}
        self._task = task

    @property
    def shards(self) -> list[tuple[str, int]]:
        return [(name, len(numbers)) for name, numbers in self._shards.items()]

    def read(self, shard: str, index: int) -> dict[str, bytes]:
        number = self._shards[shard][index]
        return {"jpg": f"image {number}".encode(), "json": record(number, task=self._task).to_json()}


SOURCES = {
    "d/detection": MemorySource(range(13), "detection"),
    "d/counting": MemorySource(range(20, 27), "counting"),
}


CONFIG = TrainConfig(steps=10, batch_size=6, learning_rate=1e-3, seed=3)


def collate(examples: Sequence[Example]) -> list[Example]:
    return list(examples)


def loader(rank: int = 0, world_size: int = 1, **changes) -> Loader:
    settings = {"batch_size": 6, "micro_batch_size": 2, "collate": collate, "weigh": len, **changes}
    return Loader(make_plan(SOURCES, MIX, CONFIG), SOURCES, rank=rank, world_size=world_size, **settings)


def ids(loaded: Loader, start: int, stop: int) -> list[list[str]]:
    return [data.sample_ids for data in loaded.steps(start, stop)]


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 9),
    micro=st.integers(1, 4),
    world=st.integers(1, 5),
    start=st.integers(0, 4),
    prefetch=st.integers(0, 3),
)
def test_union_over_ranks_is_the_plan(batch_size, micro, world, start, prefetch) -> None:
    world = min(world, batch_size)
    plan = make_plan(SOURCES, MIX, CONFIG)
    ranks = [
        list(
            loader(r, world, batch_size=batch_size, micro_batch_size=micro, prefetch_steps=prefetch).steps(
                start, 5
            )
        )
        for r in range(world)
    ]
    for step in range(start, 5):
        data = [steps[step - start] for steps in ranks]
        expected = [plan[p] for p in range(step * batch_size, (step + 1) * batch_size)]
        read = [name for d in data for name in d.sample_ids]
        assert [name.split(":")[1] for name in read] == [draw.source.split("/")[1] for draw in expected]
        assert read == [
            record(
                SOURCES[d.source]._shards[SOURCES[d.source].shards[d.shard][0]][d.index],
                task=d.source.split("/")[1],
            ).sample_id
            for d in expected
        ]
        assert len({len(d.micro_batches) for d in data}) == 1
        for d in data:
            counted = [m for m in d.micro_batches if not m.filler]
            assert [e.record.sample_id for m in counted for e in m.batch] == d.sample_ids
            assert all(1 <= len(m.batch) <= micro for m in d.micro_batches)
            assert all(m.weight == (0 if m.filler else len(m.batch)) for m in d.micro_batches)


def test_a_start_in_the_middle_gives_what_was_left() -> None:
    assert ids(loader(), 0, 7)[4:] == ids(loader(), 4, 7)
    assert ids(loader(), 7, 7) == []


def test_a_short_rank_fills_with_weight_zero() -> None:
    """Four examples on three ranks in micro-batches of one: 1 + 1 + 2, two passes each."""
    data = [
        next(iter(loader(r, 3, batch_size=4, micro_batch_size=1, prefetch_steps=0).steps(0, 1)))
        for r in range(3)
    ]
    assert [[m.filler for m in d.micro_batches] for d in data] == [
        [True, False],
        [True, False],
        [False, False],
    ]
    assert sum(m.weight for d in data for m in d.micro_batches) == 4


def test_example_seeds_belong_to_positions() -> None:
    """Augmentation must not depend on how a batch is cut or spread."""
    together = [e.seed for step in range(3) for e in loader(batch_size=4).read(step)]
    apart = [e.seed for step in range(3) for r in range(2) for e in loader(r, 2, batch_size=4).read(step)]
    assert together == apart
    assert len(set(together)) == len(together)


def test_errors_of_the_thread_reach_the_loop() -> None:
    def broken(examples: Sequence[Example]) -> None:
        raise RuntimeError(f"bad {examples[0].record.sample_id}")

    with pytest.raises(RuntimeError, match="bad drawn:"):
        list(loader(collate=broken).steps(0, 3))


def test_leaving_early_ends_the_thread() -> None:
    steps = loader().steps(0, 1000)
    next(steps)
    steps.close()


def test_permuted_regions_are_the_same_boxes_under_other_indices() -> None:
    examples = [record(number) for number in range(2, 60, 3)]
    assert all(len(example.boxes) == 3 for example in examples)
    before = [example.boxes.copy() for example in examples]
    permuted = [permute_regions(example) for example in examples]
    for example, boxes, other in zip(examples, before, permuted, strict=True):
        np.testing.assert_array_equal(example.boxes, boxes)
        assert sorted(map(tuple, other.boxes)) == sorted(map(tuple, boxes))
        assert (other.sample_id, other.messages, other.targets) == (
            example.sample_id,
            example.messages,
            example.targets,
        )
        np.testing.assert_array_equal(permute_regions(example).boxes, other.boxes)
    moved = sum((other.boxes != boxes).any() for boxes, other in zip(before, permuted, strict=True))
    assert moved > len(examples) / 2
    plain, control = loader(batch_size=20).read(0), loader(batch_size=20, shuffled_regions=True).read(0)
    assert any((a.record.boxes != b.record.boxes).any() for a, b in zip(plain, control, strict=True))


def test_cutting() -> None:
    assert num_micro_batches(32, 16, 2) == 1
    assert num_micro_batches(33, 16, 2) == 2
    assert [range(5)[piece] for piece in split(5, 3)] == [range(1), range(1, 3), range(3, 5)]


def test_the_cap_on_repeats_reaches_the_plan() -> None:
    # 60 positions; counting has 7 examples, so at most 14 of them with two repeats
    free = make_plan(SOURCES, {"d/detection": 0.1, "d/counting": 0.9}, CONFIG)
    assert free.counts(60)["d/counting"] == 54
    with pytest.raises(ValueError, match=r"max_repeats=2: .* give 40 examples, .* asks for 60"):
        make_plan(SOURCES, MIX, dataclasses.replace(CONFIG, max_repeats=2.0))
    capped = make_plan(
        SOURCES, {"d/detection": 0.1, "d/counting": 0.9}, dataclasses.replace(CONFIG, max_repeats=4.0)
    )
    assert capped.counts(60) == {"d/counting": 28, "d/detection": 32}
