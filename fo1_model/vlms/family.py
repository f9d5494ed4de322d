"""What differs between VLM families, behind one type.

A family says how its transformers model is built, how an image becomes its pixels, what its vision
tower gives (image tokens for the language model and the map that regions are pooled from, in one
pass), how positions are counted, how a turn is written and which tokens mark image and region
slots. Everything else in ``fo1_model`` is family-free.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from fo1_model.errors import SettingError

Grid = tuple[int, int]
"""What a family has to know of an image's shape.

(rows, columns) of its vision tower's patches, but (height, width) in pixels where tiles
depend on them (LLaVA-OneVision). Only the family reads it."""


class VLMFamily(ABC):
    """One family of vision-language models; instances are light and hold no weights."""

    model_class: type[PreTrainedModel]
    """Class of the transformers model."""
    config: PreTrainedConfig
    """Config of the transformers model."""
    image_token: str
    """Token repeated once for every image token of the language model."""
    image_start: tuple[str, ...]
    """Tokens before an image's tokens."""
    image_mark: str = ""
    """Text between ``image_start`` and an image's tokens, where the base has no token for it."""
    image_end: tuple[str, ...]
    """Tokens after an image's tokens."""
    image_gap: str = ""
    """Text between an image and a plain question behind it, in the base's chat template."""
    images_gap: str = ""
    """Text between two images of a turn, in the base's chat template."""
    region_slot: str
    """Token that holds the place of a region feature; known to the base tokenizer and never
    produced."""
    turn_end: str
    """Token that closes a turn: where an answer ends."""
    turn_gap: str = "\n"
    """Text between the end of a turn and the next turn."""
    joins_text: bool = False
    """Whether turns up to an answer are tokenised as one text, images and regions included: a
    SentencePiece tokenizer puts a blank before every text, or before the first alone."""
    opening: str = ""
    """Text before the first turn."""
    system: str | None = None
    """System turn that the base's chat template adds when the messages bring none."""
    answer_lead: str = ""
    """Text that ``write_turn`` puts before an answer, and reading an answer takes off again."""
    stop_tokens: tuple[str, ...]
    """Tokens that end decoding."""
    pad_token: str
    """Token that fills batches."""
    visual_prefixes: tuple[str, ...]
    """Prefixes of the parameter names between pixels and image tokens: vision tower and
    projector."""
    idle_prefixes: tuple[str, ...] = ()
    """Prefixes of parameters that no output depends on; they never train."""
    patch_size: int
    """Side of one cell of the map that ``encode_images`` gives, in pixels of the tower's input."""
    num_position_axes: int = 1
    """Number of axes of the language model's positions."""
    hidden_size: int
    """Width of the language model."""
    primary_dim: int
    """Channels of one level of the vision tower."""
    num_levels: int = 1
    """Number of levels that ``encode_images`` concatenates with ``all_levels``."""
    vocabulary_rows: int
    """Number of rows of the base embedding matrix."""
    packs: bool = True
    """Whether samples can share a row: False for a decoder whose states run on across them."""
    tied: bool
    """Whether input embedding and output head share one matrix."""

    def build(self) -> nn.Module:
        """Return the transformers model with fresh weights."""
        return self.model_class(self.config)

    @abstractmethod
    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return the pixels of one RGB image and its grid.

        Returns:
            float32[P, D], a row a patch or a row a tile, and the grid.
        """

    def preprocess_all(self, images: Sequence[Image.Image]) -> list[tuple[Tensor, Grid]]:
        """Return `preprocess` of each image of one conversation.

        A family whose tiles depend on how many images there are says so here.
        """
        return [self.preprocess(image) for image in images]

    @abstractmethod
    def blank(self) -> tuple[Tensor, Grid]:
        """Return pixels and grid of the smallest image, all zeros, for batches without one."""

    @abstractmethod
    def num_image_tokens(self, grid: Grid) -> int:
        """Return how many tokens of the language model an image becomes."""

    @abstractmethod
    def input_size(self, grid: Grid) -> tuple[int, int]:
        """Return (width, height) in pixels of the image as the map's tower input shows it."""

    @abstractmethod
    def encode_images(
        self, vlm: Any, pixels: Tensor, grids: Sequence[Grid], *, all_levels: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what one pass of the vision tower gives for all images of a batch.

        Args:
            vlm: The transformers model.
            pixels: float[sum of P, D].
            grids: Grid of each image.
            all_levels: Concatenate several levels of the tower, for the variant without a pyramid,
                instead of taking the last.

        Returns:
            Image tokens float[T, W] in running order, and per image the map float[primary_dim
            (times num_levels), rows, columns] that regions are pooled from: the whole image, in its
            own order. W is hidden_size, or a multiple of it where deeper layers get features of
            their own (``decoder_inputs``).
        """

    @abstractmethod
    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return the modules of ``visual_prefixes``: primary vision tower, merger or projector."""

    @abstractmethod
    def language_model(self, vlm: Any) -> nn.Module:
        """Return the decoder, which takes ``decoder_inputs``, mask, cache and ``use_cache``."""

    def new_cache(self) -> Cache:
        """Return an empty cache of the decoder; its layers' kinds are those of the config."""
        return DynamicCache(config=self.config.get_text_config(decoder=True))

    def positions(
        self,
        num_tokens: int,
        images: Sequence[tuple[int, Grid]],  # noqa: ARG002
    ) -> Tensor:
        """Return positions int64[num_position_axes, num_tokens] of one unpadded sequence.

        Here they are the count of tokens.

        Args:
            num_tokens: Length of the sequence.
            images: (index of its first token, grid) of every image, in order.
        """
        return torch.arange(num_tokens).expand(self.num_position_axes, -1)

    def decoder_inputs(
        self, embeddings: Tensor, positions: Tensor, places: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the decoder's arguments.

        With several axes, places go before the positions; a single axis is the count of tokens, so
        that its positions are the places.

        Args:
            embeddings: float[B, L, W].
            positions: int64[A, B, L].
            places: int64[1, L] of a packed row.
        """
        if self.num_position_axes == 1:
            return {"inputs_embeds": embeddings, "position_ids": positions[0]}
        if places is not None:
            positions = torch.cat([places[None], positions])
        return {"inputs_embeds": embeddings, "position_ids": positions}

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content of one turn as the base's chat template has them; here ChatML."""
        return f"<|im_start|>{role}\n", content

    def close_turn(self, role: str) -> tuple[str, str]:  # noqa: ARG002
        """Return the token that closes a turn, empty for none, and the text behind it.

        An answer always has a token.
        """
        return self.turn_end, self.turn_gap


def square_side(size: int | Sequence[int], name: str) -> int:
    """Return the side of a square given as a number or as (height, width).

    Args:
        size: The number or the pair.
        name: Field that it comes from, for the error.

    Raises:
        SettingError: For another shape.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise SettingError(f"{name}={size!r} must be square")
    return int(sides.pop())


def require(name: str, value: Any, needed: Any) -> None:
    """Raise SettingError for a setting of the base that the family's map is not worked out for."""
    if value != needed:
        raise SettingError(f"{name}={value!r} is not supported: regions need {needed!r}")
