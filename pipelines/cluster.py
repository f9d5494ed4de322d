"""Where the work runs: one cluster connection, and one way to send tasks through pools of workers.

With ``workers=0`` everything runs in this process and Ray is not even imported. Otherwise tasks are rows of a
Ray Data set, a block each, and pools of actors work through them, one pool a stage (`run_stages`). Where a
worker commits its own bucket, the rows that come back are only ledgers (`map_buckets`), and a bucket that
runs twice (an actor died, a node was lost) gives the same files again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipelines.progress import Progress
from pipelines.storage import absolute_root

NO_PROGRESS_TIMEOUT_S = 900
"""A run without progress for so long fails. A bucket takes seconds to minutes; Ray's default is 30 min."""
OBJECT_STORE_BYTES = 512 * 1024**2
"""Of a local cluster. Blocks hold ledgers, not images: Ray's default of 30 % of memory would be a waste."""

MAX_BLOCKS = 20_000
"""Most blocks that tasks are spread over; beyond it a block has several."""
LOCAL_START_ATTEMPTS = 3
"""Of a local cluster, where Ray's own processes do not answer in time."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how wide a step runs. Nothing here can change a result, so nothing here is hashed."""

    root: str
    """Folder or URI that holds the artifacts."""
    data: str
    """Folder that holds the datasets."""
    address: str | None = None
    """Address of a Ray cluster; None starts one on this machine, for this process alone."""
    workers: int | None = 2
    """Worker processes of a step; 0 runs everything in this process, without Ray; None takes as many as the
    cluster holds."""
    gpus_per_worker: float | None = None
    """GPUs of a worker whose model may sit on one, such as 0.25 for four detectors a GPU; None is one where
    the cluster has any; 0 keeps the model on the CPU."""
    loader_processes: int = 0
    """Processes that read and encode examples for each training worker; 0 does it in a thread of the worker,
    which suffices where the model is the slow part."""
    force: bool = False
    """Delete the artifact of the step first, and make it anew."""
    tracking_uri: str | None = field(default=None, repr=False)
    """MLflow server; None for a database under the root. May hold a password, so it is never shown."""
    max_reject_fraction: float = 0.2
    """A step fails when more than this share of its rows is rejected. ours: a wrong folder or layout rejects
    nearly everything, real annotation files lose a few rows in a thousand."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ValueError(
                f"max_reject_fraction={self.max_reject_fraction} is no share: use 0 to 1"
            )
        if self.workers is not None and self.workers < 0:
            raise ValueError(
                f"workers={self.workers} is negative: use 0 (no Ray) or the number of processes"
            )
        if self.loader_processes < 0:
            raise ValueError(
                f"loader_processes={self.loader_processes} is negative: use 0 for a thread"
            )
        if self.gpus_per_worker is not None and not 0.0 <= self.gpus_per_worker < 1e3:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker}: use a share of a GPU, or 0 for none"
            )
        object.__setattr__(self, "root", absolute_root(self.root))
        object.__setattr__(self, "data", absolute_root(self.data))


def connect(runtime: RuntimeConfig) -> None:
    """Connect to ``runtime.address``, or start a local cluster; a second call does nothing.

    A local cluster is always a new one: bare ``ray.init()`` would attach to whichever cluster this host has
    recorded. It runs without token authentication, because it listens on loopback for this process only.
    """
    # Ray reads these once, at import, here and in its workers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if runtime.address is None:
        os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    if ray.is_initialized():
        return
    # One thread a worker: the pool is the parallelism, and sums do not depend on a thread count.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    options: dict[str, Any] = {
        "logging_level": "WARNING",
        # Workers' prints stay in Ray's log files: steps show their own progress, errors are raised here.
        "log_to_driver": False,
        "runtime_env": {"env_vars": {**threads, "DO_NOT_TRACK": "1"}},
    }
    if runtime.address is not None:
        ray.init(address=runtime.address, **options)
        return
    local: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(4, os.cpu_count() or 1),
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    for attempt in range(1, LOCAL_START_ATTEMPTS + 1):
        try:
            ray.init(**local, **options)
            return
        except Exception as error:  # Ray's own: its agents miss a fixed limit on a busy machine
            ray.shutdown()
            if attempt == LOCAL_START_ATTEMPTS or "timed out during startup" not in str(error):
                raise


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pool of workers: ``worker(**kwargs)`` is built once a process and called with a table of rows."""

    worker: Callable[..., Callable[[pa.Table], pa.Table]]
    """Makes what a process holds; a call must be safe to repeat."""
    kwargs: Mapping[str, Any]
    """Arguments of `worker`."""
    size: int
    """Processes of the pool."""
    num_cpus: float = 1.0
    """CPUs that each takes."""
    num_gpus: float = 0.0
    """GPUs that each takes."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Sizes of the pools of a step whose model may sit on a GPU."""

    workers: int
    """Processes that hold the model."""
    helpers: int
    """Processes that prepare its input on CPUs; 0 where the model is on a CPU too, and does so itself."""
    num_gpus: float
    """GPUs of a worker."""
    free_gpus: float
    """GPUs of the cluster that no worker takes."""


