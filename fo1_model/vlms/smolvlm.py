"""SmolVLM and Idefics3: a square SigLIP tower, pixel shuffle, a Llama, a chat form of their own."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from fo1_model import grammar
from fo1_model.config import VLMConfig
from fo1_model.vlms.family import Grid
from fo1_model.vlms.square_tower import SquareTower


class SmolVLM(SquareTower):
    """SmolVLM, the whole image as one square tile.

    The base's processor cuts tiles unless told ``do_image_splitting=False``; that setting is used
    here, so that the tile covers the whole image (squashed). The prompt is the base's for an image
    that is not split.
    """

    model_class: type[PreTrainedModel] = SmolVLMForConditionalGeneration
    image_token = "<image>"  # noqa: S105
    image_start: tuple[str, ...] = ("<fake_token_around_image>", "<global-img>")
    image_end = ("<fake_token_around_image>",)
    region_slot = "<row_1_col_1>"
    turn_end = "<end_of_utterance>"
    opening = "<|im_start|>"
    answer_lead = " "
    stop_tokens: tuple[str, ...] = ("<end_of_utterance>",)
    pad_token = "<|im_end|>"  # noqa: S105
    visual_prefixes = ("model.vision_model.", "model.connector.")

    config_class: ClassVar[Any] = SmolVLMConfig
    """Class of the transformers config."""
    processor_class: ClassVar[Any] = SmolVLMImageProcessorPil
    """Class of the base's image processor, in its Pillow form."""

    def __init__(self, config: VLMConfig) -> None:
        self.config = self.config_class(**config.config)
        self.read_sizes()
        self._processor = self.processor_class(
            # The base first scales the long side to four tiles, even when it does not cut any.
            size={"longest_edge": 4 * self._side},
            max_image_size={"longest_edge": self._side},
            do_image_splitting=False,
        )

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return the image squashed to the tile (Lanczos), with mean and deviation 0.5; one row."""
        pixels = self._processor(image, return_tensors="pt")["pixel_values"]
        return pixels.flatten(0, 1).flatten(1), (self._cells, self._cells)

    def blank(self) -> tuple[Tensor, Grid]:
        """Return one tile of zeros."""
        return torch.zeros(1, 3 * self._side**2), (self._cells, self._cells)

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the number of blocks of patches that pixel shuffle folds, a token each."""
        return grid[0] * grid[1] // self.config.scale_factor**2

    def encode_images(
        self,
        vlm: Any,
        pixels: Tensor,
        grids: Sequence[Grid],  # noqa: ARG002
        *,
        all_levels: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps: the state before pixel shuffle; its rows are in image order."""
        tiles = pixels.view(1, -1, 3, self._side, self._side)
        output = vlm.model.get_image_features(tiles.to(vlm.dtype), return_dict=True)
        states = output.last_hidden_state.transpose(1, 2)
        maps = states.unflatten(2, (self._cells, self._cells))
        return torch.cat(list(output.pooler_output)), list(maps)

    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return ViT and connector."""
        return nn.ModuleList([vlm.model.vision_model, vlm.model.connector])

    def language_model(self, vlm: Any) -> nn.Module:
        """Return the text decoder."""
        return vlm.model.text_model

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content: ``User: text``, or ``User:`` and the image."""
        lead = "" if content.startswith(grammar.IMAGE) else self.answer_lead
        return f"{role.capitalize()}:", lead + content


class Idefics3(SmolVLM):
    """Idefics3, from which SmolVLM comes: a Llama 3 whose tokenizer writes the tile's name as text.

    The tile is SmolVLM's: the whole image, squashed.
    """

    model_class = Idefics3ForConditionalGeneration
    config_class = Idefics3Config
    processor_class = Idefics3ImageProcessorPil
    image_start = ("<fake_token_around_image>",)
    image_mark = "<global-img>"
    region_slot = "<|reserved_special_token_1|>"
    opening = "<|begin_of_text|>"
    stop_tokens = ("<end_of_utterance>", "<|end_of_text|>")
    pad_token = "<|reserved_special_token_0|>"  # noqa: S105

    def blank(self) -> tuple[Tensor, Grid]:
        """Return one black tile: one of zeros, which is grey, is padding to the base."""
        pixels, grid = super().blank()
        return pixels - 1, grid
