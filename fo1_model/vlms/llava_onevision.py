"""LLaVA-OneVision: a SigLIP tower over a thumbnail and tiles ("anyres"), a Qwen2 decoder."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import (
    image_size_to_num_patches,
)

from fo1_model import grammar
from fo1_model.config import VLMConfig
from fo1_model.vlms.family import Grid, require
from fo1_model.vlms.square_tower import SquareTower


class LlavaOnevision(SquareTower):
    """LLaVA-OneVision; grids are (height, width) in pixels of the image that is cut into tiles.

    Of several images in one conversation none is cut: the base pads each to a square and sends its
    thumbnail alone. Their grids are (-height, -width).

    The base always sends a thumbnail of the whole image (squashed) before its tiles. Image tokens
    are the base's own for thumbnail and tiles; regions are pooled from the thumbnail's map. Fewer
    tiles, and so fewer tokens, are a matter of ``image_grid_pinpoints`` in the config.
    """

    model_class = LlavaOnevisionForConditionalGeneration
    image_token = "<image>"  # noqa: S105
    image_start = ()
    image_end = ()
    image_gap = "\n"
    region_slot = "<video>"
    turn_end = "<|im_end|>"
    turn_gap = ""
    stop_tokens = ("<|im_end|>", "<|endoftext|>")
    pad_token = "<|endoftext|>"  # noqa: S105
    visual_prefixes = ("model.vision_tower.", "model.multi_modal_projector.", "model.image_newline")
    # The projector reads the last block's state, before the tower's closing norm and pooling head.
    idle_prefixes = ("model.vision_tower.post_layernorm.", "model.vision_tower.head.")

    def __init__(self, config: VLMConfig) -> None:
        self.config = LlavaOnevisionConfig(**config.config)
        require("vision_feature_layer", self.config.vision_feature_layer, -1)
        require(
            "vision_feature_select_strategy", self.config.vision_feature_select_strategy, "full"
        )
        self.read_sizes()
        self._pinpoints: list[list[int]] = self.config.image_grid_pinpoints or []
        self.check_pinpoints(self._pinpoints)
        self._max_tiles = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        self._processor = LlavaOnevisionImageProcessorPil(
            size={"height": self._side, "width": self._side},
            image_grid_pinpoints=self._pinpoints,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return thumbnail and tiles (bicubic), with SigLIP's mean and deviation; a row a tile."""
        features = self._processor(image, return_tensors="pt")
        height, width = features["image_sizes"][0].tolist()
        return features["pixel_values"][0].flatten(1), (height, width)

    def preprocess_all(self, images: Sequence[Image.Image]) -> list[tuple[Tensor, Grid]]:
        """Return thumbnail and tiles of an image alone, the thumbnail of each of several."""
        if len(images) < 2:
            return [self.preprocess(image) for image in images]
        # One list of images is one conversation to the base's processor.
        conversation: Any = [list(images)]
        features = self._processor(conversation, return_tensors="pt")
        whole = [pixels[:1].flatten(1) for pixels in features["pixel_values"]]
        grids = [(-height, -width) for height, width in features["image_sizes"].tolist()]
        return list(zip(whole, grids, strict=True))

    def blank(self) -> tuple[Tensor, Grid]:
        """Return zeros in the shape of an image of one tile's size."""
        grid = (self._side, self._side)
        return torch.zeros(self._num_tiles(grid), 3 * self._side**2), grid

    def _num_tiles(self, grid: Grid) -> int:
        """Return the number of tiles, the thumbnail included."""
        return (
            1 if _is_whole(grid) else image_size_to_num_patches(grid, self._pinpoints, self._side)
        )

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the thumbnail's patches and the tiles' without padding, with a break token a row.

        Above ``vision_aspect_ratio``'s number of tiles the base shrinks the tiles' map. A thumbnail
        alone has one break token.
        """
        if _is_whole(grid):
            return self._cells**2 + 1
        height, width = self.tiled_cells(grid, self._pinpoints)
        ratio = math.sqrt(height * width / (self._max_tiles * self._cells**2))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
        return self._cells**2 + height * (width + 1)

    def encode_images(
        self,
        vlm: Any,
        pixels: Tensor,
        grids: Sequence[Grid],
        *,
        all_levels: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps: the thumbnail's state that the projector reads.

        Rows of that state are in image order.
        """
        tiles = pixels.view(-1, 3, self._side, self._side)
        sizes = torch.tensor(list(grids), device=pixels.device)
        output = vlm.model.get_image_features(
            tiles.to(vlm.dtype), sizes.abs(), batch_num_images=_counts(grids), return_dict=True
        )
        states = output.hidden_states[-1].transpose(1, 2).unflatten(2, (self._cells, self._cells))
        by_image = states.split([self._num_tiles(grid) for grid in grids])
        maps = [_unpadded(image[0], grid) for image, grid in zip(by_image, grids, strict=True)]
        return torch.cat(list(output.pooler_output)), maps

    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return ViT and projector."""
        return nn.ModuleList([vlm.model.vision_tower, vlm.model.multi_modal_projector])

    def language_model(self, vlm: Any) -> nn.Module:
        """Return the text decoder."""
        return vlm.model.language_model

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content: images follow the role's blank, text its line break.

        An answer's head is the template's generation prompt in training too: the template writes an
        answer that is past with one blank more.
        """
        if role == "assistant":
            return "<|im_start|>assistant\n", content
        return f"<|im_start|>{role} " + ("" if content.startswith(grammar.IMAGE) else "\n"), content


def _is_whole(grid: Grid) -> bool:
    """Return whether an image is one of several, so that it is not cut."""
    return grid[0] < 0


def _counts(grids: Sequence[Grid]) -> list[int]:
    """Return numbers of images a conversation as the base asks for them: 1 is cut, more is not.

    Which of them share a conversation makes no difference to it.
    """
    counts: list[int] = []
    for whole, run in itertools.groupby(grids, _is_whole):
        size = len(list(run))
        counts += [max(size, 2)] if whole else [1] * size
    return counts


def _unpadded(values: Tensor, grid: Grid) -> Tensor:
    """Return the part of a map float[C, S, S] that shows the image, scaled to the whole (bilinear).

    A map of an image that was not padded is given back as it is.
    """
    height, width = -grid[0], -grid[1]
    if not _is_whole(grid) or height == width:
        return values
    side = max(height, width)
    theta = torch.tensor([[[width / side, 0, 0], [0, height / side, 0]]], dtype=values.dtype)
    places = F.affine_grid(theta.to(values.device), [1, *values.shape], align_corners=False)
    return F.grid_sample(values[None], places, padding_mode="border", align_corners=False)[0]
