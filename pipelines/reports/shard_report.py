"""The page of `fo1 inspect`: what a shard artifact holds, where rows went, how examples look."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.artifacts import Artifact
from pipelines.evaluation.score import evaluate_proposals
from pipelines.evaluation.stored_inputs import read_examples
from pipelines.reports.drawing import CROWD, Mark, draw_example, jpeg_uri, region_colour
from pipelines.reports.html_page import Card, Cards, Facts, Line, Plots, Section, Table, render_page
from pipelines.reports.judged_cards import grounded_text
from pipelines.reports.metric_tables import recall_table
from pipelines.reports.plots import histogram
from pipelines.schemas import GROUND_TRUTH, RegionExample
from pipelines.shards.tar_format import tasks_of

REJECTS_PER_REASON = 3
"""Most rejected records shown of each reason."""
SIDE_BINS = np.geomspace(1, 4096, 49)
"""Edges of the histogram of box sizes, in px: four bins an octave."""
_LEGEND = (
    "Numbers are region indices, the same as in the conversation. Dashed boxes come from the "
    "annotation, the others from the detector; grey ones lie in a crowd."
)


def inspect_page(
    shards: Artifact,
    *,
    samples: Artifact | None = None,
    proposals: Sequence[Artifact] = (),
    images_per_task: int = 6,
) -> str:
    """Make the page of one shard artifact.

    Args:
        shards: The finished shards.
        samples: What they were made from, for its ledger and, with `proposals`, for recall.
        proposals: The proposals they were made from, for their ledgers and recall.
        images_per_task: Most examples to draw of each task.

    Returns:
        HTML text.

    Raises:
        FileNotFoundError: An artifact is not finished.
    """
    steps = [artifact for artifact in (samples, *proposals, shards) if artifact is not None]
    survey = _survey(shards, images_per_task)
    sections = [
        Section(
            title="Rows",
            intro="What each step took in and gave out: rows in are rows out and rejects together.",
            blocks=[_ledger_table(steps), *_reject_blocks(steps)],
        ),
        Section(title="Contents", blocks=[_contents_table(survey), Plots(plots=_plots(survey))]),
        *_choice_sections(shards.manifest()["ledger"]),
    ]
    if proposals and samples is not None and shards.manifest()["ledger"].get("objects"):
        sections.append(_recall_section(proposals, samples, shards))
    for task, kept in survey.drawn.items():
        cards = [_card(example, image) for example, image in kept]
        title = f"Examples: {task.replace('_', ' ')}"
        sections.append(Section(title=title, intro=_LEGEND, blocks=[Cards(cards=cards)]))
    facts = {f"{step.kind}/{step.name}": step.fingerprint for step in steps}
    sections.append(Section(title="Artifacts", blocks=[Facts(facts=facts), *_configs(steps)]))
    return render_page(f"{shards.name}: {survey.total} examples", sections)


@dataclass(kw_only=True)
class _Survey:
    """What one pass over the shards counts, and the examples it keeps to draw."""

    regions: defaultdict[tuple[str, str], Counter[int]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    """Number of examples by number of regions, for each (dataset, task)."""
    annotated: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of regions that came from the annotation, for each (dataset, task)."""
    sides: np.ndarray = field(default_factory=lambda: np.zeros(len(SIDE_BINS) - 1, dtype=np.int64))
    """int64[48]: number of boxes by bin of `SIDE_BINS`."""
    drawn: dict[str, list[tuple[RegionExample, bytes]]] = field(default_factory=dict)
    """Examples to draw of each task, with the bytes of their images."""

    @property
    def total(self) -> int:
        """Number of examples."""
        return sum(counts.total() for counts in self.regions.values())


