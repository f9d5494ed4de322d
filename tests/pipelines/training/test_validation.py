"""Candidates are whole or not there, evaluated once where there is room; the best is exported."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fo1_model.sizes import SIZES
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig, pool_sizes
from pipelines.errors import SettingError
from pipelines.evaluation.predict import VERSION, PredictConfig, predict, predict_inputs
from pipelines.evaluation.score import evaluate
from pipelines.fingerprints import fingerprint
from pipelines.storage import filesystem_of, local_folder
from pipelines.train_config import TrainConfig
from pipelines.training import validation
from pipelines.training.candidates import Candidates, best_step, read_metrics, write_metrics
from pipelines.training.driver import train
from pipelines.training.job import Questions, TrainJob
from pipelines.training.learners import FO1Learner
from pipelines.training.validation import Validator, evaluate_candidate, make_validator
from tests.pipelines.evaluation.small_evaluation import (
    proposals_artifact,
    samples_artifact,
    shards_artifact,
    small_world,
)
from tests.pipelines.training.stub_learner import stub_job

NAME = "validation/score"


def run(job: TrainJob, root: Path) -> Artifact:
    output = job.artifact(str(root))
    train(job, output, RuntimeConfig(root=str(root), data=str(root), workers=0))
    return output


def artifact(folder: Path) -> Artifact:
    return Artifact(root=str(folder), kind="runs", name="r", fingerprint="0" * 16)


def text(words: str) -> Callable[[Path], Any]:
    """An export of one file."""
    return lambda folder: (folder / "weights").write_text(words)


# Candidates.


def test_a_candidate_is_whole_or_not_there(tmp_path: Path) -> None:
    candidates = Candidates(artifact(tmp_path))

    def cut_off(folder: Path) -> None:
        text("half")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        candidates.write(3, cut_off)
    Path(candidates.uri(4)).mkdir(parents=True)  # killed while files were copied
    assert candidates.complete() == []
    for step in (12, 3, 4):
        candidates.write(step, text(str(step)))
    assert candidates.complete() == [3, 4, 12]
    assert Path(candidates.uri(4), "weights").read_text() == "4"


def test_what_is_there_or_was_evaluated_is_not_written_again(tmp_path: Path) -> None:
    """A run that went back may do a step again while its candidate is read, or is gone."""
    output = artifact(tmp_path)
    candidates = Candidates(output)
    candidates.write(3, text("first"))
    candidates.write(3, text("again"))
    assert Path(candidates.uri(3), "weights").read_text() == "first"
    write_metrics(output, {3: {NAME: 1.0}, 6: {NAME: 2.0}})
    candidates.write(6, text("again"))
    assert candidates.complete() == [3]


@pytest.mark.parametrize("is_remote", [False, True])
def test_evaluated_candidates_go_but_the_kept_one(tmp_path: Path, is_remote: bool) -> None:
    root = "memory://candidates-test" if is_remote else str(tmp_path)
    output = Artifact(root=root, kind="runs", name="r", fingerprint="0" * 16)
    candidates = Candidates(output)
    assert candidates.complete() == []
    for step in (1, 2, 3, 4):
        candidates.write(step, text(str(step)))
    filesystem, marker = filesystem_of(f"{candidates.uri(1)}.json")
    filesystem.delete_file(marker)  # killed between the two parts of its removal
    candidates.prune({1, 2, 3}, kept=2)
    assert candidates.complete() == [2, 4]
    assert [output.exists(f"candidates/step_00000000{step}/weights") for step in (1, 2, 3, 4)] == [
        *(False, True, False, True)
    ]
    candidates.publish(2)
    assert output.read_bytes("export/weights") == b"2"
    with local_folder(candidates.uri(4)) as folder:
        assert (folder / "weights").read_text() == "4"
    candidates.clear()
    assert candidates.complete() == []
    candidates.clear()


def test_the_best_is_the_first_of_equals() -> None:
    values = {3: 3.0, 6: None, 9: 2.0, 12: 2.0, 15: 2.5}
    evaluated = {step: {NAME: value} for step, value in values.items()}
    assert best_step(evaluated, f"min:{NAME}") == 9
    assert best_step(dict(reversed(evaluated.items())), f"min:{NAME}") == 9
    assert best_step(evaluated, f"max:{NAME}") == 3
    assert best_step({6: {NAME: None}}, f"max:{NAME}") is None
    assert best_step({}, f"max:{NAME}") is None
    with pytest.raises(
        SettingError, match=r"keep_best='max:validation/x': held-out metrics are validation/sc"
    ):
        best_step(evaluated, "max:validation/x")


# The driver's side.

STEPS = range(2, 13, 2)


class World:
    """A run of twelve steps, a candidate after every second; tasks end when the test says so."""

    def __init__(self, folder: Path, scores: Mapping[int, float | None] | None = None) -> None:
        self.output, self.scores = artifact(folder), scores or {step: float(step) for step in STEPS}
        self.candidates, self.stop = Candidates(self.output), threading.Event()
        self.tasks: dict[int, tuple[Future[Any], str]] = {}
        self.logged: dict[int, Any] = {}
        self.writes, self.at_once = 0, False

    def validator(self, keep_best: str = f"max:{NAME}", beside: int = 1) -> Validator:
        """A new driver: the tasks of the one before are lost."""
        held_out = {"drawn/detection": self.output}
        job = stub_job(self.output, validation=held_out, validate_every=2, keep_best=keep_best)
        self.tasks = {}
        log = self.logged.__setitem__
        return Validator(
            job, self.output, start=self.start, beside=beside, after=2, log=log, stop=self.stop
        )

    def start(self, step: int) -> Future[Any]:
        self.tasks[step] = (Future(), self.content(step))
        if self.at_once:
            self.end(step)
        return self.tasks[step][0]

    def end(self, step: int) -> None:
        task, content = self.tasks[step]
        assert self.content(step) == content, "the folder changed while it was evaluated"
        task.set_result({NAME: self.scores[step]})

    def running(self) -> list[int]:
        return [step for step, (task, _) in self.tasks.items() if not task.done()]

    def content(self, step: int) -> str:
        return Path(self.candidates.uri(step), "weights").read_text()

    def report(self, step: int) -> dict[str, Any]:
        """What the loop does after a step and says of it."""
        self.writes += 1
        self.candidates.write(step, text(f"{step}, write {self.writes}"))
        return {"candidate": step}

    def finish(self, validator: Validator) -> bool:
        for step in self.running():
            self.end(step)
        self.at_once = True
        return validator.finish()

    def exported(self) -> int:
        return int(self.output.read_bytes("export/weights").split(b",")[0])


def test_tasks_run_where_there_is_room_and_the_rest_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    validator = world.validator(beside=1)
    for step in (2, 4, 6):
        validator.receive(world.report(step))
    assert world.running() == [2]
    assert "2 candidates wait on disk to be evaluated, 1 at a time" in caplog.text
    world.end(2)
    validator.receive({"candidate": None})
    assert world.running() == [4]
    assert read_metrics(world.output) == {2: {NAME: 2.0}}
    assert world.logged == {2: {NAME: 2.0}}
    for step in (8, 10, 12):
        validator.receive(world.report(step))
    assert world.running() == [4]
    assert world.finish(validator)
    assert world.logged == {step: {NAME: float(step)} for step in STEPS}
    assert validator.last_metrics() == {NAME: 12.0}


def test_without_room_all_wait_for_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    validator = world.validator(keep_best="", beside=0)
    for step in STEPS:
        validator.receive(world.report(step))
    assert world.tasks == {}
    assert "6 candidates wait on disk to be evaluated, no GPU is free until" in caplog.text
    assert world.candidates.complete() == list(STEPS)
    assert world.finish(validator)
    assert validator.publish() == world.exported() == 12
    assert world.candidates.complete() == [12]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_export_depends_on_the_metrics_alone(data: st.DataObject) -> None:
    """Tasks end in any order, drivers at any moment, the run goes back to any step before."""
    score = st.sampled_from([None, 0.0, 1.0, 2.0])
    scores = {step: data.draw(score, label=f"score of {step}") for step in STEPS}
    rule = data.draw(st.sampled_from([f"max:{NAME}", f"min:{NAME}"]))
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), scores)
        beside = data.draw(st.integers(0, 3))
        validator, done = world.validator(rule, beside), 0
        for action in data.draw(st.lists(st.sampled_from("rrrreedb"), max_size=25)):
            if action == "r" and done < 12:
                done += 2
                validator.receive(world.report(done))
            elif action == "e" and world.running():
                world.end(data.draw(st.sampled_from(world.running())))
                validator.receive({"candidate": None})
            elif action == "d":
                validator = world.validator(rule, beside)
            elif action == "b":
                done = data.draw(st.sampled_from(range(0, done + 1, 2)))
            assert len(world.running()) <= beside
            evaluated = read_metrics(world.output)
            assert len(set(world.candidates.complete()) & set(evaluated)) <= 1  # the best so far
        for step in range(done + 2, 13, 2):
            validator.receive(world.report(step))
        assert world.finish(validator)
        sign = 1 if rule.startswith("max") else -1
        ranked = [(sign * value, -step) for step, value in scores.items() if value is not None]
        expected = -max(ranked)[1] if ranked else 12
        assert validator.publish() == world.exported() == expected
        assert world.candidates.complete() == [expected]
        assert world.logged == {s: {} if v is None else {NAME: v} for s, v in scores.items()}


def test_a_task_that_fails_is_named_at_the_end_and_done_again_by_the_next_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    validator = world.validator()
    validator.receive(world.report(2))
    world.tasks[2][0].set_exception(KeyError("no such thing"))
    for step in (4, 6, 8, 10, 12):
        validator.receive(world.report(step))
    assert "the candidate of step 2 could not be evaluated: KeyError" in caplog.text
    with pytest.raises(
        RuntimeError, match=r"the candidate of step 2 could not be evaluated: KeyError: 'no such"
    ):
        world.finish(validator)
    assert world.candidates.complete() == [2, 12]
    validator = world.validator()
    assert world.finish(validator)
    assert read_metrics(world.output)[2] == {NAME: 2.0}


def test_a_new_driver_takes_up_what_the_old_one_left(tmp_path: Path) -> None:
    """It died after it wrote the metrics of 2 and 4, before it logged those of 4 and removed 2."""
    world = World(tmp_path)
    for step in (2, 4, 6):
        world.report(step)
    write_metrics(world.output, {2: {NAME: 2.0}, 4: {NAME: 4.0}})
    validator = world.validator()
    assert world.logged == {2: {NAME: 2.0}, 4: {NAME: 4.0}}
    assert world.candidates.complete() == [4, 6]
    validator.receive({"candidate": None})
    assert world.running() == [6]


def test_a_stop_ends_the_waiting_and_a_gap_is_an_error(tmp_path: Path) -> None:
    world = World(tmp_path)
    validator = world.validator()
    validator.receive(world.report(2))
    world.stop.set()
    validator.receive(world.report(4))
    assert not validator.finish()
    assert world.running() == [2]
    world.stop.clear()
    with pytest.raises(RuntimeError, match="there is no candidate of step 6"):
        world.finish(world.validator())


def test_a_metric_that_is_not_there_stops_the_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    validator = world.validator(keep_best="min:validation/loss", beside=1)
    validator.receive(world.report(2))
    world.end(2)
    validator.receive({"candidate": None})
    assert world.stop.is_set()
    with pytest.raises(
        SettingError, match="keep_best='min:validation/loss': held-out metrics are validation/sc"
    ):
        validator.finish()
    with pytest.raises(SettingError, match="held-out metrics are"):  # a new driver starts no worker
        world.validator(keep_best="min:validation/loss")


@pytest.mark.parametrize(
    ("resources", "gpus", "room"),
    [
        ({"CPU": 4.0}, None, (1, 3)),
        ({"CPU": 9.0, "GPU": 4.0}, None, (2, 4)),
        ({"CPU": 9.0, "GPU": 2.0}, None, (0, 2)),
        ({"CPU": 9.0, "GPU": 4.0}, 0.0, (1, 3)),
    ],
)
def test_what_the_training_leaves_is_the_room(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, float],
    gpus: float | None,
    room: tuple[int, int],
) -> None:
    """Two workers: a CPU each, and a GPU where there are any and they are not refused."""
    started = []
    monkeypatch.setattr(
        validation, "start_task", lambda *args, **options: started.append((args, options))
    )
    output = artifact(tmp_path)
    job = stub_job(output, validation={"drawn/detection": output}, validate_every=2)
    runtime = RuntimeConfig(root=str(tmp_path), data=str(tmp_path), workers=2, gpus_per_worker=gpus)
    pools = pool_sizes(resources, runtime)
    made = make_validator(
        job, output, pools, max_retries=3, log=lambda *_: None, stop=threading.Event()
    )
    assert made is not None
    assert (made._beside, made._after) == room
    made._start(4)
    ((called, *_, device, step), options) = started[0]
    on_gpu = "GPU" in resources and gpus is None
    assert (called, device, step) == (evaluate_candidate, "cuda" if on_gpu else "cpu", 4)
    assert options == {"num_gpus": float(on_gpu), "max_retries": 3}


# In a run.


def test_a_slice_of_a_benchmark_has_the_metrics_of_evaluation(tmp_path: Path) -> None:
    """Stage 1 of the debug model, evaluated by its loss and by all questions of a benchmark."""
    root = tmp_path / "root"
    samples = samples_artifact(root, small_world(tmp_path, scenes=2), "drawn_val")
    proposals = proposals_artifact(root, samples)
    asked_shards = shards_artifact(
        samples, proposals, tmp_path / "drawn", regions="proposals_scored"
    )
    shards = shards_artifact(samples, proposals, tmp_path / "drawn", regions="proposals")
    config = PredictConfig(tasks=("detection", "rejection"), max_new_tokens=3)
    job = TrainJob(
        name="stage1",
        learner=FO1Learner(stage="stage1", model=SIZES["debug"]()),
        config=TrainConfig(
            steps=2,
            batch_size=2,
            learning_rate=1e-3,
            validate_every=1,
            validation_examples=100,
            keep_best="min:validation/loss",
        ),
        mix={"drawn_val/detection": 1.0},
        shards={"drawn_val": shards},
        validation={"drawn_val/detection": shards},
        benchmarks={
            "drawn_val": Questions(shards=asked_shards, samples=samples, config=config, coco=False)
        },
    )
    output = run(job, root)
    evaluated = read_metrics(output)
    assert list(evaluated) == [1, 2]
    assert output.manifest()["exported_step"] == best_step(evaluated, "min:validation/loss")
    found = evaluated[output.manifest()["exported_step"]]
    inputs = predict_inputs(asked_shards, output)
    mark = fingerprint(kind="predictions", version=VERSION, config=config, inputs=inputs)
    answers = Artifact(root=str(root), kind="predictions", name="drawn_val", fingerprint=mark)
    predict(
        config,
        asked_shards,
        output,
        answers,
        runtime=RuntimeConfig(root=str(root), data=str(root), workers=0),
    )
    metrics, _ = evaluate(answers, asked_shards, samples)
    assert found == {"validation/loss": found["validation/loss"]} | {
        f"validation/drawn_val.{name}": value for name, value in metrics.items()
    }
