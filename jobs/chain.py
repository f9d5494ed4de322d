"""From a recipe to its chain of artifacts: every step with inputs, fingerprint and the call that makes it.

Fingerprints follow from configs and inputs alone, so the whole chain is known before anything runs: `chain`
is what `fo1 plan` prints and what the other verbs walk along.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_builders import DATASETS, DataFolders, DatasetSpec, ImageSource
from fo1_model.detectors.configs import Leaf, leaves, name_of
from jobs.benchmark_exclusion import Exclusion
from jobs.benchmarks import BENCHMARKS, Benchmark
from jobs.find_artifacts import find_run
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Recipe, Training
from pipelines import samples
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.evaluation.predict import VERSION as PREDICT_VERSION
from pipelines.evaluation.predict import PredictConfig, predict, predict_inputs
from pipelines.fingerprints import fingerprint
from pipelines.proposals import generate
from pipelines.proposals.detector_inputs import content_digest, find_weights
from pipelines.shards import write
from pipelines.training.job import Questions, TrainJob, Weights

VERBS = ("build", "propose", "shard", "train", "evaluate")
"""Verbs that make artifacts, in the order of their steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One artifact of a chain and how it is made."""

    verb: str
    """One of VERBS."""
    artifact: Artifact
    """What it makes."""
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
    """The model."""
    shards: Step
    """The questions."""
    samples: Step
    """The truth."""
    predictions: Step
    """The answers."""


@dataclass(kw_only=True)
class Chain:
    """Every step of a recipe, inputs before what reads them."""

    recipe: Recipe
    """What is made."""
    runtime: RuntimeConfig
    """Where."""
    steps: dict[str, Step] = field(default_factory=dict)
    """By path of the artifact, in an order in which they can run."""
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
    """Benchmark -> (proposals, samples): how good the detector is on it. Of one image source alone."""

    def add(
        self, verb: str, artifact: Artifact, inputs: Iterable[Step], execute: Callable[..., Any]
    ) -> Step:
        """The step of an artifact, the one already there if two parts of the recipe share it."""
        step = Step(verb=verb, artifact=artifact, inputs=tuple(inputs), execute=execute)
        return self.steps.setdefault(artifact.path, step)

    def closure(self, wanted: Iterable[Step]) -> list[Step]:
        """Steps that the wanted ones need, themselves included, in an order in which they can run."""
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
        return DataFolders(self.runtime.data, dict(self.recipe.roots))

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
        return (
            f"{root}/.digests"
            if "://" not in root
            else str(Path.home() / ".cache" / "fo1" / "digests")
        )


def chain(recipe: Recipe, runtime: RuntimeConfig) -> Chain:
    """Every step of a recipe. ValueError for an unknown dataset, task or benchmark, or a missing file."""
    made = Chain(recipe=recipe, runtime=runtime)
    check_names(recipe)
    if recipe.detector_training is not None:
        boxes = {
            name: _box_shards(made, DATASETS[name])
            for name in datasets_of(recipe.detector_training.mix)
        }
        held_out = {
            source: _box_shards(made, DATASETS[source.split("/")[0]], held_out=True)
            for source in recipe.detector_training.validation
        }
        made.detector_run = _training(made, recipe.detector_training, boxes, held_out, None)
    previous: Step | None = None
    for name in recipe.datasets:
        made.train_shards[name] = region_shards(made, DATASETS[name], evaluation=False)
    for training in recipe.trainings:
        for name in datasets_of(training.mix):
            if name not in made.train_shards:
                made.train_shards[name] = region_shards(made, DATASETS[name], evaluation=False)
        held_out = {
            source: region_shards(
                made, DATASETS[source.split("/")[0]], evaluation=False, held_out=True
            )
            for source in training.validation
        }
        previous = _training(made, training, made.train_shards, held_out, previous)
        made.runs.append(previous)
    for name in recipe.benchmarks:
        evaluation_steps(made, name)
    return made


def build_step(made: Chain, spec: DatasetSpec) -> Step:
    """Samples of a dataset."""
    config = samples.SamplesConfig(dataset=spec.name, options=made.recipe.options)
    inputs = samples.samples_inputs(config, made.folders, made.digest_cache)
    key = fingerprint(kind="samples", version=samples.VERSION, config=config, inputs=inputs)
    output = Artifact(root=made.runtime.root, kind="samples", name=spec.name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return samples.build_samples(
            config, output, folders=made.folders, runtime=runtime, inputs=inputs
        )

    return made.add("build", output, (), execute)


def propose_steps(made: Chain, spec: DatasetSpec) -> dict[str, Step]:
    """Proposals of the recipe's detector for the pictures of a dataset, by image source."""
    return {source.name: _propose_step(made, source, spec) for source in spec.sources(made.folders)}


