"""The ablations of the paper's tables 8 and 9, one recipe argument each."""

import pytest

from fo1_model.stages import STAGES
from jobs.recipes import stage1, stage2


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
    built = stage1(**arguments).trainings[0].learner.build(None, seed=0).module
    parts = {part for name in built.state_dict() for part in name.split(".")[:2]}
    assert parts & {"auxiliary", "pyramid"} == modules
    assert "connector" in parts


def test_the_primary_tower_trains_when_the_recipe_says_so():
    frozen, trained = (stage2(primary_vit=word).trainings[1].learner for word in ("frozen", "trained"))
    assert "primary" not in STAGES[frozen.stage].parts
    assert "primary" in STAGES[trained.stage].parts


def test_ablations_reach_both_stages():
    first, second = stage2(region_features="primary").trainings
    assert first.learner.model.region.features == "primary"
    assert second.learner.continues
