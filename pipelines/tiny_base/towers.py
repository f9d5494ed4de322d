"""Pre-training of the tiny base's two vision towers on drawn scenes, with throw-away heads (ours).

The auxiliary tower (DaViT) learns what a region encoder will ask of it: from the features of a box,
pooled as the region encoder pools them, the colour and the shape of the object that the box covers,
and whether it covers one whole. The primary tower (ViT) learns what lies at each of its patches,
and which colours and shapes meet in each image token.

Shape letters: G objects of a scene, N regions, H and W height and width in pixels.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dataset_builders.drawn_world.drawing import COLOURS, SHAPES, draw_scene
from fo1_model import boxes as box_ops
from fo1_model.auxiliary_tower import AuxiliaryTower, auxiliary_image
from fo1_model.config import ModelConfig
from fo1_model.region_pooling import boxes_in_cells, pool_levels
from fo1_model.vlms import VLMFamily

COLOUR_NAMES = tuple(COLOURS)
"""Colours of the drawn world, in the order of their class numbers."""
WHOLE_IOU, PART_IOU = 0.55, 0.45
"""IoU with an object from which a box counts as that object, and up to which it does not.

Between the two neither is asked for.
"""
_MIN_SIDE_PX = 4.0
"""Shortest side of a sampled region."""
_LINE_EVERY_S = 15.0
"""Time between two lines of progress."""

Log = Callable[[str], None]
"""What gets lines of progress."""


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """A drawn scene as the towers' pre-training needs it."""

    pixels: np.ndarray
    """uint8[H, W, 3]: the image, RGB."""
    boxes: np.ndarray
    """float32[G, 4]: boxes of the objects, xyxy in pixels; crowds are among them."""
    labels: tuple[str, ...]
    """Category name of each box, "COLOUR SHAPE"."""
    crowd: np.ndarray
    """bool[G]: which boxes are crowds."""


def draw_images(seed: int, split: int, count: int) -> Iterator[DrawnImage]:
    """Draw the scenes (seed, split, 0) to (seed, split, count - 1)."""
    for index in range(count):
        scene = draw_scene((seed, split, index))
        yield DrawnImage(
            pixels=np.asarray(scene.image),
            boxes=np.array([item.box for item in scene.objects], np.float32).reshape(-1, 4),
            labels=tuple(item.label for item in scene.objects),
            crowd=np.array([item.crowd for item in scene.objects], bool),
        )


def sample_regions(rng: np.random.Generator, image: DrawnImage, count: int) -> np.ndarray:
    """Draw boxes as a proposal network gives them: objects whole, shifted, in part; background.

    Args:
        rng: Source of every draw; their order fixes what a seed makes.
        image: The drawn scene.
        count: Least number of boxes, before those that are too small are left out.

    Returns:
        float32[N, 4], xyxy in pixels, inside the image.
    """
    height, width = image.pixels.shape[:2]
    regions: list[np.ndarray] = []
    for box in image.boxes:
        sides = np.tile(box[2:] - box[:2], 2)
        regions.append(box + rng.uniform(-1, 1, 4) * sides * rng.choice((0.03, 0.08, 0.12)))
        kind = rng.random()
        if kind < 0.25:
            regions.append(box + rng.uniform(-0.3, 0.3, 4) * sides)
        elif kind < 0.45:
            share = rng.uniform(0.4, 0.8, 2)
            corner = box[:2] + rng.uniform(0, 1, 2) * (1 - share) * sides[:2]
            regions.append(np.concatenate([corner, corner + share * sides[:2]]))
        elif kind < 0.65:
            regions.append(box + np.array([-1, -1, 1, 1]) * rng.uniform(0.1, 0.6, 4) * sides)
    while len(regions) < count:
        half = np.exp(rng.uniform(np.log(10), np.log(70), 2)) / 2
        centre = rng.uniform(0, (width, height))
        regions.append(np.concatenate([centre - half, centre + half]))
    found = np.array(regions, np.float32)
    found[:, 0::2] = found[:, 0::2].clip(0, width)
    found[:, 1::2] = found[:, 1::2].clip(0, height)
    return found[((found[:, 2:] - found[:, :2]) >= _MIN_SIDE_PX).all(1)]


def region_targets(image: DrawnImage, regions: np.ndarray) -> np.ndarray:
    """Tell what each region shows.

    Args:
        image: The drawn scene.
        regions: float32[N, 4], xyxy in pixels.

    Returns:
        int64[N, 3]: colour, shape, and 1 for a whole object or 0; -1 where there is no target.
    """
    targets = np.full((len(regions), 3), -1, np.int64)
    targets[:, 2] = 0
    if not len(image.boxes):
        return targets
    iou = box_ops.iou(torch.from_numpy(regions), torch.from_numpy(image.boxes)).numpy()
    best, owner = iou.max(1), iou.argmax(1)
    for row, (share, index) in enumerate(zip(best, owner, strict=True)):
        # A box in a crowd shows many objects, or none of a kind that could be asked for.
        if image.crowd[index] and share > 0.3:
            targets[row] = -1
        elif share > PART_IOU:
            colour, shape = image.labels[index].split()
            targets[row] = (
                COLOUR_NAMES.index(colour),
                SHAPES.index(shape),
                1 if share > WHOLE_IOU else -1,
            )
    return targets


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


def patch_targets(image: DrawnImage, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Tell what lies at each patch and in each image token.

    Args:
        image: The drawn scene.
        rows: Rows of patches; even, since a token covers 2 x 2 of them.
        columns: Columns of patches; even.

    Returns:
        int64[rows, columns], 0 or one more than the number of the patch's category, and
        float32[rows/2, columns/2, 7] with a 1 for every colour and shape in a token.
    """
    height, width = image.pixels.shape[:2]
    patches = np.zeros((rows, columns), np.int64)
    tokens = np.zeros((rows // 2, columns // 2, len(COLOUR_NAMES) + len(SHAPES)), np.float32)
    xs, ys = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    for box, label in zip(image.boxes, image.labels, strict=True):
        colour, shape = COLOUR_NAMES.index(label.split()[0]), SHAPES.index(label.split()[1])
        inside = ((xs > box[0]) & (xs < box[2]))[None, :] & ((ys > box[1]) & (ys < box[3]))[:, None]
        patches[inside] = 1 + colour * len(SHAPES) + shape
        touched = inside.reshape(rows // 2, 2, columns // 2, 2).any((1, 3))
        tokens[touched, colour] = tokens[touched, len(COLOUR_NAMES) + shape] = 1
    return torch.from_numpy(patches), torch.from_numpy(tokens)


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
            if not math.isnan(value):
                self._recent[key] = 0.95 * self._recent.get(key, value) + 0.05 * value
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S or self._done == self._steps:
            self._said = now
            left = (now - self._start) / self._done * (self._steps - self._done)
            recent = ", ".join(f"{key} {value:.3f}" for key, value in self._recent.items())
            done = f"{self._done}/{self._steps} steps"
            self._log(f"tiny base, {self._name}: {done}, {recent}, {left:.0f}s left")
