"""GLM-4.1V: a ViT of any image size, a convolution that merges 2x2 patches, M-RoPE."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from fo1_model.config import VLMConfig
from fo1_model.vlms.family import Grid
from fo1_model.vlms.qwen import QwenVL


class Glm4v(QwenVL):
    """GLM-4.1V; pixels, grids and positions are made as for Qwen-VL.

    Its chat template closes no turn: the next one's head does. The end that answers get here is a
    token that the base stops at.
    """

    model_class = Glm4vForConditionalGeneration
    processor_class = Glm4vImageProcessorPil
    image_token = "<|image|>"  # noqa: S105
    image_start = ("<|begin_of_image|>",)
    image_end = ("<|end_of_image|>",)
    region_slot = "<|video|>"
    turn_end = "<|endoftext|>"
    turn_gap = ""
    opening = "[gMASK]<sop>"
    stop_tokens = ("<|endoftext|>", "<|user|>")
    pad_token = "<|endoftext|>"  # noqa: S105
    processor_kwargs: ClassVar[dict[str, Any]] = {
        "size": {"shortest_edge": 12_544, "longest_edge": 9_633_792}
    }
    """Settings of the family's preprocessor_config: pixels of an image taken twice, as two
    frames."""

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Glm4vConfig(**config.config)

    def encode_images(
        self, vlm: Any, pixels: Tensor, grids: Sequence[Grid], *, all_levels: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return tokens and maps of one packed pass; attention does not cross images.

        The map is the state before the merging convolution, behind the norm.
        """
        del all_levels  # the tower has one level
        visual = vlm.model.visual
        seen: list[Tensor] = []
        # What the tower gives as its last state is merged already.
        hook = visual.post_layernorm.register_forward_hook(lambda *given: seen.append(given[2]))
        try:
            grid_thw = torch.tensor([(1, *grid) for grid in grids], device=pixels.device)
            tokens = visual(pixels.to(visual.dtype), grid_thw=grid_thw).pooler_output
        finally:
            hook.remove()
        return tokens, self.maps(seen[0], grids)

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content: the role is a token of its own."""
        return f"<|{role}|>\n", content

    def close_turn(self, role: str) -> tuple[str, str]:
        """Return the end of an answer; other turns have none."""
        return (self.turn_end if role == "assistant" else ""), ""
