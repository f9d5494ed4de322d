"""What differs between VLM families, behind one type.

A family says how its transformers model is built, how an image becomes its pixels, what its vision tower
gives (image tokens for the language model and the map that regions are pooled from, in one pass), how
positions are counted and which tokens mark image and region slots. Everything else in ``fo1_model`` is
family-free.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from fo1_model.config import VLMConfig

Grid = tuple[int, int]
"""(rows, columns) of the vision tower's patches."""


class VLMFamily(ABC):
    """One family of vision-language models; instances are light and hold no weights."""

    image_token: str
    """Token repeated once for every image token of the language model."""
    image_start: str
    """Token before an image's tokens."""
    image_end: str
    """Token after them."""
    region_slot: str
    """Token that holds the place of a region feature; known to the base tokenizer and never produced."""
    turn_start: str
    """Token that opens a turn; the role and a line break follow."""
    turn_end: str
    """Token that closes a turn: where an answer ends."""
    stop_tokens: tuple[str, ...]
    """Tokens that end decoding."""
    pad_token: str
    """Token that fills batches."""
    visual_prefix: str
    """Prefix of the primary vision tower's parameter names, frozen in every stage (paper 3.3)."""
    patch_size: int
    """Side of one cell of the map that ``encode_images`` gives, in pixels of the tower's input."""
    side_multiple: int
    """Image sides, in pixels, are brought to multiples of this."""
    num_position_axes: int
    """Axes of the language model's positions."""
    hidden_size: int
    """Width of the language model."""
    primary_dim: int
    """Channels of one level of the vision tower."""
    num_levels: int
    """Levels that ``encode_images`` concatenates with ``all_levels``."""
    vocabulary_rows: int
    """Rows of the base embedding matrix."""
    tied: bool
    """Whether input embedding and output head share one matrix."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The transformers model with fresh weights."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Pixels float32[rows * columns, D] of one RGB image, and its patch grid."""

    @abstractmethod
    def blank(self) -> tuple[Tensor, Grid]:
        """The pixels and grid of the smallest image, all zeros; it stands in where a batch has no image."""

    @abstractmethod
    def num_image_tokens(self, grid: Grid) -> int:
        """How many tokens of the language model an image becomes."""

    @abstractmethod
    def positions(self, num_tokens: int, images: Sequence[tuple[int, Grid]]) -> Tensor:
        """Positions int64[num_position_axes, num_tokens] of one unpadded sequence.

        images: (index of its first token, patch grid) of every image, in order.
        """

    @abstractmethod
    def encode_images(
        self, vlm: Any, pixels: Tensor, grids: Sequence[Grid], *, all_levels: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """One pass of the vision tower over all images of a batch.

        pixels: float[sum of rows * columns, D]. all_levels: concatenate several levels of the tower, for
        the variant without a pyramid, instead of taking the last.

        Returns image tokens float[T, hidden_size] in running order, and per image the map
        float[primary_dim (times num_levels), rows, columns] that regions are pooled from.
        """

    @abstractmethod
    def vision_tower(self, vlm: Any) -> nn.Module:
        """The primary vision tower, its merger included."""

    @abstractmethod
    def language_model(self, vlm: Any) -> nn.Module:
        """The decoder: takes ``inputs_embeds, attention_mask, position_ids, past_key_values, use_cache``."""


class Qwen25VL(VLMFamily):
    """Qwen2.5-VL (the family of the release)."""

    image_token = "<|image_pad|>"  # noqa: S105
    image_start = "<|vision_start|>"
    image_end = "<|vision_end|>"
    region_slot = "<|vision_pad|>"
    turn_start = "<|im_start|>"
    turn_end = "<|im_end|>"
    stop_tokens = ("<|im_end|>", "<|endoftext|>")
    pad_token = "<|endoftext|>"  # noqa: S105
    visual_prefix = "model.visual."
    num_position_axes = 3

    _MIN_PIXELS = 56 * 56
    _MAX_PIXELS = 12_845_056
    """The base family's limits; the second is out of reach once the long side is at most 2048 (spec 5.3)."""

    def __init__(self, config: VLMConfig) -> None:
        self.config = Qwen2_5_VLConfig(**config.config)
        text: Any = self.config.text_config
        vision: Any = self.config.vision_config
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size={vision.out_hidden_size} must equal "
                f"text_config.hidden_size={text.hidden_size}: image tokens enter the decoder as they are"
            )
        self.hidden_size = text.hidden_size
        self.primary_dim = vision.hidden_size
        self.num_levels = len(vision.fullatt_block_indexes)
        self.vocabulary_rows = text.vocab_size
        self.tied = self.config.tie_word_embeddings
        self._vision = vision
        self._merge = vision.spatial_merge_size
        self.patch_size = vision.patch_size
        self.side_multiple = vision.patch_size * self._merge
        self._processor = Qwen2VLImageProcessorPil(
            min_pixels=self._MIN_PIXELS,
            max_pixels=self._MAX_PIXELS,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=self._merge,
        )

    def build(self) -> nn.Module:
        """The transformers model with fresh weights."""
        return Qwen2_5_VLForConditionalGeneration(self.config)

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Sides to multiples of 28 (bicubic), CLIP mean and deviation, patches in merge order."""
        features = self._processor(image, return_tensors="pt")
        _, rows, columns = features["image_grid_thw"][0].tolist()
        return features["pixel_values"], (rows, columns)

    def blank(self) -> tuple[Tensor, Grid]:
        """Four merge units of zeros."""
        vision = self._vision
        side = 2 * self._merge
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(side * side, width), (side, side)

    def num_image_tokens(self, grid: Grid) -> int:
        """One token a merge unit of 2x2 patches."""
        return grid[0] * grid[1] // self._merge**2

    def positions(self, num_tokens: int, images: Sequence[tuple[int, Grid]]) -> Tensor:
        """M-RoPE: text and region slots step on all three axes; image tokens get (t, row, column).

        After an image the count goes on at its start plus the longer side of its grid of tokens. Same
        numbers as transformers' ``get_rope_index`` for still images (tested), computed where the sequence
        is made, not on the accelerator.
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
        """One packed pass: attention does not cross images, so packing is exact.

        The map is the state before the merger. transformers returns it grouped by merge units and permuted
        into attention windows, both of which are undone here.
        """
        visual = vlm.model.visual
        grid_thw = torch.tensor([(1, *grid) for grid in grids], device=pixels.device)
        output = visual(pixels.to(visual.dtype), grid_thw=grid_thw, output_hidden_states=all_levels)
        states = output.last_hidden_state
        vision = self._vision
        if all_levels:
            states = torch.cat(
                [output.hidden_states[block + 1] for block in vision.fullatt_block_indexes], dim=-1
            )
        window_index, _ = get_vision_window_index(
            grid_thw, self._merge, vision.window_size, vision.patch_size
        )
        units = states.unflatten(0, (-1, self._merge**2))
        units = units[torch.argsort(window_index).to(units.device)]
        maps = []
        for image, (rows, columns) in zip(
            units.split([self.num_image_tokens(grid) for grid in grids]), grids, strict=True
        ):
            blocks = image.unflatten(1, (self._merge, self._merge)).unflatten(
                0, (rows // self._merge, columns // self._merge)
            )
            maps.append(blocks.permute(4, 0, 2, 1, 3).reshape(-1, rows, columns))
        return output.pooler_output, maps

    def vision_tower(self, vlm: Any) -> nn.Module:
        """ViT and merger."""
        return vlm.model.visual

    def language_model(self, vlm: Any) -> nn.Module:
        """The text decoder."""
        return vlm.model.language_model


VLM_FAMILIES: dict[str, Callable[[VLMConfig], VLMFamily]] = {"qwen2_5_vl": Qwen25VL}
"""VLM families by the name in ``VLMConfig.family``."""


def build_family(config: VLMConfig) -> VLMFamily:
    """The family of a config. Raises ValueError naming the known ones for an unknown name."""
    if config.family not in VLM_FAMILIES:
        raise ValueError(
            f"VLMConfig.family={config.family!r} is not known; choose one of {', '.join(VLM_FAMILIES)}"
        )
    return VLM_FAMILIES[config.family](config)
