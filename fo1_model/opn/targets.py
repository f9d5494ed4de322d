"""Images and boxes to OPN's input, and its boxes back to pixels of the original image.

One letterbox: the longer side is scaled to the square's side, the rest (right, bottom) is padding
of the mean colour. So a box maps by one scale and no offset, either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fo1_model.boxes import to_center_size, to_corners
from fo1_model.opn.augmentation import augment
from fo1_model.opn.config import PROMPTS, AugmentationConfig, OPNConfig


@dataclass(frozen=True)
class Letterbox:
    """How one image sits in the square."""

    scale: float
    """Px of the square per px of the original image."""
    side: int
    """Side of the square, px."""

    def to_square(self, boxes: np.ndarray) -> Tensor:
        """Return boxes of the original image as boxes of the square.

        Args:
            boxes: float32[N, 4], xyxy original px.

        Returns:
            float32[N, 4], cxcywh in [0, 1] of the square.
        """
        xyxy = torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 4))
        return to_center_size(xyxy * (self.scale / self.side))

    def to_original(self, boxes: Tensor) -> np.ndarray:
        """Return boxes of the square as boxes of the original image.

        Args:
            boxes: float32[N, 4], cxcywh in [0, 1] of the square.

        Returns:
            float32[N, 4], xyxy original px.
        """
        xyxy = to_corners(boxes.detach().float().cpu())
        return (xyxy * (self.side / self.scale)).numpy()


@dataclass(frozen=True, kw_only=True)
class OPNExample:
    """One image with its annotated boxes."""

    image: Image.Image
    """The image, RGB."""
    boxes: np.ndarray
    """Annotated boxes, float32[N, 4] xyxy px."""
    ignore: np.ndarray
    """Which boxes are crowds and don't-care regions, bool[N]."""
    prompt: Literal["coarse", "fine"] = "coarse"
    """Granularity of the annotation: whole objects, or parts of them too."""
    complete: bool = True
    """Whether every object of the annotated kinds has a box.

    Federated sets such as LVIS are not complete, nor are the objects of one expression: what they
    leave out is no background.
    """


@dataclass(frozen=True, kw_only=True)
class OPNBatch:
    """B letterboxed images and their boxes (cxcywh in [0, 1] of the square)."""

    pixels: Tensor
    """Normalised RGB, float32[B, 3, S, S]."""
    prompts: Tensor
    """Rows of PROMPTS, int64[B]."""
    boxes: tuple[Tensor, ...]
    """The objects, B tensors float32[N_i, 4]."""
    ignore_boxes: tuple[Tensor, ...]
    """Regions where an unmatched query is no mistake, B tensors float32[M_i, 4]."""
    complete: tuple[bool, ...]
    """Whether every object of an image is among its boxes, B flags."""
    letterboxes: tuple[Letterbox, ...]
    """How each of the B images sits in its square."""
    seeds: tuple[int, ...]
    """Seeds that draw the denoising noise, B."""

    def to(self, device: torch.device | str) -> "OPNBatch":
        """Return the same batch on another device."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            prompts=self.prompts.to(device),
            boxes=tuple(b.to(device) for b in self.boxes),
            ignore_boxes=tuple(b.to(device) for b in self.ignore_boxes),
        )


def letterbox(image: Image.Image, config: OPNConfig) -> tuple[Tensor, Letterbox]:
    """Scale and pad one RGB image: float32[3, S, S] normalised, and the way back."""
    pixels, placed = scaled_pixels(image, config.image_size)
    return normalised_square(torch.from_numpy(pixels), config), placed


def scaled_pixels(image: Image.Image, side: int) -> tuple[np.ndarray, Letterbox]:
    """Scale an image so that its longer side is `side` px: uint8[3, H, W] RGB, and the way back."""
    width, height = image.size
    scale = side / max(width, height)
    if scale != 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    rgb = np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    return rgb, Letterbox(scale, side)


def normalised_square(pixels: Tensor, config: OPNConfig) -> Tensor:
    """Normalise and pad scaled pixels, on their device.

    Args:
        pixels: uint8[..., 3, H, W], RGB.
        config: Gives the square's side, the mean and the standard deviation.

    Returns:
        float32[..., 3, S, S].
    """
    rgb = pixels.float() / 255.0
    mean = torch.tensor(config.pixel_mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(config.pixel_std, device=pixels.device).view(3, 1, 1)
    side = config.image_size
    # Zero is the mean colour after normalisation.
    square = torch.zeros(*pixels.shape[:-2], side, side, device=pixels.device)
    square[..., : rgb.shape[-2], : rgb.shape[-1]] = (rgb - mean) / std
    return square


def collate(
    examples: Sequence[OPNExample],
    config: OPNConfig,
    *,
    seeds: Sequence[int] | None = None,
    augmentation: AugmentationConfig | None = None,
) -> OPNBatch:
    """Return one batch of images with their boxes.

    Args:
        examples: The images.
        config: Gives the square's side, the mean and the standard deviation.
        seeds: One an image (None takes its position), for its augmentation and its denoising noise:
            what happens to an image does not depend on the others of its batch.
        augmentation: What may happen to the images; None shows them as they are.

    Raises:
        ValueError: The batch is empty, a box has no positive sides or is not finite, or lengths
            differ.
    """
    if not examples:
        raise ValueError("collate(examples=[]): a batch needs at least one image")
    seeds = range(len(examples)) if seeds is None else seeds
    pixels, letterboxes, objects, ignored = [], [], [], []
    for index, (example, seed) in enumerate(zip(examples, seeds, strict=True)):
        image, boxes, ignore = _checked(index, example)
        if augmentation is not None:
            image, boxes, ignore = augment(
                (image, boxes, ignore), augmentation, seed=seed, padding=config.pixel_mean
            )
        square, placed = letterbox(image, config)
        pixels.append(square)
        letterboxes.append(placed)
        objects.append(placed.to_square(boxes[~ignore]))
        ignored.append(placed.to_square(boxes[ignore]))
    return OPNBatch(
        pixels=torch.stack(pixels),
        prompts=torch.tensor([PROMPTS.index(example.prompt) for example in examples]),
        boxes=tuple(objects),
        ignore_boxes=tuple(ignored),
        complete=tuple(example.complete for example in examples),
        letterboxes=tuple(letterboxes),
        seeds=tuple(seeds),
    )


def _checked(index: int, example: OPNExample) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Return image, boxes and flags in shape; a ValueError names the image's place in the batch."""
    boxes = np.asarray(example.boxes, dtype=np.float32).reshape(-1, 4)
    ignore = np.asarray(example.ignore, dtype=bool).reshape(-1)
    if len(boxes) != len(ignore):
        raise ValueError(
            f"collate: image {index} has {len(boxes)} boxes but {len(ignore)} ignore flags"
        )
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError(
            f"collate: image {index} has a box that is not finite or has no area: {boxes}"
        )
    return example.image.convert("RGB"), boxes, ignore
