"""Qwen3.5: Qwen3-VL's tower without deepstack, a hybrid of linear and full attention behind it."""

from typing import Any

from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

from fo1_model.config import VLMConfig
from fo1_model.vlms.qwen import Qwen3VL, QwenVL


class Qwen35(QwenVL):
    """Qwen3.5, dense; it answers at once, without a chain of thought.

    Three of four layers of the decoder are a gated delta net: a state that runs on from token to
    token, of which no border of samples is known, so that its samples cannot be packed. Answers
    open with the closed block of thoughts of the chat template under ``enable_thinking=False``, in
    training too.
    """

    model_class: type[PreTrainedModel] = Qwen3_5ForConditionalGeneration
    processor_kwargs = Qwen3VL.processor_kwargs
    packs = False

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen3_5Config(**config.config)

    def write_turn(self, role: str, content: str) -> tuple[str, str]:
        """Return head and content in ChatML; an answer comes behind an empty block of thoughts."""
        head, content = super().write_turn(role, content)
        return head + ("<think>\n\n</think>\n\n" if role == "assistant" else ""), content


class Qwen35Moe(Qwen35):
    """Qwen3.5 with a mixture of experts in its decoder."""

    model_class = Qwen3_5MoeForConditionalGeneration

    def parse(self, config: VLMConfig) -> Any:
        """Return the transformers config."""
        return Qwen3_5MoeConfig(**config.config)
