"""Training: the driver that starts a job's workers, follows and finishes it, on Ray or without.

A run is an artifact of kind ``runs``::

    train/            checkpoints (`pipelines.training.worker`)
    mlflow_run.json   id of the run in MLflow
    stop.json         the driver that told the workers to stop, if one did
    candidates/       model folders to be evaluated, while the run goes on
                      (`pipelines.training.candidates`)
    validation.json   metrics of the candidates
    export/           the model folder
    outcome.json      step that was exported, steps that were skipped
    history.json      one record for each logged step
    speed.json        how fast it was, a record for each report; differs from run to run
    manifest.json     written last, with the final metrics

Whatever is killed, starting the job again resumes from the last committed checkpoint and ends in
the same weights: the order of examples is a function of the step, random numbers are seeded by the
step, and the checkpoint holds everything else. With another number of workers the run goes on with
the samples that are left; sums over ranks then differ in their last bits. On SIGTERM the driver
lets the workers finish their step and checkpoint, and ends with `STOPPED`. Ray is imported where it
is used, so that recipes can be read without it.

Candidates are evaluated by plain tasks of the driver (`pipelines.training.validation`) and not by
Ray Train's own: those are given checkpoints, which hold an optimizer's shards and no model, and one
that fails leaves neither metrics nor an error.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.cluster import Pools, RuntimeConfig, cluster_resources, pool_sizes
from pipelines.errors import SettingError
from pipelines.fingerprints import json_bytes
from pipelines.loading.loader import make_plan, open_sources
from pipelines.loading.sample_plan import SamplePlan
from pipelines.storage import is_uri
from pipelines.train_config import TrainConfig
from pipelines.training.candidates import Candidates
from pipelines.training.export import OUTCOME, write_start
from pipelines.training.job import SPEED_FILE, VERSION, TrainJob
from pipelines.training.lineage import code_state, upstream
from pipelines.training.ray_workers import run_on_ray
from pipelines.training.run_monitor import RunMonitor
from pipelines.training.tracking_queue import Status, TrackingQueue
from pipelines.training.validation import Validator, check_tasks, make_validator
from pipelines.training.worker import LocalWorker, stop_on_sigterm

__all__ = ["TrainConfig", "TrainJob", "train"]

EXPERIMENT = "fo1"
"""MLflow experiment of all runs."""
MAX_FAILURES = 3
"""Times that a run is restarted from its last checkpoint before it fails."""
STOPPED = 143
"""Exit status of a run that was told to stop and has a checkpoint: that of an end by SIGTERM."""
logger = logging.getLogger("pipelines")


def train(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> dict[str, Any]:
    """Run a job to its end; a finished run is left as it is.

    Args:
        job: What is trained.
        output: Where: ``job.artifact(root)``.
        runtime: With ``force`` what is there is removed and the run starts anew, as another MLflow
            run. With ``workers=0`` the loop runs in this process, without Ray.

    Returns:
        The manifest of `output`.

    Raises:
        SettingError: Before any worker starts, for settings that cannot work.
        FloatingPointError: More steps than allowed had no finite loss.
        SystemExit: With status `STOPPED` after SIGTERM.
    """
    if output.status() == "done" and not runtime.force:
        Candidates(output).clear()  # of a driver that ended between the manifest and this
        return output.manifest()
    plan = _check(job, output, runtime)
    pools = _pools(job, runtime)
    # Only now: a setting that is refused removes no run.
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
    # From here on nothing waits for the tracking server, and none of its errors ends the run.
    tracking = TrackingQueue(tracker, job.name)
    status: Status = "FAILED"  # until the run proves otherwise
    try:
        with stop_on_sigterm() as stop:
            validator = make_validator(
                job, output, pools, max_retries=MAX_FAILURES, log=tracking.log_at, stop=stop
            )
            monitor = RunMonitor(job, tracking, validator.receive if validator else None)
            if job.config.steps == 0:
                write_start(job, output)
            elif pools is None:
                _run_here(job, output, runtime, monitor, stop)
            else:
                run_on_ray(
                    job, output, runtime, pools, monitor, stop=stop, max_failures=MAX_FAILURES
                )
            validated = validator is None or validator.finish()
        if monitor.stopped_at is not None or not validated:
            status = "KILLED"
            step = job.config.steps if monitor.stopped_at is None else monitor.stopped_at
            logger.warning(
                "train %s: told to stop; a checkpoint at step %d is written, the same command goes "
                "on from there",
                job.name,
                step,
            )
            raise SystemExit(STOPPED)
        manifest = _finish(job, output, plan, validator, tracking)
        status = "FINISHED"
        return manifest
    finally:
        tracking.finish(status)


def _finish(
    job: TrainJob,
    output: Artifact,
    plan: SamplePlan | None,
    validator: Validator | None,
    tracking: TrackingQueue,
) -> dict[str, Any]:
    """Export the weights that are kept; write outcome, speed and manifest of a run that ended."""
    history = json.loads(output.read_bytes("history.json"))
    # All of it: a driver that died may have left out records; known steps are not repeated.
    tracking.log(history)
    exported = validator.publish() if validator else job.config.steps
    tracking.link("export", output.uri("export"))
    output.write_bytes(SPEED_FILE, json_bytes(tracking.speed()))
    metrics = {
        **(history[-1] if history else {}),
        **(validator.last_metrics() if validator else {}),
    }
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
            "metrics": metrics,
        }
    )
    Candidates(output).clear()
    return manifest


def _sources(plan: SamplePlan, examples: int) -> dict[str, dict[str, float]]:
    """Return each source's share, and what a run of so many examples takes of it (`Consumed`)."""
    shares, taken = plan.shares, plan.consumed(examples)
    return {name: {"share": float(shares[name]), **asdict(each)} for name, each in taken.items()}


