"""InternVL in transformers: a square ViT with a class token, pixel shuffle, a ChatML decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from fo1_model.config import VLMConfig
from fo1_model.vlms.family import Grid, require
from fo1_model.vlms.square_tower import SquareTower


class InternVL(SquareTower):
    """InternVL, the image as one square tile.

    The base's processor cuts tiles unless told ``crop_to_patches=False``; that setting is used
    here, so that the tile covers the whole image (squashed) and the image costs as many tokens as
    one tile does.
    """

    model_class = InternVLForConditionalGeneration
    image_token = "<IMG_CONTEXT>"  # noqa: S105
    image_start = ("<img>",)
    image_end = ("</img>",)
    image_gap = "\n"
    images_gap = "\n"
    region_slot = "<|vision_pad|>"
    turn_end = "<|im_end|>"
    stop_tokens = ("<|im_end|>", "<|endoftext|>")
    pad_token = "<|endoftext|>"  # noqa: S105
    visual_prefixes = ("model.vision_tower.", "model.multi_modal_projector.")

    def __init__(self, config: VLMConfig) -> None:
        self.config = InternVLConfig(**config.config)
        require("vision_feature_layer", self.config.vision_feature_layer, -1)
        require(
            "vision_feature_select_strategy", self.config.vision_feature_select_strategy, "default"
        )
        self.read_sizes()
        self._processor = GotOcr2ImageProcessorPil(
            size={"height": self._side, "width": self._side},
            crop_to_patches=False,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return the image squashed to the tile (bicubic), ImageNet mean and deviation; one row."""
        pixels = self._processor(image, return_tensors="pt")["pixel_values"]
        return pixels.flatten(1), (self._cells, self._cells)

    def blank(self) -> tuple[Tensor, Grid]:
        """Return one tile of zeros."""
        return torch.zeros(1, 3 * self._side**2), (self._cells, self._cells)

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the number of blocks of patches that pixel shuffle folds, a token each."""
        return int(grid[0] * grid[1] * self.config.downsample_ratio**2)

    def encode_images(
        self,
        vlm: Any,
        pixels: Tensor,
        grids: Sequence[Grid],  # noqa: ARG002
        *,
        all_levels: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps: the state before pixel shuffle, without the class token.

        Rows of that state are in image order.
        """
        tiles = pixels.view(-1, 3, self._side, self._side)
        output = vlm.model.get_image_features(tiles.to(vlm.dtype), return_dict=True)
        states = output.last_hidden_state[:, 1:].transpose(1, 2)
        maps = states.unflatten(2, (self._cells, self._cells))
        return output.pooler_output.flatten(0, 1), list(maps)

    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return ViT and projector."""
        return nn.ModuleList([vlm.model.vision_tower, vlm.model.multi_modal_projector])

    def language_model(self, vlm: Any) -> nn.Module:
        """Return the text decoder."""
        return vlm.model.language_model
