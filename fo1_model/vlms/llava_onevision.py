"""LLaVA-OneVision: a SigLIP tower over a thumbnail and tiles ("anyres"), a Qwen2 decoder."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from fo1_model import grammar
from fo1_model.config import VLMConfig
from fo1_model.errors import SettingError
from fo1_model.vlms.family import Grid, VLMFamily, require


class LlavaOnevision(VLMFamily):
    """LLaVA-OneVision; grids are (height, width) in pixels of the image that is cut into tiles.

    The base always sends a thumbnail of the whole image (squashed) before its tiles. Image tokens
    are the base's own for thumbnail and tiles; regions are pooled from the thumbnail's map. Fewer
    tiles, and so fewer tokens, are a matter of ``image_grid_pinpoints`` in the config.
    """

    model_class = LlavaOnevisionForConditionalGeneration
    image_token = "<image>"  # noqa: S105
    image_start = ()
    image_end = ()
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
        text: Any = self.config.text_config
        vision: Any = self.config.vision_config
        require("vision_feature_layer", self.config.vision_feature_layer, -1)
        require(
            "vision_feature_select_strategy", self.config.vision_feature_select_strategy, "full"
        )
        self.hidden_size = text.hidden_size
        self.vocabulary_rows = text.vocab_size
        self.tied = self.config.tie_word_embeddings
        self.primary_dim = vision.hidden_size
        self.patch_size = vision.patch_size
        self._side = vision.image_size
        self._cells = self._side // self.patch_size
        self._pinpoints: list[list[int]] = self.config.image_grid_pinpoints or []
        for point in self._pinpoints:
            if any(length % self._side for length in point):
                raise SettingError(
                    f"image_grid_pinpoints has {point}, but tiles are cut at multiples of "
                    f"vision_config.image_size={self._side}"
                )
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

    def blank(self) -> tuple[Tensor, Grid]:
        """Return zeros in the shape of an image of one tile's size."""
        grid = (self._side, self._side)
        return torch.zeros(self._num_tiles(grid), 3 * self._side**2), grid

    def _num_tiles(self, grid: Grid) -> int:
        """Return the number of tiles, the thumbnail included."""
        return image_size_to_num_patches(grid, self._pinpoints, self._side)

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the thumbnail's patches and the tiles' without padding, with a break token a row.

        Above ``vision_aspect_ratio``'s number of tiles the base shrinks the tiles' map.
        """
        rows, columns = get_anyres_image_grid_shape(grid, self._pinpoints, self._side)
        tiled = torch.empty(0, rows * self._cells, columns * self._cells)
        height, width = unpad_image(tiled, grid).shape[1:]
        ratio = math.sqrt(height * width / (self._max_tiles * self._cells**2))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
        return self._cells**2 + height * (width + 1)

    def input_size(self, grid: Grid) -> tuple[int, int]:  # noqa: ARG002
        """Return the thumbnail's size."""
        return self._side, self._side

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
        output = vlm.model.get_image_features(tiles.to(vlm.dtype), sizes, return_dict=True)
        states = output.hidden_states[-1].transpose(1, 2).unflatten(2, (self._cells, self._cells))
        by_image = states.split([self._num_tiles(grid) for grid in grids])
        return torch.cat(list(output.pooler_output)), [image[0] for image in by_image]

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