def _survey(shards: Artifact, images_per_task: int) -> _Survey:
    """Read every example once: count all, keep a few."""
    survey = _Survey()
    for task in tasks_of(shards):
        kept: list[tuple[bytes, RegionExample, bytes]] = []
        for example, image in read_examples(shards, [task]):
            group = (example.dataset, example.task)
            survey.regions[group][len(example.boxes)] += 1
            survey.annotated[group] += sum(source == GROUND_TRUTH for source in example.box_sources)
            width, height = (example.boxes[:, 2:] - example.boxes[:, :2]).T
            survey.sides += np.histogram(np.sqrt(width * height), bins=SIDE_BINS)[0]
            # The smallest hashes: an even choice that is the same every time and holds few images
            # in memory at once.
            kept.append((hashlib.sha256(example.sample_id.encode()).digest(), example, image))
            kept = sorted(kept, key=lambda item: item[0])[:images_per_task]
        survey.drawn[task] = [(example, image) for _, example, image in kept]
    return survey


def _contents_table(survey: _Survey) -> Table:
    rows = []
    for group, counts in sorted(survey.regions.items()):
        boxes = sum(number * examples for number, examples in counts.items())
        share = f"{100 * survey.annotated[group] / boxes:.1f}" if boxes else "-"
        mean = f"{boxes / counts.total():.1f}"
        rows.append([*group, str(counts.total()), mean, str(min(counts)), str(max(counts)), share])
    header = [
        "dataset",
        "task",
        "examples",
        "regions, mean",
        "min",
        "max",
        "injected from annotation, %",
    ]
    return Table(header=header, rows=rows)


def _plots(survey: _Survey) -> list[tuple[str, str]]:
    regions: Counter[int] = sum(survey.regions.values(), Counter())
    if not regions:
        return []
    edges = np.arange(max(regions) + 2) - 0.5
    per_example = histogram(
        [regions[n] for n in range(max(regions) + 1)], edges, x="regions", y="examples"
    )
    sides = histogram(
        survey.sides, SIDE_BINS, x="square root of the area, px", y="boxes", logarithmic=True
    )
    return [("Regions per example", per_example), ("Size of boxes", sides)]


def _choice_sections(ledger: Mapping[str, Any]) -> list[Section]:
    """Return what benchmarks kept out, and how many rejection samples were wanted and made."""
    sections = []
    if excluded := ledger.get("excluded"):
        rows = [[name, str(count)] for name, count in sorted(excluded.items())]
        intro = "Samples whose image belongs to a benchmark, or is known to be the same image."
        table = Table(header=["benchmark", "samples left out"], rows=rows)
        sections.append(Section(title="Left out of training", intro=intro, blocks=[table]))
    if (quota := ledger.get("rejection_quota", {})).get("wanted"):
        styles = ("pure", "mixed", "many")
        row = [str(quota[name]) for name in ("wanted", "made")] + [
            str(quota.get(name, 0)) for name in styles
        ]
        intro = (
            "Questions for what is known to be absent, made of detection samples. Pure ones ask "
            "for absent names alone, mixed ones for present names too, the last kind for up to "
            "eighty at once."
        )
        table = Table(header=["wanted", "made", "pure", "mixed", "many names"], rows=[row])
        sections.append(Section(title="Rejection quota", intro=intro, blocks=[table]))
    return sections


def _recall_section(proposals: Sequence[Artifact], samples: Artifact, shards: Artifact) -> Section:
    """Return the recall of each detector, and the share of objects that a proposal stands for."""
    metrics = {}
    for artifact in proposals:
        if found := evaluate_proposals(artifact, samples):
            metrics[artifact.name] = found
    ledger = shards.manifest()["ledger"]
    share = f"{100 * ledger['matched'] / ledger['objects']:.1f} %"
    matched = f"{ledger['matched']} of {ledger['objects']}"
    return Section(
        title="Recall of the proposals",
        intro="Share of the annotated boxes that the detector covers, whatever their names, in "
        "percent, by the number of best boxes of an image. AR: mean over IoU 0.50 to 0.95; R50 and "
        "R75: at IoU 0.50 and 0.75. Oracle AP is what a model that names every box perfectly would "
        "reach.",
        blocks=[
            *([recall_table(metrics)] if metrics else []),
            Table(
                header=["objects that got a proposal (one each)", "share"], rows=[[matched, share]]
            ),
        ],
    )


