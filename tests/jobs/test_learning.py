"""Learning is real: both stages on a small drawn world, with controls that must fail.

Smaller than the demo in every way (README, "What the small model shows"): fewer scenes, jittered
annotated boxes instead of OPN's, fewer steps, one process. The seed is fixed, so the figures are
too.
"""

from dataclasses import replace

import pytest

from dataset_builders.drawn_world.write import WorldSettings, write_world
from jobs.chain.recipe_chain import recipe_chain
from jobs.recipes.recipe import Recipe
from jobs.recipes.stages import stage2
from pipelines.cluster import RuntimeConfig
from pipelines.evaluation.score import evaluate

pytestmark = pytest.mark.slow
SMALL = {
    "detector": "ground_truth_jitter",
    "proposals": 10,
    "stage1_steps": 100,
    "steps": 110,
    "validate_every": 0,
}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    write_world(folder / "data" / "drawn", WorldSettings(train=300, val=40, seed=5))
    return RuntimeConfig(root=str(folder / "root"), data=str(folder / "data"), workers=0)


def figures(recipe: Recipe, runtime: RuntimeConfig) -> dict[str, dict[str, float]]:
    """Run name -> figures on held-out scenes."""
    made = recipe_chain(replace(recipe, benchmarks=("drawn_val",), max_new_tokens=48), runtime)
    for step in made.steps.values():
        step.execute(runtime)
    return {
        item.run.artifact.name: evaluate(
            item.predictions.artifact, item.shards.artifact, item.samples.artifact
        )[0]
        for item in made.evaluated
    }


@pytest.fixture(scope="module")
def learned(runtime):
    return figures(stage2(**SMALL), runtime)


def test_both_stages_learn(learned):
    print(learned)
    assert learned["stage1"]["f1"] > 0.65
    assert learned["stage2"]["f1"] > 0.7
    assert learned["stage2"]["rejection_accuracy"] > 0.75
    assert learned["stage2"]["valid_answers"] > 0.9


def test_shuffled_regions_fall_to_chance(learned, runtime):
    """The answer must come from what a region shows: with other boxes nothing is left."""
    control = figures(stage2(**SMALL, shuffled_regions=True), runtime)["stage2"]
    print(control)
    assert control["f1"] < 0.3
    assert control["f1"] < learned["stage1"]["f1"] / 2


def test_without_rejection_samples_the_model_answers_what_is_absent(learned, runtime):
    mixes = {"mix": "drawn_stage2-rejection", "stage1_mix": "drawn_stage1-rejection"}
    control = figures(stage2(**SMALL, **mixes), runtime)["stage2"]
    print(control)
    assert control["rejection_accuracy"] < 0.1
    assert control["f1"] > 0.55, "it still finds what is there"
