"""What a run remembers from step to step and over restarts: records, skipped steps, recent losses.

A step whose loss is not finite, or far above those before it, is left out: all ranks forget its
gradients and the weights stay. Each such step is kept with the ids of its samples.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

WINDOW = 50
"""Losses whose running median says what is usual. ours"""
FEWEST = 10
"""Losses before there is a median to compare with. ours"""


@dataclass(kw_only=True)
class RunState:
    """The state of a run in a checkpoint: plain JSON values, for any number of workers."""

    plan: str
    """Fingerprint of the sample plan."""
    step: int = 0
    """Number of steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One record for each logged step."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    """Steps without an update: ``step`` (from 1), ``reason``, ``sample_ids`` of all ranks."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last `WINDOW` steps with an update."""

    def problem(self, loss: float, spike_factor: float) -> str:
        """Return why a step with this loss must not change the weights; empty for a usual loss.

        Args:
            loss: Mean over all ranks.
            spike_factor: A loss above so many times the median of the recent ones is a spike; with
                0 none is.
        """
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if spike_factor and len(self.recent) >= FEWEST:
            # A median and not a mean: a spike that was let through must not raise the bar.
            median = statistics.median(self.recent)
            if loss > spike_factor * median:
                return (
                    f"loss {loss:.6g} is more than {spike_factor:g} times the median {median:.6g}"
                )
        return ""

    def take(self, loss: float) -> None:
        """Remember the loss of a step that changed the weights."""
        self.recent = [*self.recent, loss][-WINDOW:]

    def skip(self, step: int, reason: str, sample_ids: list[str], most: int) -> str:
        """Note a step without an update and return the line that says so.

        Args:
            step: From 1.
            reason: As `problem` gave it.
            sample_ids: Of all ranks.
            most: Steps of the run that may be left out.

        Raises:
            FloatingPointError: This is one more than `most`.
        """
        self.skipped.append({"step": step, "reason": reason, "sample_ids": sample_ids})
        message = f"step {step}: {reason}; its samples were {', '.join(sample_ids)}"
        if len(self.skipped) > most:
            raise FloatingPointError(
                f"{message}; max_skipped_steps={most} lets no more steps be left out"
            )
        return f"{message}; skipped"
