"""Prompts of every family against its own chat template and transformers processor."""

import pytest
import torch

from fo1_model import grammar
from tests.fo1_model.conftest import picture
from tests.fo1_model.vlms.base_processors import base_inputs
from tests.fo1_model.vlms.chat_forms import conversation
from tests.fo1_model.vlms.chat_templates import CHAT_TEMPLATES

QUESTION = "How many red circle are there?"


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_prompts_are_the_published_chat_template_s(family, small, images, system):
    """To the id, also with a system turn; every image before the text, as the templates put it."""
    _, processor = small
    pictures = [picture(97, 131), picture(310, 83, seed=1)][:images]
    turns = [("system", 0, "Answer briefly."), ("user", images, QUESTION)][not system :]
    expected = base_inputs(family, conversation(family, turns), pictures or None)
    messages = [{"role": role, "content": f"{grammar.IMAGE * n}{text}"} for role, n, text in turns]
    encoded = processor.encode(pictures, None, messages, for_generation=True)
    assert encoded.input_ids.tolist() == expected["input_ids"][0].tolist()
    if images:
        pixels = torch.cat([each.flatten() for each in encoded.pixels])
        assert torch.equal(pixels, expected["pixel_values"].flatten())


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("family", sorted(CHAT_TEMPLATES))
def test_answers_of_the_past_are_the_published_chat_template_s(family, small, system):
    """Of LLaVA-OneVision but for a blank: a past answer has the head that it was generated with."""
    _, processor = small
    image = picture(97, 131)
    turns = [
        ("system", 0, "Answer briefly."),
        ("user", 1, QUESTION),
        ("assistant", 0, "There are 3."),
        ("user", 0, "Which?"),
    ][not system :]
    text = conversation(family, turns)
    if family == "llava_onevision":
        text = text.replace("assistant \n", "assistant\n")
    expected = base_inputs(family, text, image)
    messages = [{"role": role, "content": f"{grammar.IMAGE * n}{text}"} for role, n, text in turns]
    encoded = processor.encode(image, None, messages, for_generation=True)
    assert encoded.input_ids.tolist() == expected["input_ids"][0].tolist()
