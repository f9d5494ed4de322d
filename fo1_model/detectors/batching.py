"""Images of equal shape side by side, and the arithmetic a detector runs in."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fo1_model.detectors.configs import Precision
from fo1_model.detectors.protocol import Prepared


def equal_shapes(batch: Sequence[Prepared]) -> Iterator[tuple[list[int], Tensor]]:
    """Indices of the images of one shape, and their pixels [B, 3, H, W], shape after shape.

    Nothing is padded to the size of a neighbour: an image's boxes do not depend on its batch.
    Raises ValueError naming an image without pixels.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(batch):
        if item.pixels is None:
            raise ValueError(f"image {item.image_id}: the detector needs its pixels")
        groups[item.pixels.shape].append(index)
    for indices in groups.values():
        yield indices, torch.from_numpy(np.stack([np.asarray(batch[i].pixels) for i in indices]))


@contextlib.contextmanager
def inference(device: str, precision: Precision) -> Iterator[None]:
    """No gradients, and matrix products in bfloat16 where the config asks for it."""
    with (
        torch.inference_mode(),
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield
