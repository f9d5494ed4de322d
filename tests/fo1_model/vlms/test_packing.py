"""Samples end to end in one row: the same logits, loss and gradient as a row each, for every VLM
family."""

import copy
from dataclasses import replace

import pytest
import torch

from fo1_model.errors import SettingError
from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model
from tests.fo1_model.vlms.test_families import ANSWER, ask


def three(processor):
    """Samples of three lengths, one without an image, each with a weight."""
    samples = [
        ask(processor, picture(70, 64), some_boxes(2, 70, 64), ANSWER),
        ask(processor, None, None, "None"),
        ask(processor, picture(64, 120), some_boxes(1, 64, 120), ANSWER),
    ]
    return [
        replace(one, loss_weight=weight)
        for one, weight in zip(samples, (1.0, 0.5, 2.0), strict=True)
    ]


@pytest.mark.parametrize("family", sorted(VLM_FAMILIES))
def test_packed_samples_give_what_they_give_apart(family):
    model, processor = small_model(family)
    model.eval()
    samples = three(processor)
    if not processor.family.packs:
        with pytest.raises(SettingError, match=f"family '{family}' cannot be packed"):
            processor.pack(samples)
        return
    packed, padded = processor.pack(samples), processor.collate(samples)
    with torch.no_grad():
        together, apart = model(packed, return_logits=True), model(padded, return_logits=True)
    assert packed.input_ids.shape == (1, sum(len(one.input_ids) for one in samples))
    assert torch.equal(together.targets, apart.targets)
    torch.testing.assert_close(together.logits, apart.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.loss_sum, apart.loss_sum, rtol=1e-5, atol=1e-5)
    assert together.num_tokens == apart.num_tokens
    # without the places, a sample would see those before it
    with torch.no_grad():
        mixed = model(replace(packed, places=None), return_logits=True)
    assert (mixed.logits - apart.logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_what_is_refused_would_leak(family, monkeypatch):
    """Else the refusal would cost time for nothing: the second sample's logits are others."""
    model, processor = small_model(family)
    model.eval()
    samples = three(processor)
    monkeypatch.setattr(type(processor.family), "packs", True)
    with torch.no_grad():
        together = model(processor.pack(samples), return_logits=True).logits
        apart = model(processor.collate(samples), return_logits=True).logits
    assert (together - apart).abs().max() > 0.1 * apart.abs().max()


def test_the_loss_comes_apart_by_sample():
    """Padded and packed, each sample has what it has alone; the parts add up."""
    model, processor = small_model("qwen2_5_vl")
    model.eval()
    samples = three(processor)
    with torch.no_grad():
        alone = [model(processor.collate([sample])) for sample in samples]
    wanted = torch.tensor([[float(one.loss_sum), float(one.num_tokens)] for one in alone]).double()
    assert len({float(loss) for loss in wanted[:, 0]}) == 3
    for batch in (processor.collate(samples), processor.pack(samples)):
        output = model(batch)
        assert not output.by_sample.requires_grad
        torch.testing.assert_close(output.by_sample, wanted, rtol=1e-5, atol=1e-5)
        whole = torch.stack([output.loss_sum, output.num_tokens]).double()
        torch.testing.assert_close(output.by_sample.sum(dim=0), whole.detach(), rtol=1e-6, atol=0)


def test_a_sample_sees_nothing_of_its_neighbours_in_the_row():
    model, processor = small_model("qwen2_5_vl")
    model.eval()
    first, second, third = three(processor)
    other = ask(processor, picture(64, 64), some_boxes(2, 64, 64), ANSWER)
    with torch.no_grad():
        one = model(processor.pack([first, second, third]), return_logits=True).logits
        same = model(processor.pack([other, second, third]), return_logits=True).logits
    supervised = sum(int((sample.labels >= 0).sum()) for sample in (second, third))
    torch.testing.assert_close(one[-supervised:], same[-supervised:], rtol=0, atol=1e-5)


def test_the_gradient_is_that_of_padded_samples():
    model, processor = small_model("qwen2_5_vl")
    samples = three(processor)
    gradients = []
    for batch in (processor.pack(samples), processor.collate(samples)):
        trained = copy.deepcopy(model).eval()
        trained(batch).loss_sum.backward()
        gradients.append({n: p.grad for n, p in trained.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        scale = float(gradients[1][name].abs().max())
        torch.testing.assert_close(
            gradient, gradients[1][name], rtol=1e-3, atol=1e-5 + 1e-4 * scale
        )


def test_a_weight_belongs_to_the_token_that_is_predicted():
    model, processor = small_model("qwen2_5_vl")
    batch = processor.pack(three(processor))
    weights = torch.arange(batch.labels.numel(), dtype=torch.float32)[None]
    output = model(replace(batch, loss_weights=weights))
    assert output.num_tokens == weights[batch.labels >= 0].sum()


def test_a_row_by_hand():
    _, processor = small_model("qwen2_5_vl")
    samples = three(processor)
    row = processor.pack(samples)
    lengths = [len(one.input_ids) for one in samples]
    assert row.places.tolist() == [[*range(lengths[0]), *range(lengths[1]), *range(lengths[2])]]
    assert row.loss_weights.tolist() == [
        [1.0] * lengths[0] + [0.5] * lengths[1] + [2.0] * lengths[2]
    ]
    assert row.input_ids[0].tolist() == [
        token for one in samples for token in one.input_ids.tolist()
    ]
    assert row.attention_mask.min() == 1
    assert torch.equal(
        row.positions[:, 0, lengths[0] : lengths[0] + lengths[1]], samples[1].positions
    )
    assert len(row.grids) == len(row.boxes) == 2
    with pytest.raises(ValueError, match="pack needs samples"):
        processor.pack([])
