"""Pages and tables from artifacts that are done: reports, inspection of shards."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataset_builders import DATASETS
from fo1_model.detectors.configs import name_of
from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain, Evaluated, Step
from jobs.command.suggestions import unknown
from pipelines.errors import SettingError
from pipelines.storage import join, write_file
from pipelines.train_config import VALIDATION
from pipelines.training.candidates import read_metrics
from pipelines.training.job import SPEED_FILE


def report(chain: Chain) -> None:
    """Print the metrics of every run on every benchmark, log them to MLflow, write one page."""
    from pipelines.evaluation.score import evaluate, evaluate_proposals
    from pipelines.evaluation.stored_inputs import read_examples
    from pipelines.reports.evaluation_report import Result, make_report
    from pipelines.reports.html_page import Card
    from pipelines.reports.judged_cards import judged_cards

    results: list[Result] = []
    cards: dict[str, list[Card]] = {}
    for item in chain.evaluated:
        if item.predictions.artifact.status() != "done":
            continue
        benchmark = BENCHMARKS[item.benchmark]
        metrics, cases = evaluate(
            item.predictions.artifact,
            item.shards.artifact,
            item.samples.artifact,
            coco=benchmark.coco_ap,
        )
        results.append(
            Result(benchmark=item.benchmark, run=item.run.artifact.name, metrics=metrics)
        )
        log_answers(chain, item, metrics)
        if item.run is chain.runs[-1] and not benchmark.coco_ap:
            examples = read_examples(item.shards.artifact, benchmark.tasks)
            cards = judged_cards(cases, examples)
            cards |= {
                f"{item.benchmark}: {heading.lower()}": found for heading, found in cards.items()
            }
    results += [
        Result(benchmark=name, run="paper", metrics=BENCHMARKS[name].paper)
        for name in dict.fromkeys(result.benchmark for result in results)
        if BENCHMARKS[name].paper
    ]
    detectors = {
        f"{name_of(chain.recipe.detector)} on {name}": evaluate_proposals(
            found.artifact, truth.artifact
        )
        for name, (found, truth) in chain.proposed.items()
        if found.artifact.status() == truth.artifact.status() == "done"
        and not BENCHMARKS[name].coco_ap
    }
    runs = [
        step
        for step in (chain.detector_run, *chain.runs)
        if step and step.artifact.status() == "done"
    ]
    page = make_report(
        f"VLM-FO1: {chain.recipe.name}",
        results,
        runs=[facts_of(step) for step in runs],
        detectors=detectors,
        cards=cards,
    )
    path = write_page(chain, f"{chain.recipe.name}.html", page.html)
    print(f"\n{page.text}\n\nreport: {path}")


def inspect_pages(chain: Chain, dataset: str | None) -> None:
    """Write one page for each shard artifact of the chain that is done, or of one dataset.

    Raises:
        SettingError: When there is nothing to show, with the command that makes it.
    """
    from pipelines.reports.shard_report import inspect_page

    if dataset is not None and dataset not in DATASETS:
        raise SettingError(
            f"dataset={dataset}: {unknown('dataset', dataset, DATASETS, lists='datasets')}"
        )
    shown = [
        step
        for step in chain.steps.values()
        if step.verb == "shard" and step.artifact.status() == "done"
        if dataset is None or step.artifact.name.split("/")[0] == dataset
    ]
    if not shown:
        which = f"of {dataset} " if dataset else ""
        raise SettingError(
            f"inspect: no shards {which}are done; make them with: fo1 shard {chain.recipe.name} ..."
        )
    for step in shown:
        inputs = [needed.artifact for needed in step.inputs]
        samples = next((artifact for artifact in inputs if artifact.kind == "samples"), None)
        found = [artifact for artifact in inputs if artifact.kind == "proposals"]
        html = inspect_page(step.artifact, samples=samples, proposals=found)
        name = f"inspect-{step.artifact.name.replace('/', '-')}.html"
        print(f"inspect: {write_page(chain, name, html)}")


def write_page(chain: Chain, name: str, html: str) -> str:
    """Write a page below ``<root>/pages`` and return where it is."""
    return write_file(join(chain.runtime.root, "pages", name), html.encode())


def facts_of(step: Step, *, name: str | None = None) -> Any:
    """Return how a finished run came about, for a page.

    Args:
        step: Step of the run.
        name: What it is called on the page; None: its own name.
    """
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
            [{"step": step, **metrics} for step, metrics in read_metrics(artifact).items()],
            VALIDATION,
        ),
    )


def series_of(
    records: Sequence[Mapping[str, Any]], prefix: str
) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of the metrics whose names begin so, by the rest of the name.

    Values that are None are left out: a metric that is not finite is stored so.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefix) and name != "step" and value is not None:
                found.setdefault(name.removeprefix(prefix), []).append((record["step"], value))
    return found


def log_answers(chain: Chain, item: Evaluated, metrics: dict[str, float]) -> None:
    """Log the metrics of a benchmark to the MLflow run of the model that answered."""
    from pipelines.training.mlflow_tracking import log_metrics

    named = {f"{item.benchmark}.{name}": value for name, value in metrics.items()}
    log_metrics(item.run.artifact, named, uri=chain.runtime.tracking_uri)
