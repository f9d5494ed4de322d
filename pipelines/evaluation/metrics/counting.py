"""Counting accuracy: the number in the answer against the true number.

The release (`evaluation/eval_countbench.py`) deletes the region tags and takes the first run of digits,
none being 0. A digit in the name of the thing counted ("a size 7 ball") would win there, so a stricter
reading stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
    """Compute the figures of the counting questions; empty when there are none.

    count_accuracy (release's rule), count_accuracy_strict, count_regions_accuracy (distinct regions said
    equal the true number) and count_agreement (the number said equals the regions said); the latter two
    over questions whose true answer names regions. The truth is read from the reference answer, strictly;
    raises ValueError naming the sample when that has no number.
    """
    asked = [case for case in cases if case.task == "counting"]
    if not asked:
        return {}
    said = strict = regions = agree = located = 0
    for case in asked:
        true = count_said_strictly(case.reference)
        if true is None:
            raise ValueError(
                f"sample {case.sample_id}: the reference answer of a counting question has no number"
            )
        number = count_said(case.text)
        distinct = len({region for answer in case.answers for region in answer.regions})
        said += number == true
        strict += count_said_strictly(case.text) == true
        if case.targets or true == 0:  # else the true answer names no regions either
            located += 1
            regions += distinct == true
            agree += number == distinct
    figures = {"count_accuracy": said / len(asked), "count_accuracy_strict": strict / len(asked)}
    if located:
        figures |= {"count_regions_accuracy": regions / located, "count_agreement": agree / located}
    return figures
