"""Pages and tables from artifacts that are done: the report of a recipe, inspection of its shards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_builders import DATASETS
from fo1_model.detectors.configs import name_of
from jobs.benchmarks import BENCHMARKS
from jobs.chain import Chain, Evaluated, Step
from pipelines.artifacts import filesystem_of
from pipelines.train_config import VALIDATION
from pipelines.training.candidates import read_figures
from pipelines.training.job import SPEED_FILE


def report(made: Chain) -> None:
    """Figures of every run on every benchmark: printed, logged to MLflow, and shown on one page."""
    from pipelines.evaluation.score import evaluate, evaluate_proposals
    from pipelines.evaluation.stored_inputs import read_examples
    from pipelines.reports.evaluation_report import Result, make_report
    from pipelines.reports.html_page import Card
    from pipelines.reports.judged_cards import judged_cards

    results: list[Result] = []
    pictures: dict[str, list[Card]] = {}
    for item in made.evaluated:
        if item.predictions.artifact.status() != "done":
            continue
        benchmark = BENCHMARKS[item.benchmark]
        figures, cases = evaluate(
            item.predictions.artifact,
            item.shards.artifact,
            item.samples.artifact,
            coco=benchmark.coco_ap,
        )
        results.append(
            Result(benchmark=item.benchmark, run=item.run.artifact.name, metrics=figures)
        )
        log_answers(made, item, figures)
        if item.run is made.runs[-1] and not benchmark.coco_ap:
            examples = read_examples(item.shards.artifact, benchmark.tasks)
            cards = judged_cards(cases, examples)
            pictures |= {
                f"{item.benchmark}: {heading.lower()}": found for heading, found in cards.items()
            }
    results += [
        Result(benchmark=name, run="paper", metrics=BENCHMARKS[name].paper)
        for name in dict.fromkeys(result.benchmark for result in results)
        if BENCHMARKS[name].paper
    ]
    detectors = {
        f"{name_of(made.recipe.detector)} on {name}": evaluate_proposals(
            found.artifact, truth.artifact
        )
        for name, (found, truth) in made.proposed.items()
        if found.artifact.status() == truth.artifact.status() == "done"
        and not BENCHMARKS[name].coco_ap
    }
    runs = [
        step
        for step in (made.detector_run, *made.runs)
        if step and step.artifact.status() == "done"
    ]
    page = make_report(
        f"VLM-FO1: {made.recipe.name}",
        results,
        runs=[facts_of(step) for step in runs],
        detectors=detectors,
        cards=pictures,
    )
    path = write_page(made, f"{made.recipe.name}.html", page.html)
    print(f"\n{page.text}\n\nreport: {path}")


def inspect_pages(made: Chain, dataset: str | None) -> None:
    """One page for each shard artifact of the chain that is done, or of one dataset.

    Raises ValueError when there is nothing to show, with the command that makes it.
    """
    from pipelines.reports.shard_report import inspect_page

    if dataset is not None and dataset not in DATASETS:
        raise ValueError(f"dataset={dataset}: unknown; known: {', '.join(DATASETS)}")
    shown = [
        step
        for step in made.steps.values()
        if step.verb == "shard" and step.artifact.status() == "done"
        if dataset is None or step.artifact.name.split("/")[0] == dataset
    ]
    if not shown:
        which = f"of {dataset} " if dataset else ""
        raise ValueError(
            f"inspect: no shards {which}are done; make them with: fo1 shard {made.recipe.name} ..."
        )
    for step in shown:
        inputs = [needed.artifact for needed in step.inputs]
        samples = next((artifact for artifact in inputs if artifact.kind == "samples"), None)
        found = [artifact for artifact in inputs if artifact.kind == "proposals"]
        html = inspect_page(step.artifact, samples=samples, proposals=found)
        name = f"inspect-{step.artifact.name.replace('/', '-')}.html"
        print(f"inspect: {write_page(made, name, html)}")


def write_page(made: Chain, name: str, html: str) -> str:
    """Write a page below ``<root>/pages`` and return where it is."""
    return write_file(f"{made.runtime.root}/pages/{name}", html.encode())


def write_file(uri: str, data: bytes) -> str:
    """Write a file to a path or URI, making its folder."""
    filesystem, path = filesystem_of(uri)
    filesystem.create_dir(str(Path(path).parent))
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)
    return uri


def facts_of(step: Step, *, name: str | None = None) -> Any:
    """How a finished run came about, for a page. name: what it is called there, the run's own if None."""
    from pipelines.reports.training_plots import RunFacts
    from pipelines.training.mlflow_tracking import flatten

    artifact = step.artifact
    manifest = artifact.manifest()
    history: Sequence[dict[str, float]] = json.loads(artifact.read_bytes("history.json"))
    speed: Sequence[dict[str, float]] = json.loads(artifact.read_bytes(SPEED_FILE))
    by_source, mix = series_of(history, "loss/"), manifest["config"]["mix"]
    return RunFacts(
        run=name or step.artifact.name,
        config=flatten(manifest["config"]),
        fingerprints={**manifest["inputs"], "run": artifact.fingerprint},
        loss=series_of(history, "loss").get("", ()),
        loss_by_source={s: by_source[s] for s in sorted(by_source, key=lambda s: (-mix[s], s))},
        learning_rates=series_of(history, "learning_rate/"),
        gradient_norm=series_of(history, "gradient_norm").get("", ()),
        speed=series_of(speed, ""),
        validation=series_of(
            [{"step": step, **figures} for step, figures in read_figures(artifact).items()],
            VALIDATION,
        ),
    )


def series_of(
    records: Sequence[Mapping[str, Any]], prefix: str
) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of the figures whose names begin so, by the rest of the name.

    Without values that are None, as a figure that is not finite is stored.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefix) and name != "step" and value is not None:
                found.setdefault(name.removeprefix(prefix), []).append((record["step"], value))
    return found


def log_answers(made: Chain, item: Evaluated, figures: dict[str, float]) -> None:
    """Log the figures of a benchmark to the MLflow run of the model that answered."""
    from pipelines.training.mlflow_tracking import log_figures

    named = {f"{item.benchmark}.{name}": value for name, value in figures.items()}
    log_figures(item.run.artifact, named, uri=made.runtime.tracking_uri)
