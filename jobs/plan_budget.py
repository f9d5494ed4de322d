"""What the mixes of a recipe amount to: from finished artifacts where there are any, else from published
counts."""

from collections.abc import Callable

from dataset_builders import DATASETS
from jobs.chain import Chain
from jobs.recipes.recipe import Recipe, Training
from pipelines.artifacts import Artifact
from pipelines.loading.mix_budget import amounts, budget_table, nominal_tokens, tokens_of


def budgets(made: Chain) -> str:
    """One table for each training of a recipe's chain, the detector's left out."""
    return "\n\n".join(
        _built(made, training) for training in made.recipe.trainings if training.config.steps
    )


def published_budgets(recipe: Recipe) -> str:
    """The same from published counts alone, for datasets that are not on this machine."""
    tables = []
    for training in recipe.trainings:
        if not training.config.steps:
            continue
        available = {source: _published(recipe, *source.split("/")) for source in training.mix}
        tables.append(_table(training, available, {}))
    return "\n\n".join(tables)


def _built(made: Chain, training: Training) -> str:
    """The table of a training, by what its artifacts hold where they are done."""
    available, tokens = {}, {}
    for source in training.mix:
        dataset, task = source.split("/")
        shards = made.train_shards[dataset].artifact
        if shards.status() != "done":
            available[source] = _expected(made, dataset, task)
        else:
            ledger = shards.manifest()["ledger"]
            available[source], tokens[source] = (
                ledger["examples"].get(task, 0),
                tokens_of(ledger, task),
            )
    return _table(training, available, tokens)


def _table(training: Training, available: dict[str, int], tokens: dict[str, float]) -> str:
    """tokens: of an example of each source whose shards are done; the others are nominal."""
    each = {
        source: tokens.get(source, nominal_tokens(source.split("/")[1])) for source in training.mix
    }
    found = amounts(training.mix, training.config, available, each)
    title = (
        f"{training.name}: {training.config.steps} steps of {training.config.batch_size} examples"
    )
    table = budget_table(found, nominal={source: source not in tokens for source in training.mix})
    return f"{title} (~: from published counts or samples)\n{table}"


def _expected(made: Chain, dataset: str, task: str) -> int:
    """Examples to come: of the samples that were built, else of the official files."""
    samples: list[Artifact] = [
        step.artifact
        for step in made.train_shards[dataset].inputs
        if step.artifact.kind == "samples"
    ]
    if samples and samples[0].status() == "done":
        tasks = samples[0].manifest()["ledger"]["tasks"]
        return _with_made(made.recipe, task, lambda name: tasks.get(name, 0)) // made.recipe.turns
    return _published(made.recipe, dataset, task)


def _published(recipe: Recipe, dataset: str, task: str) -> int:
    """Samples of a task that the official files give, if they are spread evenly over the builder's tasks."""
    spec = DATASETS[dataset]
    own = [name for name in spec.tasks if name != "rejection" or "detection" not in spec.tasks]
    return _with_made(recipe, task, lambda name: spec.num_samples // len(own) if name in own else 0)


def _with_made(recipe: Recipe, task: str, count: Callable[[str], int]) -> int:
    """Samples of a task, those of rejection with what the shard step makes of detection samples."""
    share = recipe.rejection.share
    wanted = round(share / (1 - share) * count("detection")) if task == "rejection" else 0
    return max(count(task), wanted)
