"""Steps that make answers to benchmarks."""

from collections.abc import Mapping
from typing import Any

from dataset_builders import DATASETS
from jobs.benchmarks import BENCHMARKS, Benchmark
from jobs.chain.chain import Chain, Evaluated, Step
from jobs.chain.data_steps import build_step, propose_steps, region_shards
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.evaluation.predict import VERSION as PREDICT_VERSION
from pipelines.evaluation.predict import PredictConfig, predict, predict_inputs
from pipelines.fingerprints import fingerprint


def evaluation_steps(chain: Chain, name: str) -> None:
    """Add every run of the recipe on one benchmark, and the detector's proposals on it."""
    benchmark = BENCHMARKS[name]
    spec = DATASETS[benchmark.dataset]
    truth = build_step(chain, spec)
    found = list(propose_steps(chain, spec).values())
    if spec.tasks[0] != "referring" and len(found) == 1:
        chain.proposed[name] = (found[0], truth)
    if not chain.runs:
        return
    questions = region_shards(chain, spec, evaluation=True)
    for run in chain.runs:
        answers = predict_step(chain, name, benchmark, questions, run)
        chain.evaluated.append(
            Evaluated(benchmark=name, run=run, shards=questions, samples=truth, predictions=answers)
        )


def predict_step(chain: Chain, name: str, benchmark: Benchmark, questions: Step, run: Step) -> Step:
    """Return the step of a run's answers to the questions of a benchmark."""
    config = predict_config(chain, benchmark)
    inputs = predict_inputs(questions.artifact, run.artifact)
    key = fingerprint(kind="predictions", version=PREDICT_VERSION, config=config, inputs=inputs)
    output = Artifact(
        root=chain.runtime.root,
        kind="predictions",
        name=f"{name}/{run.artifact.name}",
        fingerprint=key,
    )

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return predict(config, questions.artifact, run.artifact, output, runtime=runtime)

    return chain.add("evaluate", output, (questions, run), execute)


def predict_config(chain: Chain, benchmark: Benchmark) -> PredictConfig:
    """Return how the recipe's models answer a benchmark."""
    return PredictConfig(
        tasks=benchmark.tasks,
        max_new_tokens=chain.recipe.max_new_tokens or benchmark.max_new_tokens,
        constraint=chain.recipe.constraint,
        score=chain.recipe.score,
        shuffled_regions=chain.recipe.shuffled_regions,
    )
