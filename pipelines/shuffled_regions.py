"""The control experiment ``shuffled_regions``: each region shows another box than the one it names.

Whatever a model scores on such examples it does not get from looking at the right regions. Training
and evaluation permute in the same way, so that the control differs from a run in nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pipelines.schemas import RegionExample
from pipelines.seeds import seed_of


def derangement(count: int, name: str) -> np.ndarray:
    """Return an order in which nothing keeps its place, from two items on.

    Args:
        count: Number of items.
        name: What the order is drawn from, such as a sample id.

    Returns:
        int64[count], for each place the item that it gets.
    """
    generator = np.random.Generator(np.random.PCG64(seed_of("shuffled regions", name)))
    order = generator.permutation(count)
    moved = np.empty(count, dtype=np.int64)
    moved[order] = np.roll(order, 1)  # one cycle through all of them
    return moved


def shuffle_regions(example: RegionExample) -> RegionExample:
    """Permute the boxes among the regions by the sample id; the conversation stays as it is."""
    order = derangement(len(example.boxes), example.sample_id)
    return dataclasses.replace(
        example,
        boxes=example.boxes[order],
        scores=tuple(example.scores[i] for i in order),
        box_sources=tuple(example.box_sources[i] for i in order),
        ignore=None if example.ignore is None else tuple(example.ignore[i] for i in order),
    )