def _ledger_table(steps: Sequence[Artifact]) -> Table:
    """Lay out what each step counted: a row for every level of its ledger that has rows."""
    rows = []
    for step in steps:
        for path, ledger in _balances(step.manifest()["ledger"]):
            numbers = [ledger["rows_in"], ledger["rows_out"], ledger["rejects"]]
            balanced = numbers[0] == numbers[1] + numbers[2]
            rows.append(
                [step.kind, path or "rows", *map(str, numbers), "yes" if balanced else "NO"]
            )
    return Table(header=["step", "counted", "in", "out", "rejects", "adds up"], rows=rows)


def _balances(ledger: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every level of a ledger that has rows in and out, with its path."""
    if "rows_in" in ledger:
        yield path, ledger
    for name, value in ledger.items():
        if isinstance(value, Mapping) and name != "rejects_by_reason":
            yield from _balances(value, f"{path} {name}".strip())


def _reject_blocks(steps: Sequence[Artifact]) -> list[Table]:
    """Return the table of rejects by step and reason; none when nothing was rejected."""
    rows = []
    for step in steps:
        examples: defaultdict[str, list[str]] = defaultdict(list)
        counts: Counter[str] = Counter()
        for reject in _rejects(step):
            counts[reject["reason"]] += 1
            if len(examples[reject["reason"]]) < REJECTS_PER_REASON:
                examples[reject["reason"]].append(f"{reject['record_id']}: {reject['detail']}")
        rows += [
            [step.kind, reason, str(counts[reason]), "\n".join(examples[reason])]
            for reason in sorted(counts)
        ]
    return [Table(header=["step", "reason", "rejects", "for example"], rows=rows)] if rows else []


def _rejects(step: Artifact) -> Iterator[dict[str, Any]]:
    """Yield record_id, reason and detail of every rejected record of a step."""
    # Of proposals a rejected image is no reject in a file of its own, but a row with its reason.
    if step.kind == "proposals":
        for bucket in range(step.manifest()["buckets"]):
            columns = ["image_id", "status", "error"]
            for row in step.read_table(f"part-{bucket:05d}.parquet", columns=columns).to_pylist():
                if row["status"] != "ok":
                    yield {
                        "record_id": row["image_id"],
                        "reason": row["status"],
                        "detail": row["error"] or "",
                    }
        return
    for name in sorted(step.manifest()["files"]):
        if name.startswith("rejects-"):
            yield from step.read_table(name).to_pylist()


def _configs(steps: Sequence[Artifact]) -> list[Facts]:
    """Return the settings of each step, folded away."""
    blocks = []
    for step in steps:
        config = {name: str(value) for name, value in step.manifest()["config"].items()}
        blocks.append(Facts(facts=config, summary=f"Settings of {step.kind}/{step.name}"))
    return blocks


def _card(example: RegionExample, image: bytes) -> Card:
    """Draw an example with all its regions, beside its conversation."""
    marks = [
        Mark(
            box=box.tolist(),
            tag=str(index),
            colour=CROWD
            if example.ignore is not None and example.ignore[index]
            else region_colour(index),
            dashed=example.box_sources[index] == GROUND_TRUTH,
        )
        for index, box in enumerate(example.boxes)
    ]
    names = {"user": "asked", "assistant": "answer"}
    lines = [Line(who=names.get(m["role"], m["role"]), text=m["content"]) for m in example.messages]
    # Shards for evaluation end with the question; what they expect stands in the targets.
    if example.targets and example.messages and example.messages[-1]["role"] == "user":
        truth = grounded_text((t["text"], t["regions"], len(t["boxes"])) for t in example.targets)
        lines.append(Line(who="truth", text=truth))
    return Card(
        image=jpeg_uri(draw_example(example, image, marks)),
        title=example.sample_id,
        lines=lines,
        badge=example.dataset,
    )
