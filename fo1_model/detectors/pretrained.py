"""What the Hugging Face detectors share: reading a folder, preparing an image, placing boxes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import backbone_utils
from transformers.utils import logging

from fo1_model.boxes import scale, to_corners
from fo1_model.detectors.protocol import DetectorInput, Prepared
from fo1_model.errors import SettingError

THIN = 16.0
"""Ratio of the sides from which on a processor may leave nothing of the short one.

Such images get no box.
"""

Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Pixels and mask to boxes and scores, one box a query.

Takes float32[B, 3, H, W] and int64[B, H, W], 0 on padding; gives float[B, Q, 4], cxcywh in [0, 1]
of the whole input, and float[B, Q].
"""


def load_model(auto: Any, folder: str, **options: Any) -> Any:
    """Read the model of a folder, in float32 and for inference.

    Reads safetensors only and no code of the folder; asks no hub.

    Args:
        auto: The class of transformers that reads it.
        folder: Where the model lies.
        **options: Further arguments of the class's `from_pretrained`.

    Raises:
        SettingError: The folder is missing, holds no safetensors or another kind of model, or its
            weights leave a part of the model out.
    """
    if Path(folder).is_dir() and not any(Path(folder).glob("*.safetensors")):
        raise SettingError(
            f"checkpoint={folder!r}: holds no *.safetensors, and pickles (pytorch_model.bin) are "
            "not read; load the model where its maker is trusted and save_pretrained it again"
        )
    model, report = load_part(
        auto,
        folder,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report names them all; the error would name the first
        **options,
    )
    absent = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if absent:
        raise SettingError(
            f"checkpoint={folder!r}: {len(absent)} tensors of {type(model).__name__} are missing "
            f"or of another shape, such as {absent[0]}; give the folder of a whole detector"
        )
    return model.eval()


def load_part(auto: Any, folder: str, **options: Any) -> Any:
    """Read what an auto class of transformers makes of a folder, and from nowhere else.

    Args:
        auto: The class of transformers.
        folder: What it reads.
        **options: Further arguments of the class's `from_pretrained`.

    Raises:
        SettingError: The folder is missing or holds nothing of that kind.
    """
    if not Path(folder).is_dir():
        raise SettingError(
            f"checkpoint={folder!r}: no such folder; give one that save_pretrained wrote"
        )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one bar a worker is noise
    # A config of before transformers 5 names its backbone, and the library looks on the hub for a
    # repository of that name, whatever `local_files_only` says; it takes a model of timm when there
    # is none.
    hub = SimpleNamespace(repo_exists=lambda _: False)
    no_hub = mock.patch.object(backbone_utils, "hf_api", return_value=hub)
    try:
        with no_hub:
            return auto.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise SettingError(
            f"checkpoint={folder!r}: {auto.__name__} does not read it: {error}"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def prepare_image(item: DetectorInput, *, processor: Any, to_square: bool = False) -> Prepared:
    """Send an image through its detector's processor, alone: no neighbour's size pads it.

    The pixels are float32: some processors scale values before they resize, so that bytes would
    not do. An image so thin that the processor leaves nothing of it has pixels of size 0.

    Args:
        item: The image.
        processor: The image processor of the model's folder.
        to_square: Whether the processor pads the image to a square before it resizes it (OWLv2).
    """
    width, height = item.image.size
    try:
        made = processor(images=item.image.convert("RGB"), return_tensors="pt")
    except (ValueError, RuntimeError):
        if max(width, height) < THIN * min(width, height):
            raise
        pixels = np.zeros((3, 0, 0), np.float32)
        return Prepared(
            image_id=item.image_id, width=width, height=height, pixels=pixels, known=item.known
        )
    pixels = made["pixel_values"][0].float().numpy()
    if to_square:
        longer = max(width, height)
        ratio = (pixels.shape[2] / longer, pixels.shape[1] / longer)
    elif "pixel_mask" in made:  # a processor may pad to a fixed size; it pads right and below
        mask = made["pixel_mask"][0]
        ratio = (int(mask[0].sum()) / width, int(mask[:, 0].sum()) / height)
    else:
        ratio = (pixels.shape[2] / width, pixels.shape[1] / height)
    return Prepared(
        image_id=item.image_id,
        width=width,
        height=height,
        pixels=pixels,
        scale=ratio,
        known=item.known,
    )


def raw_boxes(
    network: Network, pixels: Tensor, items: list[Prepared]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield boxes in original px and scores of each image of a network, for `detect_by_shape`."""
    height, width = pixels.shape[-2:]
    if pixels.numel():
        boxes, scores = (
            raw.float().cpu() for raw in network(pixels, pixel_mask(items, width, height))
        )
    else:
        boxes, scores = torch.zeros(len(items), 0, 4), torch.zeros(len(items), 0)
    for item, box, score in zip(items, boxes, scores, strict=True):
        yield to_original(box, item, width, height).numpy(), score.numpy()


def pixel_mask(items: Sequence[Prepared], width: int, height: int) -> Tensor:
    """Return 1 on the image and 0 on padding of `width` x `height` px, int64[B, height, width]."""
    mask = torch.zeros(len(items), height, width, dtype=torch.int64)
    for row, item in zip(mask, items, strict=True):
        row[: round(item.height * item.scale[1]), : round(item.width * item.scale[0])] = 1
    return mask


def to_original(boxes: Tensor, item: Prepared, width: int, height: int) -> Tensor:
    """Return boxes of a network's input as boxes of the original image.

    Args:
        boxes: float32[N, 4], cxcywh in [0, 1] of the whole input.
        item: The image, with its scale.
        width: Width of the input, px.
        height: Height of the input, px.

    Returns:
        float32[N, 4], xyxy original px.
    """
    return scale(to_corners(boxes), width / item.scale[0], height / item.scale[1])
