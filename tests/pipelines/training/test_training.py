"""Training: exact resume, one MLflow run, no step twice; wrong settings refused at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import torch
from mlflow import MlflowClient

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.evaluation.predict import PredictConfig
from pipelines.training import driver
from pipelines.training.candidates import read_metrics
from pipelines.training.driver import train
from pipelines.training.job import Questions, TrainJob
from pipelines.training.mlflow_tracking import local_uri
from pipelines.training.worker import committed_by_ray, committed_here
from tests.pipelines.training import stub_learner
from tests.pipelines.training.stub_learner import (
    StubLearner,
    StubTrainee,
    consumed,
    history_of,
    stub_job,
    weights_of,
    write_stub_shards,
)

ALONE = 0
"""Workers: none, the loop runs in the test's process."""

# Workers cannot import a module from the tests' folder; they get its code with the job.
ray.cloudpickle.register_pickle_by_value(stub_learner)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables."""
    root = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=local_uri(str(root))).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def root(migrated: Path, tmp_path: Path) -> Path:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return tmp_path


def runtime(root: Path, workers: int = ALONE) -> RuntimeConfig:
    return RuntimeConfig(root=str(root), data=str(root), workers=workers)


def run(job: TrainJob, root: Path, workers: int = ALONE) -> Artifact:
    output = job.artifact(str(root))
    train(job, output, runtime(root, workers))
    return output


def mlflow_runs(root: Path) -> list[Any]:
    client = MlflowClient(tracking_uri=local_uri(str(root)))
    return client.search_runs([client.get_experiment_by_name("fo1").experiment_id])


def steps_in_mlflow(root: Path, run_id: str) -> list[int]:
    return [
        m.step
        for m in MlflowClient(tracking_uri=local_uri(str(root))).get_metric_history(run_id, "loss")
    ]


def assert_same_result(one: Artifact, other: Artifact) -> None:
    assert history_of(one) == history_of(other)
    weights = weights_of(other)
    for name, value in weights_of(one).items():
        assert torch.equal(value, weights[name]), name


# In this process.


def test_trains_exports_and_logs(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = stub_job(write_stub_shards(root), steps=60, checkpoint_every=25)
    output = run(job, root)
    history = history_of(output)
    assert [record["step"] for record in history] == list(range(1, 61))
    assert sum(r["loss"] for r in history[-10:]) < 0.9 * sum(r["loss"] for r in history[:10])
    assert set(history[0]) == {
        *("step", "loss", "accuracy", "gradient_norm", "learning_rate/head", "learning_rate/rest"),
        *("loss/drawn/counting", "loss/drawn/detection"),
    }
    assert history[0]["learning_rate/head"] == pytest.approx(1e-2 / 3)
    manifest = output.manifest()
    assert manifest["metrics"] == history[-1]
    assert manifest["inputs"] == {"shards/drawn": "0123456789abcdef"}
    assert manifest["ledger"] == {"steps": 60, "examples": 480, "skipped_steps": 0}
    assert manifest["exported_step"] == 60
    sources = manifest["sources"]
    assert sum(source["examples"] for source in sources.values()) == 480
    assert sum(source["share"] for source in sources.values()) == pytest.approx(1)
    marked = [record["step"] for record in history if "epochs/drawn/detection" in record]
    assert marked == [25, 50, 60]
    assert {name: source["epochs"] for name, source in sources.items()} == {
        name: history[-1][f"epochs/{name}"] for name in job.mix
    }
    (logged,) = mlflow_runs(root)
    assert logged.info.status == "FINISHED"
    assert steps_in_mlflow(root, logged.info.run_id) == list(range(1, 61))
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("train stub: step 60/60, loss ")
    assert re.search(r", [\d.]+ samples/s, \d+ tokens/s, data wait \d+%, ", line)
    tags = logged.data.tags
    assert tags["checkpoint"] == str(committed_here(output))
    assert tags["export"] == output.uri("export")
    assert tags["lineage.shards/drawn"] == "0123456789abcdef"
    assert re.fullmatch("[0-9a-f]{40}|unknown", tags["code.commit"])
    speed = json.loads(output.read_bytes("speed.json"))
    assert {25, 50, 60} <= {metrics["step"] for metrics in speed}
    assert all(0 <= metrics["data_wait_share"] <= 1 for metrics in speed)
    assert not any("speed" in name or "second" in name for name in history[0])
    assert train(job, output, runtime(root)) == manifest
    assert len(mlflow_runs(root)) == 1


def test_same_bytes_twice(root: Path) -> None:
    job = stub_job(write_stub_shards(root))
    output = run(job, root)
    names = ("manifest.json", "history.json", "export/model.pt")
    first = [output.read_bytes(name) for name in names]
    output.delete()
    assert [run(job, root).read_bytes(name) for name in names] == first


@pytest.mark.parametrize("calls", [3, 21, 40])
def test_an_interrupted_run_ends_as_if_it_was_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Before the first checkpoint (step 5, 20 passes), right after it, and late."""
    job = stub_job(write_stub_shards(root))
    whole = run(replace(job, name="whole"), root)
    loss = StubTrainee.loss

    def failing(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == calls:
            raise OSError("the machine is gone")
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "loss", failing)
    with pytest.raises(OSError, match="gone"):
        run(job, root)
    assert {r.info.run_name[:5]: r.info.status for r in mlflow_runs(root)} == {
        "whole": "FINISHED",
        "stub-": "FAILED",
    }
    monkeypatch.setattr(StubTrainee, "loss", loss)
    resumed = run(job, root)
    assert_same_result(whole, resumed)
    runs = mlflow_runs(root)
    assert [r.info.status for r in runs] == ["FINISHED"] * 2
    assert [steps_in_mlflow(root, r.info.run_id) for r in runs] == [list(range(1, 13))] * 2
    speed = [metrics["step"] for metrics in json.loads(resumed.read_bytes("speed.json"))]
    assert speed == sorted(set(speed))
    assert {5, 10, 12} <= set(speed)  # those of before the restart too


