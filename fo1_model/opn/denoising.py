"""Denoising queries: noised ground truth that the decoder learns to put right, hidden from the real queries.

The scheme is RT-DETR's and DINO's (contrastive: a near copy to restore, a far one to reject). Unlike the
library's helper, an image's noise comes from its own seed and padding is masked out, so that the loss does
not depend on which images share a batch, nor so on the number of workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fo1_model.boxes import to_center_size, to_corners


@dataclass(frozen=True, kw_only=True)
class NoisedQueries:
    """N extra queries an image: per group the near copies of its boxes, then the far ones, each padded.

    box_logits: float32[B, N, 4], inverse sigmoid of cxcywh. real: bool[B, N], False on padding.
    mask: float32[B, 1, N+K+1, N+K+1] added to attention; K real queries and one task token follow the N.
    positives: int64 indices of the near copies, one tensor an image, in the order of its boxes, per group.
    """

    box_logits: Tensor
    real: Tensor
    mask: Tensor
    positives: tuple[Tensor, ...]


def noised_queries(
    boxes: Sequence[Tensor], seeds: Sequence[int], *, num_queries: int, groups: int, scale: float
) -> NoisedQueries | None:
    """Noised copies of the boxes of a batch; None when it has none.

    boxes: B tensors float32[N_i, 4] cxcywh in [0, 1]. seeds: B, each draws its image's noise.
    num_queries: K. groups: independent repetitions. scale: each edge of a near copy moves by up to this many
    half sides, of a far one by once to twice that.
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
    """float32[groups, 2, N, 4] cxcywh: near and far copies of float32[N, 4], inside the square."""
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
    """The additive mask: noised queries see their group's real ones and all others, who see no noised one."""
    batch, size = real.shape
    hidden = torch.zeros(
        batch, size + num_others, size + num_others, dtype=torch.bool, device=real.device
    )
    alone = ~torch.eye(
        size, dtype=torch.bool, device=real.device
    )  # padding sees itself: no empty softmax
    hidden[:, :size, :size] = ((group[:, None] != group) | ~real[:, None, :]) & alone
    hidden[:, size:, :size] = True
    return (
        torch.zeros(hidden.shape, device=real.device).masked_fill(hidden, -torch.inf).unsqueeze(1)
    )
