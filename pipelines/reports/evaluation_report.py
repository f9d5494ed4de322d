"""The page of evaluated runs: figures beside controls and the paper, curves, detectors, judged pictures.

Everything comes in as plain values, so that the same page can be made from any store of metrics.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Answer, Case, as_boxes
from pipelines.evaluation.metrics.counting import count_said_strictly
from pipelines.evaluation.metrics.matching import greedy_pairs
from pipelines.evaluation.metrics.regions import GROUNDED_TASKS, NAMING_TASKS, count_by_phrase
from pipelines.evaluation.score import grounded_text
from pipelines.reports.drawing import (
    CROWD,
    MISSED,
    OFFERED,
    RIGHT,
    WRONG,
    Mark,
    draw_example,
    picture_uri,
    region_colour,
)
from pipelines.reports.html_page import (
    Card,
    Cards,
    Facts,
    Line,
    Plots,
    Section,
    Table,
    render_page,
    text_table,
)
from pipelines.reports.plots import curves, neighbours
from pipelines.schemas import RegionExample

COLUMNS: Mapping[str, str] = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "exact_match": "exact",
    "rejection_accuracy": "rejection",
    "absent_false_positives": "absent named",
    "count_accuracy": "count",
    "count_accuracy_strict": "count, strict",
    "count_regions_accuracy": "count by regions",
    "name_accuracy": "naming",
    "valid_answers": "readable",
}
"""Figures shown in tables, in order, with their heading; all are shares, shown in percent."""
SLICE = ("ap", "f1", "exact_match", "rejection_accuracy", "count_accuracy", "name_accuracy")
"""Figures of a benchmark that are drawn over the steps of a run."""
MOST_SOURCES = 8
"""Sources whose losses are drawn in one plot: as many as there are colours."""
TRAINING = (
    "What each run logged. Of many steps, a point is the mean over neighbouring ones; the loss of "
    "a source is over its own examples."
)
LEGEND = (
    "Boxes: green chosen rightly, red chosen wrongly, dashed orange true but not chosen, dashed grey don't "
    "care, thin white offered and not chosen."
)

_RECALLS = {
    "ar": "AR",
    "r50": "R50",
    "r75": "R75",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
_POINTED_AT = re.compile(r"<region(\d+)>(?!<regionfeat>)")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one run on one benchmark."""

    benchmark: str
    """Name of the benchmark; results of one benchmark share a table."""
    run: str
    """What was evaluated: "stage 2", "stage 2, regions shuffled", "paper"."""
    metrics: Mapping[str, float]
    """Figures by name, shares in 0..1."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """How one run came about."""

    run: str
    """Name of the run."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Settings, flat."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """What it was made from."""
    loss: Sequence[tuple[float, float]] = ()
    """(step, loss)."""
    loss_by_source: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """(step, loss) of each source of the mix, the one with the largest weight first."""
    learning_rates: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """(step, rate) of each parameter group."""
    gradient_norm: Sequence[tuple[float, float]] = ()
    """(step, norm before clipping)."""
    speed: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """(step, value) of each figure of `pipelines.training.throughput`."""
    validation: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """(step, value) of each figure of the held-out examples."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A rendered report."""

    html: str
    """The page, self-contained."""
    text: str
    """The tables of figures, for a terminal."""


def make_report(
    title: str,
    results: Sequence[Result],
    *,
    runs: Sequence[RunFacts] = (),
    detectors: Mapping[str, Mapping[str, float]] | None = None,
    pictures: Mapping[str, Sequence[Card]] | None = None,
    intro: str = "",
) -> Report:
    """Make the report of some evaluated runs.

    detectors: figures of `evaluate_proposals` by detector. pictures: heading -> cards (`judged_cards`).
    Raises ValueError with neither results nor detectors.
    """
    if not results and not detectors:
        raise ValueError("results: nothing was evaluated, so there is nothing to report")
    tables = {
        name: _figures_table(results, name) for name in dict.fromkeys(r.benchmark for r in results)
    }
    sections = [
        Section(title=name, intro="Shares in percent.", blocks=[table])
        for name, table in tables.items()
    ]
    if trained := [Plots(plots=plots) for run in runs if (plots := _training_plots(run))]:
        sections.append(Section(title="Training", intro=TRAINING, blocks=trained))
    sections += _validation_sections(runs)
    recalls = recall_table(detectors or {})
    if detectors:
        sections.append(
            Section(
                title="Proposals",
                intro="Class-agnostic recall of the detectors on the evaluated pictures; oracle AP is what a "
                "model that names every box perfectly would reach.",
                blocks=[recalls],
            )
        )
    for heading, cards in (pictures or {}).items():
        sections.append(
            Section(title=heading, intro=LEGEND, blocks=[Cards(cards=cards)] if cards else [])
        )
    if runs:
        sections.append(Section(title="Settings", blocks=_settings(runs)))
    texts = [f"{name}\n{text_table(table.header, table.rows)}" for name, table in tables.items()]
    if detectors:
        texts.append(f"proposals\n{text_table(recalls.header, recalls.rows)}")
    return Report(html=render_page(title, sections, intro=intro), text="\n\n".join(texts))


