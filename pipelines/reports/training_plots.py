"""Curves of training runs: what they logged, and the metrics of their held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.reports.html_page import Plots, Section
from pipelines.reports.metric_tables import COLUMNS
from pipelines.reports.plots import curves, neighbours

SLICE = ("ap", "f1", "exact_match", "rejection_accuracy", "count_accuracy", "name_accuracy")
"""Metrics of a benchmark that are drawn over the steps of a run."""
MOST_SOURCES = 8
"""Most sources whose losses are drawn in one plot: as many as there are colours."""
_TRAINING = (
    "What each run logged. Of many steps, a point is the mean over neighbouring ones; the loss of "
    "a source is over its own examples."
)
_HELD_OUT = (
    "Metrics of candidates during training, of the averaged weights where there are any: of "
    "held-out examples, and of a few questions of benchmarks."
)
Points = Sequence[tuple[float, float]]
"""(step, value) of one curve, by step."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How one run came about: its settings, its inputs and what it logged."""

    run: str
    """Name of the run."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Settings, flat."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what it was made from, by kind and name."""
    loss: Points = ()
    """Loss by step."""
    loss_by_source: Mapping[str, Points] = field(default_factory=dict)
    """Loss of each source of the mix, the one with the largest weight first."""
    learning_rates: Mapping[str, Points] = field(default_factory=dict)
    """Learning rate of each parameter group."""
    gradient_norm: Points = ()
    """Norm of the gradient before clipping."""
    speed: Mapping[str, Points] = field(default_factory=dict)
    """Metrics of `pipelines.training.throughput` by name."""
    validation: Mapping[str, Points] = field(default_factory=dict)
    """Metrics of the held-out examples by name, shares in 0..1.

    ``NAME@K`` is a recall of the best K boxes, ``BENCHMARK.NAME`` a metric of a benchmark's slice.
    """


def training_sections(runs: Sequence[RunFacts]) -> list[Section]:
    """Return the sections "Training" and "Held out"; each only where there is something to draw."""
    logged = [Plots(plots=plots) for run in runs if (plots := logged_plots(run))]
    held_out = [plot for run in runs for plot in held_out_plots(run)]
    sections = []
    if logged:
        sections.append(Section(title="Training", intro=_TRAINING, blocks=logged))
    if held_out:
        blocks = [Plots(plots=held_out)]
        sections.append(Section(title="Held out", intro=_HELD_OUT, blocks=blocks))
    return sections


def logged_plots(run: RunFacts) -> list[tuple[str, str]]:
    """Return caption and plot of what a run logged; of many sources those of largest weight."""
    # They come with the largest weight first; more lines than colours could not be told apart.
    first = list(run.loss_by_source.items())[:MOST_SOURCES]
    shown = {name: neighbours(points, most=40) for name, points in first}
    some = (
        f", {len(shown)} largest of {len(run.loss_by_source)}"
        if len(shown) < len(run.loss_by_source)
        else ""
    )
    waits = [(step, 100 * share) for step, share in run.speed.get("data_wait_share", ())]
    wanted: list[tuple[str, Mapping[str, Points], str]] = [
        ("loss", {"loss": run.loss}, "loss"),
        (f"loss by source{some}", shown, "loss"),
        ("learning rate", groups_by_rate(run.learning_rates), "learning rate"),
        ("gradient norm", {"norm": run.gradient_norm}, "norm before clipping"),
        ("tokens per second", {"tokens": run.speed.get("tokens_per_second", ())}, "tokens/s"),
        ("waiting for data", {"wait": waits}, "share of the time, %"),
    ]
    plots = []
    for caption, series, y in wanted:
        filled = {name: neighbours(points) for name, points in series.items() if points}
        if filled:
            plots.append((f"{run.run}: {caption}", curves(filled, x="step", y=y)))
    return plots


def groups_by_rate(rates: Mapping[str, Points]) -> dict[str, Points]:
    """Join parameter groups of one and the same rate into one line.

    A group with weight decay and its twin without go under one name.
    """
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in rates.items():
        names.setdefault(tuple(points), []).append(name.removesuffix("_no_decay"))
    return {", ".join(dict.fromkeys(own)): points for points, own in names.items()}


def held_out_plots(run: RunFacts) -> list[tuple[str, str]]:
    """Return caption and plot of a run's held-out metrics.

    Recalls at one budget share a plot, and so do the main metrics of a benchmark (`SLICE`); each
    other metric has its own.
    """
    plots = []
    budgets = sorted({name.rpartition("@")[2] for name in run.validation if "@" in name}, key=int)
    for budget in budgets:
        series = {
            name.partition("@")[0].replace("_", " ").upper(): _in_percent(points)
            for name, points in run.validation.items()
            if name.endswith(f"@{budget}")
        }
        plot = curves(series, x="step", y="recall, %")
        plots.append((f"{run.run}, recall of the best {budget} boxes", plot))
    plots += [
        (f"{run.run}, {name.replace('_', ' ')}", curves({name: points}, x="step", y=name))
        for name, points in run.validation.items()
        if "@" not in name and "." not in name
    ]
    for benchmark in sorted({name.split(".")[0] for name in run.validation if "." in name}):
        series = {
            COLUMNS[name][0]: _in_percent(points)
            for name in SLICE
            if (points := run.validation.get(f"{benchmark}.{name}"))
        }
        if series:
            plot = curves(series, x="step", y="share, %")
            plots.append((f"{run.run}, a slice of {benchmark}", plot))
    return plots


def _in_percent(points: Points) -> Points:
    return [(step, 100 * share) for step, share in points]