def test_a_resumed_run_logs_what_the_killed_driver_had_not(
    root: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records travel in the checkpoint: MLflow gets the steps before it too."""
    job = stub_job(write_stub_shards(root))
    loss = StubTrainee.loss

    def failing(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 30:
            raise OSError("the machine is gone")
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "loss", failing)
    with pytest.raises(OSError, match="gone"):
        run(job, root)
    shutil.copy(migrated, root / "mlflow.db")
    monkeypatch.setattr(StubTrainee, "loss", loss)
    run(job, root)
    (logged,) = mlflow_runs(root)
    assert steps_in_mlflow(root, logged.info.run_id) == list(range(1, 13))


def test_held_out_examples_are_evaluated_by_the_averaged_weights(root: Path) -> None:
    """Every 5 steps and at the end; resumed it is the same, the average included."""
    shards = write_stub_shards(root)
    held_out = {"drawn/counting": shards}
    job = stub_job(
        shards, validation=held_out, ema_decay=0.9, validate_every=5, validation_examples=10
    )
    whole = run(replace(job, name="whole"), root)
    evaluated = read_metrics(whole)
    assert list(evaluated) == [5, 10, 12]
    # 15 examples, of which every second one is 8: at most 10, spread over the shards.
    assert {r["validation/examples"] for r in evaluated.values()} == {8.0}
    (logged,) = mlflow_runs(root)
    assert logged.data.metrics["validation/accuracy"] == evaluated[12]["validation/accuracy"]
    assert whole.manifest()["metrics"] == history_of(whole)[-1] | evaluated[12]
    # The average is what was evaluated, and is exported.
    assert float(weights_of(whole)["head.weight"][0, 0]) == evaluated[12]["validation/weight"]

    plain = run(replace(stub_job(shards), name="plain"), root)
    assert not torch.equal(weights_of(plain)["head.weight"], weights_of(whole)["head.weight"])
    assert history_of(whole) == history_of(plain)  # evaluating and averaging change no step

    loss = StubTrainee.loss

    def failing(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 30:
            raise OSError("the machine is gone")
        return loss(self, forward, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StubTrainee, "loss", failing)
        with pytest.raises(OSError, match="gone"):
            run(job, root)
    resumed = run(job, root)
    assert_same_result(whole, resumed)
    assert read_metrics(resumed) == evaluated
    client = MlflowClient(tracking_uri=local_uri(str(root)))
    run_of = {r.info.run_name[:5]: r.info.run_id for r in mlflow_runs(root)}["stub-"]
    assert [m.step for m in client.get_metric_history(run_of, "validation/accuracy")] == [5, 10, 12]


def test_how_a_batch_is_cut_does_not_matter(root: Path) -> None:
    """The loss is divided by the weight of the whole step: four passes of two are one of eight."""
    shards = write_stub_shards(root)
    cut = run(stub_job(shards, learner=StubLearner(dropout=0.0), micro_batch_size=2), root)
    uncut = run(stub_job(shards, learner=StubLearner(dropout=0.0), micro_batch_size=8), root)
    for name, value in weights_of(cut).items():
        torch.testing.assert_close(value, weights_of(uncut)[name], rtol=1e-5, atol=1e-6)
    assert history_of(cut)[0]["loss"] == pytest.approx(history_of(uncut)[0]["loss"], rel=1e-6)


def test_a_parent_run_is_where_it_starts(root: Path) -> None:
    job = stub_job(write_stub_shards(root), steps=3)
    first = run(job, root)
    child = stub_job(job.shards["drawn"], steps=1, warmup_steps=0, learning_rate=1e-30)
    child = replace(child, name="child", parent=first)
    second = run(child, root)
    torch.testing.assert_close(weights_of(second)["head.weight"], weights_of(first)["head.weight"])
    assert second.manifest()["inputs"]["runs/stub"] == first.fingerprint


def test_settings_are_refused_before_anything_starts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_stub_shards(root)
    job = stub_job(shards)
    with pytest.raises(SettingError, match="batch_size=8 is less than the 9 workers"):
        run(job, root, workers=9)
    with pytest.raises(ValueError, match=r"no shards of task 'ocr'.*counting, detection"):
        run(replace(job, mix={"drawn/ocr": 1.0}), root)
    with pytest.raises(SettingError, match="whose shards are not given"):
        replace(job, mix={"coco/detection": 1.0})
    with pytest.raises(SettingError, match="validate_every=5: give `validation` shards"):
        stub_job(shards, validate_every=5)
    with pytest.raises(SettingError, match=r"set TrainConfig\.validate_every"):
        replace(job, validation={"drawn/detection": shards})
    asked = Questions(
        shards=shards, samples=shards, config=PredictConfig(tasks=("detection",)), coco=False
    )
    validated = stub_job(shards, validation={"drawn/detection": shards}, validate_every=5)
    with pytest.raises(SettingError, match="asks coco, but this learner answers no questions"):
        replace(validated, benchmarks={"coco": asked})
    with pytest.raises(
        SettingError, match=r"keep_best='max:validation/coco.f1': the run validates on .* none"
    ):
        replace(validated, config=replace(validated.config, keep_best="max:validation/coco.f1"))
    with pytest.raises(ValueError, match=r"no shards of task 'ocr'"):
        run(replace(validated, validation={"drawn/ocr": shards}), root)
    unmade = replace(shards, fingerprint="f" * 16)
    with pytest.raises(SettingError, match="shards/drawn is stale: make it first, with fo1 shard"):
        run(replace(job, shards={"drawn": unmade}), root)
    parent = Artifact(root=str(root), kind="runs", name="stage1", fingerprint="1" * 16)
    with pytest.raises(SettingError, match="runs/stage1 is missing: make it first, with fo1 train"):
        run(replace(job, parent=parent), root)
    monkeypatch.setattr(driver, "cluster_resources", lambda _: {"CPU": 3.0})
    with pytest.raises(
        ValueError, match="the cluster has 3 CPUs and 0 GPUs; use --workers 2 or fewer"
    ):
        run(job, root, workers=4)
    assert not job.artifact(str(root)).exists("")
    with pytest.raises(
        SettingError, match="activation_checkpointing names language; this learner has none"
    ):
        stub_job(shards, activation_checkpointing=("language",))
    with pytest.raises(SettingError, match="no layers to compile"):
        stub_job(shards, compile=True)


def test_the_fingerprint_follows_what_changes_the_result(tmp_path: Path) -> None:
    shards = Artifact(root=str(tmp_path), kind="shards", name="drawn", fingerprint="0" * 16)
    parent = Artifact(root=str(tmp_path), kind="runs", name="stage1", fingerprint="1" * 16)
    job = stub_job(shards)
    same = [replace(job, tracking_uri="http://user:secret@host"), replace(job, name="other")]
    others = [
        stub_job(shards, seed=1),
        stub_job(shards, shuffled_regions=True),
        replace(job, mix={"drawn/detection": 0.8, "drawn/counting": 0.2}),
        replace(job, shards={"drawn": replace(shards, fingerprint="2" * 16)}),
        replace(job, parent=parent),
        replace(job, learner=StubLearner(dropout=0.5)),
    ]
    key = job.artifact(str(tmp_path)).fingerprint
    assert all(j.artifact(str(tmp_path)).fingerprint == key for j in same)
    assert len({key, *(j.artifact(str(tmp_path)).fingerprint for j in others)}) == 7
    assert "secret" not in repr(same[0])


def test_recipes_can_be_read_without_torch_and_ray() -> None:
    code = (
        "import sys, pipelines.training.driver, pipelines.training.learners\n"
        "heavy = ('torch', 'ray', 'mlflow', 'deepspeed', 'transformers')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# On Ray, two workers.


@pytest.mark.cluster
def test_two_workers_equal_one(root: Path) -> None:
    """Losses and gradients are normalised over all ranks: a world size changes the last bits.

    Three examples in passes of one: the rank with one example fills its second pass. Candidates are
    evaluated by tasks beside the two, and the best is exported.
    """
    shards = write_stub_shards(root)
    job = stub_job(
        shards,
        learner=StubLearner(dropout=0.0),
        batch_size=3,
        micro_batch_size=1,
        validation={"drawn/counting": shards},
        validate_every=4,
        keep_best="max:validation/weight",
    )
    alone = run(job, root)
    history, weights, evaluated = history_of(alone), weights_of(alone), read_metrics(alone)
    kept = alone.manifest()["exported_step"]
    alone.delete()
    together = run(job, root, workers=2)
    assert together.manifest()["exported_step"] == kept
    assert not together.exists("candidates")
    for step, metrics in read_metrics(together).items():
        assert metrics == pytest.approx(evaluated[step], rel=1e-4)
    assert list(evaluated) == [4, 8, 12]
    for one, two in zip(history, history_of(together), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    for name, value in weights_of(together).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-6)
    assert mlflow_runs(root)[0].data.tags["checkpoint"] == str(committed_by_ray(together))


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_stopped_run_goes_on_with_other_workers(root: Path) -> None:
    """SIGTERM to the driver of two workers; then three go on on Ray, and none without it."""
    control = root / "control"
    control.mkdir()
    learner = StubLearner(dropout=0.0, control=str(control))
    job = stub_job(write_stub_shards(root), learner=learner, checkpoint_every=100)
    (control / "slow").write_text("0.5")

    def terminate() -> None:
        while not list(control.glob("seen-*")):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as ended:
        run(job, root, workers=2)
    thread.join()
    assert ended.value.code == driver.STOPPED
    output = job.artifact(str(root))
    assert committed_by_ray(output) is not None
    assert {logged.info.status for logged in mlflow_runs(root)} == {"KILLED"}
    (control / "slow").unlink()
    before = set(control.glob("seen-*"))
    shutil.copytree(output.path, root / "stopped")
    results = []
    for workers in (3, ALONE):
        run(job, root, workers=workers)
        assert consumed(control, job) == list(range(12 * 8))
        results.append((history_of(output), weights_of(output)))
        for file in set(control.glob("seen-*")) - before:
            file.unlink()
        output.delete()
        shutil.copytree(root / "stopped", output.path)
    whole = run(replace(job, name="whole"), root)
    for history, weights in results:
        for one, other in zip(history, history_of(whole), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
        for name, value in weights_of(whole).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
