"""Held-out examples judged during training: each rank judges its share, rank 0 gets the figures.

What is judged is up to the trainee: proposals against annotated boxes, or the loss. The figures are those of
the whole set for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pipelines.collators import Example
from pipelines.learners import Trainee
from pipelines.tars import ShardSet, decode_member
from pipelines.train_job import VALIDATION, TrainConfig


def validate(
    trainee: Trainee,
    sources: Mapping[str, ShardSet],
    config: TrainConfig,
    *,
    device: torch.device,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """Figures of the module as it is, by name, on rank 0; nothing on the others. Every rank must call it.

    sources: shards of the held-out examples; of each, ``config.validation_examples`` are judged.
    """
    module = trainee.module
    places = list(enumerate(_places(sources, config.validation_examples)))[rank::world_size]
    judged: list[tuple[int, Any]] = []
    module.eval()
    with torch.no_grad():
        for start in range(0, len(places), config.micro_batch_size):
            batch = places[start : start + config.micro_batch_size]
            examples = [_read(sources[source], shard, row) for _, (source, shard, row) in batch]
            numbers = (number for number, _ in batch)
            judged += zip(numbers, trainee.judge(examples, device), strict=True)
    module.train()
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, judged)
    if rank != 0:
        return {}
    in_order = sorted((pair for own in gathered for pair in own), key=lambda pair: pair[0])
    figures = trainee.figures([item for _, item in in_order])
    return {f"{VALIDATION}{name}": value for name, value in figures.items()}


def _places(sources: Mapping[str, ShardSet], most: int) -> Sequence[tuple[str, str, int]]:
    """Source, shard and row of the examples that are judged: spread evenly over each source."""
    chosen = []
    for source, shards in sources.items():
        every = [(source, name, row) for name, count in shards.shards for row in range(count)]
        step = -(-len(every) // most)
        chosen += every[::step]
    return chosen


def _read(shards: ShardSet, shard: str, row: int) -> Example:
    record, image = decode_member(shards.read(shard, row))
    return Example(record=record, image=image, seed=0)
