"""What is looked up before any file is read: names that a recipe gives, and the drawn world."""

import shlex
from collections.abc import Iterable

from dataset_builders import DATASETS, DataFolders
from jobs.benchmarks import BENCHMARKS
from jobs.command.suggestions import unknown
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Recipe
from pipelines.errors import SettingError

DRAWN = "drawn"
"""Folder of the drawn world, below the data root."""


def check_names(recipe: Recipe) -> None:
    """Look up every dataset, task and benchmark that a recipe names.

    Raises:
        SettingError: For one that there is not, or a detector that is to answer questions.
    """
    trainings = [training for training in (recipe.detector_training, *recipe.trainings) if training]
    mixes = [training.mix for training in trainings] + [
        dict.fromkeys(t.validation, 1.0) for t in trainings
    ]
    for name in dict.fromkeys((*recipe.datasets, *(n for mix in mixes for n in datasets_of(mix)))):
        if name not in DATASETS:
            raise SettingError(f"mix: {unknown('dataset', name, DATASETS, lists='datasets')}")
    for mix in mixes:
        for source in mix:
            dataset, task = source.split("/")
            if task not in DATASETS[dataset].tasks:
                known = ", ".join(DATASETS[dataset].tasks)
                raise SettingError(f"mix: {dataset} has no task {task!r}; it has {known}")
    asked = (name for training in trainings for name in training.validation_benchmarks)
    for name in (*recipe.benchmarks, *asked):
        if name not in BENCHMARKS:
            raise SettingError(unknown("benchmark", name, BENCHMARKS, lists="benchmarks"))
    if recipe.detector_training and recipe.detector_training.validation_benchmarks:
        raise SettingError(
            "validation_benchmarks: a detector answers no questions; use held-out sources"
        )


def check_drawn_world(datasets: Iterable[str], folders: DataFolders) -> None:
    """Ask for the drawn world where a recipe needs it and it was not drawn yet.

    It is the one dataset that nobody can download, and what the recipes use by default: a newcomer
    has to be told the command, not the name of a file.

    Args:
        datasets: Names of the datasets that the recipe uses.
        folders: Where they lie.

    Raises:
        SettingError: With the command that draws it.
    """
    for name in datasets:
        spec = DATASETS[name]
        needed = [file for file in spec.files if file.partition("/")[0] == DRAWN]
        missing = next((file for file in needed if not folders.matches(file)), None)
        if missing is not None:
            place = shlex.quote(str(folders.root(DRAWN)))
            raise SettingError(
                f"dataset {name}: {missing} not found: there is no {folders.path(missing)}. "
                "The drawn world is drawn on the spot, with: "
                f"python -m dataset_builders.drawn_world {place} --train 2400 --val 200"
            )
