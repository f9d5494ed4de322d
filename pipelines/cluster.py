"""Where the work runs: one cluster connection and one way to apply a worker to buckets.

With ``workers=0`` everything runs in this process and Ray is not even imported. Otherwise buckets are rows
of a Ray Data set, one row a block, and a fixed pool of actors works through them. A worker commits its own
bucket, so the rows that come back are only ledgers, and a bucket that runs twice (an actor died, a node was
lost) gives the same files again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.artifacts import absolute_root
from pipelines.progress import Progress

NO_PROGRESS_TIMEOUT_S = 900
"""A run without progress for so long fails. A bucket takes seconds to minutes; Ray's default is 30 min."""
OBJECT_STORE_BYTES = 512 * 1024**2
"""Of a local cluster. Blocks hold ledgers, not images: Ray's default of 30 % of memory would be a waste."""

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
    workers: int = 2
    """Worker processes of a step; 0 runs everything in this process, without Ray."""
    force: bool = False
    """Delete the artifact of the step first, and make it anew."""
    tracking_uri: str | None = field(default=None, repr=False)
    """MLflow server; None for a database under the root. May hold a password, so it is never shown."""
    max_reject_fraction: float = 0.2
    """A step fails when more than this share of its rows is rejected. ours: a wrong folder or layout rejects
    nearly everything, real annotation files lose a few rows in a thousand."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ValueError(f"max_reject_fraction={self.max_reject_fraction} is no share: use 0 to 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} is negative: use 0 (no Ray) or the number of processes")
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


def map_buckets(
    worker: Callable[..., Callable[[int], Mapping[str, Any]]],
    constructor_kwargs: Mapping[str, Any],
    buckets: Sequence[int],
    *,
    runtime: RuntimeConfig,
    description: str,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Apply ``worker(**constructor_kwargs)(bucket) -> ledger`` to every bucket; yield ledgers as they come.

    worker: a class, built once a process; a call must commit its bucket and be safe to repeat.
    num_cpus, num_gpus: what a worker process takes of the cluster; the pool has ``runtime.workers``.
    Raises ValueError at once when the cluster cannot hold that pool and one CPU beside it; an error of a
    worker is raised here as it was raised there.
    """
    if not buckets:
        return iter(())
    if runtime.workers == 0:
        return _with_progress(_inline(worker, constructor_kwargs, buckets), len(buckets), description)
    connect(runtime)
    size = min(runtime.workers, len(buckets))
    check_pool(size, num_cpus=num_cpus, num_gpus=num_gpus)
    ledgers = _on_ray(worker, constructor_kwargs, buckets, size, num_cpus, num_gpus)
    return _with_progress(ledgers, len(buckets), description)


def check_pool(size: int, *, num_cpus: float, num_gpus: float = 0.0) -> None:
    """Raise ValueError when the connected cluster cannot hold `size` workers and keep one CPU free.

    A pool that takes every CPU leaves none for Ray Data's own tasks, and the run hangs in silence.
    """
    import ray

    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if size * num_cpus > cpus - 1:
        fits = int(max(0.0, cpus - 1) / num_cpus)
        raise ValueError(
            f"workers={size} at {num_cpus:g} CPUs each needs {size * num_cpus + 1:g} CPUs, and the cluster "
            f"has {cpus:g}: use --workers {fits}" + (" (runs without Ray)" if fits == 0 else " or fewer")
        )
    if size * num_gpus > gpus:
        raise ValueError(
            f"workers={size} at {num_gpus:g} GPUs each needs {size * num_gpus:g} GPUs, and the cluster has "
            f"{gpus:g}: use fewer workers or a smaller share of a GPU"
        )


class _RowWorker:
    """Adapter between Ray Data's batches of one row and a worker of one bucket."""

    def __init__(self, worker: Callable[..., Callable[[int], Mapping[str, Any]]], kwargs: Mapping[str, Any]):
        self._worker = worker(**kwargs)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        bucket = int(batch["bucket"][0])
        # JSON text keeps a row a plain string, whatever counters a step has.
        return {"ledger": [json.dumps({**self._worker(bucket), "bucket": bucket})]}


def _inline(
    worker: Callable[..., Callable[[int], Mapping[str, Any]]],
    kwargs: Mapping[str, Any],
    buckets: Sequence[int],
) -> Iterator[dict[str, Any]]:
    instance = worker(**kwargs)
    for bucket in buckets:
        yield {**instance(bucket), "bucket": bucket}


def _on_ray(
    worker: Callable[..., Callable[[int], Mapping[str, Any]]],
    kwargs: Mapping[str, Any],
    buckets: Sequence[int],
    size: int,
    num_cpus: float,
    num_gpus: float,
) -> Iterator[dict[str, Any]]:
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
    rows = ray.data.from_items([{"bucket": bucket} for bucket in buckets], override_num_blocks=len(buckets))
    ledgers = rows.map_batches(
        _RowWorker,
        fn_constructor_args=(worker, dict(kwargs)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    try:
        for row in ledgers.iter_rows():
            yield json.loads(row["ledger"])
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
