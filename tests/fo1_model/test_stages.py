import pytest
import torch

from fo1_model import stages
from fo1_model.stages import STAGES, parameter_groups, part_of_parameters

ANSWER = "<ground>red circle</ground><objects><region0></objects>"


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(model, processor, samples, stage, steps=3):
    """Steps of AdamW with a weight decay that would visibly shrink anything it touched."""
    optimizer = torch.optim.AdamW(parameter_groups(model, stage, 1e-2, weight_decay=0.5))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(processor.collate(samples)).loss_sum.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_what_a_stage_freezes_stays_bit_identical_and_the_rest_moves(model, processor, sample, stage):
    before = snapshot(model)
    owners = part_of_parameters(model)
    train(model, processor, [sample(84, 56, 3, ANSWER), sample(60, 140, 2, "None")], stage)
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same == (owners[name] not in STAGES[stage].parts), name


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
    groups = parameter_groups(model, stage, 1e-3, weight_decay=0.1, learning_rates={"new_rows": 5e-3})
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert len(set(grouped)) == len(grouped)
    for group in groups:
        assert group["params"]
        decays = all(parameter.ndim > 1 for parameter in group["params"]) and "new_rows" not in group["name"]
        assert group["weight_decay"] == (0.1 if decays else 0.0)
        assert group["lr"] == (5e-3 if "new_rows" in group["name"] else 1e-3)


def test_the_primary_tower_never_trains(model):
    for stage in STAGES:
        parameter_groups(model, stage, 1e-3)
        assert not any(parameter.requires_grad for parameter in model.vlm.model.visual.parameters())


def test_unknown_names_are_refused(model):
    with pytest.raises(ValueError, match=r"stage='stage9'.*stage1"):
        parameter_groups(model, "stage9", 1e-3)
    with pytest.raises(ValueError, match=r"language; stage1 trains"):
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
