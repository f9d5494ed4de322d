"""Ledgers: counters of a step that add up over buckets and must balance. Pure.

A ledger is a dictionary of integers and nested ledgers. Wherever it holds ``rows_in``, at the top or
nested, then ``rows_in == rows_out + rejects`` and ``rejects == sum(rejects_by_reason.values())``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

DELIBERATE = frozenset({"benchmark_image", "several_images", "unsupported"})
"""Reasons that say nothing against the data: what we leave out or have no task for. They are counted like all
others, but not towards the largest share of rejects."""


class LedgerError(RuntimeError):
    """Rows went missing or were counted twice: rows in are not rows out + rejects."""


def entry(rows_in: int, rows_out: int, reasons: Iterable[str]) -> dict[str, Any]:
    """Ledger of rows counted on their way in, on their way out, and by reason when they were rejected."""
    by_reason = dict(sorted(Counter(reasons).items()))
    rejects = sum(by_reason.values())
    return {
        "rows_in": rows_in,
        "rows_out": rows_out,
        "rejects": rejects,
        "rejects_by_reason": by_reason,
    }


def add_ledgers(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Sum of two ledgers, key by key, nested ones too."""
    total = dict(left)
    for key, value in right.items():
        if isinstance(value, Mapping):
            total[key] = add_ledgers(total.get(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
    return total


def reconcile(ledger: Mapping[str, Any], *, where: str) -> None:
    """Raise LedgerError, saying where, unless rows in == rows out + rejects at every level of the ledger."""
    if "rows_in" in ledger:
        rows_in, rows_out, rejects = (ledger[key] for key in ("rows_in", "rows_out", "rejects"))
        by_reason = sum(ledger["rejects_by_reason"].values())
        if rows_in != rows_out + rejects or rejects != by_reason:
            counts = (
                f"{rows_in} rows in, {rows_out} out, {rejects} rejected ({by_reason} with a reason)"
            )
            raise LedgerError(f"{where}: {counts}")
    for key, value in ledger.items():
        if isinstance(value, Mapping):
            reconcile(value, where=f"{where}, {key}")


def check_rejects(ledger: Mapping[str, Any], limit: float, *, where: str) -> None:
    """Raise ValueError, with reasons and counts, when a level of the ledger rejects too many of its rows.

    limit: the largest fraction accepted (`RuntimeConfig.max_reject_fraction`).
    """
    reasons = {r: n for r, n in ledger.get("rejects_by_reason", {}).items() if r not in DELIBERATE}
    rejects = sum(reasons.values())
    if rejects > limit * ledger.get("rows_in", math.inf):
        listed = ", ".join(
            f"{n} {r}" for r, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        )
        raise ValueError(
            f"{where}: {rejects} of {ledger['rows_in']} rows rejected ({listed}), more than "
            f"max_reject_fraction={limit:g}: mend the data, or raise --max-reject-fraction"
        )
    for key, value in ledger.items():
        if isinstance(value, Mapping):
            check_rejects(value, limit, where=f"{where}, {key}")
