"""From plan to batches on one rank: read the examples of each step, collate them, stay a step ahead.

The state of a loader is one integer, the next step: everything else follows from `pipelines.mixing`. A
thread reads and decodes the coming steps while the model works on the present one; decoding of images,
tokenising and reading of files leave Python's lock, so one thread suffices where the model is the slow part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np

from pipelines.artifacts import Artifact
from pipelines.learners import Example
from pipelines.mixing import Mix, SamplePlan, capped_weights, rank_positions
from pipelines.records import RegionExample
from pipelines.tars import ShardSet, decode_member
from pipelines.train_job import TrainConfig


class Source(Protocol):
    """What the loader needs of `pipelines.shards.ShardSet`."""

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """Name of each shard and the number of examples in it."""

    def read(self, shard: str, index: int) -> dict[str, bytes]:
        """Members of one example."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward pass of one rank."""

    batch: Any
    """What the trainee's `collate` made."""
    weight: float
    """Its share in the normalisation of the loss; 0 for a filler."""
    filler: bool = False
    """Whether it only keeps this rank in step with the others, and its loss does not count."""


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one rank computes in one optimizer step."""

    step: int
    """Number of the step, from 0."""
    micro_batches: list[MicroBatch]
    """The same number on every rank."""
    sample_ids: list[str]
    """Of the examples, in plan order."""
    wait_s: float
    """Seconds the training loop waited for these data."""


class Loader:
    """Reads the micro-batches of each step for one rank."""

    def __init__(
        self,
        plan: SamplePlan,
        sources: Mapping[str, Source],
        *,
        collate: Callable[[Sequence[Example]], Any],
        weigh: Callable[[Any], float],
        batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffled_regions: bool = False,
        prefetch_steps: int = 2,
    ) -> None:
        """Open nothing yet.

        sources: the shards of every source in the plan.
        collate, weigh: of the learner; called in the prefetch thread.
        batch_size: examples a step over all ranks. micro_batch_size: most examples in one forward pass.
        shuffled_regions: the control experiment of `permute_regions`.
        prefetch_steps: steps read ahead; 0 reads in the calling thread.
        """
        self._plan, self._sources = plan, sources
        self._collate, self._weigh = collate, weigh
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._num_micro_batches = num_micro_batches(batch_size, micro_batch_size, world_size)
        self._shuffled_regions = shuffled_regions
        self._prefetch_steps = prefetch_steps

    def steps(self, start: int, stop: int) -> Iterator[StepData]:
        """Yield the data of the steps ``[start, stop)`` in order."""
        coming = iter(range(start, stop))
        if self._prefetch_steps == 0:
            yield from (self._timed(partial(self._load, step)) for step in coming)
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as thread:
            ahead: deque[Future[StepData]] = deque(
                thread.submit(self._load, step) for step in islice(coming, self._prefetch_steps)
            )
            try:
                while ahead:
                    data = self._timed(ahead.popleft().result)
                    ahead.extend(thread.submit(self._load, step) for step in islice(coming, 1))
                    yield data
            finally:
                for future in ahead:
                    future.cancel()

    def read(self, step: int) -> list[Example]:
        """Examples of this rank in `step`, in plan order."""
        positions = rank_positions(
            step, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size
        )
        examples = []
        for position in positions:
            draw = self._plan[position]
            source = self._sources[draw.source]
            record, image = decode_member(source.read(source.shards[draw.shard][0], draw.index))
            if self._shuffled_regions:
                record = permute_regions(record)
            seed = seed_of("augment", self._plan.seed, position)
            examples.append(Example(record=record, image=image, seed=seed))
        return examples

    def _load(self, step: int) -> StepData:
        examples = self.read(step)
        micro_batches = []
        for piece in split(len(examples), self._num_micro_batches):
            # A rank that is an example short still joins every collective, with a filler that does not count.
            filler = not examples[piece]
            batch = self._collate(examples[:1] if filler else examples[piece])
            weight = 0.0 if filler else float(self._weigh(batch))
            micro_batches.append(MicroBatch(batch=batch, weight=weight, filler=filler))
        ids = [example.record.sample_id for example in examples]
        return StepData(step=step, micro_batches=micro_batches, sample_ids=ids, wait_s=0.0)

    @staticmethod
    def _timed(get: Callable[[], StepData]) -> StepData:
        start = time.perf_counter()
        data = get()
        return dataclasses.replace(data, wait_s=time.perf_counter() - start)


def open_sources(shards: Mapping[str, Artifact], mix: Mix) -> dict[str, ShardSet]:
    """Open every source ``dataset/task`` of a mix. shards: the artifact of each dataset."""
    return {source: ShardSet(shards[source.split("/")[0]], source.split("/")[1]) for source in mix}


def held_out_sources(shards: Mapping[str, Artifact]) -> dict[str, ShardSet]:
    """Open held-out shards, given by source ``dataset/task``."""
    return {source: ShardSet(artifact, source.split("/")[1]) for source, artifact in shards.items()}


def make_plan(sources: Mapping[str, Source], mix: Mix, config: TrainConfig) -> SamplePlan:
    """Plan of a mix over opened sources, with no source repeated more than ``config.max_repeats`` times.

    ValueError for a source of the mix that is not among them, and for sources too small for the cap.
    """
    sizes = {name: [n for _, n in source.shards] for name, source in sources.items()}
    if config.max_repeats is not None:
        mix = capped_weights(
            mix,
            {name: sum(counts) for name, counts in sizes.items()},
            num_positions=config.steps * config.batch_size,
            max_repeats=config.max_repeats,
        )
    return SamplePlan(sizes, mix, seed=config.seed)


def num_micro_batches(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes of each rank in a step, so that none holds more than `micro_batch_size` examples."""
    largest_rank = -(-batch_size // world_size)
    return -(-largest_rank // micro_batch_size)


def split(count: int, pieces: int) -> list[slice]:
    """Cut ``range(count)`` into near-equal slices, empty ones included."""
    return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from a hash of the parts, the same in every process."""
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permute_regions(record: RegionExample) -> RegionExample:
    """The control: boxes permuted among the indices, conversation unchanged, by a seed from the sample id.

    Whatever a model scores on such examples it does not get from looking at the right regions.
    """
    generator = np.random.Generator(np.random.PCG64(seed_of("permute regions", record.sample_id)))
    order = generator.permutation(len(record.boxes))
    return dataclasses.replace(
        record,
        boxes=record.boxes[order],
        scores=tuple(record.scores[i] for i in order),
        box_sources=tuple(record.box_sources[i] for i in order),
        ignore=None if record.ignore is None else tuple(record.ignore[i] for i in order),
    )
