"""A run on Ray: its workers as Ray Train starts them, and how they and the driver hear each other.

Reports go from rank 0 through Ray Train's controller into a file on the driver's machine
(`RunMonitor.report_file`). A stop goes the other way as a file in the run's artifact, which workers
on any machine can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.cluster import Pools, RuntimeConfig
from pipelines.fingerprints import json_bytes
from pipelines.training.job import TrainJob
from pipelines.training.run_monitor import RunMonitor
from pipelines.training.worker import Notice, checkpoint_name, committed_here, newest

STOP_FILE = "stop.json"
"""File of a run with the id of the driver that told the workers to stop."""


def run_on_ray(
    job: TrainJob,
    output: Artifact,
    runtime: RuntimeConfig,
    pools: Pools,
    monitor: RunMonitor,
    *,
    stop: threading.Event,
    max_failures: int,
) -> None:
    """Train on Ray workers, and take their reports in this process.

    Args:
        job: What is trained.
        output: The run's artifact.
        runtime: Where it runs.
        pools: The workers.
        monitor: Takes the reports.
        stop: Set from outside to have the workers checkpoint and end.
        max_failures: Restarts from the last checkpoint before the run fails.
    """
    # Ray Train hands these on to its controller and workers. The controller looks this often for
    # reports and commits; its own interval of 2 s would be waited for at each checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if runtime.address is None:
        # One machine: nothing announces its preemption, nothing scrapes its metrics.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    use_gpu = pools.num_gpus > 0
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    channel = _Channel(driver=uuid.uuid4().hex, on_cluster=runtime.address is not None)
    told = json_bytes({"driver": channel.driver})
    with monitor.report_file(stop, lambda: output.write_bytes(STOP_FILE, told)) as reports:
        TorchTrainer(
            lambda: _run_ray_worker(job, output, channel, runtime.loader_processes),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=pools.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                # Ray Train resumes by the name; the fingerprint keeps an edited job from doing so.
                name=f"{output.name.replace('/', '-')}-{output.fingerprint}",
                storage_path=output.uri("train"),
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=job.config.keep_last),
                callbacks=[_relay(reports)],
            ),
        ).fit()


@dataclass(frozen=True, kw_only=True)
class _Channel:
    """How the workers hear of the outside."""

    driver: str
    """Id of this start of the driver: only its own stop file counts."""
    on_cluster: bool
    """Whether machines may be taken away with a notice."""


def _run_ray_worker(
    job: TrainJob, output: Artifact, channel: _Channel, loader_processes: int
) -> None:
    """Train on one rank, in the worker process in which Ray Train calls this."""
    from pipelines.training.loop import run_worker

    run_worker(job, output, _RayWorker(output, channel), loader_processes=loader_processes)


class _RayWorker:
    """One rank of a Ray Train run; files are uploaded while the run goes on."""

    def __init__(self, output: Artifact, channel: _Channel) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._output, self._channel = output, channel
        self._saved_for: Any = None

    @contextlib.contextmanager
    def restored(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        own = None if checkpoint is None else Path(checkpoint.path)
        local = committed_here(self._output)
        if checkpoint is None or newest([own, local]) == local:
            yield local
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        import ray.train

        # Reports go out in order: one that waits for its turn here would wait for the upload
        # before it.
        mode = ray.train.CheckpointUploadMode.ASYNC
        if checkpoint is None:
            ray.train.report(report, checkpoint_upload_mode=mode)
            return
        self.settle()
        ray.train.report(
            report,
            checkpoint=ray.train.Checkpoint.from_directory(checkpoint),
            checkpoint_dir_name=checkpoint_name(report["step"]),
            checkpoint_upload_mode=mode,
            delete_local_checkpoint_after_upload=True,
        )

    def settle(self) -> None:
        import ray.train

        # A report is no commit: a worker lost before the controller's next look would lose it.
        ray.train.get_all_reported_checkpoints(
            consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED
        )

    def noticed(self) -> bool:
        # A look costs a request to the storage, so it waits for the next report.
        return False

    def notice(self) -> Notice:
        import ray.train

        # All ranks ask, as they must; one look at the stop file is enough.
        preemption = ray.train.get_preemption_info() if self._channel.on_cluster else None
        if self.rank == 0 and self._told_to_stop():
            return Notice.STOP
        if preemption is None or preemption == self._saved_for:
            return Notice.NONE
        self._saved_for = preemption
        return Notice.SAVE

    def _told_to_stop(self) -> bool:
        if not self._output.exists(STOP_FILE):
            return False
        return bool(
            json.loads(self._output.read_bytes(STOP_FILE))["driver"] == self._channel.driver
        )


def _relay(reports: Path) -> Any:
    """Return a callback that appends rank 0's reports to a file.

    Ray Train runs it on the driver's machine.
    """
    from ray.train import UserCallback

    class Relay(UserCallback):
        def after_report(
            self,
            run_context: Any,  # noqa: ARG002
            metrics: list[Any],
            checkpoint: Any,
        ) -> None:
            with reports.open("a", encoding="utf-8") as stream:
                committed = {} if checkpoint is None else {"checkpoint": checkpoint.path}
                stream.write(json.dumps({**metrics[0], **committed}) + "\n")

    return Relay()
