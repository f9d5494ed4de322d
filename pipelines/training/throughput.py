"""How fast a run is: samples, tokens and FLOPs a second, waiting for data, memory, from report to report.

These figures depend on the machine and the hour, so they are no part of a run's state or history: they go
out with the reports, and the driver keeps them (`pipelines.training.mlflow_tracking`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.training.flops import peak_flops

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a step took."""

    tokens: float
    """Of all ranks' examples, padding left out."""
    flops: float
    """Forward and backward, of all ranks (`pipelines.training.flops`); 0 where nobody counts them."""
    wait_s: float
    """Seconds that a rank waited for its data, a mean over the ranks."""


class SpeedMeter:
    """Adds up the steps since the last report, on every rank."""

    def __init__(self, device: torch.device, *, batch_size: int, precision: str) -> None:
        """Begin the first interval.

        batch_size: examples a step, of all ranks. precision: of the run; peaks are known for bf16.
        """
        self._device, self._batch_size = device, batch_size
        self._peak = peak_flops(device) if precision == "bf16" else None
        self.restart()

    def restart(self) -> None:
        """Begin another interval: what was done since the last step, such as a checkpoint, is in none."""
        self._since = time.monotonic()
        self._costs: list[StepCost] = []
        self._compute_s = 0.0

    @property
    def seconds(self) -> float:
        """Since the interval began."""
        return time.monotonic() - self._since

    def count(self, cost: StepCost, compute_s: float) -> None:
        """Add a step. compute_s: seconds from its data to its update, on this rank."""
        self._costs.append(cost)
        self._compute_s += compute_s

    def figures(self) -> dict[str, float]:
        """Figures of the interval; every rank must call it, after the same step.

        Of all ranks: ``samples_per_second``, ``tokens_per_second``. Of one: ``step_seconds``;
        ``data_wait_share`` and ``compute_share`` of the time, the rest being validation and the like;
        ``flops_per_second``, where FLOPs are counted, and, where the device's peak is known too, their share
        of it, ``flop_utilisation`` (MFU). Of the rank that needs most: ``memory_allocated_gib`` and
        ``memory_reserved_gib`` of a GPU, at the highest so far, or ``memory_resident_gib`` of a process.
        """
        seconds, steps = max(self.seconds, 1e-9), len(self._costs)
        flops = sum(cost.flops for cost in self._costs) / seconds / dist.get_world_size()
        figures = {
            "samples_per_second": steps * self._batch_size / seconds,
            "tokens_per_second": sum(cost.tokens for cost in self._costs) / seconds,
            "step_seconds": seconds / max(steps, 1),
            "data_wait_share": sum(cost.wait_s for cost in self._costs) / seconds,
            "compute_share": self._compute_s / seconds,
        }
        if flops:
            figures["flops_per_second"] = flops
            if self._peak is not None:
                figures["flop_utilisation"] = flops / self._peak
        return figures | _most_memory(self._device)


def _most_memory(device: torch.device) -> dict[str, float]:
    """Memory of the rank that has most, GiB."""
    if device.type == "cuda":
        own = {
            "memory_allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    else:
        own = {"memory_resident_gib": resident_bytes() / GIB}
    most = torch.tensor(list(own.values()), dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return dict(zip(own, most.tolist(), strict=True))


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, as Linux counts it."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
