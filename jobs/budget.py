"""What the mixes of a recipe amount to: from finished artifacts where there are any, else from published
counts."""

from dataset_builders import DATASETS
from jobs.recipes import Training
from jobs.steps import Chain
from pipelines.artifacts import Artifact
from pipelines.budget import NOMINAL_TOKENS, amounts, budget_table, tokens_of


def budgets(made: Chain) -> str:
    """One table for each training of a recipe's chain, the detector's left out."""
    return "\n\n".join(_table(made, training) for training in made.recipe.trainings)


def _table(made: Chain, training: Training) -> str:
    available, tokens, nominal = {}, {}, {}
    for source in training.mix:
        dataset, task = source.split("/")
        shards = made.train_shards[dataset].artifact
        nominal[source] = shards.status() != "done"
        if nominal[source]:
            available[source], tokens[source] = _expected(made, dataset, task), float(NOMINAL_TOKENS)
        else:
            ledger = shards.manifest()["ledger"]
            available[source], tokens[source] = ledger["examples"].get(task, 0), tokens_of(ledger, task)
    found = amounts(training.mix, training.config, available, tokens)
    title = f"{training.name}: {training.config.steps} steps of {training.config.batch_size} examples"
    return f"{title} (~: from published counts or samples)\n{budget_table(found, nominal=nominal)}"


def _expected(made: Chain, dataset: str, task: str) -> int:
    """Examples to come: of the samples that were built, else of the official files, spread over the tasks."""
    samples: list[Artifact] = [
        step.artifact for step in made.train_shards[dataset].inputs if step.artifact.kind == "samples"
    ]
    if samples and samples[0].status() == "done":
        return int(samples[0].manifest()["ledger"]["tasks"].get(task, 0)) // made.recipe.turns
    spec = DATASETS[dataset]
    return spec.num_samples // len(spec.tasks)
