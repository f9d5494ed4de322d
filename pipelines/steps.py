"""One optimizer step over all ranks: losses summed, a bad one left out, what is logged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from pipelines.engine import Engine
from pipelines.learners import Trainee
from pipelines.loader import StepData, seed_of
from pipelines.recovery import RunState
from pipelines.train_job import TrainConfig


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of a step, the same on every rank."""

    updated: bool
    """Whether the weights changed."""
    is_due: bool
    """Whether the ranks should look up from their work: a report is due, or one of them has a notice."""
    record: dict[str, float] = field(default_factory=dict)
    """What is logged; empty for a step that is not, or that was left out."""
    message: str = ""
    """What to tell the driver about a step that was left out."""


def take_step(
    engine: Engine,
    trainee: Trainee,
    data: StepData,
    config: TrainConfig,
    state: RunState,
    *,
    logs: bool,
    is_due: bool,
) -> StepResult:
    """Do the step of `data`: one update, or none when its loss or gradient is unusual.

    state: takes the loss, or the step that was left out. logs: whether there is a record.
    is_due: of this rank; the result has what any rank says.

    FloatingPointError for more steps without an update than ``config.max_skipped_steps``.
    """
    # Random numbers of a step depend on nothing that happened before it, so a resumed run draws the same.
    torch.manual_seed(seed_of("step", config.seed, data.step, dist.get_rank()))
    rates = engine.set_learning_rate(config.schedule(data.step))
    weight, due = _over_ranks(
        [sum(micro.weight for micro in data.micro_batches), float(is_due)], engine.device
    )
    total = max(weight, 1.0)
    grouped = config.max_tokens_per_micro_batch is not None
    sums = _passes(engine, trainee, data, total, grouped=grouped, logs=logs)
    values = dict(zip(sums, (v / total for v in _over_ranks(sums.values(), engine.device)), strict=True))
    reason = state.problem(values["loss"], config.spike_factor)
    updated = engine.finish_step(discard=bool(reason))
    if not updated:
        reason = reason or "the gradient is not finite"
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, data.sample_ids)
        samples = [name for own in gathered for name in own]
        message = state.skip(data.step + 1, reason, samples, config.max_skipped_steps)
        return StepResult(updated=False, is_due=True, message=message)
    state.take(values["loss"])
    if not logs:
        return StepResult(updated=True, is_due=bool(due))
    record = {
        "step": data.step + 1,
        **values,
        "gradient_norm": engine.gradient_norm(),
        **{f"learning_rate/{name}": rate for name, rate in zip(engine.names, rates, strict=True)},
    }
    if state.skipped:
        record["skipped_steps"] = len(state.skipped)
    return StepResult(updated=True, is_due=bool(due), record=record)


def _passes(
    engine: Engine, trainee: Trainee, data: StepData, total: float, *, grouped: bool, logs: bool
) -> dict[str, torch.Tensor]:
    """Forward and backward passes of this rank; sums of the loss and its parts. The step is left open.

    grouped: whether batches are grouped by tokens, and ranks may have different numbers of them.
    """
    sums = {"loss": torch.zeros((), dtype=torch.float64, device=engine.device)}
    micro_batches = data.micro_batches
    if grouped:
        micro_batches = data.padded(_most(len(micro_batches), engine.device))
    for number, micro in enumerate(micro_batches, start=1):
        is_last = number == len(micro_batches)
        engine.ends_step(is_last)
        loss_sum, parts = trainee.loss(engine, micro.batch.to(engine.device))
        loss = loss_sum / total
        engine.backward(loss * 0.0 if micro.filler else loss)
        if not is_last:
            engine.micro_step()
        own: dict[str, torch.Tensor | float] = {"loss": loss_sum.detach(), **(parts if logs else {})}
        for name, value in own.items():
            sums[name] = sums.get(name, torch.zeros_like(sums["loss"])) + (0.0 if micro.filler else value)
    return sums


def _most(count: int, device: torch.device) -> int:
    """The largest `count` of any rank."""
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def _over_ranks(values: Iterable[float | torch.Tensor], device: torch.device) -> list[float]:
    """Each value summed over all ranks."""
    shared = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
    dist.all_reduce(shared)
    return shared.tolist()
