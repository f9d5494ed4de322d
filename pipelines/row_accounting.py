"""Ledgers: counters of a step that add up over buckets and must balance. Pure.

A ledger is a dictionary of integers and nested ledgers. Wherever it holds ``rows_in``, at the top
or nested, then ``rows_in == rows_out + rejects`` and
``rejects == sum(rejects_by_reason.values())``.

Two things can be wrong with one. Too many rows were rejected: that is the data's fault, and a
`LedgerError` tells a person what to mend. Rows went missing or were counted twice: that is a
defect of ours, an `UnbalancedLedgerError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

DELIBERATE = frozenset({"benchmark_image", "several_images", "unsupported"})
"""Reasons that say nothing against the data: what we leave out or have no task for.

They are counted like all others, but not towards the largest share of rejects.
"""


class LedgerError(RuntimeError):
    """A step that rejected more of its rows than it may.

    The message names the step, how many of how many rows, the reasons with their counts, and
    where the rejected rows lie.
    """


class UnbalancedLedgerError(RuntimeError):
    """A ledger whose rows in are not its rows out and rejects: a defect of the step."""


def entry(rows_in: int, rows_out: int, reasons: Iterable[str]) -> dict[str, Any]:
    """Return the ledger of some rows.

    Args:
        rows_in: Rows counted on their way in.
        rows_out: Rows counted on their way out.
        reasons: The reason of each rejected row.
    """
    by_reason = dict(sorted(Counter(reasons).items()))
    rejects = sum(by_reason.values())
    return {
        "rows_in": rows_in,
        "rows_out": rows_out,
        "rejects": rejects,
        "rejects_by_reason": by_reason,
    }


def add_ledgers(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two ledgers, key by key, nested ones too."""
    total = dict(left)
    for key, value in right.items():
        if isinstance(value, Mapping):
            total[key] = add_ledgers(total.get(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
    return total


def reconcile(ledger: Mapping[str, Any], *, where: str) -> None:
    """Check that rows in == rows out + rejects at every level of the ledger.

    Raises:
        UnbalancedLedgerError: They are not; the message starts with `where`.
    """
    if "rows_in" in ledger:
        rows_in, rows_out, rejects = (ledger[key] for key in ("rows_in", "rows_out", "rejects"))
        by_reason = sum(ledger["rejects_by_reason"].values())
        if rows_in != rows_out + rejects or rejects != by_reason:
            raise UnbalancedLedgerError(
                f"{where}: {rows_in} rows in, {rows_out} out, {rejects} rejected "
                f"({by_reason} with a reason)"
            )
    for key, value in ledger.items():
        if isinstance(value, Mapping):
            reconcile(value, where=f"{where}, {key}")


def check_rejects(
    ledger: Mapping[str, Any], limit: float, *, where: str, rejects_at: str = ""
) -> None:
    """Check that no level of the ledger rejects too many of its rows.

    Args:
        ledger: The ledger, nested ones included. Reasons in `DELIBERATE` do not count.
        limit: The largest fraction accepted (`RuntimeConfig.max_reject_fraction`).
        where: The step, for the message.
        rejects_at: Where a person finds the rejected rows, for the message.

    Raises:
        LedgerError: A level rejects more.
    """
    reasons = {r: n for r, n in ledger.get("rejects_by_reason", {}).items() if r not in DELIBERATE}
    rejects = sum(reasons.values())
    if rejects > limit * ledger.get("rows_in", math.inf):
        listed = ", ".join(
            f"{n} {r}" for r, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        )
        place = f" The rejected rows, with details, lie in {rejects_at}." if rejects_at else ""
        raise LedgerError(
            f"{where}: {rejects} of {ledger['rows_in']} rows rejected ({listed}), more than "
            f"max_reject_fraction={limit:g} allows.{place} Mend the data, or raise "
            "--max-reject-fraction, and run the command again"
        )
    for key, value in ledger.items():
        if isinstance(value, Mapping):
            check_rejects(value, limit, where=f"{where}, {key}", rejects_at=rejects_at)
