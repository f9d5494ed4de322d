"""Recomputed activations and compiled layers change no loss and no gradient; which attention is
taken."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from fo1_model import grammar
from fo1_model.acceleration import accelerate, attention_implementation, compile_decoder, recompute
from fo1_model.config import TOWERS
from fo1_model.stages import parameter_groups
from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model


@pytest.fixture(scope="module", params=sorted(VLM_FAMILIES))
def trained(request):
    """Model in training (not to be changed) and a batch with and without an image."""
    model, processor = small_model(request.param)
    samples = []
    for image, count in [(picture(70, 64), 3), (None, 0)]:
        boxes = some_boxes(count, *image.size) if image else None
        content = (
            (f"{grammar.IMAGE}\n" if image else "") + grammar.region_prompt(count) + "What is it?"
        )
        turns = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "a red circle"},
        ]
        samples.append(processor.encode(image, boxes, turns))
    parameter_groups(model, "stage2_primary", 1e-3)
    model.train()
    return model, processor.collate(samples)


def loss_and_gradients(model, batch):
    torch.manual_seed(0)
    loss = model(batch).loss_sum
    loss.backward()
    return loss.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def passes_of_first_layer(model, name, batch):
    """How often a part of the first layer of a tower runs in a step."""
    family = model.family
    tower = (
        family.vision_tower(model.vlm) if name == "primary" else family.language_model(model.vlm)
    )
    layer = next(m for m in tower.modules() if isinstance(m, GradientCheckpointingLayer))
    linear = next(m for m in layer.modules() if isinstance(m, nn.Linear))
    passes = []
    linear.register_forward_hook(lambda *_: passes.append(1))
    loss_and_gradients(model, batch)
    return len(passes)


def test_recomputing_changes_no_loss_and_no_gradient(trained):
    original, batch = trained
    model = copy.deepcopy(original)
    recompute(model, TOWERS)
    loss, gradients = loss_and_gradients(copy.deepcopy(original), batch)
    again, regained = loss_and_gradients(model, batch)
    assert torch.equal(again, loss)
    assert regained.keys() == gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(regained[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["primary", "language"])
def test_layers_run_a_second_time(trained, name):
    original, batch = trained
    once, again = copy.deepcopy(original), copy.deepcopy(original)
    recompute(again, [name])
    assert passes_of_first_layer(again, name, batch) == 2 * passes_of_first_layer(once, name, batch)


@pytest.mark.parametrize("trained", ["qwen2_5_vl"], indirect=True)
def test_compiled_layers_give_the_same(trained):
    """With Dynamo's own backend, which traces as for any and compiles nothing. One family: it is
    slow."""
    original, batch = trained
    model = copy.deepcopy(original)
    compile_decoder(model, backend="eager")
    loss, gradients = loss_and_gradients(copy.deepcopy(original), batch)
    again, regained = loss_and_gradients(model, batch)
    torch.testing.assert_close(again, loss)
    for name, value in gradients.items():
        torch.testing.assert_close(regained[name], value, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == original.state_dict().keys()


def test_unknown_towers_are_refused(trained):
    with pytest.raises(
        ValueError, match="checkpointing of decoder: choose among primary, language, auxiliary"
    ):
        recompute(trained[0], ["decoder"])


def test_nothing_asked_for_changes_nothing(trained):
    original, batch = trained
    model = copy.deepcopy(original)
    accelerate(model, recomputed=(), compiles=False, precision="fp32")
    for one, other in zip(model.modules(), original.modules(), strict=True):
        implementation = "_attn_implementation"
        config, before = getattr(one, "config", None), getattr(other, "config", None)
        assert getattr(config, implementation, None) == getattr(before, implementation, None)
    assert torch.equal(loss_and_gradients(model, batch)[0], loss_and_gradients(original, batch)[0])
    original.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("installed", "gpu", "precision", "expected"),
    [
        (True, True, "bf16", "flash_attention_2"),
        (True, True, "fp32", "sdpa"),
        (True, False, "bf16", "sdpa"),
        (False, True, "bf16", "sdpa"),
    ],
)
def test_attention_is_what_is_installed(monkeypatch, installed, gpu, precision, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert attention_implementation(precision) == expected
