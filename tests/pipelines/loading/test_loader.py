"""The loader: each rank reads its part of a step, for any world size, cutting and start."""

import dataclasses
import itertools
import os
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.loading.collators import Example
from pipelines.loading.loader import Loader, StepData, make_plan
from pipelines.loading.micro_batches import group_by_tokens, num_micro_batches, split
from pipelines.loading.sample_plan import MAX_CYCLE
from pipelines.loading.worker_processes import Packed, pack, unpack
from pipelines.shards.tar_format import OPEN_SHARDS, ShardSet, TarWriter
from pipelines.train_config import TrainConfig
from tests.pipelines.training.stub_learner import record

MIX = {"d/detection": 0.7, "d/counting": 0.3}


class MemorySource:
    """Two shards in memory."""

    is_remote = False

    def __init__(self, numbers: range, task: str) -> None:
        half = len(numbers) // 2
        self._shards = {f"{task}-0": numbers[:half], f"{task}-1": numbers[half:]}
        self._task = task

    @property
    def shards(self) -> list[tuple[str, int]]:
        return [(name, len(numbers)) for name, numbers in self._shards.items()]

    def read(self, shard: str, index: int) -> dict[str, bytes]:
        number = self._shards[shard][index]
        return {
            "jpg": f"image {number}".encode(),
            "json": record(number, task=self._task).to_json(),
        }


NUMBERS = {"d/detection": range(13), "d/counting": range(20, 27)}
SOURCES = {name: MemorySource(numbers, name[2:]) for name, numbers in NUMBERS.items()}

CONFIG = TrainConfig(steps=10, batch_size=6, learning_rate=1e-3, seed=3)


class ListCollator:
    """Batches are lists of examples; an example is as long as it has boxes."""

    packs = False

    def encode(self, example: Example) -> Example:
        return example

    def length(self, encoded: Example) -> int:
        return len(encoded.record.boxes)

    def collate(self, encoded: Sequence[Example]) -> list[Example]:
        return list(encoded)

    def weigh(self, batch: list[Example]) -> float:
        return len(batch)


def loader(rank: int = 0, world_size: int = 1, plan: Any = None, **changes) -> Loader:
    settings = {"batch_size": 6, "micro_batch_size": 2, "collator": ListCollator(), **changes}
    plan = plan or make_plan(SOURCES, MIX, CONFIG)
    return Loader(plan, SOURCES, rank=rank, world_size=world_size, **settings)


def read_step(loaded: Loader, step: int) -> list[Example]:
    return loaded.read(loaded.draws(step))


def ids(loaded: Loader, start: int, stop: int) -> list[list[str]]:
    return [data.sample_ids for data in loaded.steps(start, stop)]


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 9),
    micro=st.integers(1, 4),
    worlds=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3),
    prefetch=st.integers(0, 3),
    max_tokens=st.one_of(st.none(), st.integers(1, 8)),
    seed=st.integers(0, 9),
    share=st.floats(0.05, 0.95),
    shuffle_shards=st.integers(1, 3),
)
def test_union_over_ranks_is_the_plan(
    batch_size, micro, worlds, prefetch, max_tokens, seed, share, shuffle_shards
) -> None:
    """Of runs that are interrupted after some steps and go on with another number of ranks."""
    mix = {"d/detection": share, "d/counting": 1 - share}
    plan = make_plan(
        SOURCES, mix, dataclasses.replace(CONFIG, seed=seed, shuffle_shards=shuffle_shards)
    )
    cut = {"batch_size": batch_size, "micro_batch_size": micro, "max_tokens": max_tokens}
    read, start = [], 0
    for ranks, steps in worlds:
        world = min(ranks, batch_size)
        loaded = [
            # what a rank works out ahead of the interruption is lost with it
            list(
                itertools.islice(
                    loader(r, world, plan, prefetch_steps=prefetch, **cut).steps(start, 50), steps
                )
            )
            for r in range(world)
        ]
        for data in zip(*loaded, strict=True):
            assert {d.step for d in data} == {start}
            start += 1
            read += [name for d in data for name in d.sample_ids]
            most = max(len(d.micro_batches) for d in data)
            assert max_tokens is not None or {len(d.micro_batches) for d in data} == {most}
            for d in data:
                assert_holds_its_examples(d, most, micro, in_order=max_tokens is None)
    expected = [plan[p] for p in range(start * batch_size)]
    assert read == [
        record(
            SOURCES[d.source]._shards[SOURCES[d.source].shards[d.shard][0]][d.index],
            task=d.source.split("/")[1],
        ).sample_id
        for d in expected
    ]
    counting = sum("counting" in name for name in read)
    assert abs(counting - (1 - share) * len(read)) < 1 + len(read) / MAX_CYCLE


