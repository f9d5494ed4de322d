"""Counting accuracy: the number in the answer against the true number.

The release (`evaluation/eval_countbench.py`) deletes the region tags and takes the first run of
digits, none being 0. A digit in the name of the thing counted ("a size 7 ball") would win there, so
a stricter reading stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipelines.errors import SettingError
from pipelines.evaluation.metrics.cases import Case

_REGION = re.compile(r"<[Rr]egion\d+>")
_INTEGER = re.compile(r"\d+")
_TAG = re.compile(r"<[^<>]*>")


def count_said(text: str) -> int:
    """Read the count by the release's rule: delete region tags, first integer, else 0."""
    found = _INTEGER.search(_REGION.sub("", text))
    return int(found.group()) if found else 0


def count_said_strictly(text: str) -> int | None:
    """Read the last integer after the last tag of any kind; None when there is none (ours)."""
    last = 0
    for tag in _TAG.finditer(text):
        last = tag.end()
    numbers = _INTEGER.findall(text[last:])
    return int(numbers[-1]) if numbers else None


def counting(cases: Iterable[Case]) -> dict[str, float]:
    """Compute the metrics of the counting questions.

    The truth is read from the reference answer, strictly.

    Args:
        cases: Evaluated questions; those of other tasks are left aside.

    Returns:
        Shares in 0..1; empty when there is no counting question.
            count_accuracy: the number said is the true one, by the release's rule.
            count_accuracy_strict: the same, read strictly.
            count_regions_accuracy: the number of distinct regions said is the true one.
            count_agreement: the number said is the number of distinct regions said.
        The latter two are over questions whose true answer names regions.

    Raises:
        SettingError: A reference answer has no number; the message names the sample.
    """
    asked = [case for case in cases if case.task == "counting"]
    if not asked:
        return {}
    said = strict = regions = agree = located = 0
    for case in asked:
        true = count_said_strictly(case.reference)
        if true is None:
            raise SettingError(
                f"sample {case.sample_id}: the reference answer of a counting question has no "
                f"number: {case.reference!r}; write the number in the annotation"
            )
        number = count_said(case.text)
        # Distinct over all phrases: the same region under two names is one thing counted.
        distinct = len({region for answer in case.answers for region in answer.regions})
        said += number == true
        strict += count_said_strictly(case.text) == true
        if case.targets or true == 0:  # else the true answer names no regions either
            located += 1
            regions += distinct == true
            agree += number == distinct
    metrics = {"count_accuracy": said / len(asked), "count_accuracy_strict": strict / len(asked)}
    if located:
        metrics |= {"count_regions_accuracy": regions / located, "count_agreement": agree / located}
    return metrics
