"""Where the work runs: the settings of a step, the cluster, and how wide a step is spread over it.

With ``workers=0`` everything runs in this process and Ray is not even imported. How tasks are sent
through the workers is in `pipelines.worker_pools`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipelines.available_cpus import available_cpus
from pipelines.errors import SettingError
from pipelines.storage import absolute_root, is_uri

logger = logging.getLogger("pipelines")

OBJECT_STORE_BYTES = 512 * 1024**2
"""Size of a local cluster's object store.

Blocks hold ledgers, not images: Ray's default of 30 % of memory would be a waste.
"""
LEAST_LOCAL_CPUS = 4
"""CPUs that a local cluster counts with on a smaller machine, too.

They are places for processes, no measure of speed: with two workers, a helper and one CPU for Ray
Data's own tasks the defaults run everywhere, if not faster. ours
"""
LOCAL_START_ATTEMPTS = 3
"""Attempts at starting a local cluster, where Ray's own processes do not answer in time."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how wide a step runs; nothing here can change a result, so nothing is hashed."""

    root: str
    """Folder or URI that holds the artifacts."""
    data: str | None
    """Folder that holds the datasets; None where none is named."""
    address: str | None = None
    """Address of a Ray cluster; None starts one on this machine, for this process alone."""
    workers: int | None = 2
    """Worker processes of a step.

    0 runs everything in this process, without Ray; None takes as many as the cluster holds.
    """
    gpus_per_worker: float | None = None
    """GPUs of a worker whose model may sit on one, such as 0.25 for four detectors a GPU.

    None is one where the cluster has any; 0 keeps the model on the CPU.
    """
    loader_processes: int = 0
    """Processes that read and encode examples for each training worker.

    0 does it in a thread of the worker, which suffices where the model is the slow part.
    """
    force: bool = False
    """Delete the artifact of the step first, and make it anew."""
    tracking_uri: str | None = field(default=None, repr=False)
    """URI of the MLflow server; None for a database under the root.

    It may hold a password, so it is never shown.
    """
    max_reject_fraction: float = 0.2
    """Largest share of its rows that a step may reject; it fails beyond it.

    ours: a wrong folder or layout rejects nearly everything, real annotation files lose a few rows
    in a thousand.
    """

    @property
    def data_folder(self) -> str:
        """Return the local folder of the datasets.

        Raises:
            SettingError: None is named.
        """
        if self.data is None:
            raise SettingError(
                "data: no folder of datasets is named, and under a root in a store there is no "
                "usual one: say --data FOLDER"
            )
        return self.data

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", absolute_root(self.root))
        if self.data is not None:
            object.__setattr__(self, "data", absolute_root(self.data, "data"))
        if self.data is not None and is_uri(self.data):
            raise SettingError(
                f"data={self.data!r}: builders read local files; mount the store, or copy what "
                "they need, and name the folder"
            )
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise SettingError(
                f"max_reject_fraction={self.max_reject_fraction} is no share: use 0 to 1"
            )
        if self.workers is not None and self.workers < 0:
            raise SettingError(
                f"workers={self.workers} is negative: use 0 (no Ray) or the number of processes"
            )
        if self.loader_processes < 0:
            raise SettingError(
                f"loader_processes={self.loader_processes} is negative: use 0 for a thread"
            )
        if self.gpus_per_worker is not None and not 0.0 <= self.gpus_per_worker < 1e3:
            raise SettingError(
                f"gpus_per_worker={self.gpus_per_worker}: use a share of a GPU, or 0 for none"
            )


def connect(runtime: RuntimeConfig) -> None:
    """Connect to ``runtime.address``, or start a local cluster; a second call does nothing.

    A local cluster is always a new one: bare ``ray.init()`` would attach to whichever cluster this
    host has recorded. It runs without token authentication, because it listens on loopback for this
    process only.
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
        # Workers' prints stay in Ray's log files: steps show their own progress, errors are raised.
        "log_to_driver": False,
        "runtime_env": {"env_vars": {**threads, "DO_NOT_TRACK": "1"}},
    }
    if runtime.address is not None:
        ray.init(address=runtime.address, **options)
        return
    local: dict[str, Any] = {
        "address": "local",
        # Counted by us, because Ray's own count knows no least number.
        "num_cpus": max(LEAST_LOCAL_CPUS, available_cpus()),
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
            logger.warning("Ray did not start in time (attempt %d); trying again", attempt)


def cluster_resources(runtime: RuntimeConfig) -> dict[str, float]:
    """Return the resources of the cluster, by name, after connecting to it."""
    connect(runtime)
    import ray

    return ray.cluster_resources()


def start_task(
    function: Callable[..., Any], *args: Any, num_gpus: float, max_retries: int
) -> Future[Any]:
    """Call a function in a process of the cluster, as soon as there is room for it.

    The process is connected to the cluster already (`connect`).

    Args:
        function: What is called.
        *args: Its arguments.
        num_gpus: GPUs that it takes, beside one CPU.
        max_retries: Times that the function is called again because its process or node was lost;
            an error of its own is the future's at once.
    """
    import ray

    task = ray.remote(function).options(num_cpus=1, num_gpus=num_gpus, max_retries=max_retries)
    return task.remote(*args).future()


@dataclass(frozen=True, kw_only=True)
class Pools:
    """Sizes of the pools of a step whose model may sit on a GPU."""

    workers: int
    """Processes that hold the model."""
    helpers: int
    """Processes that prepare its input on CPUs.

    0 where the model is on a CPU too: its worker does so itself.
    """
    num_gpus: float
    """GPUs of a worker."""
    free_gpus: float
    """GPUs of the cluster that no worker takes."""


def pool_sizes(
    resources: Mapping[str, float], runtime: RuntimeConfig, *, with_helpers: bool = False
) -> Pools:
    """Return how a step is spread over a cluster, one CPU left free.

    Args:
        resources: ``CPU`` and ``GPU`` of the cluster, as Ray reports them.
        runtime: Workers and GPUs that are asked for.
        with_helpers: Beside workers on GPUs there is at least one helper, and as many as there are
            CPUs left.

    Raises:
        SettingError: `runtime` asks for more than there is; the message says what would fit.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    share = runtime.gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    # A pool that takes every CPU leaves none for Ray Data's own tasks: the run hangs in silence.
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
        raise SettingError(
            f"workers={asked} at {each} each and {free} CPUs beside them do not fit: the cluster "
            f"has {cpus:g} CPUs and {gpus:g} GPUs; {hint}"
        )
    helpers = int(cpus - 1 - size) if share and with_helpers else 0
    return Pools(workers=size, helpers=helpers, num_gpus=share, free_gpus=gpus - share * size)
