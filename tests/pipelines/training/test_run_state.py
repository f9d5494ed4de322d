"""Steps left out, weights kept, other numbers of workers, in runs without Ray."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.loading.loader import Loader, make_plan, open_sources
from pipelines.training.candidates import Candidates, read_metrics, write_metrics
from pipelines.training.driver import train
from pipelines.training.job import TrainJob
from pipelines.training.mlflow_tracking import local_uri
from pipelines.training.run_state import FEWEST, WINDOW, RunState
from pipelines.training.worker import committed_by_ray, committed_here
from tests.pipelines.group_worker import on_ranks, run_job
from tests.pipelines.training.stub_learner import (
    StubEvaluator,
    StubLearner,
    StubTrainee,
    consumed,
    history_of,
    stub_job,
    weights_of,
    write_stub_shards,
)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds."""
    root = tmp_path_factory.mktemp("mlflow")
    MlflowClient(tracking_uri=local_uri(str(root))).search_experiments()
    return root / "mlflow.db"


@pytest.fixture(autouse=True)
def _database(migrated: Path, tmp_path: Path) -> None:
    shutil.copy(migrated, tmp_path / "mlflow.db")


def run(job: TrainJob, root: Path) -> Artifact:
    output = job.artifact(str(root))
    train(job, output, RuntimeConfig(root=str(root), data=str(root), workers=0))
    return output


def poison(monkeypatch: pytest.MonkeyPatch, passes: set[int], factor: float) -> None:
    """Multiply the loss of these passes (from 1; four a step)."""
    loss = StubTrainee.loss

    def poisoned(self: StubTrainee, forward: Any, batch: Any) -> Any:
        result = loss(self, forward, batch)
        return replace(result, total=result.total * factor) if self._calls in passes else result

    monkeypatch.setattr(StubTrainee, "loss", poisoned)


# What a run remembers.


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_a_problem(loss: float) -> None:
    assert RunState(plan="p").problem(loss, 0.0) == f"loss is {loss}"


def test_a_spike_is_far_above_the_running_median() -> None:
    state = RunState(plan="p")
    for value in range(1, FEWEST):
        state.take(float(value))
    assert state.problem(1e9, 2.0) == ""  # too few losses to compare with
    state.take(float(FEWEST))
    assert state.problem(11.0, 2.0) == ""  # the median of 1..10 is 5.5
    assert state.problem(11.1, 2.0) == "loss 11.1 is more than 2 times the median 5.5"
    assert state.problem(1e9, 0.0) == ""
    for _ in range(WINDOW):
        state.take(100.0)
    assert state.problem(199.0, 2.0) == ""
    assert len(state.recent) == WINDOW


