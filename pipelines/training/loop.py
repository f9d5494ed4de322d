"""The loop that every training worker runs: restore, step by step, report, export.

It knows neither Ray nor DeepSpeed nor any model: those are behind `Worker`,
`pipelines.training.deepspeed_engine` and `Trainee`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.fingerprints import json_bytes
from pipelines.loading.loader import Loader, StepData, make_plan, open_sources
from pipelines.loading.micro_batches import num_micro_batches
from pipelines.training.candidates import Candidates
from pipelines.training.deepspeed_engine import Engine
from pipelines.training.ema import WeightAverage
from pipelines.training.export import OUTCOME, build_trainee, write_export
from pipelines.training.run_state import RunState
from pipelines.training.throughput import SpeedMeter
from pipelines.training.train_step import StepResult, take_step
from pipelines.training.trainees import Trainee
from pipelines.training.worker import Notice, Worker

if TYPE_CHECKING:
    from pipelines.training.job import TrainJob

REPORT_EVERY_S = 2.0
"""Most seconds between two reports, each of which comes with a look for notices. ours"""


def run_worker(
    job: TrainJob, output: Artifact, worker: Worker, *, loader_processes: int = 0
) -> None:
    """Train on one rank from the last committed checkpoint, and export on rank 0.

    To the end, or until a notice says stop; then the last checkpoint is where the run goes on, and
    nothing is exported. A run that is validated leaves candidates instead, of which the driver
    exports one.

    Args:
        job: What is trained.
        output: The run's artifact.
        worker: This rank.
        loader_processes: Processes that load the data of this rank; 0 for a thread.

    Raises:
        SettingError: The checkpoint belongs to another order of examples.
    """
    if not torch.cuda.is_available():
        # Sums would depend on the number of threads; ranks of one machine would share its cores.
        torch.set_num_threads(1)
    config = job.config
    torch.manual_seed(config.seed)
    trainee = build_trainee(job)
    sources = open_sources(job.shards, job.mix)
    plan = make_plan(sources, job.mix, config)
    loader = Loader(
        plan,
        sources,
        collator=trainee.collator,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        max_tokens=config.max_tokens_per_micro_batch,
        rank=worker.rank,
        world_size=worker.world_size,
        shuffled_regions=config.shuffled_regions,
        processes=loader_processes,
    )
    accumulated = num_micro_batches(config.batch_size, config.micro_batch_size, worker.world_size)
    if config.max_tokens_per_micro_batch is not None:
        accumulated = max(2, accumulated)  # DeepSpeed keeps no sum of gradients for a single pass
    engine = Engine(
        trainee.module,
        trainee.parameter_groups(config),
        config,
        num_micro_batches=accumulated,
        micro_batch_size=config.micro_batch_size,
    )
    state = RunState(plan=plan.fingerprint)
    average = WeightAverage(trainee.module, config.ema_decay) if config.ema_decay else None
    with worker.restored() as folder:
        if folder is not None:
            state = RunState(**engine.load(folder))
            if average is not None:
                average.load(folder)
    if state.plan != plan.fingerprint:
        raise SettingError(
            f"the checkpoint follows plan {state.plan}, the data give {plan.fingerprint}: resume "
            "with the shards that the run began with, or start anew with --force"
        )
    trainee.module.train()
    run = _Run(job, output, worker, trainee, engine, average, state)
    if run.do_steps(loader):
        run.finish()
        worker.report(_report(config.steps))
    worker.settle()


class _Run:
    """A run in progress on one rank."""

    def __init__(
        self,
        job: TrainJob,
        output: Artifact,
        worker: Worker,
        trainee: Trainee,
        engine: Engine,
        average: WeightAverage | None,
        state: RunState,
    ) -> None:
        self._config, self._output, self._worker = job.config, output, worker
        self._trainee, self._engine, self._average, self._state = trainee, engine, average, state
        self._candidates = Candidates(output)
        self._meter = SpeedMeter(
            engine.device, batch_size=job.config.batch_size, precision=job.config.precision
        )

    def do_steps(self, loader: Loader) -> bool:
        """Do the steps that are left; return False when a notice said stop before the last."""
        config, state = self._config, self._state
        # Records before the checkpoint go out again: the driver may have died before it had them.
        unsent, messages = list(state.history), list[str]()
        self._meter.restart()
        for data in loader.steps(state.step, config.steps):
            done = data.step + 1
            is_last = done == config.steps
            result = self._take(data, loader)
            if result.message:
                messages.append(result.message)
            if result.record:
                state.history.append(result.record)
                unsent.append(result.record)
            validates = config.validate_every > 0 and (done % config.validate_every == 0 or is_last)
            if validates:
                self._write_candidate()
            checkpoints = self._is_checkpoint(done)
            if not (checkpoints or validates or result.is_due):
                continue
            # At every report, for each report resets the timer: where checkpoints come faster than
            # it runs out, a look that waited for the timer would never come.
            notice = self._notice()
            stops = notice is Notice.STOP and not is_last
            report = _report(
                done,
                records=unsent,
                messages=messages,
                speed=self._meter.metrics(),
                candidate=done if validates else None,
                stopped=stops,
            )
            self._report(report, checkpoints=checkpoints or notice > Notice.NONE)
            if stops:
                return False
            unsent, messages = [], []
            self._meter.restart()
        return True

    def _is_checkpoint(self, done: int) -> bool:
        return done % self._config.checkpoint_every == 0 or done == self._config.steps

    def _take(self, data: StepData, loader: Loader) -> StepResult:
        """Do one step, with its average and what a record says beside the loss."""
        done = data.step + 1
        began = time.monotonic()
        result = take_step(
            self._engine,
            self._trainee,
            data,
            self._config,
            self._state,
            sources=loader.sources,
            logs=done % self._config.log_every == 0 or done == self._config.steps,
            is_due=self._is_due(),
        )
        self._meter.count(result.cost, time.monotonic() - began)
        self._state.step = done
        if self._average is not None and result.updated:
            self._average.update(done)
        if result.record and self._is_checkpoint(done):
            taken = loader.consumed(done)
            result.record.update({f"epochs/{name}": each.epochs for name, each in taken.items()})
        return result

    def finish(self) -> None:
        """Write what came of the run, and the model folder where no candidate will be chosen.

        Rank 0 does, every rank must call it.
        """
        is_first = self._worker.rank == 0
        if not self._config.validate_every:
            with self._final_weights():
                if is_first:
                    write_export(self._trainee.export, self._output.uri("export"))
        if is_first:
            self._output.write_bytes(OUTCOME, json_bytes({"skipped_steps": self._state.skipped}))
            self._output.write_bytes("history.json", json_bytes(self._state.history))

    def _is_due(self) -> bool:
        # The clocks of ranks differ: one decides, and `take_step` tells the others.
        is_time = self._worker.rank == 0 and self._meter.seconds > REPORT_EVERY_S
        return is_time or self._worker.noticed()

    def _notice(self) -> Notice:
        """Return the largest notice that a rank has."""
        # A notice may reach one rank before another, and ranks that disagreed would hang.
        notice = torch.tensor([int(self._worker.notice())], device=self._engine.device)
        dist.all_reduce(notice, op=dist.ReduceOp.MAX)
        return Notice(int(notice))

    def _write_candidate(self) -> None:
        """Leave the weights as they would be exported, for the driver to have them evaluated."""
        with self._final_weights():
            if self._worker.rank == 0:
                self._candidates.write(self._state.step, self._trainee.export)

    def _report(self, report: dict[str, Any], *, checkpoints: bool) -> None:
        if not checkpoints:
            self._worker.report(report)
            return
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        self._engine.save(folder, asdict(self._state))
        if self._worker.rank == 0 and self._average is not None:
            self._average.save(folder)
        self._worker.report(report, folder)

    @contextlib.contextmanager
    def _final_weights(self) -> Iterator[None]:
        """Inside, the module holds whole weights on every rank, averaged where the run averages."""
        average = contextlib.nullcontext() if self._average is None else self._average.applied()
        with self._engine.whole_parameters(), average:
            yield


def _report(
    step: int,
    *,
    records: list[dict[str, float]] | None = None,
    messages: list[str] | None = None,
    speed: dict[str, float] | None = None,
    candidate: int | None = None,
    stopped: bool = False,
) -> dict[str, Any]:
    """Return what rank 0 tells the driver.

    Args:
        step: Steps done.
        records: Those since the last report.
        messages: Those since the last report.
        speed: Metrics of the steps since the last report (`SpeedMeter.metrics`).
        candidate: Step of one that was written.
        stopped: Whether the run ends here, as it was told to.
    """
    return {
        "step": step,
        "records": records or [],
        "messages": messages or [],
        "speed": speed or {},
        "candidate": candidate,
        "stopped": stopped,
    }