def _propose_step(made: Chain, source: ImageSource, spec: DatasetSpec) -> Step:
    config = generate.ProposalsConfig(image_source=source.name, detector=made.recipe.detector)
    knows = any(leaf.needs == "objects" for leaf in leaves(config.detector))
    truth = build_step(made, _truth_of(made.recipe, source, spec)) if knows else None
    key = (source.name, truth.artifact.name if truth else "")
    if key not in made.looked_at:
        made.looked_at[key] = cache_step(made, config, truth)
    return made.looked_at[key]


def cache_step(made: Chain, config: generate.ProposalsConfig, truth: Step | None = None) -> Step:
    """Proposals for the pictures of one image source. truth: samples whose objects the detector may see."""
    needed: list[Step] = [truth] if truth else []
    supplies = []
    for leaf, named in zip(leaves(config.detector), made.recipe.detector_sources, strict=True):
        supply = _supply(made, leaf, named, truth)
        if isinstance(supply, Step):
            needed.append(supply)
        supplies.append(supply.artifact if isinstance(supply, Step) else supply)
    inputs = generate.proposals_inputs(config, made.folders, made.digest_cache, supplies)
    key = fingerprint(kind="proposals", version=generate.VERSION, config=config, inputs=inputs)
    name = f"{config.image_source}/{name_of(config.detector)}"
    output = Artifact(root=made.runtime.root, kind="proposals", name=name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return generate.propose(
            config, output, folders=made.folders, runtime=runtime, inputs=inputs, supplies=supplies
        )

    return made.add("propose", output, dict.fromkeys(needed), execute)


def _supply(made: Chain, leaf: Leaf, named: str | None, truth: Step | None) -> Step | str | None:
    """What a detector needs beside its config: the step that makes it, or a path."""
    if leaf.needs == "objects":
        return truth
    if leaf.needs == "run" and named is None:
        if made.detector_run is None:
            raise ValueError(
                "detector=opn: this recipe trains none; name a run of it: detector=opn:RUN"
            )
        return made.detector_run
    if leaf.needs == "run" and not (Path(str(named)) / "config.json").is_file():
        return existing(find_run(str(named), made.runtime))
    return find_weights(named) if leaf.needs == "weights" and named else named


def existing(run: Artifact) -> Step:
    """A finished run as a step with nothing to do."""
    return Step(verb="train", artifact=run, inputs=(), execute=lambda _: run.manifest())


def _truth_of(recipe: Recipe, source: ImageSource, spec: DatasetSpec) -> DatasetSpec:
    """The dataset whose boxes a ground-truth detector gives: the recipe's first over the same pictures."""
    used = {name for training in recipe.trainings for name in datasets_of(training.mix)} | {
        *recipe.datasets
    }
    used |= {BENCHMARKS[name].dataset for name in recipe.benchmarks} | {spec.name}
    return next(
        s for s in DATASETS.values() if s.name in used and source in (*s.images, *s.optional_images)
    )


def check_names(recipe: Recipe) -> None:
    """ValueError for a dataset, task or benchmark that there is not."""
    trainings = [training for training in (recipe.detector_training, *recipe.trainings) if training]
    mixes = [training.mix for training in trainings] + [
        dict.fromkeys(t.validation, 1.0) for t in trainings
    ]
    for name in {*recipe.datasets, *(name for mix in mixes for name in datasets_of(mix))}:
        if name not in DATASETS:
            raise ValueError(f"mix: unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    for mix in mixes:
        for source in mix:
            dataset, task = source.split("/")
            if task not in DATASETS[dataset].tasks:
                raise ValueError(
                    f"mix: {dataset} has no task {task!r}; it has {', '.join(DATASETS[dataset].tasks)}"
                )
    for name in (
        *recipe.benchmarks,
        *(name for t in trainings for name in t.validation_benchmarks),
    ):
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if recipe.detector_training and recipe.detector_training.validation_benchmarks:
        raise ValueError(
            "validation_benchmarks: a detector answers no questions; use held-out sources"
        )


def _box_shards(made: Chain, spec: DatasetSpec, *, held_out: bool = False) -> Step:
    """Pictures with their annotated boxes: what a detector trains on, or is measured with meanwhile."""
    config = write.ShardsConfig(
        regions="ground_truth",
        rejection=None,
        exclude=() if held_out else made.exclusion.names_for(spec),
        max_side_px=made.recipe.max_side_px,
    )
    return _shards(made, spec, {}, config)


def region_shards(
    made: Chain, spec: DatasetSpec, *, evaluation: bool, held_out: bool = False
) -> Step:
    """Conversations over proposals: for training, for held-out figures meanwhile, for evaluation."""
    config = write.ShardsConfig(
        regions="proposals_scored" if evaluation else "proposals",
        assign=replace(
            made.recipe.assign, match_iou=max(made.recipe.assign.match_iou, spec.match_iou)
        ),
        rejection=made.recipe.rejection,
        turns=1 if evaluation else made.recipe.turns,
        exclude=() if evaluation or held_out else made.exclusion.names_for(spec),
        max_side_px=None if evaluation else made.recipe.max_side_px,
    )
    return _shards(made, spec, propose_steps(made, spec), config)


def _shards(
    made: Chain, spec: DatasetSpec, found: Mapping[str, Step], config: write.ShardsConfig
) -> Step:
    truth = build_step(made, spec)
    proposed = {source: step.artifact for source, step in found.items()}
    digests = made.exclusion.digests(config.exclude)
    inputs = write.shards_inputs(truth.artifact, proposed, digests)
    key = fingerprint(kind="shards", version=write.VERSION, config=config, inputs=inputs)
    name = f"{spec.name}/{config.regions}"
    output = Artifact(root=made.runtime.root, kind="shards", name=name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return write.write_shards(
            config,
            truth.artifact,
            proposed,
            output,
            folders=made.folders,
            runtime=runtime,
            inputs=inputs,
            excluded=made.exclusion.images(config.exclude),
        )

    return made.add("shard", output, [truth, *found.values()], execute)


def _training(
    made: Chain,
    training: Training,
    sources: Mapping[str, Step],
    held_out: Mapping[str, Step],
    previous: Step | None,
) -> Step:
    used = {name: sources[name] for name in datasets_of(training.mix)}
    parent = previous if training.learner.continues else None
    asked, asked_steps = _questions(made, training.validation_benchmarks)
    paths = {part: find_weights(named, part) for part, named in training.weights.items()}
    job = TrainJob(
        name=training.name,
        learner=training.learner,
        config=training.config,
        mix=training.mix,
        shards={name: step.artifact for name, step in used.items()},
        weights={
            part: Weights(path=path, digest=content_digest(Path(path), made.digest_cache))
            for part, path in paths.items()
        },
        validation={source: step.artifact for source, step in held_out.items()},
        benchmarks=asked,
        parent=parent.artifact if parent else None,
        tracking_uri=made.runtime.tracking_uri,
    )
    output = job.artifact(made.runtime.root)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        from pipelines.training.driver import train

        return train(job, output, runtime)

    needed = [*used.values(), *held_out.values(), *asked_steps, *([parent] if parent else [])]
    return made.add("train", output, needed, execute)


def _questions(made: Chain, names: Iterable[str]) -> tuple[dict[str, Questions], list[Step]]:
    """What candidates are asked, by benchmark, and the steps that make it."""
    asked, steps = {}, list[Step]()
    for name in names:
        benchmark = BENCHMARKS[name]
        spec = DATASETS[benchmark.dataset]
        questions, truth = region_shards(made, spec, evaluation=True), build_step(made, spec)
        asked[name] = Questions(
            shards=questions.artifact,
            samples=truth.artifact,
            config=_predict_config(made, benchmark),
            coco=benchmark.coco_ap,
        )
        steps += [questions, truth]
    return asked, steps


def evaluation_steps(made: Chain, name: str) -> None:
    """Every run of the recipe on one benchmark, and the detector's proposals on it."""
    benchmark = BENCHMARKS[name]
    spec = DATASETS[benchmark.dataset]
    truth = build_step(made, spec)
    found = list(propose_steps(made, spec).values())
    if spec.tasks[0] != "referring" and len(found) == 1:
        made.proposed[name] = (found[0], truth)
    if not made.runs:
        return
    questions = region_shards(made, spec, evaluation=True)
    for run in made.runs:
        answers = predict_step(made, name, benchmark, questions, run)
        made.evaluated.append(
            Evaluated(benchmark=name, run=run, shards=questions, samples=truth, predictions=answers)
        )


def predict_step(made: Chain, name: str, benchmark: Benchmark, questions: Step, run: Step) -> Step:
    """Answers of a run to the questions of a benchmark."""
    config = _predict_config(made, benchmark)
    inputs = predict_inputs(questions.artifact, run.artifact)
    key = fingerprint(kind="predictions", version=PREDICT_VERSION, config=config, inputs=inputs)
    output = Artifact(
        root=made.runtime.root,
        kind="predictions",
        name=f"{name}/{run.artifact.name}",
        fingerprint=key,
    )

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return predict(config, questions.artifact, run.artifact, output, runtime=runtime)

    return made.add("evaluate", output, (questions, run), execute)


def _predict_config(made: Chain, benchmark: Benchmark) -> PredictConfig:
    """How the recipe's models answer a benchmark."""
    return PredictConfig(
        tasks=benchmark.tasks,
        max_new_tokens=made.recipe.max_new_tokens or benchmark.max_new_tokens,
        constraint=made.recipe.constraint,
        score=made.recipe.score,
        shuffled_regions=made.recipe.shuffled_regions,
    )