def assert_holds_its_examples(data: StepData, most: int, micro: int, *, in_order: bool) -> None:
    """Each once, in passes of at most `micro`, filled up to `most` passes that do not count."""
    padded = data.padded(most)
    counted = [m for m in padded if not m.filler]
    names = [e.record.sample_id for m in counted for e in m.batch]
    assert names == data.sample_ids if in_order else sorted(names) == sorted(data.sample_ids)
    assert len(padded) == most
    assert data.num_tokens == sum(len(e.record.boxes) for m in counted for e in m.batch)
    assert all(1 <= len(m.batch) <= micro for m in padded)
    assert all(m.weight == (0 if m.filler else len(m.batch)) for m in padded)


def test_of_ten_thousand_shards_only_those_in_turn_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is opened once in an epoch, a few at a time; what is kept in memory does not grow."""
    writer = TarWriter()
    for number in range(6):
        writer.add(record(number), b"image")
    pieces, index = writer.finish()
    opened: list[str] = []

    def open_input(self: Artifact, name: str) -> pa.NativeFile:
        opened.append(name)
        return pa.BufferReader(b"".join(pieces))

    artifact = Artifact(root=str(tmp_path), kind="shards", name="d", fingerprint="0" * 16)
    artifact.commit(
        {"files": {f"detection-{number:05d}.tar": {"rows": 6} for number in range(10_000)}}
    )
    source = ShardSet(artifact, "detection")
    monkeypatch.setattr(Artifact, "open_input", open_input)
    monkeypatch.setattr(
        Artifact, "read_table", lambda self, name: pq.read_table(pa.BufferReader(index))
    )
    plan = make_plan(
        {"d/detection": source}, {"d/detection": 1.0}, dataclasses.replace(CONFIG, shuffle_shards=4)
    )
    assert not opened
    tracemalloc.start()
    reading = Loader(
        plan, {"d/detection": source}, collator=ListCollator(), batch_size=24, micro_batch_size=8
    )
    grown = []
    for data in reading.steps(1000, 1100):
        assert len(source._opened) <= OPEN_SHARDS
        if data.step in (1050, 1099):
            grown.append(tracemalloc.get_traced_memory()[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    turn = {source.shards[plan[position].shard][0] for position in range(24_000, 26_400)}
    assert len(opened) == len(set(opened)) == 400
    assert set(opened) == turn
    assert peak < 30 * 2**20
    assert grown[1] - grown[0] < 2**20


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
    together = [e.seed for step in range(3) for e in read_step(loader(batch_size=4), step)]
    ranks = [loader(rank, 2, batch_size=4) for rank in range(2)]
    apart = [e.seed for step in range(3) for rank in ranks for e in read_step(rank, step)]
    assert together == apart
    assert len(set(together)) == len(together)


class BrokenCollator(ListCollator):
    def encode(self, example: Example) -> Example:
        if "counting" in example.record.sample_id:
            raise OverflowError("no room")
        return example


class DeadlyCollator(ListCollator):
    def encode(self, example: Example) -> Example:
        os._exit(3)


@pytest.mark.parametrize("processes", [0, 1])
def test_errors_reach_the_loop_with_the_sample_and_the_place(processes: int) -> None:
    with pytest.raises(OverflowError) as caught:
        list(loader(collator=BrokenCollator(), processes=processes).steps(0, 3))
    text = str(caught.value) + "".join(caught.value.__notes__ if processes == 0 else ())
    assert "no room" in text
    assert "sample drawn:counting:0002" in text
    assert processes == 0 or "in encode" in text  # the traceback of the process


def test_unreadable_examples_are_named_by_their_place() -> None:
    class Gone(MemorySource):
        def read(self, shard: str, index: int) -> dict[str, bytes]:
            raise OSError("gone")

    broken = loader()
    broken._sources = {name: Gone(range(20), "x") for name in SOURCES}
    draw = make_plan(SOURCES, MIX, CONFIG)[0]
    with pytest.raises(OSError, match="gone") as caught:
        read_step(broken, 0)
    assert caught.value.__notes__ == [
        f"example {draw.index} of x-{draw.shard} of {draw.source}, position 0"
    ]


def test_reads_wait_side_by_side_and_come_in_order() -> None:
    """Six reads that wait for each other, as requests to object storage may."""
    together = threading.Barrier(6)

    class Slow(MemorySource):
        is_remote = True

        def read(self, shard: str, index: int) -> dict[str, bytes]:
            together.wait(timeout=10)
            return super().read(shard, index)

    slow = loader()
    slow._sources = {name: Slow(numbers, name[2:]) for name, numbers in NUMBERS.items()}
    for step in range(3):
        ours, theirs = read_step(slow, step), read_step(loader(), step)
        assert [e.record.sample_id for e in ours] == [e.record.sample_id for e in theirs]


def test_a_dead_process_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"a loader process died while step 4 was waited for"):
        list(loader(collator=DeadlyCollator(), processes=1).steps(4, 6))


def test_processes_give_what_the_thread_gives() -> None:
    state = torch.random.get_rng_state()
    two = list(loader(processes=2, max_tokens=4).steps(2, 9))
    assert torch.equal(torch.random.get_rng_state(), state)
    thread = list(loader(max_tokens=4).steps(2, 9))
    assert [d.step for d in two] == list(range(2, 9))
    for ours, theirs in zip(two, thread, strict=True):
        assert ours.sample_ids == theirs.sample_ids
        for one, other in zip(ours.micro_batches, theirs.micro_batches, strict=True):
            assert (one.weight, one.filler) == (other.weight, other.filler)
            assert [(e.seed, e.image, e.record.to_json()) for e in one.batch] == [
                (e.seed, e.image, e.record.to_json()) for e in other.batch
            ]
    assert list(loader(processes=2).steps(5, 5)) == []


def test_what_is_packed_comes_out_as_it_was() -> None:
    tensors = {
        "ids": torch.arange(6).view(2, 3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "mask": torch.tensor([True, False, True]),
        "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(7, dtype=torch.int32),
    }
    value = {"texts": ("a", None), "tensors": tensors, "again": [tensors["ids"]]}
    packed = pack(value)
    assert packed.block.is_shared()
    assert b"half" in packed.skeleton
    out = unpack(sent(packed))
    assert (out["texts"], list(out)) == (("a", None), list(value))
    for name, tensor in tensors.items():
        assert out["tensors"][name].dtype == tensor.dtype
        assert torch.equal(out["tensors"][name], tensor), name
        assert out["tensors"][name].data_ptr() % 64 == 0 or tensor.numel() == 0
    assert torch.equal(out["again"][0], tensors["ids"])
    assert unpack(sent(pack("no tensor"))) == "no tensor"


def sent(packed: Packed) -> Packed:
    """As it arrives in another process; queues pickle with `__reduce__`."""
    make, arguments = packed.__reduce__()
    return make(*arguments)


def test_leaving_early_ends_the_thread() -> None:
    steps = loader().steps(0, 1000)
    next(steps)
    steps.close()


def test_the_control_shuffles_regions() -> None:
    plain = read_step(loader(batch_size=20), 0)
    control = read_step(loader(batch_size=20, shuffled_regions=True), 0)
    assert any(
        (a.record.boxes != b.record.boxes).any() for a, b in zip(plain, control, strict=True)
    )


def test_cutting() -> None:
    assert num_micro_batches(32, 16, 2) == 1
    assert num_micro_batches(33, 16, 2) == 2
    assert split(5, 3) == [range(1), range(1, 3), range(3, 5)]
    assert split(1, 2) == [range(0), range(1)]


def test_grouping_by_hand() -> None:
    # 9 alone would fit twice into 20 with an 8; then 5 + 4 + 4 cost 15; a fourth would cost 20
    lengths = [4, 9, 4, 8, 5, 3]
    assert group_by_tokens(lengths, max_examples=9, max_tokens=20) == [[1, 3], [0, 2, 4, 5]]
    assert group_by_tokens(lengths, max_examples=3, max_tokens=20) == [[1, 3], [0, 2, 4], [5]]
    assert group_by_tokens(lengths, max_examples=9, max_tokens=8) == [[1], [3], [4], [0, 2], [5]]
    assert group_by_tokens(lengths, max_examples=9, max_tokens=20, packed=True) == [
        [1, 3],
        [0, 2, 4, 5],
    ]
    assert group_by_tokens(lengths, max_examples=9, max_tokens=21, packed=True) == [
        [1, 3],
        [0, 2, 4, 5],
    ]
    assert group_by_tokens(lengths, max_examples=9, max_tokens=22, packed=True) == [
        [1, 3, 4],
        [0, 2, 5],
    ]
    assert group_by_tokens([], max_examples=9, max_tokens=8) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9), st.integers(1, 120), st.booleans()
)
def test_groups_hold_the_limits_and_everything_once(lengths, most, budget, packed) -> None:
    groups = group_by_tokens(lengths, max_examples=most, max_tokens=budget, packed=packed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert group == sorted(group)
        assert 1 <= len(group) <= most
        own = [lengths[i] for i in group]
        assert len(group) == 1 or (sum(own) if packed else len(own) * max(own)) <= budget
    # neighbours in the order of length: a group's shortest is no shorter than the next's longest
    for one, other in itertools.pairwise(groups):
        assert min(lengths[i] for i in one) >= max(lengths[i] for i in other)


def test_the_cap_on_repeats_reaches_the_plan() -> None:
    # 60 positions; counting has 7 examples, so at most 14 of them with two repeats
    free = make_plan(SOURCES, {"d/detection": 0.1, "d/counting": 0.9}, CONFIG)
    assert free.counts(60)["d/counting"] == 54
    with pytest.raises(SettingError, match=r"max_repeats=2: .* give 40 examples, .* asks for 60"):
        make_plan(SOURCES, MIX, dataclasses.replace(CONFIG, max_repeats=2.0))
    capped = make_plan(
        SOURCES,
        {"d/detection": 0.1, "d/counting": 0.9},
        dataclasses.replace(CONFIG, max_repeats=4.0),
    )
    assert capped.counts(60) == {"d/counting": 28, "d/detection": 32}
