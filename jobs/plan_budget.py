"""What the mixes of a recipe amount to, by finished artifacts or else by published counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dataset_builders import DATASETS
from jobs.chain.chain import Chain
from jobs.recipes.recipe import Recipe, Training
from pipelines.artifacts import Artifact
from pipelines.loading.mix_budget import (
    Amount,
    amounts,
    budget_table,
    nominal_tokens,
    tokens_of,
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one training takes from each source of its mix."""

    training: Training
    """Training that it is about."""
    amounts: list[Amount]
    """Amount by source, in the order of the mix."""
    nominal: dict[str, bool]
    """Whether what is known of a source is published counts rather than what was built."""

    def text(self) -> str:
        """Return the budget as a table with a title."""
        config = self.training.config
        title = f"{self.training.name}: {config.steps} steps of {config.batch_size} examples"
        table = budget_table(self.amounts, nominal=self.nominal)
        return f"{title} (~: from published counts or samples)\n{table}"

    def facts(self) -> dict[str, Any]:
        """Return the budget as plain values, see `jobs.command.plan`."""
        return {
            "training": self.training.name,
            "steps": self.training.config.steps,
            "batch_size": self.training.config.batch_size,
            "sources": [
                {
                    "source": item.source,
                    "share": item.share,
                    "available": item.available or None,
                    "drawn": item.drawn,
                    "epochs": item.epochs,
                    "tokens_each": item.tokens_each,
                    "tokens": item.tokens,
                    "nominal": self.nominal[item.source],
                }
                for item in self.amounts
            ],
        }


def budget_text(budgets: Iterable[Budget]) -> str:
    """Return the tables of budgets, one below the other."""
    return "\n\n".join(budget.text() for budget in budgets)


def built_budgets(chain: Chain) -> list[Budget]:
    """Return a budget for each training of a recipe's chain, the detector's left out."""
    trainings = chain.recipe.trainings
    return [_built(chain, training) for training in trainings if training.config.steps]


def published_budgets(recipe: Recipe) -> list[Budget]:
    """Return the same from published counts alone, for datasets that are not on this machine."""
    return [
        _budget(
            training,
            {source: _published(recipe, *source.split("/")) for source in training.mix},
            {},
        )
        for training in recipe.trainings
        if training.config.steps
    ]


def _built(chain: Chain, training: Training) -> Budget:
    """Return the budget of a training, by what its artifacts hold where they are done."""
    available, tokens = {}, {}
    for source in training.mix:
        dataset, task = source.split("/")
        shards = chain.train_shards[dataset].artifact
        if shards.status() != "done":
            available[source] = _expected(chain, dataset, task)
        else:
            ledger = shards.manifest()["ledger"]
            available[source] = ledger["examples"].get(task, 0)
            tokens[source] = tokens_of(ledger, task)
    return _budget(training, available, tokens)


def _budget(training: Training, available: dict[str, int], tokens: dict[str, float]) -> Budget:
    """Return a budget; tokens of an example are nominal for sources whose shards are not done."""
    each = {
        source: tokens.get(source, nominal_tokens(source.split("/")[1])) for source in training.mix
    }
    found = amounts(training.mix, training.config, available, each)
    nominal = {source: source not in tokens for source in training.mix}
    return Budget(training=training, amounts=found, nominal=nominal)


def _expected(chain: Chain, dataset: str, task: str) -> int:
    """Return the examples to come: of the samples that were built, else of the official files."""
    samples: list[Artifact] = [
        step.artifact
        for step in chain.train_shards[dataset].inputs
        if step.artifact.kind == "samples"
    ]
    if samples and samples[0].status() == "done":
        tasks = samples[0].manifest()["ledger"]["tasks"]
        return _with_made(chain.recipe, task, lambda name: tasks.get(name, 0)) // chain.recipe.turns
    return _published(chain.recipe, dataset, task)


def _published(recipe: Recipe, dataset: str, task: str) -> int:
    """Return the samples of a task in the official files, spread evenly over its tasks."""
    spec = DATASETS[dataset]
    own = [name for name in spec.tasks if name != "rejection" or "detection" not in spec.tasks]
    return _with_made(recipe, task, lambda name: spec.num_samples // len(own) if name in own else 0)


def _with_made(recipe: Recipe, task: str, count: Callable[[str], int]) -> int:
    """Return the samples of a task, rejection with what shards make of detection."""
    share = recipe.rejection.share
    wanted = round(share / (1 - share) * count("detection")) if task == "rejection" else 0
    return max(count(task), wanted)