def _training_plots(run: RunFacts) -> list[tuple[str, str]]:
    """Captions and plots of what a run logged; of many sources those with the largest weights."""
    first = list(run.loss_by_source.items())[:MOST_SOURCES]
    shown = {name: neighbours(points, most=40) for name, points in first}
    some = (
        f", {len(shown)} largest of {len(run.loss_by_source)}"
        if len(shown) < len(run.loss_by_source)
        else ""
    )
    waits = [(step, 100 * share) for step, share in run.speed.get("data_wait_share", ())]
    wanted: list[tuple[str, Mapping[str, Sequence[tuple[float, float]]], str]] = [
        ("loss", {"loss": run.loss}, "loss"),
        (f"loss by source{some}", shown, "loss"),
        ("learning rate", _joined(run.learning_rates), "learning rate"),
        ("gradient norm", {"norm": run.gradient_norm}, "norm before clipping"),
        ("tokens per second", {"tokens": run.speed.get("tokens_per_second", ())}, "tokens/s"),
        ("waiting for data", {"wait": waits}, "percent of the time"),
    ]
    plots = []
    for caption, series, y in wanted:
        filled = {name: neighbours(points) for name, points in series.items() if points}
        if filled:
            plots.append((f"{run.run}: {caption}", curves(filled, x="step", y=y)))
    return plots


def _joined(
    rates: Mapping[str, Sequence[tuple[float, float]]],
) -> dict[str, Sequence[tuple[float, float]]]:
    """Parameter groups of one and the same rate as one line, with and without weight decay under one name."""
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in rates.items():
        names.setdefault(tuple(points), []).append(name.removesuffix("_no_decay"))
    return {", ".join(dict.fromkeys(own)): points for points, own in names.items()}


def _validation_sections(runs: Sequence[RunFacts]) -> list[Section]:
    """Curves of the held-out figures of each run: recalls at one budget, the main figures of a benchmark, and
    the others, a plot each."""
    plots = []
    for run in runs:
        budgets = sorted(
            {name.rpartition("@")[2] for name in run.validation if "@" in name}, key=int
        )
        for budget in budgets:
            series = {n: points for n, points in run.validation.items() if n.endswith(f"@{budget}")}
            plots.append((f"{run.run}, best {budget} boxes", curves(series, x="step", y="recall")))
        plots += [
            (f"{run.run}, {name}", curves({name: points}, x="step", y=name))
            for name, points in run.validation.items()
            if "@" not in name and "." not in name
        ]
        for benchmark in sorted({name.split(".")[0] for name in run.validation if "." in name}):
            figures = {COLUMNS[n]: run.validation.get(f"{benchmark}.{n}") for n in SLICE}
            series = {name: points for name, points in figures.items() if points}
            plots.append(
                (f"{run.run}, a slice of {benchmark}", curves(series, x="step", y="share"))
            )
    intro = (
        "Figures of candidates during training, of the averaged weights where there are any: of held-out "
        "examples, and of a few questions of benchmarks."
    )
    return [Section(title="Held out", intro=intro, blocks=[Plots(plots=plots)])] if plots else []


def _figures_table(results: Sequence[Result], benchmark: str) -> Table:
    rows = [result for result in results if result.benchmark == benchmark]
    shown = [name for name in COLUMNS if any(name in result.metrics for result in rows)]
    cells = [
        [
            result.run,
            *(percent(result.metrics.get(name)) for name in shown),
            _whole(result.metrics.get("samples")),
        ]
        for result in rows
    ]
    return Table(header=["run", *(COLUMNS[name] for name in shown), "samples"], rows=cells)