# Steps left out.


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a step that is not logged too."""
    poison(monkeypatch, {6}, float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"step 2: loss is nan; its samples were drawn:\w+:\d{5}, "
    ):
        run(stub_job(write_stub_shards(tmp_path), log_every=5), tmp_path)


@pytest.mark.parametrize(
    ("stage", "factor"), [(2, float("nan")), (0, float("nan")), (1, 100.0), (3, 100.0)]
)
def test_bad_steps_are_left_out_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: int,
    factor: float,
) -> None:
    """At every ZeRO stage; one more than allowed ends the run."""
    shards = write_stub_shards(tmp_path)
    job = stub_job(shards, steps=20, zero_stage=stage, max_skipped_steps=2, spike_factor=10.0)
    poison(monkeypatch, {47, 64}, factor)
    output = run(job, tmp_path)
    outcome = json.loads(output.read_bytes("outcome.json"))
    assert [skipped["step"] for skipped in outcome["skipped_steps"]] == [12, 16]
    assert all(len(skipped["sample_ids"]) == 8 for skipped in outcome["skipped_steps"])
    assert output.manifest()["ledger"]["skipped_steps"] == 2
    counts = {record["step"]: record.get("skipped_steps") for record in history_of(output)}
    assert 12 not in counts
    assert (counts[11], counts[13], counts[17]) == (None, 1, 2)
    assert all(bool(torch.isfinite(value).all()) for value in weights_of(output).values())
    assert "step 16: loss" in caplog.text
    with pytest.raises(FloatingPointError, match="max_skipped_steps=1 lets no more"):
        run(
            stub_job(shards, steps=20, zero_stage=stage, max_skipped_steps=1, spike_factor=10.0),
            tmp_path,
        )


def test_an_infinite_gradient_of_a_finite_loss_is_a_bad_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = StubTrainee.loss

    def poisoned(self: StubTrainee, forward: Any, batch: Any) -> Any:
        result = loss(self, forward, batch)
        if self._calls == 9:
            root = (
                (self.module.head.weight * 0).sum().abs().sqrt()
            )  # 0, whose derivative is infinite
            result = replace(result, total=result.total + root)
        return result

    monkeypatch.setattr(StubTrainee, "loss", poisoned)
    output = run(stub_job(write_stub_shards(tmp_path), max_skipped_steps=1), tmp_path)
    (skipped,) = json.loads(output.read_bytes("outcome.json"))["skipped_steps"]
    assert (skipped["step"], skipped["reason"]) == (3, "the gradient is not finite")


# What is kept.


def test_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    output = run(stub_job(write_stub_shards(tmp_path), checkpoint_every=2, keep_last=3), tmp_path)
    kept = sorted(folder.name for folder in Path(output.path, "train", "local").iterdir())
    assert kept == [f"checkpoint_{step:09d}" for step in (8, 10, 12)]


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float], attempts: list[float]) -> None:
    """Give each candidate a score by the order in which their weights are first seen."""
    seen: list[float] = []
    metrics = StubEvaluator.metrics

    def by_order(self: StubEvaluator, examples: Any) -> dict[str, float]:
        found = metrics(self, examples)
        attempts.append(found["weight"])
        if found["weight"] not in seen:
            seen.append(found["weight"])
        return found | {"score": scores[seen.index(found["weight"])]}

    monkeypatch.setattr(StubEvaluator, "metrics", by_order)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_best_weights_are_exported_interrupted_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Candidates after steps 3, 6, 9, 12, of which 6 is best; checkpoints after 5, 10, 12."""
    shards = write_stub_shards(tmp_path)
    loss = StubTrainee.loss
    attempts: list[float] = []
    scripted(monkeypatch, [0.2, 0.7, 0.7, 0.4], attempts)
    held_out = {"drawn/counting": shards}
    averages = {"ema_decay": 0.5} if stage == 2 else {}  # stage 3 has no average
    changes: dict[str, Any] = {
        "validation": held_out,
        "validate_every": 3,
        "zero_stage": stage,
        **averages,
    }
    job = stub_job(shards, keep_best="max:validation/score", **changes)
    whole = run(replace(job, name="whole"), tmp_path)
    assert whole.manifest()["exported_step"] == 6
    assert json.loads(whole.read_bytes("outcome.json")) == {"exported_step": 6, "skipped_steps": []}
    assert whole.manifest()["metrics"]["validation/score"] == 0.4
    assert not whole.exists("candidates")
    Path(Candidates(whole).uri(6)).mkdir(
        parents=True
    )  # killed before the candidates of the finished run went
    run(replace(job, name="whole"), tmp_path)
    assert not whole.exists("candidates")
    evaluated = read_metrics(whole)
    assert float(weights_of(whole)["head.weight"][0, 0]) == evaluated[6]["validation/weight"]
    last = run(replace(stub_job(shards, **changes), name="last"), tmp_path)
    assert last.manifest()["exported_step"] == 12
    assert float(weights_of(last)["head.weight"][0, 0]) == evaluated[12]["validation/weight"]

    def failing(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 37:
            raise OSError("the machine is gone")
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "loss", failing)
    output = job.artifact(str(tmp_path))
    with pytest.raises(OSError, match="gone"):
        run(job, tmp_path)
    assert sorted(read_metrics(output)) == [3, 6, 9]
    assert Candidates(output).complete() == [6]
    write_metrics(
        output, {3: read_metrics(output)[3]}
    )  # as if the driver had died before the others
    attempts.clear()
    monkeypatch.setattr(StubTrainee, "loss", loss)
    run(job, tmp_path)
    assert len(attempts) == 3
    assert output.manifest() | {"name": "whole"} == whole.manifest()
    assert read_metrics(output) == evaluated
    for name, value in weights_of(output).items():
        assert torch.equal(weights_of(whole)[name], value)


def test_a_candidate_that_cannot_be_evaluated_fails_the_run_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes to its end all the same, and is not done again."""
    shards = write_stub_shards(tmp_path)
    job = stub_job(shards, validation={"drawn/counting": shards}, validate_every=5)
    metrics = StubEvaluator.metrics

    def broken(self: StubEvaluator, examples: Any) -> dict[str, float]:
        raise KeyError("no such box")

    monkeypatch.setattr(StubEvaluator, "metrics", broken)
    with pytest.raises(
        RuntimeError, match="candidate of step 5 could not be evaluated: KeyError: 'no such box'"
    ):
        run(job, tmp_path)
    output = job.artifact(str(tmp_path))
    assert output.status() == "partial"
    assert committed_here(output).name == "checkpoint_000000012"  # type: ignore[union-attr]
    monkeypatch.setattr(StubEvaluator, "metrics", metrics)
    monkeypatch.setattr(StubTrainee, "loss", None)  # no step is left
    assert run(job, tmp_path).status() == "done"
    assert list(read_metrics(output)) == [5, 10, 12]


def test_a_metric_that_is_not_there_ends_the_run_at_once(tmp_path: Path) -> None:
    shards = write_stub_shards(tmp_path)
    job = stub_job(
        shards,
        validation={"drawn/counting": shards},
        validate_every=5,
        keep_best="min:validation/loss",
    )
    with pytest.raises(
        SettingError, match=r"held-out metrics are validation/accuracy, validation/examples"
    ):
        run(job, tmp_path)
    committed = committed_here(job.artifact(str(tmp_path)))
    assert committed is not None
    assert committed.name < "checkpoint_000000008"


# Other numbers of workers.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainJob]:
    """A run of two ranks whose second dies in step 8, after a checkpoint at 5; and a whole one."""
    root = tmp_path_factory.mktemp("interrupted")
    control = root / "control"
    control.mkdir()
    learner = StubLearner(dropout=0.0, control=str(control))
    shards = write_stub_shards(root)
    held_out = {"drawn/counting": shards}
    job = stub_job(shards, learner=learner, ema_decay=0.9, validation=held_out, validate_every=6)
    whole = replace(job, name="whole")
    on_ranks(2, run_job, whole, whole.artifact(str(root)))
    for file in control.glob("seen-*"):
        file.unlink()
    (control / "crash").write_text("1 15 worker")
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        on_ranks(2, run_job, job, job.artifact(str(root)))
    return root, job


def test_losses_of_sources_add_up_over_ranks(interrupted: tuple[Path, TrainJob]) -> None:
    """Of a run on two ranks, with the boxes that the plan holds of each source as weights."""
    made, job = interrupted
    sources = open_sources(job.shards, job.mix)
    plan = make_plan(sources, job.mix, job.config)
    loader = Loader(plan, sources, collator=StubTrainee.collator, batch_size=8, micro_batch_size=8)
    history = history_of(replace(job, name="whole").artifact(str(made)))
    assert len(history) == job.config.steps
    for step, logged in enumerate(history):
        (whole,) = loader.load(step).micro_batches
        boxes: Counter[str] = Counter()
        for source, count in zip(whole.sources, whole.batch.counts, strict=True):
            boxes[source] += count
        means = {
            name.removeprefix("loss/"): v for name, v in logged.items() if name.startswith("loss/")
        }
        assert set(means) == set(boxes)
        total = sum(means[source] * boxes[source] for source in boxes)
        assert total == pytest.approx(logged["loss"] * boxes.total(), rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_of_two_goes_on_with_any_number(
    interrupted: tuple[Path, TrainJob], tmp_path: Path, world_size: int
) -> None:
    """The samples of the plan, each once; losses and weights of the uninterrupted run."""
    made, job = interrupted
    root = tmp_path / "root"
    shutil.copytree(made, root)
    output, whole = job.artifact(str(root)), replace(job, name="whole").artifact(str(root))
    assert committed_here(output) is not None
    control = Path(job.learner.control)  # type: ignore[attr-defined]
    before = set(control.glob("seen-*"))
    on_ranks(world_size, run_job, job, output)
    assert consumed(control, job) == list(range(12 * 8))
    for file in set(control.glob("seen-*")) - before:
        file.unlink()
    exact = world_size == 2
    if exact:
        assert history_of(output) == history_of(whole)
    for one, other in zip(history_of(output), history_of(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert Candidates(output).complete() == [6, 12]
    assert not output.exists("export")  # there is no driver here that would choose
    for step in (6, 12):
        found, expected = (candidate_of(made, step) for made in (output, whole))
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6
            )


def candidate_of(output: Artifact, step: int) -> dict[str, torch.Tensor]:
    return torch.load(Path(Candidates(output).uri(step), "model.pt"), weights_only=True)


def test_only_what_ray_train_lists_is_committed(tmp_path: Path) -> None:
    output = Artifact(root=str(tmp_path), kind="runs", name="r", fingerprint="0" * 16)
    folder = Path(output.path, "train", "r-0")
    (folder / "checkpoint_000000009").mkdir(parents=True)
    assert committed_by_ray(output) is None
    snapshot = folder / "checkpoint_manager_snapshot.json"
    snapshot.write_text(json.dumps({"latest_checkpoint_result": None}))
    assert committed_by_ray(output) is None
    latest = {"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_000000004"}}
    snapshot.write_text(json.dumps(latest))
    assert committed_by_ray(output) == folder / "checkpoint_000000004"
