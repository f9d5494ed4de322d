"""LLaVA 1.5 and LLaVA-NeXT: a CLIP tower, a projector, a Vicuna or Mistral decoder."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import (
    image_size_to_num_patches,
)

from fo1_model.config import VLMConfig
from fo1_model.errors import SettingError
from fo1_model.vlms.family import Grid, require
from fo1_model.vlms.square_tower import SquareTower

_CHATS = {"llama": "vicuna", "mistral": "mistral"}
"""Decoder -> the chat form of the published models that have it."""


class ClipVLM(SquareTower):
    """What both share; regions are pooled from the state that the projector reads.

    That is the last block's but one, without the class token, so the last block never trains. Their
    tokenizers are SentencePiece's.
    """

    image_token = "<image>"  # noqa: S105
    image_start = ()
    image_end = ()
    image_gap = "\n"
    images_gap = "\n"
    region_slot = "<unk>"
    turn_end = "</s>"
    turn_gap = ""
    joins_text = True
    opening = "<s>"
    stop_tokens = ("</s>",)
    pad_token = "<pad>"  # noqa: S105

    config_class: ClassVar[Any]
    """Class of the transformers config."""

    def __init__(self, config: VLMConfig) -> None:
        self.config = self.config_class(**config.config)
        text: Any = self.config.text_config
        vision: Any = self.config.vision_config
        require("vision_config.model_type", vision.model_type, "clip_vision_model")
        require("vision_feature_layer", self.config.vision_feature_layer, -2)
        require(
            "vision_feature_select_strategy", self.config.vision_feature_select_strategy, "default"
        )
        if text.model_type not in _CHATS:
            raise SettingError(
                f"text_config.model_type={text.model_type!r}: the chat form of a "
                f"{self.config.model_type} on it is not known; known are {', '.join(_CHATS)}"
            )
        self._chat = _CHATS[text.model_type]
        self.read_sizes()
        last = f"model.vision_tower.encoder.layers.{vision.num_hidden_layers - 1}."
        self.visual_prefixes = ("model.vision_tower.", "model.multi_modal_projector.")
        self.idle_prefixes = (last, "model.vision_tower.post_layernorm.")

    @abstractmethod
    def project(self, vlm: Any, tiles: Tensor, grids: Sequence[Grid]) -> Any:
        """Return the base's image features of tiles float[T, 3, S, S], with all states."""

    @abstractmethod
    def num_tiles(self, grid: Grid) -> int:
        """Return how many tiles an image is; the first shows all of it."""

    def encode_images(
        self,
        vlm: Any,
        pixels: Tensor,
        grids: Sequence[Grid],
        *,
        all_levels: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps: the state of the whole image, its rows in image order."""
        tiles = pixels.view(-1, 3, self._side, self._side)
        output = self.project(vlm, tiles.to(vlm.dtype), grids)
        states = output.hidden_states[-2][:, 1:].transpose(1, 2)
        states = states.unflatten(2, (self._cells, self._cells))
        by_image = states.split([self.num_tiles(grid) for grid in grids])
        return torch.cat(list(output.pooler_output)), [image[0] for image in by_image]

    def vision_tower(self, vlm: Any) -> nn.Module:
        """Return ViT and projector."""
        return nn.ModuleList([vlm.model.vision_tower, vlm.model.multi_modal_projector])

    def language_model(self, vlm: Any) -> nn.Module:
        """Return the text decoder."""
        return vlm.model.language_model

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content: ``USER: text``, or ``[INST] text`` on Mistral.

        A system's text stands alone before the first turn, on Mistral between marks. An answer's
        head is the template's generation prompt in training too.
        """
        if self._chat == "mistral":
            return {"user": "[INST] ", "system": "<<SYS>>\n"}.get(role, ""), content
        return {"user": "USER: ", "assistant": "ASSISTANT:"}.get(role, ""), content

    def close_turn(self, role: str) -> tuple[str, str]:
        """Return the end of an answer; other turns end with text."""
        if role == "assistant":
            return self.turn_end, self.turn_gap
        if self._chat == "mistral":
            return "", {"user": " [/INST]"}.get(role, "\n<</SYS>>\n\n")
        return "", " "


class Llava(ClipVLM):
    """LLaVA 1.5, the image as one square.

    The base's processor cuts the middle out of an image unless told ``do_center_crop=False`` and a
    size of two sides; that setting is used here, so that the square shows the whole image
    (squashed).
    """

    model_class = LlavaForConditionalGeneration
    config_class = LlavaConfig

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config)
        self._processor = LlavaImageProcessorPil(
            size={"height": self._side, "width": self._side}, do_center_crop=False
        )

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return the image squashed to the square (bicubic), CLIP's mean and deviation; one row."""
        pixels = self._processor(image, return_tensors="pt")["pixel_values"]
        return pixels.flatten(1), (self._cells, self._cells)

    def blank(self) -> tuple[Tensor, Grid]:
        """Return one square of zeros."""
        return torch.zeros(1, 3 * self._side**2), (self._cells, self._cells)

    def num_tiles(self, grid: Grid) -> int:  # noqa: ARG002
        """Return one."""
        return 1

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the number of patches, a token each."""
        return grid[0] * grid[1]

    def project(self, vlm: Any, tiles: Tensor, grids: Sequence[Grid]) -> Any:  # noqa: ARG002
        """Return the base's image features."""
        return vlm.model.get_image_features(tiles, return_dict=True)


class LlavaNext(ClipVLM):
    """LLaVA-NeXT (1.6); grids are (height, width) in pixels of the image that is cut into tiles.

    The base sends a thumbnail of the whole image (squashed) before its tiles, for each of several
    images too. Regions are pooled from the thumbnail's map. Fewer tiles, and so fewer tokens, are a
    matter of ``image_grid_pinpoints`` in the config.
    """

    model_class = LlavaNextForConditionalGeneration
    config_class = LlavaNextConfig

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config)
        self.visual_prefixes = (*self.visual_prefixes, "model.image_newline")
        self._pinpoints: list[list[int]] = self.config.image_grid_pinpoints
        self.check_pinpoints(self._pinpoints)
        self._processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": self._side},
            crop_size={"height": self._side, "width": self._side},
            image_grid_pinpoints=self._pinpoints,
        )

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Grid]:
        """Return thumbnail and tiles (bicubic), CLIP's mean and deviation; a row a tile."""
        features = self._processor(image, return_tensors="pt")
        height, width = features["image_sizes"][0].tolist()
        return features["pixel_values"][0].flatten(1), (height, width)

    def blank(self) -> tuple[Tensor, Grid]:
        """Return zeros in the shape of an image of one tile's size."""
        grid = (self._side, self._side)
        return torch.zeros(self.num_tiles(grid), 3 * self._side**2), grid

    def num_tiles(self, grid: Grid) -> int:
        """Return the number of tiles, the thumbnail included."""
        return image_size_to_num_patches(grid, self._pinpoints, self._side)

    def num_image_tokens(self, grid: Grid) -> int:
        """Return the thumbnail's patches and the tiles', these with a break token a row."""
        height, width = self.tiled_cells(grid, self._pinpoints)
        return self._cells**2 + height * (width + 1)

    def project(self, vlm: Any, tiles: Tensor, grids: Sequence[Grid]) -> Any:
        """Return the base's image features."""
        sizes = torch.tensor(list(grids), device=tiles.device)
        return vlm.model.get_image_features(tiles, sizes, return_dict=True)
