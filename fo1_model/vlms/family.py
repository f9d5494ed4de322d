"""What differs between VLM families, behind one type.

A family says how its transformers model is built, how an image becomes its pixels, what its vision tower
gives (image tokens for the language model and the map that regions are pooled from, in one pass), how
positions are counted, how a turn is written and which tokens mark image and region slots. Everything else in
``fo1_model`` is family-free.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

Grid = tuple[int, int]
"""What a family has to know of an image's shape: (rows, columns) of its vision tower's patches, but (height,
width) in pixels where tiles depend on them (LLaVA-OneVision). Only the family reads it."""


class VLMFamily(ABC):
    """One family of vision-language models; instances are light and hold no weights."""

    model_class: type[PreTrainedModel]
    """Class of the transformers model."""
    config: PreTrainedConfig
    """Its config."""
    image_token: str
    """Token repeated once for every image token of the language model."""
    image_start: tuple[str, ...]
    """Tokens before an image's tokens."""
    image_end: tuple[str, ...]
    """Tokens after them."""
    region_slot: str
    """Token that holds the place of a region feature; known to the base tokenizer and never produced."""
    turn_end: str
    """Token that closes a turn: where an answer ends."""
    turn_gap: str = "\n"
    """Text between that token and the next turn."""
    opening: str = ""
    """Text before the first turn."""
    system: str | None = None
    """The system turn that the base's chat template adds when the messages bring none."""
    answer_lead: str = ""
    """What ``write_turn`` puts before an answer, and reading an answer takes off again."""
    stop_tokens: tuple[str, ...]
    """Tokens that end decoding."""
    pad_token: str
    """Token that fills batches."""
    visual_prefixes: tuple[str, ...]
    """Prefixes of the parameter names between pixels and image tokens: vision tower and projector."""
    idle_prefixes: tuple[str, ...] = ()
    """Prefixes of parameters that no output depends on; they never train."""
    patch_size: int
    """Side of one cell of the map that ``encode_images`` gives, in pixels of the tower's input."""
    num_position_axes: int = 1
    """Axes of the language model's positions."""
    hidden_size: int
    """Width of the language model."""
    primary_dim: int
    """Channels of one level of the vision tower."""
    num_levels: int = 1
    """Levels that ``encode_images`` concatenates with ``all_levels``."""
    vocabulary_rows: int
    """Rows of the base embedding matrix."""
    tied: bool
    """Whether input embedding and output head share one matrix."""

    def build(self) -> nn.Module:
        """The transformers model with fresh weights."""
        return self.model_class(self.config)

    @abstractmethod
    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Pixels float32[P, D] of one RGB image (a row a patch, or a row a tile), and its grid."""

    @abstractmethod
    def blank(self) -> tuple[Tensor, Grid]:
        """The pixels and grid of the smallest image, all zeros; it stands in where a batch has no image."""

    @abstractmethod
    def num_image_tokens(self, grid: Grid) -> int:
        """How many tokens of the language model an image becomes."""

    @abstractmethod
    def input_size(self, grid: Grid) -> tuple[int, int]:
        """(width, height) in pixels of the image as the map's tower input shows it."""

    @abstractmethod
    def encode_images(
        self, vlm: Any, pixels: Tensor, grids: Sequence[Grid], *, all_levels: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """One pass of the vision tower over all images of a batch.

        pixels: float[sum of P, D]. all_levels: concatenate several levels of the tower, for the variant
        without a pyramid, instead of taking the last.

        Returns image tokens float[T, W] in running order, and per image the map float[primary_dim (times
        num_levels), rows, columns] that regions are pooled from: the whole image, in its own order. W is
        hidden_size, or a multiple of it where deeper layers get features of their own (``decoder_inputs``).
        """

    @abstractmethod
    def vision_tower(self, vlm: Any) -> nn.Module:
        """The modules of ``visual_prefixes``: the primary vision tower, its merger or projector included."""

    @abstractmethod
    def language_model(self, vlm: Any) -> nn.Module:
        """The decoder: takes ``decoder_inputs``, ``attention_mask, past_key_values, use_cache``."""

    def positions(self, num_tokens: int, images: Sequence[tuple[int, Grid]]) -> Tensor:  # noqa: ARG002
        """Positions int64[num_position_axes, num_tokens] of one unpadded sequence.

        images: (index of its first token, grid) of every image, in order. Here: the count of tokens.
        """
        return torch.arange(num_tokens).expand(self.num_position_axes, -1)

    def decoder_inputs(
        self, embeddings: Tensor, positions: Tensor, places: Tensor | None = None
    ) -> dict[str, Any]:
        """The decoder's arguments for embeddings float[B, L, W] and positions int64[A, B, L].

        places: int64[1, L] of a packed row. With several axes they go before the positions; a single axis is
        the count of tokens, so that its positions are the places.
        """
        if self.num_position_axes == 1:
            return {"inputs_embeds": embeddings, "position_ids": positions[0]}
        if places is not None:
            positions = torch.cat([places[None], positions])
        return {"inputs_embeds": embeddings, "position_ids": positions}

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """The head and the content of one turn, as the base's chat template writes them (here: ChatML)."""
        return f"<|im_start|>{role}\n", content


def square_side(size: int | Sequence[int], name: str) -> int:
    """The side of a square given as a number or as (height, width); raises ValueError for another shape."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{name}={size!r} must be square")
    return int(sides.pop())


def require(name: str, value: Any, needed: Any) -> None:
    """Raises ValueError for a setting of the base that the family's map is not worked out for."""
    if value != needed:
        raise ValueError(f"{name}={value!r} is not supported: regions need {needed!r}")
