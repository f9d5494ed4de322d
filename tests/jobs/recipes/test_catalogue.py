"""Recipes: the settings of each size, and the paper's ablations as arguments."""

import pytest

from fo1_model.detectors.configs import name_of
from fo1_model.sizes import SIZES
from fo1_model.stages import STAGES
from fo1_model.vlms import build_family
from jobs.named_mixes import MIXES
from jobs.recipes.opn import opn
from jobs.recipes.settings import SETTINGS
from jobs.recipes.stages import stage1, stage2
from pipelines.errors import SettingError
from tests.fo1_model.small_published import write_florence, write_vlm


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        ({}, {"auxiliary", "pyramid"}),
        ({"region_features": "auxiliary"}, {"auxiliary"}),
        ({"region_features": "primary"}, {"pyramid"}),
        ({"pyramid": False}, {"auxiliary"}),
        ({"region_features": "primary", "pyramid": False}, set()),
    ],
)
def test_an_ablation_builds_what_it_reads_and_nothing_else(arguments, modules):
    built = stage1(**arguments).trainings[-1].learner.build(None, seed=0).module
    parts = {part for name in built.state_dict() for part in name.split(".")[:2]}
    assert parts & {"auxiliary", "pyramid"} == modules
    assert "connector" in parts


def test_the_primary_tower_trains_when_the_recipe_says_so():
    frozen, trained = (
        stage2(primary_vit=word).trainings[-1].learner for word in ("frozen", "trained")
    )
    assert "primary" not in STAGES[frozen.stage].parts
    assert "primary" in STAGES[trained.stage].parts


def test_ablations_reach_both_stages():
    _, first, second = stage2(region_features="primary").trainings
    assert first.learner.model.region.features == "primary"
    assert second.learner.continues


def test_the_paper_s_setting():
    """What the paper states: rates, mixes, 100 proposals, a fifth of rejections (3.1, 4.1)."""
    recipe = stage2(size="paper")
    first, second = recipe.trainings
    assert (first.config.learning_rate, second.config.learning_rate) == (1e-3, 1e-5)
    assert (first.mix, second.mix) == (MIXES["stage1"], MIXES["stage2"])
    assert STAGES[first.learner.stage].parts == ("region_encoder", "new_rows")
    assert "primary" not in STAGES[second.learner.stage].parts
    assert first.weights["vlm"] == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert not first.learner.base
    assert second.learner.continues
    assert (name_of(recipe.detector), recipe.detector.selection.max_boxes) == ("opn", 100)
    assert recipe.rejection.share == 0.2
    assert recipe.benchmarks == ("coco_val",)


@pytest.mark.parametrize("size", SETTINGS)
def test_every_size_is_one_of_the_model_and_takes_every_argument(size):
    changed = stage2(
        size=size,
        steps=7,
        stage1_steps=5,
        batch_size=3,
        max_tokens=512,
        zero_stage=1,
        turns=2,
        seed=4,
    )
    first, second = changed.trainings[-2:]
    assert (first.config.steps, second.config.steps, changed.turns) == (5, 7, 2)
    usual = (SETTINGS[size].stage1.config, SETTINGS[size].stage2.config)
    for config, settings in zip((first.config, second.config), usual, strict=True):
        assert (config.batch_size, config.max_tokens_per_micro_batch) == (3, 512)
        warmup = min(settings.warmup_steps, config.steps // 6)
        assert (config.zero_stage, config.seed, config.warmup_steps) == (1, 4, warmup)
    assert first.learner.model.vlm == SIZES[{"paper": "qwen2_5_vl_3b"}.get(size, size)]().vlm
    assert stage1(size=size).trainings[-1].config == SETTINGS[size].stage1.config


def test_weights_of_one_s_own_bring_their_sizes(tmp_path):
    write_vlm(tmp_path / "vlm")
    write_florence(tmp_path / "florence")
    vlm, florence = str(tmp_path / "vlm"), str(tmp_path / "florence")
    training = stage1(size="tiny", vlm=vlm, auxiliary=florence).trainings[-1]
    assert training.weights == {"vlm": vlm, "auxiliary": florence}
    assert not training.learner.base
    found, usual = training.learner.model, SIZES["debug"]()
    assert build_family(found.vlm).config.to_dict() == build_family(usual.vlm).config.to_dict()
    assert found.auxiliary.kwargs == usual.auxiliary.kwargs
    assert found.region == SIZES["tiny"]().region, "what the folders do not say is the size's"
    assert (found.image_gap, usual.image_gap) == ("", "\n"), "the base's own form, and the size's"
    alone = stage1(size="tiny", vlm=vlm).trainings[-1]
    assert alone.learner.base == "tiny", "the auxiliary tower stays the base's"
    assert alone.learner.model.auxiliary == SIZES["tiny"]().auxiliary
    with pytest.raises(SettingError, match="name the VLM that it stands beside"):
        stage1(size="tiny", auxiliary=florence)


def test_a_start_takes_the_place_of_stage_one():
    recipe = stage2(size="debug", start="somewhere", steps=3)
    (training,) = recipe.trainings
    assert (training.start, training.config.steps) == ("somewhere", 3)
    assert training.learner.continues
    with pytest.raises(SettingError, match="leave out pyramid, stage1_steps, or start="):
        stage2(start="somewhere", pyramid=False, stage1_steps=2)


def test_the_start_is_the_model_of_stage_one_before_any_step():
    start, first = stage1(size="tiny").trainings
    assert (start.name, start.config.steps, start.mix) == ("start", 0, {})
    assert start.learner == first.learner
    assert (
        stage1(size="tiny", mix="drawn_stage1:detection", learning_rate=1.0).trainings[0] == start
    )


def test_opn_at_its_real_size():
    recipe = opn(size="large")
    assert recipe.detector_training.config.ema_decay == 0.9999
    assert recipe.detector_training.validation == ("coco_val/detection",)
    assert recipe.detector.selection.max_boxes == 100