def _provenance(job: TrainJob) -> Mapping[str, str]:
    """Return tags that say what a run was made from, beyond its direct inputs."""
    lineage = {
        f"lineage.{name}": fingerprint for name, fingerprint in upstream(job.artifacts()).items()
    }
    return lineage | {f"code.{name}": value for name, value in code_state().items()}


def _pools(job: TrainJob, runtime: RuntimeConfig) -> Pools | None:
    """Return where the workers go on Ray, None without it; refuse a number that does not fit."""
    if runtime.workers == 0 or job.config.steps == 0:
        return None
    if runtime.gpus_per_worker is not None:  # a rank has a whole GPU, or none
        runtime = replace(runtime, gpus_per_worker=float(runtime.gpus_per_worker > 0))
    pools = pool_sizes(cluster_resources(runtime), runtime)
    _check_width(job, pools.workers)
    return pools


def _check_width(job: TrainJob, workers: int) -> None:
    if job.config.batch_size < workers:
        raise SettingError(
            f"batch_size={job.config.batch_size} is less than the {workers} workers: raise it or "
            "use fewer"
        )


def _check(job: TrainJob, output: Artifact, runtime: RuntimeConfig) -> SamplePlan | None:
    """Return the plan of a run that takes steps; refuse what cannot work on any cluster."""
    if job.config.steps:
        _check_width(job, runtime.workers or 1)
    for artifact in job.artifacts():
        if artifact.status() != "done":
            verb = {"runs": "train", "samples": "build"}.get(artifact.kind, "shard")
            raise SettingError(
                f"{artifact.kind}/{artifact.name} is {artifact.status()}: make it first, with fo1 "
                f"{verb}"
            )
    if job.weights:
        job.learner.check_weights(job.weight_paths)
    if job.parent is not None:
        parent = job.parent
        job.learner.check_parent(lambda name: parent.read_bytes(f"export/{name}"))
    if runtime.workers == 0 and is_uri(output.root):
        raise SettingError(
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
    monitor: RunMonitor,
    stop: threading.Event,
) -> None:
    """Train in this process, as the only rank."""
    import torch.distributed as dist

    from pipelines.training.loop import run_worker

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    if not dist.is_initialized():  # left for the next run: DeepSpeed keeps a handle to it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    worker = LocalWorker(output, monitor.receive, keep_last=job.config.keep_last, stop=stop)
    run_worker(job, output, worker, loader_processes=runtime.loader_processes)
