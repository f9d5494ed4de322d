"""How well the model chooses regions: exact sets, F1 by overlap, refusals, readable answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.cases import Case
from pipelines.evaluation.metrics.matching import greedy_pairs

GROUNDED_TASKS = ("detection", "referring", "counting", "rejection")
"""Tasks whose answer is a set of regions."""
NAMING_TASKS = ("detection", "referring", "rejection")
"""Tasks in which an answer without any region says "it is not there"."""


def valid_answer_rate(cases: Sequence[Case]) -> float | None:
    """Compute the share of answers read without a problem; None without cases."""
    return _share(case.problem is None for case in cases)


def exact_match(cases: Iterable[Case]) -> float | None:
    """Compute the share of answers with exactly the true regions under exactly the true phrases.

    Only tasks of `GROUNDED_TASKS` count; None without such cases. An answer with a problem counts
    as wrong. Empty phrases (no region) are no claim and are left aside.
    """
    return _share(is_exact(case) for case in cases if case.task in GROUNDED_TASKS)


def is_exact(case: Case) -> bool:
    """Tell whether the answer names exactly the regions of the truth."""
    said = {answer.text: set(answer.regions) for answer in case.answers if answer.regions}
    true = {target.text: set(target.regions) for target in case.targets if target.regions}
    return case.problem is None and said == true


def region_f1(cases: Iterable[Case], *, iou: float = 0.5) -> dict[str, float]:
    """Compute precision, recall and f1 of the chosen boxes, micro-averaged over (sample, phrase).

    Within a phrase, chosen and true boxes pair one to one, best overlap first. A second box on one
    object is wrong; a true box that no proposal covers is missed.

    Args:
        cases: Evaluated questions; those outside `GROUNDED_TASKS` are left aside.
        iou: Overlap from which a chosen and a true box can pair.

    Returns:
        "precision", "recall" and "f1" in 0..1; empty when nothing is true and nothing is said.
    """
    hits = chosen = true = 0
    for case in cases:
        if case.task not in GROUNDED_TASKS:
            continue
        for matched, num_chosen, num_true in count_by_phrase(case, iou=iou).values():
            hits, chosen, true = hits + matched, chosen + num_chosen, true + num_true
    if not chosen and not true:
        return {}
    precision = hits / chosen if chosen else 0.0
    recall = hits / true if true else 0.0
    f1 = 2 * hits / (chosen + true)
    return {"precision": precision, "recall": recall, "f1": f1}


def count_by_phrase(case: Case, *, iou: float = 0.5) -> Mapping[str, tuple[int, int, int]]:
    """Count (paired, chosen, true) boxes of each phrase said or true.

    A chosen box that pairs with none and lies in a crowd of its phrase, by `iou` of its own area
    or more, is not counted as chosen.
    """
    true = {target.text: target.boxes for target in case.targets}
    said = {answer.text: answer.boxes for answer in case.answers}
    none = np.zeros((0, 4), dtype=np.float32)
    counts = {}
    for phrase in sorted(true.keys() | said.keys()):
        chosen, truth = said.get(phrase, none), true.get(phrase, none)
        pairs = greedy_pairs(iou_matrix(chosen, truth), iou)
        # Only boxes left over are looked for in crowds: one that pairs is right, wherever it lies.
        unpaired = np.delete(chosen, [row for row, _ in pairs], axis=0)
        crowd = iou_matrix(unpaired, case.ignored.get(phrase, none), others_are_crowds=True)
        in_crowd = int((crowd.max(axis=1, initial=0.0) >= iou).sum())
        counts[phrase] = (len(pairs), len(chosen) - in_crowd, len(truth))
    return counts


def rejection_accuracy(cases: Iterable[Case]) -> float | None:
    """Compute the share of questions for absent things alone that are answered without any region.

    An answer that cannot be read is no refusal: it counts as wrong. None without such questions.
    """
    return _share(
        case.problem is None and not any(answer.regions for answer in case.answers)
        for case in cases
        if case.task in NAMING_TASKS and not case.targets
    )


def absent_false_positives(cases: Iterable[Case]) -> float | None:
    """Compute the share of absent names, asked beside present ones, that got a region all the same.

    Only questions whose names are known and of which some are present count; None without any.
    """
    answered: list[bool] = []
    for case in cases:
        if case.asked is None or not case.targets or case.task not in NAMING_TASKS:
            continue
        said = {answer.text for answer in case.answers if answer.regions}
        # A name that only a crowd shows is not absent: a region for it is no false positive.
        present = {target.text for target in case.targets} | set(case.ignored)
        answered.extend(name in said for name in case.asked if name not in present)
    return _share(answered)


def _share(outcomes: Iterable[bool]) -> float | None:
    """Return the share of true outcomes, None when there is none to judge."""
    values = list(outcomes)
    return sum(values) / len(values) if values else None
