"""The loop that every training worker runs: restore, step by step, report, export.

It knows neither Ray nor DeepSpeed nor any model: those are behind `Worker`, `pipelines.engine` and `Trainee`.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow.fs as pafs
import torch
import torch.distributed as dist

from pipelines.artifacts import Artifact, filesystem_of, json_bytes
from pipelines.averaging import WeightAverage
from pipelines.engine import Engine
from pipelines.learners import Trainee
from pipelines.loader import (
    Loader,
    StepData,
    held_out_sources,
    make_plan,
    num_micro_batches,
    open_sources,
    seed_of,
)
from pipelines.tars import ShardSet
from pipelines.validation import validate

if TYPE_CHECKING:
    from pipelines.train_job import TrainConfig, TrainJob

REPORT_EVERY_S = 2.0
"""Between the reports that say how far a run is."""


class Worker(Protocol):
    """One rank, as the loop sees it."""

    rank: int
    """From 0."""
    world_size: int
    """Number of ranks."""

    def restored(self) -> contextlib.AbstractContextManager[Path | None]:
        """Local folder of the last committed checkpoint, or None."""

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        """Send rank 0's report to the driver; with a folder, return when the checkpoint is committed.

        Every rank calls it, equally often.
        """


def run_worker(job: TrainJob, output: Artifact, worker: Worker) -> None:
    """Train on one rank from the last committed checkpoint to the end, and export on rank 0."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    config = job.config
    torch.manual_seed(config.seed)
    with _local_export(job.parent) as parent:
        start = parent if job.weights is None else Path(job.weights)
        trainee = job.learner.build(start, seed=config.seed)
    sources = open_sources(job.shards, job.mix)
    plan = make_plan(sources, job.mix, config)
    loader = Loader(
        plan,
        sources,
        collate=trainee.collate,
        weigh=trainee.weigh,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
        shuffled_regions=config.shuffled_regions,
    )
    engine = Engine(
        trainee.module,
        trainee.parameter_groups(config),
        config,
        num_micro_batches=num_micro_batches(config.batch_size, config.micro_batch_size, worker.world_size),
        micro_batch_size=config.micro_batch_size,
    )
    state: dict[str, Any] = {"step": 0, "history": [], "plan": plan.fingerprint}
    average = WeightAverage(trainee.module, config.ema_decay) if config.ema_decay else None
    with worker.restored() as folder:
        if folder is not None:
            state = engine.load(folder)
            if average is not None:
                average.load(folder)
    if state["plan"] != plan.fingerprint:
        raise ValueError(f"the checkpoint follows plan {state['plan']}, the data give {plan.fingerprint}")
    trainee.module.train()
    held_out = held_out_sources(job.validation)
    history = _run_steps(engine, trainee, loader, held_out, config, worker, state, average)
    with engine.whole_parameters(), _averaged(average):
        if worker.rank == 0:
            with tempfile.TemporaryDirectory() as folder_name:
                trainee.export(Path(folder_name))
                _upload(Path(folder_name), output.uri("export"))
            output.write_bytes("history.json", json_bytes(history))
    worker.report({"step": config.steps, "records": [], "rate": 0.0, "wait": 0.0})


def _run_steps(
    engine: Engine,
    trainee: Trainee,
    loader: Loader,
    held_out: Mapping[str, ShardSet],
    config: TrainConfig,
    worker: Worker,
    state: dict[str, Any],
    average: WeightAverage | None,
) -> list[dict[str, float]]:
    """Do the steps that are left; return the history."""
    start, history = state["step"], state["history"]
    # Records before the checkpoint go out again: the driver may have died before it logged them.
    unsent = list(history)
    since, waited, counted_from = time.monotonic(), 0.0, start
    for data in loader.steps(start, config.steps):
        done = data.step + 1
        waited += data.wait_s
        is_due = time.monotonic() - since > REPORT_EVERY_S
        logs = done % config.log_every == 0 or done == config.steps
        record, is_due = _optimize(engine, trainee, data, config, worker.rank, logs=logs, is_due=is_due)
        if average is not None:
            average.update(done)
        if held_out and (done % config.validate_every == 0 or done == config.steps):
            with engine.whole_parameters(), _averaged(average):
                figures = validate(
                    trainee,
                    held_out,
                    config,
                    device=engine.device,
                    rank=worker.rank,
                    world_size=worker.world_size,
                )
            record = {"step": done, **record, **figures}
        if record:
            history.append(record)
            unsent.append(record)
        checkpoints = done % config.checkpoint_every == 0 or done == config.steps
        if not (checkpoints or is_due):
            continue
        seconds = max(time.monotonic() - since, 1e-9)
        rate = (done - counted_from) * config.batch_size / seconds
        report = {"step": done, "records": unsent, "rate": rate, "wait": waited / seconds}
        if checkpoints:
            folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
            engine.save(folder, {**state, "step": done, "history": history})
            if average is not None and worker.rank == 0:
                average.save(folder)
            worker.report(report, folder)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            worker.report(report)
        unsent, since, waited, counted_from = [], time.monotonic(), 0.0, done
    return history


def _optimize(
    engine: Engine,
    trainee: Trainee,
    data: StepData,
    config: TrainConfig,
    rank: int,
    *,
    logs: bool,
    is_due: bool,
) -> tuple[dict[str, float], bool]:
    """One optimizer step; its record when it `logs`, and rank 0's `is_due`, so that all ranks act alike."""
    # Random numbers of a step depend on nothing that happened before it, so a resumed run draws the same.
    torch.manual_seed(seed_of("step", config.seed, data.step, rank))
    rates = engine.set_learning_rate(config.schedule(data.step))
    shared = torch.tensor(
        [sum(micro.weight for micro in data.micro_batches), float(is_due and rank == 0)],
        dtype=torch.float64,
        device=engine.device,
    )
    dist.all_reduce(shared)
    total = max(float(shared[0]), 1.0)
    sums: dict[str, float] = {}
    for micro in data.micro_batches:
        loss_sum, parts = trainee.loss(engine, micro.batch.to(engine.device))
        loss = loss_sum / total
        engine.backward(loss * 0.0 if micro.filler else loss)
        engine.micro_step()
        if logs:
            for name, value in {"loss": float(loss_sum.detach()), **parts}.items():
                sums[name] = sums.get(name, 0.0) + (0.0 if micro.filler else value)
    if not logs:
        return {}, bool(shared[1])
    reduced = torch.tensor(list(sums.values()), dtype=torch.float64, device=engine.device)
    dist.all_reduce(reduced)
    values = dict(zip(sums, (reduced / total).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"step {data.step}: loss is {values['loss']}; rank {rank} had {', '.join(data.sample_ids)}"
        )
    rates_by_group = {f"learning_rate/{name}": rate for name, rate in zip(engine.names, rates, strict=True)}
    record = {"step": data.step + 1, **values, "gradient_norm": engine.gradient_norm(), **rates_by_group}
    return record, bool(shared[1])


def _averaged(average: WeightAverage | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if average is None else average.applied()


@contextlib.contextmanager
def _local_export(run: Artifact | None) -> Iterator[Path | None]:
    """The model folder of a run as a local folder; None without a run."""
    if run is None:
        yield None
        return
    filesystem, path = filesystem_of(run.uri("export"))
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(path, folder, source_filesystem=filesystem)
        yield Path(folder)


def _upload(folder: Path, uri: str) -> None:
    """Copy a local folder to `uri`, replacing what is there."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
    filesystem.create_dir(path)
    pafs.copy_files(
        str(folder), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem
    )
