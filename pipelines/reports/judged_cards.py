"""Judged answers as cards: which ones to look at, the verdict, what is drawn on the images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from fo1_model import grammar
from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Answer, Case, as_boxes
from pipelines.evaluation.metrics.counting import count_said_strictly
from pipelines.evaluation.metrics.matching import greedy_pairs
from pipelines.evaluation.metrics.regions import GROUNDED_TASKS, NAMING_TASKS, count_by_phrase
from pipelines.reports.drawing import (
    CROWD,
    MISSED,
    OFFERED,
    RIGHT,
    WRONG,
    Mark,
    draw_example,
    jpeg_uri,
    region_colour,
)
from pipelines.reports.html_page import Card, Line
from pipelines.schemas import RegionExample

LEGEND = (
    "Boxes: green chosen rightly, red chosen wrongly, dashed orange true but not chosen, dashed "
    "grey a crowd, where nothing counts, thin white offered and not chosen. A number is a region's "
    "index, the same as in the conversation."
)
"""How to read the boxes of `judged_marks`."""
_POINTED_AT = re.compile(r"<region(\d+)>(?!<regionfeat>)")


def is_right(case: Case) -> bool:
    """Tell whether an answer is right in every part: all true boxes and no other, number or words.

    Unlike `exact_match` it accepts any region that covers the object, as a reader of the image
    would.
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

    The choice is by a hash of the sample's id, so it is the same every time and favours nothing.

    Args:
        cases: All judged questions.
        examples: All examples with the bytes of their images; read once, and only what is drawn is
            kept in memory.
        right: Most right answers to show.
        wrong: Most wrong answers, and most questions for absent things, to show.

    Returns:
        Heading to cards, in this order.
    """
    asks_absent = {
        case.sample_id for case in cases if case.task in NAMING_TASKS and not case.targets
    }
    drawn = sorted(cases, key=lambda case: hashlib.sha256(case.sample_id.encode()).digest())
    others = [case for case in drawn if case.sample_id not in asks_absent]
    absent = [case for case in drawn if case.sample_id in asks_absent]
    groups = {
        "Right answers": [case for case in others if is_right(case)][:right],
        "Wrong answers": [case for case in others if not is_right(case)][:wrong],
        "Asked for absent things only": absent[:wrong],
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
    """Draw one question with its answer, its truth and the verdict.

    Args:
        case: The judged question.
        example: Its example.
        image: Bytes of the example's image; empty when it has none.
    """
    question = next((m["content"] for m in reversed(example.messages) if m["role"] == "user"), "")
    lines = [Line(who="asked", text=question), Line(who="answer", text=case.text or "(nothing)")]
    right = is_right(case)
    # A right grounded answer is the truth itself; of right words a reader wants to see both.
    if not right or case.task not in GROUNDED_TASKS:
        lines.append(Line(who="truth", text=_truth_text(case)))
    if case.problem:
        lines.append(Line(who="problem", text=case.problem))
    return Card(
        image=jpeg_uri(draw_example(example, image, judged_marks(case, example))),
        title=case.sample_id,
        lines=lines,
        badge="right" if right else "wrong",
        tone="good" if right else "bad",
    )


def judged_marks(case: Case, example: RegionExample) -> list[Mark]:
    """Return what to draw: regions asked about, chosen boxes by verdict, missed objects, crowds."""
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


def grounded_text(phrases: Iterable[tuple[str, Sequence[int], int]]) -> str:
    """Write true phrases in the region language, a line each.

    Args:
        phrases: Each a phrase, its regions, and its number of true boxes; boxes beyond the regions
            are said to have no proposal.
    """
    lines = []
    for phrase, regions, num_boxes in phrases:
        uncovered = num_boxes - len(regions)
        named = grammar.render([(phrase or None, regions)]) if regions else phrase
        lines.append(f"{named} ({uncovered} without a proposal)" if uncovered > 0 else named)
    return "\n".join(lines)


def _truth_text(case: Case) -> str:
    phrases = grounded_text((t.text, t.regions, len(t.boxes)) for t in case.targets)
    return f"{phrases}\n{case.reference.strip()}".strip()
