"""Images of equal shape side by side, and the arithmetic a detector runs in."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fo1_model.detectors.configs import Precision, Selection
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import Detections, Prepared


def equal_shapes(batch: Sequence[Prepared]) -> Iterator[tuple[list[int], Tensor]]:
    """Group images by shape, so that nothing is padded to the size of a neighbour.

    So an image's boxes do not depend on its batch.

    Yields:
        Indices of the images of one shape, and their pixels [B, 3, H, W].

    Raises:
        ValueError: An image has no pixels.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(batch):
        if item.pixels is None:
            raise ValueError(f"image {item.image_id}: the detector needs its pixels")
        groups[item.pixels.shape].append(index)
    for indices in groups.values():
        yield indices, torch.from_numpy(np.stack([np.asarray(batch[i].pixels) for i in indices]))


def detect_by_shape(
    batch: Sequence[Prepared],
    network: Callable[[Tensor, list[Prepared]], Iterable[tuple[np.ndarray, np.ndarray]]],
    selection: Selection,
) -> list[Detections]:
    """Return the proposals of each image; those of one shape go through `network` together.

    Args:
        batch: The images, prepared.
        network: Takes pixels [B, 3, H, W] and the images that they are of; gives for each its
            boxes, float32[N, 4] xyxy original px, and scores, float32[N].
        selection: Which of the boxes are kept.

    Returns:
        Proposals in the order of `batch`.
    """
    found: dict[int, Detections] = {}
    for indices, pixels in equal_shapes(batch):
        items = [batch[index] for index in indices]
        for index, item, (boxes, scores) in zip(
            indices, items, network(pixels, items), strict=True
        ):
            found[index] = select(
                boxes, scores, width=item.width, height=item.height, selection=selection
            )
    return [found[index] for index in range(len(batch))]


@contextlib.contextmanager
def inference(device: str, precision: Precision) -> Iterator[None]:
    """Run without gradients, with matrix products in bfloat16 where the config asks for it."""
    with (
        torch.inference_mode(),
        torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield
