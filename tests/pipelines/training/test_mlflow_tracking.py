"""One MLflow run an artifact, each step once, nothing secret, on a database of its own."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.training.mlflow_tracking import Tracker, flatten, local_uri

PARAMS = {"train": {"steps": 3, "betas": [0.9, 0.99]}, "mix": {"drawn/detection": 1.0}, "name": "x"}
PARAMS |= {"like": {"<ground>": "a", "</ground>": "b"}}
INPUTS = {"shards/drawn": "0123456789abcdef", "runs/stage1": "fedcba9876543210"}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables: making them takes seconds, copying it does not."""
    root = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=local_uri(str(root))).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def output(migrated: Path, tmp_path: Path) -> Artifact:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return Artifact(root=str(tmp_path), kind="runs", name="stage2", fingerprint="00112233aabbccdd")


def open_tracker(output: Artifact, **changes) -> Tracker:
    return Tracker(
        output, **{"uri": None, "experiment": "fo1", "params": PARAMS, "inputs": INPUTS, **changes}
    )


def records(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, "learning_rate/head": 0.1} for step in steps]


def client(output: Artifact) -> MlflowClient:
    return MlflowClient(tracking_uri=local_uri(output.root))


def test_a_run_with_its_lineage(output: Artifact) -> None:
    tracker = open_tracker(output)
    tracker.log(records(1, 2))
    tracker.finish("FINISHED")
    run = client(output).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "stage2-00112233aabbccdd"
    assert run.data.params == {
        "train.steps": "3",
        "train.betas": "[0.9, 0.99]",
        "mix.drawn/detection": "1.0",
        "name": "x",
        "like._ground_": "a",
        "like._/ground_": "b",
    }
    assert run.data.tags["fingerprint"] == output.fingerprint
    assert run.data.tags["input.runs/stage1"] == "fedcba9876543210"
    assert {(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs} == set(
        INPUTS.items()
    )
    assert run.data.metrics["loss"] == 0.5
    experiment = client(output).get_experiment(run.info.experiment_id)
    assert experiment.artifact_location == (Path(output.root) / "mlflow-artifacts" / "fo1").as_uri()


def test_reopened_runs_log_each_step_once(output: Artifact) -> None:
    first = open_tracker(output)
    first.log(records(1, 2, 3))
    first.log(records(2, 3, 4))
    second = open_tracker(output)
    second.log(records(1, 2, 3, 4, 5))
    assert second.run_id == first.run_id
    assert (
        len(
            client(output).search_runs([client(output).get_experiment_by_name("fo1").experiment_id])
        )
        == 1
    )
    for key in ("loss", "learning_rate/head"):
        history = client(output).get_metric_history(second.run_id, key)
        assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert client(output).get_run(second.run_id).info.status == "RUNNING"
    second.finish("FAILED")
    assert client(output).get_run(second.run_id).info.status == "FAILED"


def test_how_fast_it_was_is_logged_once_and_read_back_whole(output: Artifact) -> None:
    """A restart does steps again: what is in stays, and what the first start did is not lost."""
    first = open_tracker(output)
    first.log(records(1, 2, 3, 4))
    first.log_speed(2, {"step_seconds": 0.5, "tokens_per_second": 100.0})
    first.log_speed(4, {"step_seconds": 0.25, "tokens_per_second": 200.0, "flop_utilisation": 0.5})
    second = open_tracker(output)
    second.log_speed(3, {"step_seconds": 9.0, "tokens_per_second": 9.0})
    second.log_speed(4, {"step_seconds": 9.0, "tokens_per_second": 9.0})
    second.log(records(5))
    second.log_speed(7, {"step_seconds": 1.0, "tokens_per_second": 50.0})
    assert second.speed() == [
        {"step": 2, "step_seconds": 0.5, "tokens_per_second": 100.0},
        {"step": 4, "step_seconds": 0.25, "tokens_per_second": 200.0, "flop_utilisation": 0.5},
        {"step": 7, "step_seconds": 1.0, "tokens_per_second": 50.0},
    ]
    history = client(output).get_metric_history(second.run_id, "speed/tokens_per_second")
    assert [(metric.step, metric.value) for metric in history] == [
        (2, 100.0),
        (4, 200.0),
        (7, 50.0),
    ]
    assert [m.step for m in client(output).get_metric_history(second.run_id, "loss")] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_where_things_lie_and_what_they_are_for(output: Artifact) -> None:
    inputs = {**INPUTS, "validation/drawn/detection": "0" * 16}
    tags = {f"lineage.samples/s{number}+a=b": "1" * 16 for number in range(120)}
    tracker = open_tracker(output, inputs=inputs, tags={**tags, "code.commit": "abc"})
    tracker.log([{"step": 1, "loss": 1.0, "loss/a+b=c/detection": 2.0, "ar@100": 3.0}])
    for step in (5, 9):
        tracker.link(
            "checkpoint", f"s3://key:hunter2@bucket/train/checkpoint_{step}?secret_key=hunter2"
        )
    run = client(output).get_run(tracker.run_id)
    assert run.data.tags["checkpoint"] == "s3://bucket/train/checkpoint_9"
    assert run.data.tags["code.commit"] == "abc"
    assert run.data.tags["lineage.samples/s119_a_b"] == "1" * 16
    assert set(run.data.metrics) == {"loss", "loss/a_b_c/detection", "ar_at_100"}
    contexts = {i.dataset.name: {tag.value for tag in i.tags} for i in run.inputs.dataset_inputs}
    assert contexts["validation/drawn/detection"] == {"validation"}
    assert contexts["shards/drawn"] == {"train"}


def test_metrics_of_earlier_steps_are_logged_once_in_any_order(output: Artifact) -> None:
    first = open_tracker(output)
    first.log(records(1, 2, 3))
    first.log_at(2, {"validation/ar@100": 0.5, "validation/r50@100": 0.7})
    first.log_at(1, {"validation/ar@100": 0.4})
    second = open_tracker(output)
    for step in (3, 2, 1):
        second.log_at(step, {"validation/ar@100": step / 10, "validation/r50@100": 0.1})
    found = client(output).get_metric_history(second.run_id, "validation/ar_at_100")
    assert {(metric.step, metric.value) for metric in found} == {(1, 0.4), (2, 0.5), (3, 0.3)}
    assert len(found) == 3
    found = client(output).get_metric_history(second.run_id, "validation/r50_at_100")
    assert sorted(metric.step for metric in found) == [1, 2, 3]


def test_many_records_go_in_whole_steps(output: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = open_tracker(output)
    sent: list[list[int]] = []
    log_batch = tracker._client.log_batch

    def spy(run_id: str, metrics=(), **more) -> None:
        sent.append([metric.step for metric in metrics])
        log_batch(run_id, metrics=metrics, **more)

    monkeypatch.setattr(tracker._client, "log_batch", spy)
    tracker.log(records(*range(1, 603)))
    assert [len(steps) for steps in sent] == [1000, 204]
    assert sent[0][-1] == 500
    assert sent[1][0] == 501


def test_another_database_gets_a_run_of_its_own(
    output: Artifact, migrated: Path, tmp_path: Path
) -> None:
    first = open_tracker(output)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    assert open_tracker(output).run_id != first.run_id


def test_nothing_secret_is_kept(output: Artifact, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "hunter2.db")
    tracker = open_tracker(output, uri=f"sqlite:///{tmp_path}/hunter2.db")
    tracker.finish("FINISHED")
    assert json.loads(output.read_bytes("mlflow_run.json")) == {"run_id": tracker.run_id}
    run = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/hunter2.db").get_run(tracker.run_id)
    assert "hunter2" not in json.dumps(run.data.to_dictionary())


def test_a_remote_root_needs_a_server() -> None:
    with pytest.raises(SettingError, match="tracking_uri"):
        local_uri("s3://bucket/runs")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"]}) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": '[1, "x"]',
    }
