"""Training: the driver that starts the workers of a job, follows and finishes it, on Ray or without.

A run is an artifact of kind ``runs``::

    train/            checkpoints, in Ray Train's storage layout (``train/local`` without Ray)
    workers.json      number of workers that the checkpoints belong to
    mlflow_run.json   id of the run in MLflow
    history.json      one record for each logged step
    export/           the model folder
    manifest.json     written last, with the final figures

Whatever is killed, starting the job again resumes from the last committed checkpoint and ends in the same
weights: the order of examples is a function of the step, random numbers are seeded by the step, and the
checkpoint holds everything else. Ray is imported where it is used, so that recipes can be read without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipelines.artifacts import Artifact, json_bytes
from pipelines.cluster import RuntimeConfig, cluster_resources, pool_sizes
from pipelines.loader import held_out_sources, make_plan, open_sources
from pipelines.progress import duration
from pipelines.train_job import VERSION, TrainConfig, TrainJob

__all__ = ["TrainConfig", "TrainJob", "train"]

EXPERIMENT = "fo1"
"""MLflow experiment of all runs."""
MAX_FAILURES = 3
"""Times that a run is restarted from its last checkpoint before it fails."""
_FOLLOW_EVERY_S = 0.2


def train(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> dict[str, Any]:
    """Run a job to its end and return the manifest of `output`; a finished run is left as it is.

    With ``runtime.force`` what is there is removed and the run starts anew, as another MLflow run. With
    ``runtime.workers=0`` the loop runs in this process, without Ray. ValueError, before any worker starts,
    for settings that cannot work.
    """
    if output.status() == "done" and not runtime.force:
        return output.manifest()
    if runtime.gpus_per_worker is not None:  # a rank has a whole GPU, or none
        runtime = replace(runtime, gpus_per_worker=float(runtime.gpus_per_worker > 0))
    if runtime.workers is None:
        runtime = replace(runtime, workers=pool_sizes(cluster_resources(runtime), runtime).workers)
    _check(job, output, runtime)
    if runtime.force:
        output.delete()
    output.write_bytes("workers.json", json_bytes({"workers": runtime.workers}))
    from pipelines.tracking import Tracker

    tracker = Tracker(
        output,
        uri=job.tracking_uri,
        experiment=EXPERIMENT,
        params=job.description(),
        inputs=job.inputs(),
    )
    follower = _Follower(job, tracker.log)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        if runtime.workers == 0:
            _run_here(job, output, follower)
        else:
            _run_on_ray(job, output, runtime, follower)
        history = json.loads(output.read_bytes("history.json"))
        tracker.log(history)
        status = "FINISHED"
    finally:
        tracker.finish(status)
    examples = job.config.steps * job.config.batch_size
    return output.commit(
        {
            "version": VERSION,
            "config": job.description(),
            "inputs": job.inputs(),
            "ledger": {"steps": job.config.steps, "examples": examples},
            "metrics": history[-1],
        }
    )


def _check(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> None:
    world_size = max(1, runtime.workers or 0)
    if job.config.batch_size < world_size:
        raise ValueError(
            f"batch_size={job.config.batch_size} is less than the {world_size} workers: raise it or use fewer"
        )
    needed = [job.shards[name] for name in sorted({source.split("/")[0] for source in job.mix})]
    for artifact in [*needed, *job.validation.values(), *([job.parent] if job.parent else [])]:
        if artifact.status() != "done":
            raise ValueError(f"{artifact.kind}/{artifact.name} is {artifact.status()}: make it first")
    if runtime.workers == 0 and "://" in output.root:
        raise ValueError(f"root={output.root!r} needs workers: training without Ray writes to local folders")
    make_plan(open_sources(job.shards, job.mix), job.mix, job.config)
    held_out_sources(job.validation)
    if output.exists("workers.json") and not runtime.force:
        before = json.loads(output.read_bytes("workers.json"))["workers"]
        if before != runtime.workers:
            raise ValueError(
                f"runs/{output.name} was started with {before} workers and cannot go on with "
                f"{runtime.workers}: use --workers {before}, or --force to start anew"
            )


def _run_here(job: TrainJob, output: Artifact, follower: _Follower) -> None:
    """Train in this process, as the only rank."""
    import torch.distributed as dist

    from pipelines.loop import run_worker

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    if not dist.is_initialized():  # left for the next run: DeepSpeed keeps a handle to it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    run_worker(job, output, _LocalWorker(output, follower.receive))


class _LocalWorker:
    """The only rank of a run without Ray: checkpoints are folders, renamed when they are complete."""

    rank = 0
    world_size = 1

    def __init__(self, output: Artifact, receive: Callable[[dict[str, Any]], None]) -> None:
        self._folder = Path(output.path, "train", "local")
        self._receive = receive

    @contextlib.contextmanager
    def restored(self) -> Iterator[Path | None]:
        committed = sorted(self._folder.glob("checkpoint_*"))
        yield committed[-1] if committed else None

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        if checkpoint is not None:
            before = list(self._folder.glob("*"))
            arriving = self._folder / f"arriving_{report['step']:09d}"
            shutil.rmtree(arriving, ignore_errors=True)
            shutil.copytree(checkpoint, arriving)
            arriving.rename(self._folder / f"checkpoint_{report['step']:09d}")
            for folder in before:
                shutil.rmtree(folder, ignore_errors=True)
        self._receive(report)


def _run_on_ray(job: TrainJob, output: Artifact, runtime: RuntimeConfig, follower: _Follower) -> None:
    """Train on Ray workers, and follow their reports from this process."""
    # Ray Train hands these on to its controller and workers. The controller looks this often for reports and
    # commits; its own interval of 2 s would be waited for at each checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if runtime.address is None:  # one machine: nothing announces its preemption, nothing scrapes its metrics
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    pools = pool_sizes(cluster_resources(runtime), runtime)
    use_gpu = pools.num_gpus > 0
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with follower.file() as reports:
        TorchTrainer(
            lambda: _run_ray_worker(job, output),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=pools.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                # The name is what Ray Train resumes by; the fingerprint keeps an edited job from doing so.
                name=f"{output.name.replace('/', '-')}-{output.fingerprint}",
                storage_path=output.uri("train"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[_relay(reports)],
            ),
        ).fit()


def _run_ray_worker(job: TrainJob, output: Artifact) -> None:
    """What Ray Train calls in each worker process."""
    from pipelines.loop import run_worker

    run_worker(job, output, _RayWorker())


class _RayWorker:
    """One rank of a Ray Train run."""

    def __init__(self) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()

    @contextlib.contextmanager
    def restored(self) -> Iterator[Path | None]:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        import ray.train

        if checkpoint is None:
            ray.train.report(report)
            return
        ray.train.report(
            report,
            checkpoint=ray.train.Checkpoint.from_directory(checkpoint),
            checkpoint_dir_name=f"checkpoint_{report['step']:09d}",
        )
        # A report is no commit: a worker lost before the controller's next look would lose it.
        ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)


def _relay(reports: Path) -> Any:
    """Callback that appends rank 0's reports to a file; Ray Train runs it on the driver's machine."""
    from ray.train import UserCallback

    class Relay(UserCallback):
        def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:  # noqa: ARG002
            with reports.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(metrics[0]) + "\n")

    return Relay()


class _Follower:
    """Takes the reports of a run on the driver: prints a line, hands the records on."""

    def __init__(self, job: TrainJob, log: Callable[[list[dict[str, float]]], None]) -> None:
        self._job, self._log = job, log
        self._record: dict[str, float] = {}

    def receive(self, report: dict[str, Any]) -> None:
        """Handle one report."""
        self._log(report["records"])
        self._record = (report["records"] or [self._record])[-1]
        step, steps, rate = report["step"], self._job.config.steps, report["rate"]
        if not rate:
            return
        loss, lr = self._record.get("loss", math.nan), self._job.config.schedule(step - 1)
        left = duration((steps - step) * self._job.config.batch_size / rate)
        print(
            f"train {self._job.name}: step {step}/{steps}, loss {loss:.4f}, "
            f"lr {lr * self._job.config.learning_rate:.2e}, {rate:.1f} samples/s, "
            f"data wait {report['wait']:.0%}, {left} left",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """A file whose lines are received, in a thread of its own, until the end of the block."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reports.jsonl")
            path.touch()
            ended = threading.Event()
            failures: list[BaseException] = []
            thread = threading.Thread(target=self._follow, args=(path, ended, failures), daemon=True)
            thread.start()
            try:
                yield path
            finally:
                ended.set()
                thread.join()
            if failures:
                raise failures[0]

    def _follow(self, path: Path, ended: threading.Event, failures: list[BaseException]) -> None:
        try:
            with path.open(encoding="utf-8") as stream:
                text = ""
                while True:
                    is_last = ended.wait(_FOLLOW_EVERY_S)
                    text += stream.read()
                    *lines, text = text.split("\n")
                    for line in lines:
                        self.receive(json.loads(line))
                    if is_last:
                        return
        except Exception as error:  # raised again by the driver, when the workers are done
            failures.append(error)
