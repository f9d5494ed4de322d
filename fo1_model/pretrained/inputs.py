"""Tensors by name, the form that transformers' methods pass on, and what a model makes of them.

They are ``input_ids``, ``attention_mask`` and `IMAGE_INPUTS`. Images come in the order of their
slots in the ids, so nothing has to say whose they are, and positions are counted from ids, mask and
grids: no image's axes are lost on the way (M-RoPE).

Shape letters: B samples, L tokens, A position axes, I images, P patches, N boxes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature

from fo1_model.batch import IGNORE, Batch
from fo1_model.vlms import VLMFamily

if TYPE_CHECKING:
    from fo1_model.processing import Processor

IMAGE_INPUTS = ("pixel_values", "image_grids", "auxiliary_values", "image_sizes", "boxes")
"""Names of what belongs to images, one entry an image, all images of the batch in order: inputs of
the primary tower (float[P_i, D] each), ``Batch.grids`` (int64[I, G]), inputs of the auxiliary tower
(float[3, H_i, W_i] each), ``Batch.sizes`` (int64[I, 2]) and boxes (float32[N_i, 4] each)."""


def model_inputs(
    processor: "Processor",
    text: Sequence[Any],
    images: Any = None,
    boxes: Any = None,
    *,
    for_generation: bool = True,
) -> BatchFeature:
    """Return tensors by name, for ``model.generate`` or a loss; ``processor(...)`` is this.

    A batch without images has no entries for them.

    Args:
        processor: The model's.
        text: Messages of one sample, or a list of messages for each sample.
        images: As ``Processor.encode`` takes them for one sample; else a list, an entry a sample.
        boxes: Likewise.
        for_generation: Whether the answer is opened, with padding on the left; without it the last
            turn is the answer, padding is on the right and there are ``labels``.

    Raises:
        SettingError: As for ``Processor.encode``.
        ValueError: Likewise, or for lists of different lengths.
    """
    if isinstance(text[0], Mapping):
        text, images, boxes = [text], [images], [boxes]
    none = [None] * len(text)
    given = zip(text, images or none, boxes or none, strict=True)
    samples = [
        processor.encode(image, own, messages, for_generation=for_generation, sample_id=str(index))
        for index, (messages, image, own) in enumerate(given)
    ]
    batch = processor.collate(samples, pad="left" if for_generation else "right")
    tensors: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if batch.grids:
        tensors |= {
            "pixel_values": [pixels for sample in samples for pixels in sample.pixels],
            "image_grids": torch.tensor(batch.grids),
            "auxiliary_values": list(batch.auxiliary),
            "image_sizes": torch.tensor(batch.sizes),
            "boxes": list(batch.boxes),
        }
    return BatchFeature(tensors if for_generation else tensors | {"labels": batch.labels})


def batch_of_tensors(
    family: VLMFamily,
    ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    images: Mapping[str, Any],
) -> Batch:
    """Return the batch, without labels, of tensors by name.

    Args:
        family: The model's.
        ids: int64[B, L].
        attention_mask: int64[B, L].
        positions: int64[A, B, L].
        images: `IMAGE_INPUTS`, all of them or all None.

    Raises:
        ValueError: For some of them only, or of different numbers of images.
    """
    if missing := [name for name in IMAGE_INPUTS if images[name] is None]:
        if len(missing) < len(IMAGE_INPUTS):
            raise ValueError(f"{', '.join(IMAGE_INPUTS)} go together; missing {missing}")
        images = dict.fromkeys(IMAGE_INPUTS, ())
    if len({len(images[name]) for name in IMAGE_INPUTS}) > 1:
        counts = ", ".join(f"{len(images[name])} {name}" for name in IMAGE_INPUTS)
        raise ValueError(f"every image has one of each, not {counts}")
    pixels = [value.to(ids.device) for value in images["pixel_values"]]
    none = torch.zeros(0, family.blank()[0].shape[1], device=ids.device)
    return Batch(
        sample_ids=tuple(f"row {row}" for row in range(len(ids))),
        input_ids=ids,
        attention_mask=attention_mask,
        labels=torch.full_like(ids, IGNORE),
        positions=positions,
        pixels=torch.cat(pixels) if pixels else none,
        grids=_grids(images["image_grids"]),
        auxiliary=tuple(value.to(ids.device) for value in images["auxiliary_values"]),
        sizes=tuple((int(width), int(height)) for width, height in images["image_sizes"]),
        boxes=tuple(value.to(ids.device) for value in images["boxes"]),
        loss_weights=torch.ones(ids.shape, device=ids.device),
    )


def count_positions(
    family: VLMFamily,
    image_id: int,
    ids: Tensor | None,
    attention_mask: Tensor,
    image_grids: Tensor | None,
) -> Tensor:
    """Return positions int64[A, B, L] of whole sequences, 0 on padding.

    Args:
        family: The model's.
        image_id: Id of an image slot.
        ids: int64[B, L], or None for embeddings, whose positions are a count where the decoder has
            one axis.
        attention_mask: int64[B, L].
        image_grids: int64[I, G], or None without images.

    Raises:
        ValueError: For embeddings of a decoder with several axes, ids of another shape than the
            mask, or slots without an image.
    """
    axes = family.num_position_axes
    if ids is None and axes > 1:
        raise ValueError(
            f"inputs_embeds alone do not tell images from text, which {axes} axes of positions "
            "depend on; give position_ids, or input_ids"
        )
    if ids is not None and ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids are {list(ids.shape)}, attention_mask is {list(attention_mask.shape)}; "
            "give position_ids for a part of a sequence"
        )
    positions = torch.zeros((axes, *attention_mask.shape), dtype=torch.int64)
    grids = iter(_grids(image_grids))
    for row, kept in enumerate(attention_mask.bool().cpu()):
        own = None if ids is None else ids[row].cpu()[kept]
        images = [] if own is None else list(_images_of(own, image_id, family, grids))
        positions[:, row, kept] = family.positions(int(kept.sum()), images)
    return positions.to(attention_mask.device)


def repeated_images(
    family: VLMFamily, image_id: int, ids: Tensor, image_grids: Tensor, times: int
) -> list[int]:
    """Return indices of all images when each row int64[B, L] stands ``times`` times in a row."""
    grids = iter(_grids(image_grids))
    order: list[int] = []
    taken = 0
    for row in ids.cpu():
        count = len(list(_images_of(row, image_id, family, grids)))
        order += [*range(taken, taken + count)] * times
        taken += count
    return order


def _images_of(
    ids: Tensor, image_id: int, family: VLMFamily, grids: Iterator[Any]
) -> Iterator[tuple[int, Any]]:
    """Yield (index of its first token, grid) of every image in ids int64[L], taking grids."""
    slots = (ids == image_id).nonzero().flatten().tolist()
    while slots:
        grid = next(grids, None)
        if grid is None:
            raise ValueError(f"{len(slots)} image slots are left without an image")
        yield slots[0], grid
        slots = slots[family.num_image_tokens(grid) :]


def _grids(rows: Any) -> tuple[Any, ...]:
    return () if rows is None or not len(rows) else tuple(map(tuple, rows.tolist()))
