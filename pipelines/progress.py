"""One line that says how far a long step is: done, rate, time left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_EVERY_S = 5.0
"""Seconds between the lines in a log."""
REWRITE_EVERY_S = 0.1
"""Seconds between the states of the line on a terminal."""


class Progress:
    """A count of units of work, printed as one plain line.

    The line is rewritten on a terminal and printed every few seconds in a log::

        propose coco_val/opn: 12/32 buckets, 431 rows, 36.2 rows/s, 40s left
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        unit: str = "buckets",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            description: What runs.
            total: Units expected, None when unknown.
            unit: What `total` counts.
            stream: Where lines go; None is standard error.
            clock: Time in seconds, for tests.
        """
        self._description, self._total, self._unit = description, total, unit
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._printed = self._start
        self._rewrites = self._stream.isatty()
        self._width = 0
        self.done = 0
        self.rows = 0
        self.rejects = 0

    def update(self, done: int = 1, rows: int = 0, rejects: int = 0) -> None:
        """Count more units, rows and rejected rows, and print if it is time to."""
        self.done += done
        self.rows += rows
        self.rejects += rejects
        now = self._clock()
        if now - self._printed >= (REWRITE_EVERY_S if self._rewrites else LINE_EVERY_S):
            self._printed = now
            self._print(self.line(), end="" if self._rewrites else "\n")

    def close(self) -> None:
        """Print the last line, which says what was done and how long it took."""
        seconds = self._clock() - self._start
        self._print(
            f"{self._description}: {self._counts(seconds)}, took {duration(seconds)}", end="\n"
        )

    def line(self) -> str:
        """Return the present state as one line."""
        seconds = self._clock() - self._start
        left = ""
        if self._total and self.done:
            left = f", {duration(seconds / self.done * (self._total - self.done))} left"
        return f"{self._description}: {self._counts(seconds)}{left}"

    def _counts(self, seconds: float) -> str:
        total = "" if self._total is None else f"/{self._total}"
        counts = f"{self.done}{total} {self._unit}"
        if self.rows:
            counts += f", {self.rows} rows, {self.rows / max(seconds, 1e-9):.1f} rows/s"
        else:
            counts += f", {self.done / max(seconds, 1e-9):.1f} {self._unit}/s"
        return counts + (f", {self.rejects} rejected" if self.rejects else "")

    def _print(self, line: str, end: str) -> None:
        if not is_shown():
            return
        pad = " " * (self._width - len(line))
        self._width = len(line) if end == "" else 0
        self._stream.write(f"\r{line}{pad}{end}" if self._rewrites else f"{line}{end}")
        self._stream.flush()


def is_shown() -> bool:
    """Whether progress lines are printed: not where our loggers were set to warnings only."""
    return logging.getLogger("pipelines").level <= logging.INFO


def duration(seconds: float) -> str:
    """Return seconds as ``40s``, ``3m20s`` or ``2h05m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
