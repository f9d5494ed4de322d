"""How fast a run is, from report to report: samples, tokens and FLOPs a second, waiting, memory.

These metrics depend on the machine and the hour, so they are no part of a run's state or history:
they go out with the reports, and the driver keeps them (`pipelines.training.mlflow_tracking`).
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
    """Tokens of all ranks' examples, padding left out."""
    flops: float
    """FLOPs of forward and backward passes, of all ranks; 0 where nobody counts them.

    See `pipelines.training.flops`.
    """
    wait_s: float
    """Seconds that a rank waited for its data, a mean over the ranks."""


class SpeedMeter:
    """The sum of the steps since the last report, on every rank."""

    def __init__(self, device: torch.device, *, batch_size: int, precision: str) -> None:
        """Begin the first interval.

        Args:
            device: Of this rank.
            batch_size: Examples a step, of all ranks.
            precision: Of the run; peaks are known for bf16.
        """
        self._device, self._batch_size = device, batch_size
        self._peak = peak_flops(device) if precision == "bf16" else None
        self.restart()

    def restart(self) -> None:
        """Begin another interval.

        What was done since the last step, such as a checkpoint, is in none.
        """
        self._since = time.monotonic()
        self._costs: list[StepCost] = []
        self._compute_s = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the interval began."""
        return time.monotonic() - self._since

    def count(self, cost: StepCost, compute_s: float) -> None:
        """Add a step.

        Args:
            cost: What it took.
            compute_s: Seconds from its data to its update, on this rank.
        """
        self._costs.append(cost)
        self._compute_s += compute_s

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the interval; every rank must call it, after the same step.

        Of all ranks: ``samples_per_second``, ``tokens_per_second``. Of one: ``step_seconds``;
        ``data_wait_share`` and ``compute_share`` of the time, the rest being validation and the
        like; ``flops_per_second``, where FLOPs are counted, and, where the device's peak is known
        too, their share of it, ``flop_utilisation`` (MFU). Of the rank that needs most:
        ``memory_allocated_gib`` and ``memory_reserved_gib`` of a GPU, at the highest so far, or
        ``memory_resident_gib`` of a process.
        """
        # The clock may not have moved since the interval began.
        seconds, steps = max(self.seconds, 1e-9), len(self._costs)
        flops = sum(cost.flops for cost in self._costs) / seconds / dist.get_world_size()
        metrics = {
            "samples_per_second": steps * self._batch_size / seconds,
            "tokens_per_second": sum(cost.tokens for cost in self._costs) / seconds,
            "step_seconds": seconds / max(steps, 1),
            "data_wait_share": sum(cost.wait_s for cost in self._costs) / seconds,
            "compute_share": self._compute_s / seconds,
        }
        if flops:
            metrics["flops_per_second"] = flops
            if self._peak is not None:
                metrics["flop_utilisation"] = flops / self._peak
        return metrics | _most_memory(self._device)


def _most_memory(device: torch.device) -> dict[str, float]:
    """Return the memory of the rank that has most, in GiB."""
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
    """Return the bytes of this process that are in RAM now, as Linux counts them."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
