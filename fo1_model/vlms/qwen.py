"""The Qwen-VL families: any image size, patches merged 2x2, M-RoPE. Qwen2.5-VL is the release's."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from fo1_model.config import VLMConfig
from fo1_model.errors import SettingError
from fo1_model.vlms.family import Grid, VLMFamily


class QwenVL(VLMFamily):
    """What the generations share; grids are (rows, columns) of patches."""

    image_token = "<|image_pad|>"  # noqa: S105
    image_start = ("<|vision_start|>",)
    image_end = ("<|vision_end|>",)
    region_slot = "<|vision_pad|>"
    turn_end = "<|im_end|>"
    stop_tokens = ("<|im_end|>", "<|endoftext|>")
    pad_token = "<|endoftext|>"  # noqa: S105
    visual_prefixes = ("model.visual.",)
    num_position_axes = 3

    processor_class: ClassVar[Any] = Qwen2VLImageProcessorPil
    """Class of the family's image processor in transformers, in its Pillow form."""
    processor_kwargs: ClassVar[dict[str, Any]] = {"min_pixels": 56 * 56, "max_pixels": 12_845_056}
    """Settings of the family's preprocessor_config; the upper limit is out of reach once the
    long side is at most 2048 (spec 5.3)."""

    def __init__(self, config: VLMConfig) -> None:
        self.config = self.parse(config)
        text, vision = self.config.text_config, self.config.vision_config
        self.hidden_size = text.hidden_size
        self.vocabulary_rows = text.vocab_size
        self.tied = self.config.tie_word_embeddings
        self._vision = vision
        self._merge = vision.spatial_merge_size
        self.patch_size = vision.patch_size
        self.primary_dim, out_name = self.widths()
        if getattr(vision, out_name) != text.hidden_size:
            raise SettingError(
                f"vision_config.{out_name}={getattr(vision, out_name)} must equal "
                f"text_config.hidden_size={text.hidden_size}: image tokens enter the decoder "
                "as they are"
            )
        self.num_levels = len(self.levels())
        self._processor = self.processor_class(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=self._merge,
            **self.processor_kwargs,
        )

    @abstractmethod
    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""

    def widths(self) -> tuple[int, str]:
        """Return channels of the map, and the vision config's name of the tokens' width."""
        return self._vision.hidden_size, "out_hidden_size"

    def levels(self) -> Sequence[int]:
        """Return blocks whose states ``all_levels`` concatenates; the last is the last block."""
        return [self._vision.depth - 1]

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return patches in merge order; sides become multiples of 2 patches (bicubic)."""
        features = self._processor(image, return_tensors="pt")
        _, rows, columns = features["image_grid_thw"][0].tolist()
        return features["pixel_values"], (rows, columns)

    def blank(self) -> tuple[Tensor, Grid]:
        """Return four merge units of zeros."""
        vision = self._vision
        side = 2 * self._merge
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(side * side, width), (side, side)

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the number of merge units of 2x2 patches, a token each."""
        return grid[0] * grid[1] // self._merge**2

    def input_size(self, grid: Grid) -> tuple[int, int]:
        """Return the size that the patches fill exactly."""
        return grid[1] * self.patch_size, grid[0] * self.patch_size

    def positions(self, num_tokens: int, images: Sequence[tuple[int, Grid]]) -> Tensor:
        """Return M-RoPE positions.

        Text and region slots step on all three axes; image tokens get (t, row, column). After an
        image the count goes on at its start plus the longer side of its grid of tokens. These are
        the numbers of transformers' ``get_rope_index`` for still images (tested), computed where
        the sequence is made, not on the accelerator.
        """
        pieces: list[Tensor] = []
        token = position = 0
        for start, grid in images:
            text = torch.arange(position, position + start - token)
            pieces.append(text.expand(3, -1))
            position += start - token
            rows, columns = grid[0] // self._merge, grid[1] // self._merge
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            pieces.append(position + torch.stack([torch.zeros_like(row), row, column]).flatten(1))
            token = start + rows * columns
            position += max(rows, columns)
        pieces.append(torch.arange(position, position + num_tokens - token).expand(3, -1))
        return torch.cat(pieces, dim=1)

    def encode_images(
        self, vlm: Any, pixels: Tensor, grids: Sequence[Grid], *, all_levels: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps of one packed pass; attention does not cross images.

        The map is the state before the merger, which transformers returns grouped by merge units.
        """
        visual = vlm.model.visual
        grid_thw = torch.tensor([(1, *grid) for grid in grids], device=pixels.device)
        output = visual(pixels.to(visual.dtype), grid_thw=grid_thw, output_hidden_states=all_levels)
        states = output.last_hidden_state
        if all_levels:
            states = torch.cat([output.hidden_states[block + 1] for block in self.levels()], dim=-1)
        # Regions are pooled by place, so the map must be in image order.
        units = self.natural_order(states.unflatten(0, (-1, self._merge**2)), grid_thw)
        return self.image_tokens(output), self.maps(units.flatten(0, 1), grids)

    def maps(self, states: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Return the map float[C, rows, columns] of each image.

        Args:
            states: float[sum of rows times columns, C]; patches of a merge unit stand together,
                units row by row.
            grids: Grid of each image.
        """
        maps = []
        for image, (rows, columns) in zip(
            states.split([rows * columns for rows, columns in grids]), grids, strict=True
        ):
            blocks = image.unflatten(
                0, (rows // self._merge, columns // self._merge, self._merge, self._merge)
            )
            maps.append(blocks.permute(4, 0, 2, 1, 3).reshape(-1, rows, columns))
        return maps

    def natural_order(self, units: Tensor, grid_thw: Tensor) -> Tensor:  # noqa: ARG002
        """Return merge units float[U, 4, C] row by row; here they already are."""
        return units

    def image_tokens(self, output: Any) -> Tensor:
        """Return image tokens of a vision tower's output."""
        return output.pooler_output

    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return ViT and merger."""
        return vlm.model.visual

    def language_model(self, vlm: Any) -> nn.Module:
        """Return the text decoder."""
        return vlm.model.language_model


class Qwen2VL(QwenVL):
    """Qwen2-VL: full attention, no windows."""

    model_class = Qwen2VLForConditionalGeneration
    system = "You are a helpful assistant."

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen2VLConfig(**config.config)

    def widths(self) -> tuple[int, str]:
        """Return both: ``hidden_size`` is the width of tokens here, ``embed_dim`` the tower's."""
        return self._vision.embed_dim, "hidden_size"


class Qwen25VL(QwenVL):
    """Qwen2.5-VL (the family of the release): most blocks attend within windows."""

    model_class = Qwen2_5_VLForConditionalGeneration
    system = "You are a helpful assistant."

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen2_5_VLConfig(**config.config)

    def levels(self) -> Sequence[int]:
        """Return the blocks with full attention (release)."""
        return self._vision.fullatt_block_indexes

    def natural_order(self, units: Tensor, grid_thw: Tensor) -> Tensor:
        """Undo the permutation into attention windows."""
        vision = self._vision
        window_index, _ = get_vision_window_index(
            grid_thw, self._merge, vision.window_size, vision.patch_size
        )
        return units[torch.argsort(window_index).to(units.device)]


class Qwen3VL(QwenVL):
    """Qwen3-VL: no windows; inner states of the tower are added behind the first decoder layers.

    They are called deepstack. An image token is hidden_size wide for the decoder's input, then once
    more for every such layer.
    """

    model_class: type[PreTrainedModel] = Qwen3VLForConditionalGeneration
    processor_kwargs: ClassVar[dict[str, Any]] = {
        "min_pixels": 65_536,
        "max_pixels": 16_777_216,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen3VLConfig(**config.config)

    def image_tokens(self, output: Any) -> Tensor:
        """Return merged tokens, then the deepstack features of every layer, side by side."""
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    def decoder_inputs(
        self, embeddings: Tensor, positions: Tensor, places: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the decoder's arguments: columns beyond hidden_size go to the layers.

        Text brings zeros there, and adding zero is exact.
        """
        tokens, *layers = embeddings.split(self.hidden_size, dim=-1)
        inputs = super().decoder_inputs(tokens, positions, places)
        if layers:
            inputs["visual_pos_masks"] = torch.ones_like(tokens[..., 0], dtype=torch.bool)
            inputs["deepstack_visual_embeds"] = [layer.flatten(0, 1) for layer in layers]
        return inputs


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with a mixture of experts in its decoder."""

    model_class = Qwen3VLMoeForConditionalGeneration

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen3VLMoeConfig(**config.config)
