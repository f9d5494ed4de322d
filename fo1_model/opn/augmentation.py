"""Random views of a training image: mirrored, seen from nearer or farther, its boxes with it.

torchvision's v2 kernels move image and boxes together (`tv_tensors.BoundingBoxes`). Its random
classes are not used: they draw from the generator of the whole process, and what happens to an
image must follow from its own seed. The image keeps its aspect ratio; the letterbox brings it to
the network's size afterwards.
"""

import hashlib

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from fo1_model.opn.config import AugmentationConfig

View = tuple[Image.Image, np.ndarray, np.ndarray]
"""An RGB image, its boxes float32[N, 4] xyxy px, and its ignore flags bool[N]."""


def augment(
    view: View, config: AugmentationConfig, *, seed: int, padding: tuple[float, float, float]
) -> View:
    """Return a random view of an image with its boxes; the input is left as it is.

    Args:
        view: The image, its boxes and their ignore flags.
        config: What may happen to it.
        seed: Decides all draws.
        padding: RGB in [0, 1] around an image that is seen from farther.

    Returns:
        The new image with its boxes; those that a window leaves nothing of are dropped.
    """
    image, boxes, ignore = view
    rng = np.random.default_rng(_digest(seed, "zoom"))
    factor = config.zoom ** rng.uniform(-1.0, 1.0)
    if factor > 1.0:
        image, boxes, ignore = _window(image, boxes, ignore, factor, config.min_visible, rng)
    elif factor < 1.0:
        image, boxes = _canvas(image, boxes, factor, padding, rng)
    # A digest of its own, not a further draw: zooming must not decide whether an image flips.
    if config.flip and _digest(seed, "flip") & 1:
        image = functional.horizontal_flip(image)
        boxes = _array(functional.horizontal_flip(_tracked(boxes, image)))
    return image, boxes, ignore


def _window(
    image: Image.Image,
    boxes: np.ndarray,
    ignore: np.ndarray,
    factor: float,
    min_visible: float,
    rng: np.random.Generator,
) -> View:
    """Cut a random window of 1/factor of the image's sides."""
    width, height = max(1, round(image.width / factor)), max(1, round(image.height / factor))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    moved = functional.crop(_tracked(boxes, image), top, left, height, width)
    visible = _array(functional.clamp_bounding_boxes(moved))
    sides = visible[:, 2:] - visible[:, :2]
    share = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left_over = (sides > 0).all(1)
    # A box of which little is left is neither an object to find nor background: an ignore region.
    cut = functional.crop(image, top, left, height, width)
    return cut, visible[left_over], (ignore | (share < min_visible))[left_over]


def _canvas(
    image: Image.Image,
    boxes: np.ndarray,
    factor: float,
    padding: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[Image.Image, np.ndarray]:
    """Place the image somewhere on a canvas of 1/factor of its sides."""
    right = max(0, round(image.width / factor) - image.width)
    below = max(0, round(image.height / factor) - image.height)
    left, top = int(rng.integers(0, right + 1)), int(rng.integers(0, below + 1))
    around = [left, top, right - left, below - top]
    moved = _array(functional.pad(_tracked(boxes, image), around))
    return functional.pad(image, around, fill=[round(255 * value) for value in padding]), moved


def _tracked(boxes: np.ndarray, image: Image.Image) -> BoundingBoxes:
    """Return the boxes as torchvision's kernels move them; a copy."""
    values = torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4))
    return BoundingBoxes(
        values, format=BoundingBoxFormat.XYXY, canvas_size=(image.height, image.width)
    )


def _array(boxes: torch.Tensor) -> np.ndarray:
    """Return tracked boxes as a plain float32[N, 4]."""
    return boxes.as_subclass(torch.Tensor).numpy().astype(np.float32)


def _digest(seed: int, what: str) -> int:
    """Return 64 bits of a seed for one purpose; the denoising noise of the seed has others."""
    # Not `fo1_model.seeds.seed_of`, which reads the bytes the other way round: views would change.
    return int.from_bytes(hashlib.sha256(f"{what}:{seed}".encode()).digest()[:8], "little")
