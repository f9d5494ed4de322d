"""The page of evaluated runs: metrics beside controls and the paper, curves, detectors, images.

Everything comes in as plain values, so that the same page can be made from any store of metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.errors import SettingError
from pipelines.reports.html_page import (
    Card,
    Cards,
    Facts,
    Section,
    Table,
    render_page,
    text_table,
)
from pipelines.reports.judged_cards import LEGEND
from pipelines.reports.metric_tables import meanings, metrics_table, recall_table
from pipelines.reports.training_plots import RunFacts, training_sections

_PROPOSALS = (
    "Class-agnostic recall of the detectors on the evaluated images, in percent, by the number of "
    "best boxes of an image. AR: mean over IoU 0.50 to 0.95; R50 and R75: at IoU 0.50 and 0.75. "
    "Oracle AP is what a model that names every box perfectly would reach."
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The metrics of one run on one benchmark."""

    benchmark: str
    """Name of the benchmark; results of one benchmark share a table."""
    run: str
    """What was evaluated: "stage 2", "stage 2, regions shuffled", "paper"."""
    metrics: Mapping[str, float]
    """Metrics by name, shares in 0..1."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A rendered report."""

    html: str
    """The page, self-contained."""
    text: str
    """The tables of metrics, for a terminal."""


def make_report(
    title: str,
    results: Sequence[Result],
    *,
    runs: Sequence[RunFacts] = (),
    detectors: Mapping[str, Mapping[str, float]] | None = None,
    cards: Mapping[str, Sequence[Card]] | None = None,
    intro: str = "",
) -> Report:
    """Make the report of some evaluated runs.

    Args:
        title: Heading of the page.
        results: Metrics of each run on each benchmark.
        runs: How the runs came about, for curves and settings.
        detectors: Metrics of `evaluate_proposals` by detector.
        cards: Heading to cards of judged answers (`judged_cards`).
        intro: A sentence below the title.

    Raises:
        SettingError: There are neither results nor detectors.
    """
    if not results and not detectors:
        raise SettingError("results: nothing was evaluated, so there is nothing to report")
    tables = {
        name: metrics_table([(r.run, r.metrics) for r in results if r.benchmark == name])
        for name in dict.fromkeys(r.benchmark for r in results)
    }
    sections = [_metrics_section(name, table) for name, table in tables.items()]
    sections += training_sections(runs)
    recalls = recall_table(detectors or {})
    if detectors:
        sections.append(Section(title="Proposals", intro=_PROPOSALS, blocks=[recalls]))
    for heading, group in (cards or {}).items():
        blocks = [Cards(cards=group)] if group else []
        sections.append(Section(title=heading, intro=LEGEND if group else "", blocks=blocks))
    if runs:
        sections.append(Section(title="Settings", blocks=_settings(runs)))
    texts = [f"{name}\n{text_table(table.header, table.rows)}" for name, table in tables.items()]
    if detectors:
        texts.append(f"proposals\n{text_table(recalls.header, recalls.rows)}")
    return Report(html=render_page(title, sections, intro=intro), text="\n\n".join(texts))


def _metrics_section(benchmark: str, table: Table) -> Section:
    """Return the table of a benchmark with what its columns mean, folded away."""
    blocks: list[Table | Facts] = [table]
    if explained := meanings(table):
        blocks.append(Facts(facts=explained, summary="What the columns mean", fixed_width=False))
    return Section(title=benchmark, intro="Shares in percent.", blocks=blocks)


def _settings(runs: Sequence[RunFacts]) -> list[Facts]:
    """Return inputs and settings of each run, folded away."""
    blocks = []
    for run in runs:
        facts = {**{f"made from {k}": v for k, v in run.fingerprints.items()}, **run.config}
        blocks.append(Facts(facts=facts, summary=run.run))
    return blocks
