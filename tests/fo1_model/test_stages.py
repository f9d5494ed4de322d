import copy
from dataclasses import replace

import pytest
import torch

from fo1_model import grammar, stages
from fo1_model.config import LoraSettings
from fo1_model.errors import SettingError
from fo1_model.lora import add_adapters
from fo1_model.stages import STAGES, parameter_groups, part_of_parameters
from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model

ANSWER = "<ground>red circle</ground><objects><region0></objects>"


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(model, processor, samples, stage, steps=10):
    """Steps of AdamW with a weight decay that would visibly shrink anything it touched."""
    optimizer = torch.optim.AdamW(parameter_groups(model, stage, 1e-2, weight_decay=0.5))
    batch = processor.collate(samples)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch).loss_sum.backward()
        optimizer.step()
    model.eval()


def prepared(model, stage):
    """The model with adapters, where the stage trains some."""
    if "adapters" in STAGES[stage].parts:
        settings = LoraSettings(rank=2, alpha=2.0)
        if model.model_config.vlm.family in ("glm4v", "qwen3_vl_moe"):
            # gate and up are one matrix, or those of experts
            settings = replace(settings, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
        add_adapters(model, settings, seed=0)
    return model


@pytest.fixture(scope="module", params=sorted(VLM_FAMILIES))
def family_model(request):
    """Model (not to be changed), processor, and samples with an image and boxes and without any."""
    model, processor = small_model(request.param)
    samples = []
    for image, count, answer in [(picture(70, 64), 3, ANSWER), (None, 0, "hi")]:
        boxes = some_boxes(count, *image.size) if image and count else None
        content = (
            (f"{grammar.IMAGE}\n" if image else "") + grammar.region_prompt(count) + "What is it?"
        )
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        samples.append(processor.encode(image, boxes, turns))
    return model, processor, samples


def idle_parameters(model):
    """Names of what the family says no output reads."""
    prefixes = [f"vlm.{prefix}" for prefix in model.family.idle_prefixes]
    return {name for name, _ in model.named_parameters() if any(map(name.startswith, prefixes))}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_what_a_stage_freezes_stays_bit_identical_and_the_rest_moves(family_model, stage):
    """Over every family: after ten steps each parameter outside the stage's parts is what it was,
    old embedding rows among them, and each parameter inside has moved, unless no output reads it.
    """
    original, processor, samples = family_model
    model = prepared(copy.deepcopy(original), stage)
    before, owners = snapshot(model), part_of_parameters(model)
    train(model, processor, samples, stage)
    moved = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    inside = {name for name in before if owners[name] in STAGES[stage].parts} - idle_parameters(
        model
    )
    assert moved == inside
    rows = model.vlm.get_input_embeddings().weight
    (name,) = [name for name, parameter in model.named_parameters() if parameter is rows]
    assert torch.equal(rows, before[name]) == ("language" not in STAGES[stage].parts)


def test_idle_parameters_are_those_without_a_gradient(family_model):
    """With everything else trained, exactly the family's idle ones would get none."""
    original, processor, samples = family_model
    model = copy.deepcopy(original).requires_grad_(True)
    model(processor.collate(samples)).loss_sum.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == idle_parameters(model)


def test_the_primary_part_is_what_stands_between_pixels_and_image_tokens(family_model):
    """All of tower and projector, nothing of the decoder."""
    model, _, _ = family_model
    named, owners = dict(model.named_parameters()), part_of_parameters(model)
    primary = {name for name, part in owners.items() if part == "primary"}
    tower = {id(parameter) for parameter in model.family.vision_tower(model.vlm).parameters()}
    decoder = {id(parameter) for parameter in model.family.language_model(model.vlm).parameters()}
    assert tower <= {id(named[name]) for name in primary}
    assert {name for name in primary if id(named[name]) not in tower} <= {"vlm.model.image_newline"}
    assert decoder
    assert not decoder & {id(named[name]) for name in primary}


def test_old_rows_stay_and_new_rows_move_in_stage_1(model, processor, sample):
    base = model.vlm.get_input_embeddings().weight
    before, new_before = base.detach().clone(), model.new_rows.weight.detach().clone()
    used = processor.token_ids.new.index(processor.tokenizer.convert_tokens_to_ids("<objects>"))
    train(model, processor, [sample(84, 56, 3, ANSWER)], "stage1")
    assert torch.equal(base, before)
    assert model.vlm.lm_head.weight is base
    assert (model.new_rows.weight[used] != new_before[used]).all()


def test_stage_1_learns_one_answer(model, processor, sample):
    samples = [sample(84, 56, 3, ANSWER)]
    with torch.no_grad():
        first = model(processor.collate(samples)).loss_sum
    train(model, processor, samples, "stage1", steps=15)
    with torch.no_grad():
        assert model(processor.collate(samples)).loss_sum < 0.8 * first


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_groups_hold_every_trainable_parameter_once(model, stage):
    groups = parameter_groups(
        prepared(model, stage), stage, 1e-3, weight_decay=0.1, learning_rates={"new_rows": 5e-3}
    )
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert len(set(grouped)) == len(grouped)
    for group in groups:
        assert group["params"]
        decays = (
            all(parameter.ndim > 1 for parameter in group["params"])
            and "new_rows" not in group["name"]
        )
        assert group["weight_decay"] == (0.1 if decays else 0.0)
        assert group["lr"] == (5e-3 if "new_rows" in group["name"] else 1e-3)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_the_primary_tower_trains_only_where_the_stage_says(model, stage):
    parameter_groups(prepared(model, stage), stage, 1e-3)
    flags = {parameter.requires_grad for parameter in model.vlm.model.visual.parameters()}
    trains = "primary" in STAGES[stage].parts
    assert flags == {trains}
    assert model.train().vlm.model.visual.training == trains


def test_unknown_names_are_refused(model):
    with pytest.raises(SettingError, match=r"stage='stage9'.*stage1"):
        parameter_groups(model, "stage9", 1e-3)
    with pytest.raises(SettingError, match=r"language; stage1 trains"):
        parameter_groups(model, "stage1", 1e-3, learning_rates={"language": 1e-5})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"language": ("vlm.",), "rest": ("auxiliary.", "region_encoder.")},
            "'new_rows.weight' belongs to no part",
        ),
        ({"a": ("",), "b": ("",)}, r"belongs to \['a', 'b'\]"),
        ({"all": ("",), "video": ("video_tower.",)}, "no parameter belongs to video"),
    ],
)
def test_parts_that_do_not_partition_are_refused(model, monkeypatch, parts, message):
    monkeypatch.setattr(stages, "PARTS", parts)
    with pytest.raises(ValueError, match=message):
        part_of_parameters(model)
