"""Denoising queries: noised ground truth that the decoder learns to put right.

The scheme is RT-DETR's and DINO's (contrastive: a near copy to restore, a far one to reject); real
queries cannot see the noised ones. Unlike in the library's helper, an image's noise comes from its
own seed and padding is masked out, so that the loss depends neither on which images share a batch
nor, therefore, on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fo1_model.boxes import to_center_size, to_corners


@dataclass(frozen=True, kw_only=True)
class NoisedQueries:
    """N extra queries an image.

    Per group the near copies of its boxes, then the far ones, each padded.
    """

    box_logits: Tensor
    """Inverse sigmoid of the noised boxes, float32[B, N, 4] cxcywh."""
    real: Tensor
    """Which queries are no padding, bool[B, N]."""
    mask: Tensor
    """Mask that is added to attention, float32[B, 1, N+K+1, N+K+1].

    K real queries and one task token follow the N.
    """
    positives: tuple[Tensor, ...]
    """Indices of the near copies, int64, one tensor an image: per group, in its boxes' order."""


def noised_queries(
    boxes: Sequence[Tensor], seeds: Sequence[int], *, num_queries: int, groups: int, scale: float
) -> NoisedQueries | None:
    """Return noised copies of the boxes of a batch, or None when it has none.

    Args:
        boxes: B tensors float32[N_i, 4], cxcywh in [0, 1].
        seeds: B seeds; each draws its image's noise.
        num_queries: K, the number of real queries.
        groups: Independent repetitions.
        scale: Each edge of a near copy moves by up to this many half sides, of a far one by once to
            twice that.
    """
    most = max((len(b) for b in boxes), default=0)
    if most == 0 or groups == 0:
        return None
    device = boxes[0].device
    size = groups * 2 * most
    noised = torch.full((len(boxes), groups, 2, most, 4), 0.5, device=device)
    for row, (own, seed) in enumerate(zip(boxes, seeds, strict=True)):
        noised[row, :, :, : len(own)] = _noised(own, seed, groups, scale)
    counts = torch.tensor([len(b) for b in boxes], device=device)
    place = torch.arange(size, device=device)
    real = (place % most) < counts[:, None]
    starts = torch.arange(groups, device=device)[:, None] * (2 * most)
    return NoisedQueries(
        box_logits=torch.logit(noised.view(len(boxes), size, 4), eps=1e-5),
        real=real,
        mask=_mask(real, place // (2 * most), num_queries + 1),
        positives=tuple((starts + place[:n]).flatten() for n in counts.tolist()),
    )


def _noised(boxes: Tensor, seed: int, groups: int, scale: float) -> Tensor:
    """Return near and far copies of float32[N, 4] in the square: float32[groups, 2, N, 4]."""
    # Drawn on the CPU whatever the boxes' device: a seed gives the same noise everywhere.
    generator = torch.Generator().manual_seed(seed)
    shape = (groups, 2, len(boxes), 4)
    amount = torch.rand(shape, generator=generator)
    amount[:, 1] += 1.0
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    half_sides = boxes[:, 2:].repeat(1, 2) / 2
    moved = to_corners(boxes) + (amount * sign).to(boxes.device) * half_sides * scale
    # Edges may cross when they moved by more than half a side; a box has its corners in order.
    ordered = torch.cat(
        [torch.minimum(moved[..., :2], moved[..., 2:]), moved[..., :2].maximum(moved[..., 2:])], -1
    )
    return to_center_size(ordered.clamp(0.0, 1.0).view(-1, 4)).view(shape)


def _mask(real: Tensor, group: Tensor, num_others: int) -> Tensor:
    """Return the mask that is added to attention.

    Noised queries see the real ones of their group, and all K + 1 others; those see no noised one.
    """
    batch, size = real.shape
    hidden = torch.zeros(
        batch, size + num_others, size + num_others, dtype=torch.bool, device=real.device
    )
    # Padding sees itself: a softmax over nothing would be NaN.
    alone = ~torch.eye(size, dtype=torch.bool, device=real.device)
    hidden[:, :size, :size] = ((group[:, None] != group) | ~real[:, None, :]) & alone
    hidden[:, size:, :size] = True
    return (
        torch.zeros(hidden.shape, device=real.device).masked_fill(hidden, -torch.inf).unsqueeze(1)
    )
