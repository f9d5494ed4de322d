"""Training: the driver that starts the workers of a job, follows and finishes it, on Ray or without.

A run is an artifact of kind ``runs``::

    train/            checkpoints (`pipelines.training.worker`)
    mlflow_run.json   id of the run in MLflow
    stop.json         the driver that told the workers to stop, if one did
    candidates/       model folders to be judged, while the run goes on (`pipelines.training.candidates`)
    validation.json   figures of the candidates
    export/           the model folder
    outcome.json      step that was exported, steps that were skipped
    history.json      one record for each logged step
    speed.json        how fast it was, a record for each report; differs from run to run
    manifest.json     written last, with the final figures

Whatever is killed, starting the job again resumes from the last committed checkpoint and ends in the same
weights: the order of examples is a function of the step, random numbers are seeded by the step, and the
checkpoint holds everything else. With another number of workers the run goes on with the samples that are
left; sums over ranks then differ in their last bits. On SIGTERM the driver lets the workers finish their
step and checkpoint, and ends with `STOPPED`. Ray is imported where it is used, so that recipes can be read
without it.

Candidates are judged by plain tasks of the driver (`pipelines.training.validation`) and not by Ray Train's own: those
are given checkpoints, which hold an optimizer's shards and no model, and one that fails leaves neither
figures nor an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.artifacts import Artifact
from pipelines.cluster import Pools, RuntimeConfig, cluster_resources, pool_sizes
from pipelines.fingerprints import json_bytes
from pipelines.loading.loader import make_plan, open_sources
from pipelines.loading.sample_plan import SamplePlan
from pipelines.train_config import TrainConfig
from pipelines.training.candidates import Candidates
from pipelines.training.export import OUTCOME, write_start
from pipelines.training.job import SPEED_FILE, VERSION, TrainJob
from pipelines.training.lineage import code_state, upstream
from pipelines.training.run_monitor import Follower
from pipelines.training.validation import check_tasks, make_validator
from pipelines.training.worker import (
    LocalWorker,
    Notice,
    checkpoint_name,
    committed_here,
    newest,
    stop_on_sigterm,
)

__all__ = ["TrainConfig", "TrainJob", "train"]

EXPERIMENT = "fo1"
"""MLflow experiment of all runs."""
MAX_FAILURES = 3
"""Times that a run is restarted from its last checkpoint before it fails."""
STOPPED = 143
"""Exit status of a run that was told to stop and has a checkpoint: that of a process ended by SIGTERM."""
STOP_FILE = "stop.json"


def train(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> dict[str, Any]:
    """Run a job to its end and return the manifest of `output`; a finished run is left as it is.

    With ``runtime.force`` what is there is removed and the run starts anew, as another MLflow run. With
    ``runtime.workers=0`` the loop runs in this process, without Ray.

    ValueError, before any worker starts, for settings that cannot work. FloatingPointError when more steps
    than allowed had no finite loss. SystemExit with status `STOPPED` after SIGTERM.
    """
    if output.status() == "done" and not runtime.force:
        Candidates(output).clear()  # of a driver that ended between the manifest and this
        return output.manifest()
    plan = _check(job, output, runtime)
    pools = _pools(job, runtime)
    if runtime.force:
        output.delete()
    from pipelines.training.mlflow_tracking import Tracker

    tracker = Tracker(
        output,
        uri=job.tracking_uri,
        experiment=EXPERIMENT,
        params=job.description(),
        inputs=job.inputs(),
        tags=_provenance(job),
    )
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with stop_on_sigterm() as stop:
            validator = make_validator(
                job, output, pools, max_retries=MAX_FAILURES, log=tracker.log_at, stop=stop
            )
            follower = Follower(job, tracker, validator.receive if validator else None)
            if job.config.steps == 0:
                write_start(job, output)
            elif pools is None:
                _run_here(job, output, runtime, follower, stop)
            else:
                _run_on_ray(job, output, runtime, pools, follower, stop)
            validated = validator is None or validator.finish()
        if follower.stopped_at is not None or not validated:
            status = "KILLED"
            step = job.config.steps if follower.stopped_at is None else follower.stopped_at
            print(
                f"train {job.name}: told to stop; a checkpoint at step {step} is written, the same "
                "command goes on from there",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(STOPPED)
        history = json.loads(output.read_bytes("history.json"))
        tracker.log(history)
        exported = validator.publish() if validator else job.config.steps
        tracker.link("export", output.uri("export"))
        output.write_bytes(SPEED_FILE, json_bytes(tracker.speed()))
        metrics = {
            **(history[-1] if history else {}),
            **(validator.last_figures() if validator else {}),
        }
        manifest = _finish(job, output, plan, exported, metrics)
        status = "FINISHED"
        return manifest
    finally:
        tracker.finish(status)


def _finish(
    job: TrainJob,
    output: Artifact,
    plan: SamplePlan | None,
    exported: int,
    metrics: Mapping[str, float | None],
) -> dict[str, Any]:
    """Write the outcome and the manifest of a run whose export is there. exported: its step."""
    outcome = json.loads(output.read_bytes(OUTCOME))
    output.write_bytes(OUTCOME, json_bytes({**outcome, "exported_step": exported}))
    examples = job.config.steps * job.config.batch_size
    skipped = len(outcome["skipped_steps"])
    manifest = output.commit(
        {
            "version": VERSION,
            "config": job.description(),
            "inputs": job.inputs(),
            "ledger": {"steps": job.config.steps, "examples": examples, "skipped_steps": skipped},
            "exported_step": exported,
            "sources": _sources(plan, examples) if plan else {},
            "metrics": dict(metrics),
        }
    )
    Candidates(output).clear()
    return manifest


def _sources(plan: SamplePlan, examples: int) -> dict[str, dict[str, float]]:
    """Share of each source, and what a run of so many examples takes of it: `Consumed`."""
    shares, taken = plan.shares, plan.consumed(examples)
    return {name: {"share": float(shares[name]), **asdict(each)} for name, each in taken.items()}


def _provenance(job: TrainJob) -> dict[str, str]:
    """Tags that say what a run was made from, beyond its direct inputs."""
    lineage = {
        f"lineage.{name}": fingerprint for name, fingerprint in upstream(job.artifacts()).items()
    }
    return lineage | {f"code.{name}": value for name, value in code_state().items()}


def _pools(job: TrainJob, runtime: RuntimeConfig) -> Pools | None:
    """Where the workers go on Ray; None without it. ValueError for a number that does not fit."""
    if runtime.workers == 0 or job.config.steps == 0:
        return None
    if runtime.gpus_per_worker is not None:  # a rank has a whole GPU, or none
        runtime = replace(runtime, gpus_per_worker=float(runtime.gpus_per_worker > 0))
    pools = pool_sizes(cluster_resources(runtime), runtime)
    _check_width(job, pools.workers)
    return pools


def _check_width(job: TrainJob, workers: int) -> None:
    if job.config.batch_size < workers:
        raise ValueError(
            f"batch_size={job.config.batch_size} is less than the {workers} workers: raise it or use fewer"
        )


def _check(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> SamplePlan | None:
    """The plan of the run, where it takes a step. ValueError for what cannot work on any cluster."""
    if job.config.steps:
        _check_width(job, runtime.workers or 1)
    for artifact in job.artifacts():
        if artifact.status() != "done":
            verb = {"runs": "train", "samples": "build"}.get(artifact.kind, "shard")
            raise ValueError(
                f"{artifact.kind}/{artifact.name} is {artifact.status()}: make it first, with fo1 {verb}"
            )
    if job.weights:
        job.learner.check_weights(job.weight_paths)
    if runtime.workers == 0 and "://" in output.root:
        raise ValueError(
            f"root={output.root!r} needs workers: training without Ray writes to local folders"
        )
    check_tasks(job)
    if not job.config.steps:
        return None
    return make_plan(open_sources(job.shards, job.mix), job.mix, job.config)


def _run_here(
    job: TrainJob,
    output: Artifact,
    runtime: RuntimeConfig,
    follower: Follower,
    stop: threading.Event,
) -> None:
    """Train in this process, as the only rank."""
    import torch.distributed as dist

    from pipelines.training.loop import run_worker

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    if not dist.is_initialized():  # left for the next run: DeepSpeed keeps a handle to it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    worker = LocalWorker(output, follower.receive, keep_last=job.config.keep_last, stop=stop)
    run_worker(job, output, worker, loader_processes=runtime.loader_processes)


def _run_on_ray(
    job: TrainJob,
    output: Artifact,
    runtime: RuntimeConfig,
    pools: Pools,
    follower: Follower,
    stop: threading.Event,
) -> None:
    """Train on Ray workers, and follow their reports from this process."""
    # Ray Train hands these on to its controller and workers. The controller looks this often for reports and
    # commits; its own interval of 2 s would be waited for at each checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if (
        runtime.address is None
    ):  # one machine: nothing announces its preemption, nothing scrapes its metrics
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    use_gpu = pools.num_gpus > 0
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    channel = _Channel(driver=uuid.uuid4().hex, on_cluster=runtime.address is not None)
    told = json_bytes({"driver": channel.driver})
    with follower.file(stop, lambda: output.write_bytes(STOP_FILE, told)) as reports:
        TorchTrainer(
            lambda: _run_ray_worker(job, output, channel, runtime.loader_processes),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=pools.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                # The name is what Ray Train resumes by; the fingerprint keeps an edited job from doing so.
                name=f"{output.name.replace('/', '-')}-{output.fingerprint}",
                storage_path=output.uri("train"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
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
    """What Ray Train calls in each worker process."""
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

        # Reports go out in order: one that waits for its turn here would wait for the upload before it.
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
    """Callback that appends rank 0's reports to a file; Ray Train runs it on the driver's machine."""
    from ray.train import UserCallback

    class Relay(UserCallback):
        def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:  # noqa: ARG002
            with reports.open("a", encoding="utf-8") as stream:
                committed = {} if checkpoint is None else {"checkpoint": checkpoint.path}
                stream.write(json.dumps({**metrics[0], **committed}) + "\n")

    return Relay()
