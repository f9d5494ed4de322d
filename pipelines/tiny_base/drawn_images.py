"""Drawn scenes as the base trains on them, and what its towers are asked about them.

Shape letters: G objects of a scene, N regions, H and W height and width in pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset_builders.drawn_world.drawing import COLOURS, SHAPES, draw_scene
from fo1_model import boxes as box_ops

COLOUR_NAMES = tuple(COLOURS)
"""Colours of the drawn world, in the order of their class numbers."""
WHOLE_IOU, PART_IOU = 0.55, 0.45
"""IoU with an object from which a box counts as that object, and up to which it does not.

Between the two neither is asked for.
"""
_MIN_SIDE_PX = 4.0
"""Shortest side of a sampled region."""


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
        rng: Source of every draw.
        image: The drawn scene.
        count: Least number of boxes, before those that are too small are left out.

    Returns:
        float32[N, 4], xyxy in pixels, inside the image.
    """
    height, width = image.pixels.shape[:2]
    regions: list[np.ndarray] = []
    # Each object gives a box that is off by a few percent, and often a second one: far off, a part
    # of it, or one with much around it. The order of the draws fixes what a seed makes.
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
    # Background by the logarithm of its sides: small sizes are as frequent as large ones.
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
        # A box in a crowd has no single object that could be asked for.
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
        # Later objects lie on top, so they overwrite the patches of earlier ones.
        inside = ((xs > box[0]) & (xs < box[2]))[None, :] & ((ys > box[1]) & (ys < box[3]))[:, None]
        patches[inside] = 1 + colour * len(SHAPES) + shape
        touched = inside.reshape(rows // 2, 2, columns // 2, 2).any((1, 3))
        tokens[touched, colour] = tokens[touched, len(COLOUR_NAMES) + shape] = 1
    return torch.from_numpy(patches), torch.from_numpy(tokens)
