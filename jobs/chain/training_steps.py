"""Steps that make runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset_builders import DATASETS
from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain, Step
from jobs.chain.data_steps import build_step, region_shards
from jobs.chain.evaluation_steps import predict_config
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Training
from pipelines.cluster import RuntimeConfig
from pipelines.proposals.detector_inputs import content_digest, find_weights
from pipelines.training.job import Questions, TrainJob, Weights


def training_step(
    chain: Chain,
    training: Training,
    sources: Mapping[str, Step],
    held_out: Mapping[str, Step],
    previous: Step | None,
) -> Step:
    """Return the step of one training run.

    Args:
        chain: Chain that the step is added to.
        training: Learner, mix and config.
        sources: Steps of the shards, by dataset; more than the mix names is fine.
        held_out: Steps of held-out shards, by ``dataset/task``.
        previous: Run that a learner which ``continues`` goes on from.
    """
    used = {name: sources[name] for name in datasets_of(training.mix)}
    parent = previous if training.learner.continues else None
    asked, asked_steps = _questions(chain, training.validation_benchmarks)
    paths = {part: find_weights(named, part) for part, named in training.weights.items()}
    job = TrainJob(
        name=training.name,
        learner=training.learner,
        config=training.config,
        mix=training.mix,
        shards={name: step.artifact for name, step in used.items()},
        weights={
            part: Weights(path=path, digest=content_digest(Path(path), chain.digest_cache))
            for part, path in paths.items()
        },
        validation={source: step.artifact for source, step in held_out.items()},
        benchmarks=asked,
        parent=parent.artifact if parent else None,
        tracking_uri=chain.runtime.tracking_uri,
    )
    output = job.artifact(chain.runtime.root)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        from pipelines.training.driver import train

        return train(job, output, runtime)

    needed = [*used.values(), *held_out.values(), *asked_steps, *([parent] if parent else [])]
    return chain.add("train", output, needed, execute)


def _questions(chain: Chain, names: Iterable[str]) -> tuple[dict[str, Questions], list[Step]]:
    """Return what candidates are asked, by benchmark, and the steps that make it."""
    asked, steps = {}, list[Step]()
    for name in names:
        benchmark = BENCHMARKS[name]
        spec = DATASETS[benchmark.dataset]
        questions, truth = region_shards(chain, spec, evaluation=True), build_step(chain, spec)
        asked[name] = Questions(
            shards=questions.artifact,
            samples=truth.artifact,
            config=predict_config(chain, benchmark),
            coco=benchmark.coco_ap,
        )
        steps += [questions, truth]
    return asked, steps
