"""One optimizer step over all ranks: losses summed, a bad one left out, what is logged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from pipelines.loading.loader import MicroBatch, StepData
from pipelines.seeds import seed_of
from pipelines.train_config import TrainConfig
from pipelines.training.deepspeed_engine import Engine
from pipelines.training.run_state import RunState
from pipelines.training.throughput import StepCost
from pipelines.training.trainees import Trainee


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of a step, the same on every rank."""

    updated: bool
    """Whether the weights changed."""
    is_due: bool
    """Whether a report is due, or a rank has a notice."""
    cost: StepCost
    """What the step took."""
    record: dict[str, float] = field(default_factory=dict)
    """What is logged; empty for a step that is not logged or was left out."""
    message: str = ""
    """What to tell the driver about a step that was left out."""


def take_step(
    engine: Engine,
    trainee: Trainee,
    data: StepData,
    config: TrainConfig,
    state: RunState,
    *,
    sources: Sequence[str],
    logs: bool,
    is_due: bool,
) -> StepResult:
    """Do the step of `data`: one update, or none when its loss or gradient is unusual.

    Args:
        engine: Does the passes and the update.
        trainee: Knows the loss.
        data: Of this rank.
        config: Of the run.
        state: Takes the loss, or the step that was left out.
        sources: Of the mix, in the same order on every rank.
        logs: Whether there is a record.
        is_due: Of this rank; the result has what any rank says.

    Raises:
        FloatingPointError: More steps than ``config.max_skipped_steps`` had no update.
    """
    # Random numbers depend on nothing that happened before the step: a resumed run draws the same.
    torch.manual_seed(seed_of("step", config.seed, data.step, dist.get_rank()))
    rates = engine.set_learning_rate(config.schedule(data.step))
    micro_batches = data.micro_batches
    flops = sum(trainee.flops(micro.batch) or 0.0 for micro in micro_batches if not micro.filler)
    # Before the passes: the loss is divided by the weight of all ranks, and they must agree on
    # whether to look up after the step.
    weight, due, tokens, flops, wait_s = _over_ranks(
        [sum(m.weight for m in micro_batches), float(is_due), data.num_tokens, flops, data.wait_s],
        engine.device,
    )
    cost = StepCost(tokens=tokens, flops=flops, wait_s=wait_s / dist.get_world_size())
    total = max(weight, 1.0)
    if config.max_tokens_per_micro_batch is not None:  # ranks may have different numbers of passes
        micro_batches = data.padded(_most(len(micro_batches), engine.device))
    sums, by_source = _passes(engine, trainee, micro_batches, total, sources if logs else ())
    reduced = _over_ranks([*sums.values(), *by_source.flatten()], engine.device)
    values = {name: value / total for name, value in zip(sums, reduced, strict=False)}
    reason = state.problem(values["loss"], config.spike_factor)
    updated = engine.finish_step(discard=bool(reason))
    if not updated:
        reason = reason or "the gradient is not finite"
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, data.sample_ids)
        samples = [name for own in gathered for name in own]
        message = state.skip(data.step + 1, reason, samples, config.max_skipped_steps)
        return StepResult(updated=False, is_due=True, cost=cost, message=message)
    state.take(values["loss"])
    if not logs:
        return StepResult(updated=True, is_due=bool(due), cost=cost)
    record = {
        "step": data.step + 1,
        **values,
        **_means(sources, reduced[len(sums) :]),
        "gradient_norm": engine.gradient_norm(),
        **{f"learning_rate/{name}": rate for name, rate in zip(engine.names, rates, strict=True)},
    }
    if state.skipped:
        record["skipped_steps"] = len(state.skipped)
    return StepResult(updated=True, is_due=bool(due), cost=cost, record=record)


def _passes(
    engine: Engine,
    trainee: Trainee,
    micro_batches: Sequence[MicroBatch],
    total: float,
    sources: Sequence[str],
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Do the forward and backward passes of this rank; the step is left open.

    Args:
        engine: Does the passes.
        trainee: Knows the loss.
        micro_batches: One for each pass.
        total: Weight of the whole step, by which losses are divided.
        sources: Those whose losses are wanted apart; none when the step is not logged.

    Returns:
        Sums of the loss and, in a step that is logged, its parts; and float64[sources, 2], the sum
        of the loss and of the weight of each source's examples.
    """
    sums = {"loss": torch.zeros((), dtype=torch.float64, device=engine.device)}
    by_source = torch.zeros((len(sources), 2), dtype=torch.float64, device=engine.device)
    for number, micro in enumerate(micro_batches, start=1):
        is_last = number == len(micro_batches)
        engine.ends_step(is_last)
        result = trainee.loss(engine, micro.batch.to(engine.device))
        loss = result.total / total
        # Times zero instead of left out: every rank does the collectives of each pass.
        engine.backward(loss * 0.0 if micro.filler else loss)
        if not is_last:
            engine.micro_step()
        own: dict[str, torch.Tensor | float] = {"loss": result.total.detach()}
        own |= result.parts if sources else {}
        for name, value in own.items():
            sums[name] = sums.get(name, torch.zeros_like(sums["loss"])) + (
                0.0 if micro.filler else value
            )
        if sources and result.by_example is not None and not micro.filler:
            # A product, because adding by index has no fixed order on a GPU.
            belongs = [[float(source == drawn) for drawn in micro.sources] for source in sources]
            by_source += by_source.new_tensor(belongs) @ result.by_example
    return sums, by_source


def _means(sources: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Return ``loss/SOURCE`` of each source that a step held.

    Args:
        sources: Of the mix.
        sums: Of each source's loss and of its weight, in turn.
    """
    pairs = zip(sources, sums[::2], sums[1::2], strict=True)
    return {f"loss/{source}": loss / weight for source, loss, weight in pairs if weight}


def _most(count: int, device: torch.device) -> int:
    """Return the largest `count` of any rank."""
    most = torch.tensor(count, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def _over_ranks(values: Iterable[float | torch.Tensor], device: torch.device) -> list[float]:
    """Return each value summed over all ranks, float64 in one collective."""
    # All in one collective, whose time is its latency; float64 keeps sums of counts exact.
    shared = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    )
    dist.all_reduce(shared)
    return shared.tolist()
