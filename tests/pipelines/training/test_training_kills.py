"""Training on two Ray workers under kills of workers and drivers: it ends as if undisturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray.cloudpickle

from fo1_model.config import TOWERS, LoraSettings
from pipelines.artifacts import Artifact
from pipelines.loading.collators import Example, FO1Collator
from pipelines.train_config import TrainConfig
from pipelines.training.job import TrainJob
from pipelines.training.learners import FO1Learner
from tests import ROOT
from tests.pipelines.group_worker import on_ranks, run_job
from tests.pipelines.loading.test_loader_runs import write_shards
from tests.pipelines.training import stub_learner
from tests.pipelines.training.stub_learner import (
    Control,
    StubLearner,
    consumed,
    name_of,
    stub_job,
    write_stub_shards,
)
from tests.pipelines.training.test_learners import DEBUG
from tests.pipelines.training.test_training import mlflow_runs, run, steps_in_mlflow

# Workers cannot import a module from the tests' folder; they get its code with the job.
ray.cloudpickle.register_pickle_by_value(stub_learner)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


LORA = replace(DEBUG, stage="stage2_lora", lora=LoraSettings(rank=4, alpha=8.0))
"""Adapters on the debug model's decoder."""


class NamingCollator(FO1Collator):
    """Its samples are called as `consumed` reads them."""

    def encode(self, example: Example) -> Any:
        return replace(super().encode(example), sample_id=name_of(example))


@dataclass(frozen=True, kw_only=True)
class ControlledFO1:
    """The real model under a `Control`."""

    inner: FO1Learner
    control: str
    towers: ClassVar[tuple[str, ...]] = TOWERS

    def inputs(self) -> dict[str, str]:
        return self.inner.inputs()

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        self.inner.check(has_parent=has_parent, weights=weights)

    def build(self, parent: Path | None, weights: Any = None, **how: Any) -> Any:
        trainee: Any = self.inner.build(parent, weights, **how)
        trainee.collator = NamingCollator(trainee.collator.processor)
        control, loss = Control(self.control), trainee.loss

        def controlled(forward: Callable[..., Any], batch: Any) -> Any:
            control.take_pass(batch.sample_ids)
            return loss(forward, batch)

        trainee.loss = controlled
        return trainee


def stub_run(root: Path, name: str) -> TrainJob:
    """Twelve steps of two passes on each rank; checkpoints after 5, 10 and 12."""
    learner = StubLearner(control=str(root / f"control-{name}"))
    return replace(stub_job(write_stub_shards(root), learner=learner), name=name)


def real_run(root: Path, name: str, zero_stage: int, learner: FO1Learner) -> TrainJob:
    """The same numbers of steps and passes for stage 2 of the debug model."""
    config = TrainConfig(
        steps=12,
        batch_size=4,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_steps=3,
        weight_decay=0.1,
        checkpoint_every=5,
        zero_stage=zero_stage,  # type: ignore[arg-type]
    )
    return TrainJob(
        name=name,
        learner=ControlledFO1(inner=learner, control=str(root / f"control-{name}")),
        config=config,
        mix={"drawn/detection": 1.0},
        shards={"drawn": write_shards(root)},
    )


def job_of(root: Path, name: str, kind: str) -> TrainJob:
    if kind == "stub":
        return stub_run(root, name)
    if kind == "lora":
        return real_run(root, name, 2, LORA)
    return real_run(root, name, int(kind), replace(DEBUG, stage="stage2"))


def survives(root: Path, kind: str, kills: Sequence[str]) -> Artifact:
    """Train under these kills, a new driver for each killed one; compare with a run left alone.

    That one has two ranks too, and no Ray, whose starts are what takes time here.
    """
    control, left_alone = root / "control-killed", root / "control-whole"
    control.mkdir()
    left_alone.mkdir()
    (control / "crash").write_text("\n".join(kills))
    num_drivers = sum(kill.split()[2] != "worker" for kill in kills)
    for number in range(num_drivers + 1):
        code = drive(root, control, kind)
        assert code == (0 if number == num_drivers else -9), (number, code)
    assert not (control / "crash").exists()

    killed, whole = (job_of(root, name, kind) for name in ("killed", "whole"))
    output, other = killed.artifact(str(root)), whole.artifact(str(root))
    on_ranks(2, run_job, whole, other)
    assert contents(output) == contents(other)
    positions = killed.config.steps * killed.config.batch_size
    assert consumed(control, killed) == consumed(left_alone, whole) == list(range(positions))
    # Workers may outlive their driver, and leave nothing to the last start.
    assert len({file.name.split("-")[1] for file in control.glob("seen-*")}) >= len(kills)
    return output


def drive(root: Path, control: Path, kind: str) -> int:
    """Run the job in a driver of its own to its end; return its exit status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(root), kind]
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    (control / "driver").write_text(str(driver.pid))
    try:
        return driver.wait(600)
    finally:
        driver.kill()


def contents(output: Artifact) -> dict[str, bytes]:
    """What a run leaves but its manifest: weights, history and outcome."""
    exported = [path for path in Path(output.path, "export").rglob("*") if path.is_file()]
    assert exported
    files = [*exported, Path(output.path, "history.json")]
    # The driver adds to the outcome which step it exported; the run without Ray has no driver.
    skipped = json.loads(output.read_bytes("outcome.json"))["skipped_steps"]
    return {
        "skipped": json.dumps(skipped).encode(),
        **{str(path.relative_to(output.path)): path.read_bytes() for path in files},
    }


@pytest.mark.cluster
@pytest.mark.timeout(1800)  # three drivers, five starts of workers, on a machine that may be busy
def test_killed_workers_and_killed_drivers_change_nothing(tmp_path: Path) -> None:
    """A worker between reports, one right after one, worker and driver at once, the driver alone.

    Two passes a step: the third is in step 2, the 11th follows the report of five steps, which may
    not be committed yet.
    """
    output = survives(tmp_path, "stub", ["1 3 worker", "0 11 worker", "1 5 both", "0 11 driver"])
    (logged,) = mlflow_runs(tmp_path)
    assert logged.info.status == "FINISHED"
    assert steps_in_mlflow(tmp_path, logged.info.run_id) == list(range(1, 13))
    assert [record["step"] for record in json.loads(output.read_bytes("history.json"))] == list(
        range(1, 13)
    )


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_adapters_survive_a_kill_too(tmp_path: Path) -> None:
    output = survives(tmp_path, "lora", ["1 11 both"])
    assert Path(output.path, "export", "adapter", "adapter_model.safetensors").is_file()


@pytest.mark.chaos
@pytest.mark.cluster
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("zero_stage", "kills"),
    [
        (0, ["0 1 worker", "1 11 worker", "0 11 both", "1 2 driver"]),
        (1, ["1 10 worker", "0 12 driver", "1 4 both"]),
        (2, ["0 3 worker", "0 11 worker", "1 11 both", "1 7 driver", "0 2 worker"]),
        (3, ["1 11 driver", "0 9 both", "1 3 worker"]),
    ],
)
def test_the_real_model_survives_every_kill_at_every_zero_stage(
    tmp_path: Path, zero_stage: int, kills: list[str]
) -> None:
    """In the first pass, the last before a report, the first after it, and between."""
    survives(tmp_path, str(zero_stage), kills)


if __name__ == "__main__":
    run(job_of(Path(sys.argv[1]), "killed", sys.argv[2]), Path(sys.argv[1]), workers=2)
