"""What a chain is made of: steps with inputs, fingerprint and the call that makes each artifact."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_builders import DATASETS, DataFolders
from jobs.benchmark_exclusion import Exclusion
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Recipe
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.storage import is_uri, join

VERBS = ("build", "propose", "shard", "train", "evaluate")
"""Verbs that make artifacts, in the order of their steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One artifact of a chain and how it is made."""

    verb: str
    """Verb that makes it, one of VERBS."""
    artifact: Artifact
    """Artifact that the step makes."""
    inputs: tuple["Step", ...]
    """Steps whose artifacts it reads."""
    execute: Callable[[RuntimeConfig], Mapping[str, Any]]
    """Makes the artifact and returns its manifest."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One run answering one benchmark."""

    benchmark: str
    """Name in BENCHMARKS."""
    run: Step
    """Step of the model that answers."""
    shards: Step
    """Step of the questions."""
    samples: Step
    """Step of the truth."""
    predictions: Step
    """Step of the answers."""


@dataclass(kw_only=True)
class Chain:
    """Every step of a recipe, inputs before what reads them."""

    recipe: Recipe
    """Recipe that the steps follow from."""
    runtime: RuntimeConfig
    """Where the artifacts lie."""
    steps: dict[str, Step] = field(default_factory=dict)
    """Steps by path of the artifact, in an order in which they can run."""
    train_shards: dict[str, Step] = field(default_factory=dict)
    """Shards of the datasets in the mixes, by dataset."""
    runs: list[Step] = field(default_factory=list)
    """Training runs of the recipe, in order, without the detector's."""
    detector_run: Step | None = None
    """Run of the detector, where it is trained."""
    evaluated: list[Evaluated] = field(default_factory=list)
    """What every run is asked."""
    looked_at: dict[tuple[str, str], Step] = field(default_factory=dict)
    """(Image source, dataset whose boxes the detector knows) -> proposals: listing takes time."""
    proposed: dict[str, tuple[Step, Step]] = field(default_factory=dict)
    """Benchmark -> (proposals, samples): how good the detector is on it. One image source alone."""

    def add(
        self, verb: str, artifact: Artifact, inputs: Iterable[Step], execute: Callable[..., Any]
    ) -> Step:
        """Return the step of an artifact, the one already there if two parts of a recipe share it.

        Args:
            verb: One of VERBS.
            artifact: What the step makes.
            inputs: Steps whose artifacts it reads.
            execute: Makes it, given a `RuntimeConfig`, and returns its manifest.
        """
        step = Step(verb=verb, artifact=artifact, inputs=tuple(inputs), execute=execute)
        return self.steps.setdefault(artifact.path, step)

    def closure(self, wanted: Iterable[Step]) -> list[Step]:
        """Return the wanted steps and all that they need, in an order in which they can run."""
        paths: set[str] = set()
        waiting = list(wanted)
        while waiting:
            step = waiting.pop()
            if step.artifact.path not in paths:
                paths.add(step.artifact.path)
                waiting += step.inputs
        return [step for path, step in self.steps.items() if path in paths]

    @cached_property
    def folders(self) -> DataFolders:
        """Where the datasets lie on this machine."""
        return DataFolders(self.runtime.data_folder, dict(self.recipe.roots))

    @cached_property
    def exclusion(self) -> Exclusion:
        """Benchmarks whose images the training shards leave out."""
        return Exclusion(self.recipe.exclude, self.folders, self.digest_cache)

    @property
    def notes(self) -> list[str]:
        """What a person should know: benchmarks whose images could not be left out."""
        names = {*self.recipe.datasets}
        for training in (self.recipe.detector_training, *self.recipe.trainings):
            names |= set(datasets_of(training.mix)) if training else set()
        return self.exclusion.notes_for(DATASETS[name] for name in sorted(names))

    @property
    def digest_cache(self) -> str:
        """Local folder that remembers digests of annotation files."""
        root = self.runtime.root
        # A bucket is no place for it: a digest is looked up before every step.
        if is_uri(root):
            return str(Path.home() / ".cache" / "fo1" / "digests")
        return join(root, ".digests")
