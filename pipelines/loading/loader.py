"""From plan to batches on one rank: read each step's examples, encode and collate them, work ahead.

The state of a loader is one integer, the next step: everything else follows from
`pipelines.loading.sample_plan`. The coming steps are read and encoded while the model works on the
present one, by a thread or by processes of their own (`pipelines.loading.worker_processes`): a
thread suffices where the model is the slow part, for decoding and reading leave Python's lock, and
tokenising in part.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from pipelines.artifacts import Artifact
from pipelines.loading.collators import Collator, Example
from pipelines.loading.micro_batches import group_by_tokens, num_micro_batches, split
from pipelines.loading.sample_plan import (
    Consumed,
    Draw,
    Mix,
    SamplePlan,
    capped_weights,
    rank_positions,
)
from pipelines.seeds import seed_of
from pipelines.shards.tar_format import ShardSet, decode_member
from pipelines.shuffled_regions import shuffle_regions
from pipelines.train_config import TrainConfig

READERS = 8
"""Examples read at a time from object storage, where a read is mostly waiting."""


class Source(Protocol):
    """What the loader needs of `pipelines.shards.write.ShardSet`."""

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """Name of each shard and the number of examples in it."""

    @property
    def is_remote(self) -> bool:
        """Whether it lies on object storage: then several threads read at a time."""

    def read(self, shard: str, index: int) -> dict[str, bytes]:
        """Return the members of one example, by their extension."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward pass of one rank."""

    batch: Any
    """What the learner's collator made."""
    weight: float
    """Its share in the normalisation of the loss (`Collator.weigh`); 0 for a filler."""
    sources: tuple[str, ...] = ()
    """Source in the mix of each example, in the batch's order; none for a filler."""
    filler: bool = False
    """Whether it only keeps this rank in step with the others; its loss does not count."""


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one rank computes in one optimizer step."""

    step: int
    """Number of the step, from 0."""
    micro_batches: list[MicroBatch]
    """The same number on every rank, unless they are grouped by tokens: then see `padded`."""
    sample_ids: list[str]
    """Ids of the examples, in plan order."""
    num_tokens: int
    """Tokens of the examples, padding left out."""
    wait_s: float = 0.0
    """Seconds the training loop waited for these data."""

    def padded(self, count: int) -> list[MicroBatch]:
        """Return the micro-batches, and fillers up to `count`.

        Args:
            count: The most that any rank has, so that all take part in each other's collectives.
        """
        filler = dataclasses.replace(self.micro_batches[-1], weight=0.0, sources=(), filler=True)
        return self.micro_batches + [filler] * (count - len(self.micro_batches))


class Loader:
    """The reader of one rank's micro-batches. Picklable: every process opens files of its own."""

    def __init__(
        self,
        plan: SamplePlan,
        sources: Mapping[str, Source],
        *,
        collator: Collator,
        batch_size: int,
        micro_batch_size: int,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffled_regions: bool = False,
        prefetch_steps: int = 2,
        processes: int = 0,
    ) -> None:
        """Open nothing yet.

        Args:
            plan: The order of examples of the run.
            sources: The shards of every source in the plan.
            collator: Of the learner.
            batch_size: Examples a step over all ranks.
            micro_batch_size: Most examples in one forward pass.
            max_tokens: Most tokens in one forward pass, padding included; None: by number alone.
            rank: Number of this rank, from 0.
            world_size: Number of ranks.
            shuffled_regions: Whether to do the control experiment of `pipelines.shuffled_regions`.
            prefetch_steps: Steps that the thread reads ahead; 0 reads in the calling thread.
            processes: Processes that load steps instead of the thread; 0 for the thread.
        """
        self._plan, self._sources = plan, sources
        self._collator = collator
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._micro_batch_size, self._max_tokens = micro_batch_size, max_tokens
        self._shuffled_regions = shuffled_regions
        self._prefetch_steps, self._processes = prefetch_steps, processes

    @property
    def sources(self) -> list[str]:
        """Sources of the mix, in the same order on every rank."""
        return self._plan.sources

    def consumed(self, steps: int) -> dict[str, Consumed]:
        """Return what the first `steps` take of each source, on all ranks."""
        return self._plan.consumed(steps * self._batch_size)

    def steps(self, start: int, stop: int) -> Iterator[StepData]:
        """Yield the data of the steps ``[start, stop)`` in order."""
        if self._processes and start < stop:
            from pipelines.loading.worker_processes import load_in_processes

            arriving = load_in_processes(self.load, range(start, stop), self._processes)
        else:
            arriving = self._load_in_thread(range(start, stop))
        # Measured here: who loads a step does not know how long it was waited for.
        asked = time.perf_counter()
        for data in arriving:
            yield dataclasses.replace(data, wait_s=time.perf_counter() - asked)
            asked = time.perf_counter()

    def draws(self, step: int) -> list[Draw]:
        """Return the positions of the plan that this rank takes in `step`, in plan order."""
        positions = rank_positions(
            step, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
        )
        return [self._plan[position] for position in positions]

    def read(self, draws: Sequence[Draw]) -> list[Example]:
        """Return the examples at these positions."""
        if not any(source.is_remote for source in self._sources.values()):
            return [self._read_one(draw) for draw in draws]
        with ThreadPoolExecutor(READERS, thread_name_prefix="reader") as threads:
            return list(threads.map(self._read_one, draws))

    def _read_one(self, draw: Draw) -> Example:
        source = self._sources[draw.source]
        shard = source.shards[draw.shard][0]
        try:
            record, image = decode_member(source.read(shard, draw.index))
        except Exception as error:  # keeps its type, and says where it happened
            error.add_note(
                f"example {draw.index} of {shard} of {draw.source}, position {draw.position}"
            )
            raise
        if self._shuffled_regions:
            record = shuffle_regions(record)
        seed = seed_of("augment", self._plan.seed, draw.position)
        return Example(record=record, image=image, seed=seed)

    def load(self, step: int) -> StepData:
        """Return the micro-batches of this rank in `step`."""
        draws = self.draws(step)
        examples = self.read(draws)
        encoded = [self._encode(example) for example in examples]
        lengths = [self._collator.length(item) for item in encoded]
        pieces: Sequence[Sequence[int]]
        if self._max_tokens is None:
            # From sizes alone, and so as many passes on every rank.
            pieces = split(
                len(examples),
                num_micro_batches(self._batch_size, self._micro_batch_size, self._world_size),
            )
        else:
            pieces = group_by_tokens(
                lengths,
                max_examples=self._micro_batch_size,
                max_tokens=self._max_tokens,
                packed=self._collator.packs,
            )
        micro_batches = []
        for piece in pieces:
            # A rank that is an example short joins every collective all the same, with a filler.
            batch = self._collator.collate([encoded[i] for i in piece or range(1)])
            weight = float(self._collator.weigh(batch)) if piece else 0.0
            sources = tuple(draws[i].source for i in piece)
            micro_batches.append(
                MicroBatch(batch=batch, weight=weight, sources=sources, filler=not piece)
            )
        return StepData(
            step=step,
            micro_batches=micro_batches,
            sample_ids=[example.record.sample_id for example in examples],
            num_tokens=sum(lengths),
        )

    def _encode(self, example: Example) -> Any:
        try:
            return self._collator.encode(example)
        except Exception as error:
            error.add_note(f"sample {example.record.sample_id}")
            raise

    def _load_in_thread(self, steps: range) -> Iterator[StepData]:
        if self._prefetch_steps == 0:
            yield from map(self.load, steps)
            return
        coming = iter(steps)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as thread:
            ahead: deque[Future[StepData]] = deque(
                thread.submit(self.load, step) for step in islice(coming, self._prefetch_steps)
            )
            try:
                while ahead:
                    data = ahead.popleft().result()
                    ahead.extend(thread.submit(self.load, step) for step in islice(coming, 1))
                    yield data
            finally:
                # Who stops early must not wait for steps that nobody will take.
                for future in ahead:
                    future.cancel()


def open_sources(shards: Mapping[str, Artifact], mix: Mix) -> dict[str, ShardSet]:
    """Open every source ``dataset/task`` of a mix.

    Args:
        shards: The artifact of each dataset.
        mix: Its sources are opened.
    """
    return {source: ShardSet(shards[source.split("/")[0]], source.split("/")[1]) for source in mix}


def make_plan(sources: Mapping[str, Source], mix: Mix, config: TrainConfig) -> SamplePlan:
    """Return the plan of a mix over opened sources, under the cap of ``config.max_repeats``.

    Args:
        sources: Opened sources, by name.
        mix: Weight of each source.
        config: Of the run.

    Raises:
        SettingError: A source of the mix is not among them, or all are too small for the cap.
    """
    sizes = {name: [n for _, n in source.shards] for name, source in sources.items()}
    if config.max_repeats is not None:
        mix = capped_weights(
            mix,
            {name: sum(counts) for name, counts in sizes.items()},
            num_positions=config.steps * config.batch_size,
            max_repeats=config.max_repeats,
        )
    return SamplePlan(sizes, mix, seed=config.seed, shuffle_shards=config.shuffle_shards)