def pool_sizes(
    resources: Mapping[str, float], runtime: RuntimeConfig, *, with_helpers: bool = False
) -> Pools:
    """How a step is spread over a cluster with these resources ("CPU", "GPU"), one CPU left free.

    with_helpers: beside workers on GPUs there is at least one helper, and as many as there are CPUs left.
    A pool that takes every CPU leaves none for Ray Data's own tasks, and the run hangs in silence.
    Raises ValueError, with what would fit, when `runtime` asks for more than there is.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    share = runtime.gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    free = 2 if share and with_helpers else 1
    by_cpu = int(cpus - free)
    fits = max(0, min(by_cpu, int(gpus / share + 1e-9)) if share else by_cpu)
    size = fits if runtime.workers is None else runtime.workers
    if size > fits or fits == 0:
        each = "1 CPU" + (f" and {share:g} GPUs" if share else "")
        hint = f"use --workers {fits} or fewer" if fits else "use --workers 0 (runs without Ray)"
        if share and not gpus:
            hint = "use --gpus-per-worker 0"
        asked = "auto" if runtime.workers is None else size
        raise ValueError(
            f"workers={asked} at {each} each and {free} CPUs beside them do not fit: the cluster has "
            f"{cpus:g} CPUs and {gpus:g} GPUs; {hint}"
        )
    helpers = int(cpus - 1 - size) if share and with_helpers else 0
    return Pools(workers=size, helpers=helpers, num_gpus=share, free_gpus=gpus - share * size)


def cluster_resources(runtime: RuntimeConfig) -> dict[str, float]:
    """Resources of the cluster, after connecting to it."""
    connect(runtime)
    import ray

    return ray.cluster_resources()


def start_task(
    function: Callable[..., Any], *args: Any, num_gpus: float, max_retries: int
) -> Future[Any]:
    """Call a function in a process of the cluster, as soon as a CPU and `num_gpus` are free there.

    The process is connected already (`connect`). max_retries: times that the function is called again because
    its process or node was lost; an error of its own is the future's at once.
    """
    import ray

    task = ray.remote(function).options(num_cpus=1, num_gpus=num_gpus, max_retries=max_retries)
    return task.remote(*args).future()


def run_stages(
    stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]], *, runtime: RuntimeConfig
) -> Iterator[pa.Table]:
    """Send every row through the stages, one after the other; yield the tables that come out of the last.

    On Ray the stages work side by side on different rows, and the tables come in any order; a row whose
    process died is sent again. With ``runtime.workers=0`` all is done here, row by row. An error of a worker
    is raised here as it was raised there.
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
    """Apply ``worker(**constructor_kwargs)(bucket) -> ledger`` to every bucket; yield ledgers as they come.

    worker: a class, built once a process; a call must commit its bucket and be safe to repeat.
    Raises ValueError at once when the cluster cannot hold ``runtime.workers`` processes and one CPU beside
    them; an error of a worker is raised here as it was raised there.
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
    """A worker in a process of Ray. An error of its making is raised by its first call: where a constructor
    raises, Ray tells only that the process died."""

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


def _on_ray(stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    import ray.data
    import ray.exceptions

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the console; the log file keeps everything
            handler.setLevel(logging.CRITICAL)  # an error is raised below, with its cause
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
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
