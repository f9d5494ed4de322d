"""From a recipe to its chain of artifacts.

Fingerprints follow from configs and inputs alone, so the whole chain is known before anything runs:
it is what `fo1 plan` prints and what the other verbs walk along.
"""

from dataset_builders import DATASETS
from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain, Step
from jobs.chain.checks import check_drawn_world, check_names
from jobs.chain.data_steps import box_shards, region_shards
from jobs.chain.evaluation_steps import evaluation_steps
from jobs.chain.training_steps import training_step
from jobs.checkpoints.find import checkpoint_step, find_checkpoint
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Recipe
from pipelines.cluster import RuntimeConfig


def recipe_chain(recipe: Recipe, runtime: RuntimeConfig) -> Chain:
    """Return every step of a recipe.

    Raises:
        SettingError: For an unknown dataset, task or benchmark, or a missing file.
    """
    chain = Chain(recipe=recipe, runtime=runtime)
    check_names(recipe)
    check_drawn_world(_datasets(recipe), chain.folders)
    _add_detector_run(chain)
    for name in recipe.datasets:
        chain.train_shards[name] = region_shards(chain, DATASETS[name], evaluation=False)
    previous: Step | None = None
    for training in recipe.trainings:
        for name in datasets_of(training.mix):
            if name not in chain.train_shards:
                chain.train_shards[name] = region_shards(chain, DATASETS[name], evaluation=False)
        held_out = {
            source: region_shards(
                chain, DATASETS[source.split("/")[0]], evaluation=False, held_out=True
            )
            for source in training.validation
        }
        if training.start is not None:
            found = find_checkpoint(training.start, runtime, "start")
            previous = checkpoint_step(chain, found)
            chain.runs.append(previous)  # asked too: the first row of the table
        previous = training_step(chain, training, chain.train_shards, held_out, previous)
        chain.runs.append(previous)
    for name in recipe.benchmarks:
        evaluation_steps(chain, name)
    return chain


def _add_detector_run(chain: Chain) -> None:
    """Add the run of the detector, and what it is made from, where the recipe trains one."""
    training = chain.recipe.detector_training
    if training is None:
        return
    boxes = {name: box_shards(chain, DATASETS[name]) for name in datasets_of(training.mix)}
    held_out = {
        source: box_shards(chain, DATASETS[source.split("/")[0]], held_out=True)
        for source in training.validation
    }
    chain.detector_run = training_step(chain, training, boxes, held_out, None)


def _datasets(recipe: Recipe) -> list[str]:
    """Names of all datasets that a recipe reads, each once."""
    names = list(recipe.datasets)
    for training in (recipe.detector_training, *recipe.trainings):
        if training is not None:
            names += datasets_of(training.mix)
            names += (source.split("/")[0] for source in training.validation)
            names += (BENCHMARKS[name].dataset for name in training.validation_benchmarks)
    names += (BENCHMARKS[name].dataset for name in recipe.benchmarks)
    return list(dict.fromkeys(names))
