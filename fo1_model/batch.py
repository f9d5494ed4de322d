"""What goes into the model: one encoded sample, and samples side by side.

Shape letters: B samples, L tokens, A position axes, I images, P patches, N boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fo1_model.vlms import Grid

IGNORE = -100
"""Label of a position that is not supervised."""


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids the model has to know, looked up by string in the extended tokenizer."""

    image: int
    """Id that holds the place of one image token."""
    region: int
    """Id that holds the place of one region feature."""
    new: tuple[int, ...]
    """Ids of ``grammar.new_tokens``, in that order."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample, ready to be collated."""

    sample_id: str
    """Name of the sample in errors."""
    input_ids: Tensor
    """Token ids, int64[L]."""
    labels: Tensor
    """Targets, int64[L]: the token itself where it is supervised, else -100 (the model shifts)."""
    positions: Tensor
    """Positions on each axis of the decoder, int64[A, L]."""
    pixels: tuple[Tensor, ...]
    """Input of the primary tower, per image: float32[P_i, D], a row a patch, or a row a tile."""
    grids: tuple[Grid, ...]
    """Shape of each image as the VLM family counts it (``fo1_model.vlms.Grid``)."""
    auxiliary: tuple[Tensor, ...]
    """Input of the auxiliary tower, per image: float32[3, H, W]."""
    sizes: tuple[tuple[int, int], ...]
    """Size of each image, (width, height) in pixels of the image that boxes refer to."""
    boxes: tuple[Tensor, ...]
    """Boxes of each image: float32[N_i, 4], xyxy in original pixels; N_i may be 0."""
    loss_weight: float = 1.0
    """Factor of this sample's loss."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples side by side, or end to end in one row.

    Images and boxes are listed in running order over the batch. B counts rows.
    """

    sample_ids: tuple[str, ...]
    """One name a sample."""
    input_ids: Tensor
    """Token ids, int64[B, L]."""
    attention_mask: Tensor
    """Mask of the tokens, int64[B, L]: 1 on tokens, 0 on padding."""
    labels: Tensor
    """Targets, int64[B, L]; -100 where not supervised."""
    positions: Tensor
    """Positions on each axis of the decoder, int64[A, B, L]; 0 on padding."""
    pixels: Tensor
    """Input of the primary tower, float32[sum of P_i, D]; no rows when the batch has no image."""
    grids: tuple[Grid, ...]
    """Shapes of the I images as the VLM family counts them."""
    auxiliary: tuple[Tensor, ...]
    """Input of the auxiliary tower: I tensors float32[3, H_i, W_i]."""
    sizes: tuple[tuple[int, int], ...]
    """Sizes of the images: I pairs (width, height), original pixels."""
    boxes: tuple[Tensor, ...]
    """Boxes of the images: I tensors float32[N_i, 4], xyxy in original pixels."""
    loss_weights: Tensor
    """Weight of each token's loss, float32[B, L]: that of its sample, 0 on padding."""
    places: Tensor | None = None
    """Place of each token in its own sample, int64[1, L], where a row holds several samples.

    It is None where each sample has a row."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for copies that overlap with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = change(value)
            elif item.name in ("auxiliary", "boxes"):
                changed[item.name] = tuple(change(tensor) for tensor in value)
        return replace(self, **changed)
