"""Steps left out, weights kept, notices to stop, and another number of workers, in runs without Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from group_worker import on_ranks, run_job
from stub_learner import (
    StubLearner,
    StubTrainee,
    consumed,
    history_of,
    stub_job,
    weights_of,
    write_stub_shards,
)

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.exports import BestExports
from pipelines.loader import Loader, make_plan, open_sources
from pipelines.recovery import FEWEST, WINDOW, RunState
from pipelines.train_job import TrainConfig, TrainJob, best_rule
from pipelines.training import STOPPED, train
from pipelines.workers import committed_by_ray, committed_here


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


def test_better_is_smaller_or_larger_and_the_first_of_equals() -> None:
    assert best_rule("max:validation/ar@100") == (1, "validation/ar@100")
    config = TrainConfig(
        steps=9, batch_size=1, learning_rate=1.0, validate_every=1, keep_best="min:validation/loss"
    )
    state = RunState(plan="p")
    values = [3.0, float("nan"), 2.0, 2.0, 2.5, 1.0]
    found = [state.improves(step, {"validation/loss": value}, config) for step, value in enumerate(values)]
    assert found == [True, False, True, False, False, True]
    assert state.best == {"step": 5, "value": 1.0}
    config = replace(config, keep_best="max:validation/loss")
    assert state.improves(6, {"validation/loss": 1.5}, config)
    with pytest.raises(
        ValueError, match=r"keep_best='max:validation/loss': held-out figures are validation/a"
    ):
        state.improves(7, {"validation/a": 1.5}, config)


def test_candidates_stay_while_a_checkpoint_names_them(tmp_path: Path) -> None:
    output = Artifact(root=str(tmp_path), kind="runs", name="r", fingerprint="0" * 16)
    best = BestExports(output, None)

    def there() -> list[str]:
        return sorted(folder.name[-1] for folder in Path(output.path, "best").iterdir())

    for step in (1, 2):
        best.write(step, lambda folder: (folder / "weights").write_text("w"))
    best.prune(2)
    assert there() == ["2"]
    best.write(3, lambda folder: (folder / "weights").write_text("third"))
    best.prune(3)  # the checkpoint that names 3 may not be committed yet
    assert there() == ["2", "3"]
    best.prune(3)
    assert there() == ["3"]
    best.publish(3)
    assert output.read_bytes("export/weights") == b"third"


# Steps left out.


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a step that is not logged too."""
    poison(monkeypatch, {6}, float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 2: loss is nan; its samples were drawn:\w+:\d{5}, "):
        run(stub_job(write_stub_shards(tmp_path), log_every=5), tmp_path)


@pytest.mark.parametrize(("stage", "factor"), [(2, float("nan")), (0, float("nan")), (1, 100.0), (3, 100.0)])
def test_bad_steps_are_left_out_and_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
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
    assert "step 16: loss" in capfd.readouterr().err
    with pytest.raises(FloatingPointError, match="max_skipped_steps=1 lets no more"):
        run(stub_job(shards, steps=20, zero_stage=stage, max_skipped_steps=1, spike_factor=10.0), tmp_path)


def test_an_infinite_gradient_of_a_finite_loss_is_a_bad_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = StubTrainee.loss

    def poisoned(self: StubTrainee, forward: Any, batch: Any) -> Any:
        result = loss(self, forward, batch)
        if self._calls == 9:
            root = (self.module.head.weight * 0).sum().abs().sqrt()  # 0, whose derivative is infinite
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


def test_the_best_weights_are_exported_interrupted_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after steps 3, 6, 9 and 12, of which 6 is the first best; checkpoints after 5, 10 and 12."""
    shards = write_stub_shards(tmp_path)
    scores: list[float] = []
    figures, loss = StubTrainee.figures, StubTrainee.loss

    def scripted(self: StubTrainee, judged: Any) -> dict[str, float]:
        return figures(self, judged) | {"score": scores.pop(0)}

    def failing(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 42:
            raise OSError("the machine is gone")
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "figures", scripted)
    held_out = {"drawn/counting": shards}
    changes: dict[str, Any] = {"validation": held_out, "validate_every": 3, "ema_decay": 0.5}
    job = stub_job(shards, keep_best="max:validation/score", **changes)
    scores[:] = [0.2, 0.7, 0.7, 0.4]
    whole = run(replace(job, name="whole"), tmp_path)
    assert whole.manifest()["exported_step"] == 6
    assert sorted(folder.name for folder in Path(whole.path, "best").iterdir()) == ["step_000000006"]
    scores[:] = [0.2, 0.7, 0.7, 0.4]
    last = run(replace(stub_job(shards, **changes), name="last"), tmp_path)
    assert not torch.equal(weights_of(last)["head.weight"], weights_of(whole)["head.weight"])

    monkeypatch.setattr(StubTrainee, "loss", failing)
    scores[:] = [0.2, 0.7, 0.7]
    with pytest.raises(OSError, match="gone"):
        run(job, tmp_path)
    monkeypatch.setattr(StubTrainee, "loss", loss)
    scores[:] = [0.4]
    output = run(job, tmp_path)
    assert output.manifest()["exported_step"] == 6
    for name, value in weights_of(output).items():
        assert torch.equal(weights_of(whole)[name], value)


def test_a_figure_that_is_not_there_is_named(tmp_path: Path) -> None:
    shards = write_stub_shards(tmp_path)
    job = stub_job(
        shards, validation={"drawn/counting": shards}, validate_every=5, keep_best="min:validation/loss"
    )
    with pytest.raises(ValueError, match=r"held-out figures are validation/accuracy, validation/examples"):
        run(job, tmp_path)


# Notices.


def test_sigterm_checkpoints_first_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = stub_job(write_stub_shards(tmp_path), checkpoint_every=100)
    whole = run(replace(job, name="whole"), tmp_path)
    loss = StubTrainee.loss

    def signalled(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 17:  # the 18th pass is in step 5
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, forward, batch)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(StubTrainee, "loss", signalled)
    with pytest.raises(SystemExit) as ended:
        run(job, tmp_path)
    assert ended.value.code == STOPPED
    assert signal.getsignal(signal.SIGTERM) is before
    output = job.artifact(str(tmp_path))
    checkpoint = committed_here(output)
    # Looked at before the passes of a step: the signal in step 5 ends the run after step 6.
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint_000000006"
    assert output.status() == "partial"
    assert "told to stop; a checkpoint at step 6 is written" in capfd.readouterr().err
    monkeypatch.setattr(StubTrainee, "loss", loss)
    run(job, tmp_path)
    assert history_of(output) == history_of(whole)
    for name, value in weights_of(output).items():
        assert torch.equal(value, weights_of(whole)[name])


def test_a_signal_in_the_last_step_ends_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = StubTrainee.loss

    def signalled(self: StubTrainee, forward: Any, batch: Any) -> Any:
        if self._calls == 42:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, forward, batch)

    monkeypatch.setattr(StubTrainee, "loss", signalled)
    assert run(stub_job(write_stub_shards(tmp_path)), tmp_path).status() == "done"


# Other numbers of workers.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainJob]:
    """A run on two ranks whose second dies in step 8, three steps after a checkpoint; and a whole one."""
    root = tmp_path_factory.mktemp("interrupted")
    control = root / "control"
    control.mkdir()
    learner = StubLearner(dropout=0.0, control=str(control))
    job = stub_job(write_stub_shards(root), learner=learner, ema_decay=0.9)
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
        means = {name.removeprefix("loss/"): v for name, v in logged.items() if name.startswith("loss/")}
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
    if world_size == 2:
        assert history_of(output) == history_of(whole)
    for one, other in zip(history_of(output), history_of(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    for name, value in weights_of(output).items():
        exact = world_size == 2
        torch.testing.assert_close(
            value, weights_of(whole)[name], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-6
        )


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
