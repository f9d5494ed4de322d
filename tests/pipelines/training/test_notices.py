"""A run hears that it is to stop, whatever its tracking server does and often it reports."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.training import driver, loop, tracking_queue
from pipelines.training.candidates import read_metrics
from pipelines.training.driver import STOPPED, train
from pipelines.training.job import TrainJob
from pipelines.training.mlflow_tracking import Tracker, local_uri
from pipelines.training.run_monitor import RunMonitor
from pipelines.training.worker import LocalWorker, Notice, committed_by_ray, committed_here
from tests.pipelines.training import stub_learner
from tests.pipelines.training.stub_learner import (
    StubLearner,
    StubTrainee,
    history_of,
    stub_job,
    weights_of,
    write_stub_shards,
)

# Workers cannot import a module from the tests' folder; they get its code with the job.
ray.cloudpickle.register_pickle_by_value(stub_learner)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds."""
    root = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=local_uri(str(root))).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def root(migrated: Path, tmp_path: Path) -> Path:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return tmp_path


def run(job: TrainJob, root: Path, workers: int = 0) -> Artifact:
    output = job.artifact(str(root))
    train(job, output, RuntimeConfig(root=str(root), data=str(root), workers=workers))
    return output


def logged_steps(root: Path) -> list[int]:
    client = MlflowClient(tracking_uri=local_uri(str(root)))
    (found,) = client.search_runs([client.get_experiment_by_name("fo1").experiment_id])
    return [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")]


def break_tracking(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[int]:
    """Let the first calls to the tracking server fail; returns the steps of each attempt."""
    log, attempts, calls = Tracker.log, list[int](), iter(range(10**9))

    def failing(self: Tracker, records: Any) -> None:
        records = list(records)
        attempts.extend(int(record["step"]) for record in records)
        if next(calls) < failures:
            raise MlflowException("the server is gone")
        log(self, records)

    monkeypatch.setattr(Tracker, "log", failing)
    return attempts


# SIGTERM.


def signal_in_pass(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """SIGTERM to this process before a pass (from 1; four a step)."""
    loss = StubTrainee.loss

    def signalled(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "loss", signalled)


def test_a_stop_while_candidates_wait_leaves_them_for_the_next_start(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to stop in the last step: the rest is evaluated later, by a run of no step."""
    shards = write_stub_shards(root)
    job = stub_job(shards, validation={"drawn/counting": shards}, validate_every=6)
    signal_in_pass(monkeypatch, 47)
    with pytest.raises(SystemExit) as ended:
        run(job, root)
    assert ended.value.code == STOPPED
    output = job.artifact(str(root))
    assert list(read_metrics(output)) == [6]
    monkeypatch.setattr(StubTrainee, "loss", None)
    run(job, root)
    assert list(read_metrics(output)) == [6, 12]


def test_sigterm_checkpoints_first_and_the_run_goes_on_later(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = stub_job(write_stub_shards(root), checkpoint_every=100)
    whole = run(replace(job, name="whole"), root)
    loss, before = StubTrainee.loss, signal.getsignal(signal.SIGTERM)
    signal_in_pass(monkeypatch, 18)  # in step 5
    with pytest.raises(SystemExit) as ended:
        run(job, root)
    assert ended.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) is before
    output = job.artifact(str(root))
    checkpoint = committed_here(output)
    # Looked at before the passes of a step: the signal in step 5 ends the run after step 6.
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint_000000006"
    assert output.status() == "partial"
    assert "told to stop; a checkpoint at step 6 is written" in caplog.text
    monkeypatch.setattr(StubTrainee, "loss", loss)
    run(job, root)
    assert history_of(output) == history_of(whole)
    for name, value in weights_of(output).items():
        assert torch.equal(value, weights_of(whole)[name])


def test_a_signal_in_the_last_step_ends_a_finished_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in_pass(monkeypatch, 43)
    assert run(stub_job(write_stub_shards(root)), root).status() == "done"


# The look at the outside.


class DeafWorker(LocalWorker):
    """A worker that learns of a notice only when it looks, as those of Ray do."""

    def noticed(self) -> bool:
        return False


@pytest.mark.parametrize("often", [{"checkpoint_every": 1}, {"validate_every": 1}])
def test_a_run_that_reports_often_hears_the_stop(
    root: Path, monkeypatch: pytest.MonkeyPatch, often: dict[str, int]
) -> None:
    """Reports come less than `REPORT_EVERY_S` apart, and the timer alone would never look."""
    monkeypatch.setattr(driver, "LocalWorker", DeafWorker)
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 3600.0)
    shards = write_stub_shards(root)
    held_out = {"drawn/counting": shards} if "validate_every" in often else {}
    job = stub_job(shards, validation=held_out, **{"checkpoint_every": 100, **often})
    loss = StubTrainee.loss
    signal_in_pass(monkeypatch, 18)  # in step 5
    with pytest.raises(SystemExit) as ended:
        run(job, root)
    assert ended.value.code == STOPPED
    output = job.artifact(str(root))
    checkpoint = committed_here(output)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint_000000005"
    assert output.status() == "partial"
    monkeypatch.setattr(StubTrainee, "loss", loss)
    assert [record["step"] for record in history_of(run(job, root))] == list(range(1, 13))


def test_a_run_that_reports_often_hears_of_a_preemption(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checkpoints at the report after the notice, and goes on."""

    class Preempted(DeafWorker):
        looks = 0

        def notice(self) -> Notice:
            self.looks += 1
            return Notice.SAVE if self.looks == 3 else Notice.NONE

    monkeypatch.setattr(driver, "LocalWorker", Preempted)
    monkeypatch.setattr(loop, "REPORT_EVERY_S", 3600.0)
    shards = write_stub_shards(root)
    job = stub_job(
        shards,
        validation={"drawn/counting": shards},
        validate_every=1,
        checkpoint_every=100,
        keep_last=9,
    )
    output = run(job, root)
    assert output.status() == "done"
    kept = sorted(folder.name for folder in Path(output.path, "train", "local").iterdir())
    assert kept == ["checkpoint_000000003", "checkpoint_000000012"]


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_stop_is_heard_on_ray_with_a_checkpoint_a_step_and_no_tracking_server(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was not logged is logged by the start that goes on."""
    monkeypatch.setattr(tracking_queue, "STOP_GRACE_S", 1.0)
    control = root / "control"
    control.mkdir()
    learner = StubLearner(control=str(control))
    job = stub_job(write_stub_shards(root), learner=learner, checkpoint_every=1, steps=40)
    (control / "slow").write_text("0.1")

    def terminate() -> None:
        while not list(control.glob("seen-*")):
            time.sleep(0.1)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as broken:
        attempts = break_tracking(broken, 1000)
        thread = threading.Thread(target=terminate, daemon=True)
        thread.start()
        with pytest.raises(SystemExit) as ended:
            run(job, root, workers=2)
        thread.join()
        time.sleep(0.2)
    assert ended.value.code == STOPPED
    assert attempts
    assert [r.message for r in caplog.records if "the server is gone" in r.message]
    output = job.artifact(str(root))
    checkpoint = committed_by_ray(output)
    assert checkpoint is not None
    assert "checkpoint_000000001" <= checkpoint.name < "checkpoint_000000040"
    (control / "slow").unlink()
    run(job, root)
    assert logged_steps(root) == list(range(1, 41))


# The driver's listener.


class Silent:
    """A log that takes nothing."""

    def __getattr__(self, name: str) -> Any:
        return self.fail

    def fail(self, *arguments: Any) -> None:
        raise OSError("no such server")


def test_the_listener_survives_what_a_report_raises(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so at once, has the run stopped, and raises the error when the run is over."""
    monitor = RunMonitor(stub_job(write_stub_shards(root)), Silent())  # type: ignore[arg-type]
    stopped = threading.Event()
    report = loop._report(1, records=[{"step": 1, "loss": 1.0}], messages=[])

    def listen() -> None:
        with monitor.report_file(threading.Event(), stopped.set) as path:
            add_line(path, report)
            assert stopped.wait(10)
            assert "no such server" in caplog.text

    with pytest.raises(OSError, match="no such server"):
        listen()
    assert caplog.records[0].levelno >= logging.WARNING


def test_a_stop_that_cannot_be_passed_on_is_tried_again(root: Path) -> None:
    monitor = RunMonitor(stub_job(write_stub_shards(root)), Silent())  # type: ignore[arg-type]
    stop, passed, attempts = threading.Event(), threading.Event(), []

    def on_stop() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("the storage is slow")
        passed.set()

    stop.set()
    with monitor.report_file(stop, on_stop):
        assert passed.wait(10)
    assert len(attempts) == 2


def add_line(path: Path, report: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(report) + "\n")


# A tracking server that fails.


@pytest.mark.parametrize("failures", [1, 3])
def test_records_are_kept_and_sent_in_order_when_tracking_works_again(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failures: int,
) -> None:
    monkeypatch.setattr(tracking_queue, "RETRY_EVERY_S", 0.1)
    break_tracking(monkeypatch, failures)
    job = replace(stub_job(write_stub_shards(root)), name="whole")
    output = run(job, root)
    assert output.status() == "done"
    assert logged_steps(root) == list(range(1, 13))
    told = [r for r in caplog.records if "the server is gone" in r.message]
    assert [(r.name, r.levelno) for r in told] == [("pipelines", logging.WARNING)]
