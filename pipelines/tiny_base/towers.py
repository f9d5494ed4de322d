"""Pre-training of the tiny base's two vision towers on drawn scenes, with throw-away heads (ours).

The auxiliary tower (DaViT) learns what a region encoder will ask of it: from the features of a box,
pooled as the region encoder pools them, the colour and the shape of the object that the box covers,
and whether it covers one whole. The primary tower (ViT) learns what lies at each of its patches,
and which colours and shapes meet in each image token.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dataset_builders.drawn_world.drawing import SHAPES
from fo1_model import boxes as box_ops
from fo1_model.auxiliary_tower import AuxiliaryTower, auxiliary_image
from fo1_model.config import ModelConfig
from fo1_model.region_pooling import boxes_in_cells, pool_levels
from fo1_model.vlms import VLMFamily
from pipelines.tiny_base.drawn_images import (
    COLOUR_NAMES,
    DrawnImage,
    patch_targets,
    region_targets,
    sample_regions,
)

_LINE_EVERY_S = 15.0
"""Time between two lines of progress."""

Log = Callable[[str], None]
"""What gets lines of progress."""


class RegionHeads(nn.Module):
    """What reads the auxiliary tower: a linear probe, and a network like a connector.

    Args:
        width: Width of the pooled features.
        hidden: Width of the network's hidden layer.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        kinds = len(COLOUR_NAMES) + len(SHAPES)
        self.network = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, kinds + 1)
        )
        self.probe = nn.Linear(width, kinds)

    def loss_and_hits(
        self, features: Tensor, positions: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss, and the network's shares of right answers.

        Args:
            features: float32[N, width], pooled from the boxes.
            positions: float32[N, width], embedding of the boxes.
            targets: int64[N, 3] of `region_targets`.

        Returns:
            Loss float32[], and hits in 0..1 by name.
        """
        answers, probed = self.network(features + positions), self.probe(features)
        known = targets[:, 0] >= 0
        colours = slice(0, len(COLOUR_NAMES))
        shapes = slice(len(COLOUR_NAMES), len(COLOUR_NAMES) + len(SHAPES))
        # A start that keeps the graph whole, also when no region has a target.
        loss = answers.sum() * 0
        hits = {}
        for name, part, column in (("colour", colours, 0), ("shape", shapes, 1)):
            for logits in (answers, probed):
                loss = loss + F.cross_entropy(logits[known, part], targets[known, column])
            hits[name] = (
                (answers[known, part].argmax(1) == targets[known, column]).float().mean().item()
            )
        sure = targets[:, 2] >= 0
        whole = targets[sure, 2].float()
        loss = loss + F.binary_cross_entropy_with_logits(answers[sure, -1], whole)
        hits["whole"] = ((answers[sure, -1] > 0).float() == whole).float().mean().item()
        return loss, hits


def auxiliary_step(
    tower: AuxiliaryTower,
    heads: RegionHeads,
    config: ModelConfig,
    images: Sequence[DrawnImage],
    seed: tuple[int, ...],
) -> tuple[Tensor, dict[str, float]]:
    """Compute loss and hits of the auxiliary tower on one batch.

    Args:
        tower: The tower.
        heads: What reads it.
        config: Model config, for how regions are pooled.
        images: Drawn scenes of the batch.
        seed: What the regions are drawn from.

    Returns:
        Loss float32[], and hits in 0..1 by name.
    """
    rng = np.random.default_rng(seed)
    decoded = [Image.fromarray(image.pixels) for image in images]
    maps = tower(
        [auxiliary_image(image, config.auxiliary) for image in decoded],
        [image.size for image in decoded],
    )
    features, positions, targets = [], [], []
    for image, levels in zip(images, maps, strict=True):
        regions = sample_regions(rng, image, int(rng.integers(12, 21)))
        finest = levels[0]
        rows, columns = finest.values.shape[1:]
        cells = boxes_in_cells(finest, torch.from_numpy(regions))
        pooled = pool_levels(
            [level.values for level in levels],
            cells,
            output_size=config.region.roi_size,
            aligned=config.region.aligned,
            sampling_ratio=config.region.sampling_ratio,
            grid_size=(rows, columns),
        )
        # Pooled and placed as the region encoder does it, so that the tower meets the same demands.
        features.append(pooled)
        positions.append(
            box_ops.embed(box_ops.scale(cells, 1 / columns, 1 / rows), pooled.shape[1])
        )
        targets.append(torch.from_numpy(region_targets(image, regions)))
    return heads.loss_and_hits(torch.cat(features), torch.cat(positions), torch.cat(targets))


class PatchHeads(nn.Module):
    """What reads the primary tower: a category a patch, colours and shapes an image token.

    Args:
        map_width: Width of the tower's feature maps.
        token_width: Width of image tokens.
    """

    def __init__(self, map_width: int, token_width: int) -> None:
        super().__init__()
        self.patches = nn.Linear(map_width, 1 + len(COLOUR_NAMES) * len(SHAPES))
        self.tokens = nn.Linear(token_width, len(COLOUR_NAMES) + len(SHAPES))


def primary_step(
    family: VLMFamily, vlm: Any, heads: PatchHeads, images: Sequence[DrawnImage]
) -> tuple[Tensor, dict[str, float]]:
    """Compute loss and hits of the primary tower on one batch.

    Args:
        family: The VLM family.
        vlm: Its model.
        heads: What reads the tower.
        images: Drawn scenes of the batch.

    Returns:
        Loss float32[], and the share of right categories, in 0..1, among the patches that show
        something.
    """
    inputs = [family.preprocess(Image.fromarray(image.pixels)) for image in images]
    grids = [grid for _, grid in inputs]
    tokens, maps = family.encode_images(vlm, torch.cat([pixels for pixels, _ in inputs]), grids)
    wanted = [patch_targets(image, *grid) for image, grid in zip(images, grids, strict=True)]
    patches = torch.cat([patch.flatten() for patch, _ in wanted])
    logits = heads.patches(torch.cat([values.flatten(1).T for values in maps]))
    loss = F.cross_entropy(logits, patches) + F.binary_cross_entropy_with_logits(
        heads.tokens(tokens), torch.cat([token.flatten(0, 1) for _, token in wanted])
    )
    shown = patches > 0
    return loss, {"patch": (logits[shown].argmax(1) == patches[shown]).float().mean().item()}


Step = Callable[[Sequence[DrawnImage], tuple[int, ...]], tuple[Tensor, dict[str, float]]]
"""What computes loss and hits of (images, seed)."""


def average_hits(
    step: Step, images: Sequence[DrawnImage], batch_size: int, seed: int
) -> dict[str, float]:
    """Return the mean hits over held-out images, rounded to three decimals."""
    collected: dict[str, list[float]] = {}
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            for name, value in step(images[start : start + batch_size], (seed, start))[1].items():
                collected.setdefault(name, []).append(value)
    return {name: round(float(np.nanmean(values)), 3) for name, values in collected.items()}


def train_tower(
    name: str,
    modules: nn.Module,
    step: Step,
    images: tuple[Sequence[DrawnImage], Sequence[DrawnImage]],
    schedule: tuple[int, float, int],
    log: Log,
) -> dict[str, float]:
    """Train one tower with its heads over a cosine schedule.

    Args:
        name: Name of the tower in lines of progress; the draws depend on it.
        modules: All that trains.
        step: What computes loss and hits of a batch.
        images: Drawn scenes to train on, and held-out ones.
        schedule: Number of steps of 16 images, peak learning rate, seed.
        log: Gets a line every few seconds.

    Returns:
        Hits on the held-out scenes, in 0..1.
    """
    train, held_out = images
    steps, rate, seed = schedule
    rng = random.Random(f"{name}/{seed}")
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    clock = StepClock(name, steps, log)
    modules.train()
    for number in range(steps):
        # The cosine ends a little above 0, so that the last steps still move something.
        shape = 0.5 * (1 + math.cos(math.pi * number / steps)) + 0.02
        optimizer.param_groups[0]["lr"] = rate * shape * min(1.0, (number + 1) / 50)
        batch = [train[rng.randrange(len(train))] for _ in range(16)]
        loss, hits = step(batch, (seed, number))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.tick({"loss": loss.item(), **hits})
    modules.eval()
    return average_hits(step, held_out, 20, seed)


class StepClock:
    """A clock that says every few seconds how far a phase is and how long it will take.

    Args:
        name: Name of the phase.
        steps: Number of its steps.
        log: Gets the lines, each with a running mean of what the steps reached.
    """

    def __init__(self, name: str, steps: int, log: Log) -> None:
        self._name, self._steps, self._log = name, steps, log
        self._start = self._said = time.monotonic()
        self._done = 0
        self._recent: dict[str, float] = {}

    def tick(self, values: dict[str, float]) -> None:
        """Count one step more, with its loss and hits by name; NaN counts as nothing measured."""
        self._done += 1
        for key, value in values.items():
            # One NaN (no key in a batch) would stay in the running mean for good.
            if not math.isnan(value):
                self._recent[key] = 0.95 * self._recent.get(key, value) + 0.05 * value
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S or self._done == self._steps:
            self._said = now
            left = (now - self._start) / self._done * (self._steps - self._done)
            recent = ", ".join(f"{key} {value:.3f}" for key, value in self._recent.items())
            done = f"{self._done}/{self._steps} steps"
            self._log(f"tiny base, {self._name}: {done}, {recent}, {left:.0f}s left")
