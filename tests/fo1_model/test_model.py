from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fo1_model import grammar
from fo1_model.checkpoint import new_model
from fo1_model.config import LoraSettings
from fo1_model.lora import add_adapters
from fo1_model.sizes import debug
from fo1_model.stages import STAGES, parameter_groups
from tests.fo1_model.conftest import picture, some_boxes

ANSWER = "<ground>red circle</ground><objects><region0></objects>"


@pytest.fixture
def samples(sample):
    """Mixed sizes, box counts and answers; one image without boxes, one sample without an image."""
    return [
        sample(84, 56, 3, ANSWER),
        sample(60, 140, 1, "None"),
        sample(112, 84, 0, "There are 0.", seed=1),
        sample(answer="hello"),
        sample(84, 56, 20, ANSWER, seed=2),
    ]


@pytest.fixture
def long_sample(processor):
    """Two images with regions, two questions, two answers."""
    images = [picture(84, 56), picture(60, 140, seed=1)]
    boxes = [some_boxes(2, 84, 56), some_boxes(3, 60, 140)]
    first = "".join(
        f"{grammar.IMAGE}\n{grammar.region_prompt(len(each), start)}\n"
        for each, start in zip(boxes, (0, 2), strict=True)
    )
    turns = [first + "Where is it?", "<region4>", "And <region1>?", "None"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    return processor.encode(images, boxes, messages, sample_id="long", loss_weight=1.0)


def test_loss_is_cross_entropy_over_all_positions_masked(model, processor, samples, long_sample):
    """The head sees supervised positions only; loss and logits are the full computation's."""
    batch = processor.collate([*samples, long_sample])
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        handle = model.vlm.lm_head.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        output = model(batch, return_logits=True)
        handle.remove()
        logits = model.logits(
            model.decode(model.embed(batch), batch.attention_mask, batch.positions)
        )
    supervised = batch.labels[:, 1:] != -100
    assert [len(hidden) for hidden in seen] == [int(supervised.sum())]
    assert supervised.sum() < 0.2 * supervised.numel()
    torch.testing.assert_close(output.logits, logits[:, :-1][supervised], rtol=1e-5, atol=1e-5)
    full = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(output.loss_sum, full, rtol=1e-6, atol=1e-6)
    assert output.num_tokens == (batch.labels[:, 1:] != -100).sum()
    assert output.logits is not None
    assert output.logits.shape == (int(output.num_tokens), model.family.vocabulary_rows)


def test_batch_equals_single_samples(model, processor, samples):
    model.double()
    with torch.no_grad():
        together = model(processor.collate(samples), return_logits=True)
        alone = [model(processor.collate([one]), return_logits=True) for one in samples]
    torch.testing.assert_close(
        together.logits, torch.cat([one.logits for one in alone]), rtol=0, atol=1e-5
    )
    assert together.num_tokens == sum(one.num_tokens for one in alone)


def test_left_and_right_padding_agree(model, processor, samples):
    with torch.no_grad():
        right = model(processor.collate(samples), return_logits=True)
        left = model(processor.collate(samples, pad="left"), return_logits=True)
    torch.testing.assert_close(right.logits, left.logits, rtol=0, atol=1e-4)


def test_loss_weights_scale_samples(model, processor, samples):
    first, second = samples[:2]
    with torch.no_grad():
        weighted = model(
            processor.collate([replace(first, loss_weight=2.0), replace(second, loss_weight=0.5)])
        )
        losses = [model(processor.collate([one])) for one in (first, second)]
    expected = 2 * losses[0].loss_sum + 0.5 * losses[1].loss_sum
    torch.testing.assert_close(weighted.loss_sum, expected, rtol=1e-5, atol=1e-5)
    assert weighted.num_tokens == 2 * losses[0].num_tokens + 0.5 * losses[1].num_tokens


def test_region_features_reach_their_own_slots(model, processor, sample):
    """Swapping two boxes swaps two rows of the decoder's input and nothing else."""
    one = sample(84, 56, 3, ANSWER)
    swapped = replace(one, boxes=(one.boxes[0][[1, 0, 2]],))
    with torch.no_grad():
        before, after = (model.embed(processor.collate([item]))[0] for item in (one, swapped))
    slots = (one.input_ids == processor.token_ids.region).nonzero().flatten()
    changed = (before != after).any(dim=1).nonzero().flatten()
    assert changed.tolist() == slots[:2].tolist()
    torch.testing.assert_close(before[slots[0]], after[slots[1]])


def test_maps_know_their_place_over_the_original_image(model, processor, sample):
    seen = []
    model.region_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.no_grad():
        model(processor.collate([sample(60, 150, 2, "None")]))
    auxiliary, primary, boxes = seen[0]
    # 60x150 -> 56x140 for the primary tower, squashed to 64x64 for the auxiliary one
    assert primary.values.shape[1:] == (10, 4)
    assert (primary.scale, primary.stride) == (pytest.approx((56 / 60, 140 / 150)), 14)
    assert auxiliary[0].scale == pytest.approx((64 / 60, 64 / 150))
    assert torch.equal(boxes, sample(60, 150, 2).boxes[0])


def test_several_images_number_on(model, processor, sample):
    """Two images in one sample give the region tokens they give apart."""
    first, second = sample(84, 56, 2), sample(60, 140, 3, seed=1)
    both = replace(
        first,
        pixels=first.pixels + second.pixels,
        grids=first.grids + second.grids,
        auxiliary=first.auxiliary + second.auxiliary,
        sizes=first.sizes + second.sizes,
        boxes=first.boxes + second.boxes,
    )
    with torch.no_grad():
        _, together, _ = model.visual_tokens(processor.collate([both]))
        alone = [model.visual_tokens(processor.collate([one]))[1] for one in (first, second)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("which", [[0], [2], [3], [0, 1, 2, 3, 4]])
def test_every_trainable_parameter_gets_a_gradient_from_any_batch(
    model, processor, samples, stage, which
):
    if "adapters" in STAGES[stage].parts:
        add_adapters(model, LoraSettings(rank=2, alpha=2.0), seed=0)
    parameter_groups(model, stage, 1e-3)
    model.train()
    model(processor.collate([samples[index] for index in which])).loss_sum.backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert (lacking, frozen) == ([], [])


def test_idle_modules_get_zero_gradients(model, processor, samples):
    parameter_groups(model, "stage2", 1e-3)
    model(processor.collate([samples[3]])).loss_sum.backward()
    for module in (model.region_encoder, model.auxiliary):
        assert all((parameter.grad == 0).all() for parameter in module.parameters())


def test_a_sample_without_regions_is_not_moved_by_its_idle_region(model, processor, samples):
    batch = processor.collate([samples[2]])
    with torch.no_grad():
        expected = model(batch).loss_sum
    parameter_groups(model, "stage2", 1e-3)
    torch.testing.assert_close(model(batch).loss_sum.detach(), expected, rtol=1e-6, atol=1e-6)


def test_hooks_fire(model, processor, samples):
    seen: list[str] = []
    modules = {
        "model": model,
        "language": model.vlm.model.language_model,
        "visual": model.vlm.model.visual,
        "auxiliary": model.auxiliary,
        "davit": model.auxiliary.model.stages[0],
        "regions": model.region_encoder,
        "connector": model.region_encoder.connector,
        "rows": model.new_rows,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    with torch.no_grad():
        model(processor.collate(samples))
    assert set(seen) == set(modules)
    assert seen.count("visual") == seen.count("auxiliary") == 1


def test_inputs_are_not_changed(model, processor, samples):
    batch = processor.collate(samples)
    copies = [boxes.clone() for boxes in batch.boxes], batch.input_ids.clone(), batch.pixels.clone()
    parameter_groups(model, "stage2", 1e-3)
    model(batch).loss_sum.backward()
    assert all(torch.equal(a, b) for a, b in zip(batch.boxes, copies[0], strict=True))
    assert torch.equal(batch.input_ids, copies[1])
    assert torch.equal(batch.pixels, copies[2])


def test_slots_without_features_are_named(model, processor, sample):
    one = sample(84, 56, 2)
    broken = replace(one, boxes=(one.boxes[0][:1],))
    with pytest.raises(ValueError, match=r"2 slots .* 1 features; samples 84x56/2/0"):
        model(processor.collate([broken]))


@pytest.mark.parametrize(
    "region",
    [
        {"features": "auxiliary"},
        {"features": "primary"},
        {"pyramid": False},
        {"region_norm": True, "box_embedding": False},
        {"box_frame": "auxiliary"},
    ],
)
def test_ablations_run_and_train(processor, sample, region):
    config = replace(debug(), region=replace(debug().region, **region))
    model, own = new_model(config, seed=0)
    assert own.token_ids == processor.token_ids
    parameter_groups(model, "stage2", 1e-3)
    model(processor.collate([sample(84, 56, 3, ANSWER)])).loss_sum.backward()
    assert all(
        parameter.grad.abs().sum() > 0 for parameter in model.region_encoder.connector.parameters()
    )
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_untied_head_has_rows_of_its_own(processor, sample):
    config = debug()
    config.vlm.config["tie_word_embeddings"] = False
    model, _ = new_model(config, seed=0)
    assert model.new_output_rows is not None
    parameter_groups(model, "stage1", 1e-3)
    model(processor.collate([sample(84, 56, 3, ANSWER)])).loss_sum.backward()
    assert model.new_rows.weight.grad.abs().sum() > 0
    assert model.new_output_rows.weight.grad.abs().sum() > 0


def test_a_frozen_tower_keeps_stochastic_depth_off(processor):
    config = replace(debug(), auxiliary=replace(debug().auxiliary, drop_path=0.5))
    model, _ = new_model(config, seed=0)
    parameter_groups(model, "stage1", 1e-3)
    assert not model.train().auxiliary.training
    parameter_groups(model, "stage2", 1e-3)
    assert model.auxiliary.training
    assert not model.vlm.model.visual.training
    assert not model.eval().auxiliary.training


def test_without_new_tokens_what_is_left_is_the_base(model, processor, sample):
    """Also where the base matrix has spare rows at the new tokens' ids, as Qwen's does."""
    batch = processor.collate([sample(84, 56, 0)])
    with torch.no_grad():
        hidden = model.decode(model.embed(batch), batch.attention_mask, batch.positions)
        logits, base = model.logits(hidden), model.vlm.get_output_embeddings()(hidden)
    new = torch.tensor(processor.token_ids.new)
    assert new.max() < base.shape[-1]
    old = torch.ones(base.shape[-1], dtype=torch.bool)
    old[new] = False
    masked = model.without_new_tokens(logits)
    assert torch.equal(masked[..., old], base[..., old])
    assert (masked[..., new] == float("-inf")).all()
    assert torch.equal(logits[..., old], base[..., old])
    assert not torch.equal(logits[..., new], base[..., new])
