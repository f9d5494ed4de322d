"""One way to send tasks through pools of workers: here, row by row, or on Ray.

Tasks are rows of a Ray Data set, a block each, and pools of actors work through them, one pool a
stage (`run_stages`). Where a worker commits its own bucket, the rows that come back are only
ledgers (`map_buckets`), and a bucket that runs twice (an actor died, a node was lost) gives the
same files again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipelines.cluster import RuntimeConfig, cluster_resources, connect, pool_sizes
from pipelines.progress import Progress

NO_PROGRESS_TIMEOUT_S = 900
"""Seconds without progress after which a run fails.

A bucket takes seconds to minutes; Ray's default is 30 min.
"""
MAX_BLOCKS = 20_000
"""Most blocks that tasks are spread over; beyond it a block has several."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pool of workers.

    ``worker(**kwargs)`` is built once a process and called with a table of rows.
    """

    worker: Callable[..., Callable[[pa.Table], pa.Table]]
    """Class, or function, that makes what a process holds; a call must be safe to repeat."""
    kwargs: Mapping[str, Any]
    """Arguments of `worker`."""
    size: int
    """Processes of the pool."""
    num_cpus: float = 1.0
    """CPUs that each takes."""
    num_gpus: float = 0.0
    """GPUs that each takes."""


def run_stages(
    stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]], *, runtime: RuntimeConfig
) -> Iterator[pa.Table]:
    """Send every row through the stages, one after the other.

    On Ray the stages work side by side on different rows, and a row whose process died is sent
    again. With ``runtime.workers=0`` all is done here, row by row. An error of a worker is raised
    here as it was raised there.

    Args:
        stages: The pools, in order.
        rows: The tasks.
        runtime: Where they run.

    Returns:
        The tables that come out of the last stage, on Ray in any order.
    """
    if runtime.workers == 0:
        return _inline(stages, rows)
    connect(runtime)
    return _on_ray(stages, rows)


def map_buckets(
    worker: Callable[..., Callable[[int], Mapping[str, Any]]],
    constructor_kwargs: Mapping[str, Any],
    buckets: Sequence[int],
    *,
    runtime: RuntimeConfig,
    description: str,
) -> Iterator[dict[str, Any]]:
    """Apply ``worker(**constructor_kwargs)(bucket) -> ledger`` to every bucket.

    Args:
        worker: A class, built once a process; a call must commit its bucket and be safe to repeat.
        constructor_kwargs: Its arguments.
        buckets: Numbers of the buckets.
        runtime: Where they run.
        description: What runs, for the progress line.

    Returns:
        The ledgers as they come.

    Raises:
        SettingError: The cluster cannot hold ``runtime.workers`` processes and one CPU beside them;
            raised at once. An error of a worker is raised here as it was raised there.
    """
    if not buckets:
        return iter(())
    size = 1
    if runtime.workers != 0:
        on_cpus = replace(runtime, gpus_per_worker=0.0)
        size = min(pool_sizes(cluster_resources(runtime), on_cpus).workers, len(buckets))
    stage = Stage(
        worker=_BucketWorker, kwargs={"worker": worker, "kwargs": constructor_kwargs}, size=size
    )
    tables = run_stages([stage], [{"bucket": bucket} for bucket in buckets], runtime=runtime)
    ledgers = (json.loads(ledger) for table in tables for ledger in table["ledger"].to_pylist())
    return _with_progress(ledgers, len(buckets), description)


class _BucketWorker:
    """Adapter between tables of tasks and a worker of one bucket."""

    def __init__(
        self, worker: Callable[..., Callable[[int], Mapping[str, Any]]], kwargs: Mapping[str, Any]
    ):
        self._worker = worker(**kwargs)

    def __call__(self, rows: pa.Table) -> pa.Table:
        # JSON text keeps a row a plain string, whatever counters a step has.
        ledgers = [json.dumps({**self._worker(b), "bucket": b}) for b in rows["bucket"].to_pylist()]
        return pa.table({"ledger": ledgers})


class _PoolWorker:
    """A worker in a process of Ray, which raises an error of its making at its first call.

    Where a constructor raises, Ray tells only that the process died.
    """

    def __init__(
        self, worker: Callable[..., Callable[[pa.Table], pa.Table]], kwargs: Mapping[str, Any]
    ):
        self._error: Exception | None = None
        try:
            self._worker = worker(**kwargs)
        except Exception as error:  # whatever it is: it ends the run
            self._error = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._error is not None:
            raise self._error
        return self._worker(rows)


def _inline(stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    workers = [stage.worker(**stage.kwargs) for stage in stages]
    for row in rows:
        table = pa.Table.from_pylist([dict(row)])
        for worker in workers:
            table = worker(table)
        yield table


def _hush_console() -> None:
    """Keep Ray Data's own lines off the console; its log file has everything.

    An error is raised here, with its cause, and how far the work is says a line of ours. Handlers
    of others at the same logger are theirs: they keep their level.
    """
    for handler in logging.getLogger("ray.data").handlers:
        of_ray = type(handler).__module__.startswith("ray.")
        if of_ray and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _on_ray(stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    import ray.data
    import ray.exceptions

    _hush_console()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    # A block a task: a block is what one worker takes, and what is done again when it is lost.
    data: Any = ray.data.from_items(list(rows), override_num_blocks=min(len(rows), MAX_BLOCKS))
    for stage in stages:
        data = data.map_batches(
            _PoolWorker,
            fn_constructor_kwargs={"worker": stage.worker, "kwargs": dict(stage.kwargs)},
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=stage.size, max_tasks_in_flight_per_actor=2),
            num_cpus=stage.num_cpus,
            num_gpus=stage.num_gpus,
        )
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow")
    except ray.exceptions.RayTaskError as error:
        if error.cause is None:
            raise
        raise error.cause from error


def _with_progress(
    ledgers: Iterator[dict[str, Any]], total: int, description: str
) -> Iterator[dict[str, Any]]:
    progress = Progress(description, total)
    for ledger in ledgers:
        progress.update(1, int(ledger.get("rows_in", 0)), int(ledger.get("rejects", 0)))
        yield ledger
    progress.close()