def recall_table(detectors: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay out the figures of `evaluate_proposals`, a row for each detector and budget."""
    rows = []
    for detector, figures in detectors.items():
        budgets = sorted({int(name.rpartition("@")[2]) for name in figures if "@" in name})
        for budget in budgets:
            names = [f"{name}@{budget}" for name in _RECALLS]
            oracle = figures.get("oracle_ap") if budget == budgets[-1] else None
            shown = [*(figures.get(name) for name in names), oracle]
            rows.append([detector, str(budget), *(percent(value) for value in shown)])
    return Table(header=["detector", "boxes", *_RECALLS.values(), "oracle AP"], rows=rows)


def _settings(runs: Sequence[RunFacts]) -> list[Facts]:
    blocks = []
    for run in runs:
        facts = {**{f"made from {k}": v for k, v in run.fingerprints.items()}, **run.config}
        blocks.append(Facts(facts=facts, summary=run.run))
    return blocks


def percent(value: float | None) -> str:
    """Return a share as percent with one decimal, a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def is_right(case: Case) -> bool:
    """Tell whether an answer is entirely right: every true box found and no other, the true number or words.

    Unlike `exact_match` it accepts any region that covers the object, as a reader of the picture would.
    """
    if case.task in GROUNDED_TASKS:
        all_found = all(
            paired == chosen == true for paired, chosen, true in count_by_phrase(case).values()
        )
        number = count_said_strictly(case.text) == count_said_strictly(case.reference)
        return case.problem is None and all_found and (number or case.task != "counting")
    return case.text.strip().lower() == case.reference.strip().lower()


def judged_cards(
    cases: Sequence[Case],
    examples: Iterable[tuple[RegionExample, bytes]],
    *,
    right: int = 6,
    wrong: int = 6,
) -> dict[str, list[Card]]:
    """Choose cases to look at and draw them: right, wrong, and questions for absent things only.

    examples: all of them, with the bytes of their pictures; read once, and only what is drawn is kept. The
    choice is by a hash of the sample's id, so it is the same every time and favours nothing.
    """
    asks_absent = {
        case.sample_id for case in cases if case.task in NAMING_TASKS and not case.targets
    }
    drawn = sorted(cases, key=lambda case: hashlib.sha256(case.sample_id.encode()).digest())
    others = [case for case in drawn if case.sample_id not in asks_absent]
    groups = {
        "Right answers": [case for case in others if is_right(case)][:right],
        "Wrong answers": [case for case in others if not is_right(case)][:wrong],
        "Asked for absent things only": [case for case in drawn if case.sample_id in asks_absent][
            :wrong
        ],
    }
    wanted = {case.sample_id for group in groups.values() for case in group}
    seen = {
        example.sample_id: (example, image)
        for example, image in examples
        if example.sample_id in wanted
    }
    return {
        heading: [judged_card(case, *seen[case.sample_id]) for case in group]
        for heading, group in groups.items()
    }


def judged_card(case: Case, example: RegionExample, image: bytes) -> Card:
    """Draw one question with its answer, its truth and the verdict."""
    question = next((m["content"] for m in reversed(example.messages) if m["role"] == "user"), "")
    lines = [Line(who="asked", text=question), Line(who="answer", text=case.text or "(nothing)")]
    right = is_right(case)
    if not right or case.task not in GROUNDED_TASKS:
        lines.append(Line(who="truth", text=_truth_text(case)))
    if case.problem:
        lines.append(Line(who="problem", text=case.problem))
    picture = draw_example(example, image, judged_marks(case, example))
    return Card(
        picture=picture_uri(picture),
        title=case.sample_id,
        lines=lines,
        badge="right" if right else "wrong",
        tone="good" if right else "bad",
    )


def judged_marks(case: Case, example: RegionExample) -> list[Mark]:
    """Return what to draw: regions asked about, chosen boxes by verdict, missed objects, don't-care areas."""
    chosen = {region for answer in case.answers for region in answer.regions}
    pointed_at = {
        int(region) for m in example.messages for region in _POINTED_AT.findall(m["content"])
    }
    marks = []
    for index, box in enumerate(example.boxes):
        if index in pointed_at:
            marks.append(Mark(box=box.tolist(), tag=str(index), colour=region_colour(index)))
        elif index not in chosen:
            marks.append(Mark(box=box.tolist(), colour=OFFERED, faint=True))
    none = Answer(text="", regions=(), boxes=as_boxes([]), scores=np.zeros(0, np.float32))
    said = {answer.text: answer for answer in case.answers}
    true = {target.text: target.boxes for target in case.targets}
    for phrase in dict.fromkeys([*said, *true]):
        answer, boxes = said.get(phrase, none), true.get(phrase, none.boxes)
        pairs = greedy_pairs(iou_matrix(answer.boxes, boxes), 0.5)
        hits, found = {row for row, _ in pairs}, {column for _, column in pairs}
        for row, region in enumerate(answer.regions):
            colour, tag = RIGHT if row in hits else WRONG, f"{region} {phrase}".strip()
            marks.append(Mark(box=answer.boxes[row].tolist(), tag=tag, colour=colour))
        for column, box in enumerate(boxes):
            if column not in found:
                marks.append(Mark(box=box.tolist(), tag=phrase, colour=MISSED, dashed=True))
    for label, boxes in case.ignored.items():
        marks += [
            Mark(box=box.tolist(), tag=f"{label}, crowd", colour=CROWD, dashed=True)
            for box in boxes
        ]
    return marks


def _truth_text(case: Case) -> str:
    phrases = grounded_text((t.text, t.regions, len(t.boxes)) for t in case.targets)
    return f"{phrases}\n{case.reference.strip()}".strip()
