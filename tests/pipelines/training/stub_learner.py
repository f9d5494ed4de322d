"""A learner that trains in milliseconds, and shards for it. Ray workers import this module too."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipelines.artifacts import Artifact
from pipelines.loading.collators import Example, batch_of
from pipelines.loading.loader import make_plan, open_sources
from pipelines.schemas import RegionExample
from pipelines.seeds import seed_of
from pipelines.shards.tar_format import TarWriter
from pipelines.train_config import TrainConfig
from pipelines.training.job import TrainJob
from pipelines.training.trainees import BatchLoss


@dataclass(frozen=True)
class StubBatch:
    inputs: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...] = ()
    """Of the examples, as `name_of` makes them."""
    counts: tuple[int, ...] = ()
    """Boxes of each example."""

    def to(self, device: Any) -> StubBatch:
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))


class StubModule(nn.Module):
    """A frozen layer, a trained one with dropout, a buffer, a parameter that gets no gradient."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 16)
        self.hidden = nn.Linear(16, 16)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 2)
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.tensor(0.01))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.frozen(inputs * self.scale))
        return self.head(self.dropout(torch.tanh(self.hidden(hidden))))


@dataclass(frozen=True, kw_only=True)
class StubLearner:
    """Tells wide boxes from tall ones."""

    towers: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[bool] = False
    control: str = ""
    """Folder of the `Control`."""
    dropout: float = 0.1

    def inputs(self) -> Mapping[str, str]:
        return {}

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        pass

    def check_parent(self, read: Callable[[str], bytes]) -> None:
        pass

    def build(
        self, parent: Path | None, weights: Any = None, *, seed: int, precision: str = "fp32"
    ) -> StubTrainee:
        module = StubModule(self.dropout)
        if parent is not None:
            module.load_state_dict(torch.load(parent / "model.pt", weights_only=True))
        return StubTrainee(module, self)

    def evaluator(self, folder: Path, device: str) -> StubEvaluator:
        module = StubModule(self.dropout)
        module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return StubEvaluator(module.to(device).eval(), device)


class StubCollator:
    packs = False

    def encode(self, example: Example) -> Example:
        return example

    def length(self, encoded: Example) -> int:
        return len(encoded.record.boxes)

    def collate(self, encoded: Sequence[Example]) -> StubBatch:
        boxes = np.concatenate([example.record.boxes for example in encoded])
        wide = boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1]
        names = tuple(map(name_of, encoded))
        counts = tuple(len(example.record.boxes) for example in encoded)
        return StubBatch(
            torch.from_numpy(boxes), torch.from_numpy(wide.astype(np.int64)), names, counts
        )

    def weigh(self, batch: StubBatch) -> float:
        return float(len(batch.labels))


class StubTrainee:
    collator = StubCollator()

    def __init__(self, module: StubModule, learner: StubLearner) -> None:
        self.module = module
        self._calls = 0
        self._control = Control(learner.control) if learner.control else None

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        self.module.frozen.requires_grad_(False)
        head = list(self.module.head.parameters())
        rest = [*self.module.hidden.parameters(), self.module.idle]
        return [
            {"name": "head", "params": head, "lr": config.learning_rate, "weight_decay": 0.0},
            {"name": "rest", "params": rest, "lr": config.learning_rate / 2, "weight_decay": 0.01},
        ]

    def loss(self, forward: Callable[..., Any], batch: StubBatch) -> BatchLoss:
        self._calls += 1
        if self._control:
            self._control.take_pass(batch.names)
        logits = forward(batch.inputs)
        right = float((logits.argmax(1) == batch.labels).sum())
        total = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        each = nn.functional.cross_entropy(logits.detach(), batch.labels, reduction="none").double()
        pieces = each.split(batch.counts)
        by_example = torch.stack(
            [torch.tensor([piece.sum(), len(piece)]).double() for piece in pieces]
        )
        return BatchLoss(total=total, parts={"accuracy": right}, by_example=by_example)

    def flops(self, batch: StubBatch) -> None:
        pass

    def export(self, folder: Path) -> None:
        torch.save(self.module.state_dict(), folder / "model.pt")


class Control:
    """A folder through which a test rules the processes of a run, and learns what they did.

    The test may leave there ``crash`` (lines ``rank passes whom`` taken in turn, whom being worker,
    driver or both), ``driver`` (its process id) and ``slow`` (seconds a pass). Each process notes
    the examples of its passes.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._passes, self._orphaned = Path(folder), 0, False
        start = [time.time_ns()]
        # Of the first rank: one number for all processes of a start.
        dist.broadcast_object_list(start)
        self._notes = self._folder / f"seen-{start[0]:020d}-{dist.get_rank()}"

    def take_pass(self, names: Sequence[str]) -> None:
        """Before a pass over these examples."""
        self._passes += 1
        slow = self._folder / "slow"
        if slow.exists():
            time.sleep(float(slow.read_text()))
        if self._orphaned:
            time.sleep(1)  # time for Ray to notice, or the run would be over first
        self._crash()
        with self._notes.open("a") as stream:
            stream.writelines(f"{name}\n" for name in names)

    def _crash(self) -> None:
        crash = self._folder / "crash"
        if not crash.exists():
            return
        (rank, passes, whom), *others = map(str.split, crash.read_text().splitlines())
        if (int(rank), int(passes)) != (dist.get_rank(), self._passes):
            return
        crash.with_suffix(".next").write_text("\n".join(map(" ".join, others)))
        crash.with_suffix(".next").replace(crash) if others else crash.unlink()
        if whom in ("driver", "both"):
            os.kill(int((self._folder / "driver").read_text()), signal.SIGKILL)
            self._orphaned = True
        if whom in ("worker", "both"):
            os._exit(1)


def name_of(example: Example) -> str:
    """Its seed, which tells the position in the plan, and its id."""
    return f"{example.seed} {example.record.sample_id}"


class StubEvaluator:
    """Accuracy, and the first weight of the head, which tells any two candidates apart."""

    def __init__(self, module: StubModule, device: str) -> None:
        self._module, self._device = module, device

    @torch.no_grad()
    def metrics(self, examples: Iterable[Example]) -> dict[str, float]:
        right = []
        for example in examples:
            batch = batch_of(StubTrainee.collator, [example]).to(self._device)
            right.append(
                float((self._module(batch.inputs).argmax(1) == batch.labels).float().mean())
            )
        weight = float(self._module.head.weight[0, 0])
        return {
            "accuracy": sum(right) / len(right),
            "examples": float(len(right)),
            "weight": weight,
        }


def consumed(control: Path, job: TrainJob) -> list[int]:
    """Positions in the plan whose update is in the final weights, by what the processes noted.

    Each start of the workers goes on from a checkpoint: what the starts before it did from its
    first step on was lost with them. KeyError for an example that is not what the plan has at its
    position.
    """
    sources = open_sources(job.shards, job.mix)
    plan = make_plan(sources, job.mix, job.config)
    position = {}
    for draw in map(plan.__getitem__, range(job.config.steps * job.config.batch_size)):
        sample_id = sources[draw.source].sample_ids(draw.shard)[draw.index]
        position[f"{seed_of('augment', plan.seed, draw.position)} {sample_id}"] = draw.position
    starts: dict[str, list[int]] = {}
    for file in sorted(control.glob("seen-*")):
        seen = [position[line] for line in file.read_text().splitlines()]
        starts.setdefault(file.name.split("-")[1], []).extend(seen)
    kept: list[int] = []
    for seen in starts.values():
        kept = [p for p in kept if p < min(seen)] + seen
    return sorted(kept)


def record(number: int, dataset: str = "drawn", task: str = "detection") -> RegionExample:
    """An example of 1 to 3 boxes that follow from its number."""
    generator = np.random.Generator(np.random.PCG64(number))
    corners = generator.uniform(0, 60, (number % 3 + 1, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 60, corners.shape)], 1).astype(
        np.float32
    )
    return RegionExample(
        sample_id=f"{dataset}:{task}:{number:05d}",
        dataset=dataset,
        task=task,
        image_id=f"{number:05d}",
        width=128,
        height=128,
        boxes=boxes,
        scores=(0.5,) * len(boxes),
        box_sources=("proposal",) * len(boxes),
    )


def write_stub_shards(root: Path) -> Artifact:
    """Finished shards of two tasks, in two buckets: 40 detection and 15 counting examples."""
    artifact = Artifact(root=str(root), kind="shards", name="drawn", fingerprint="0123456789abcdef")
    files: dict[str, dict[str, int]] = {}
    for task, bucket, numbers in [
        ("detection", 0, range(25)),
        ("detection", 1, range(25, 40)),
        ("counting", 0, range(40, 44)),
        ("counting", 1, range(44, 55)),
    ]:
        writer = TarWriter()
        for number in numbers:
            writer.add(record(number, task=task), f"image {number}".encode())
        tar, index = writer.finish()
        artifact.write_bytes(f"{task}-{bucket:05d}.tar", tar)
        artifact.write_bytes(f"{task}-{bucket:05d}.index.parquet", index)
        files[f"{task}-{bucket:05d}.tar"] = {"rows": len(numbers)}
    artifact.commit({"files": files})
    return artifact


def stub_job(
    shards: Artifact,
    *,
    learner: StubLearner | None = None,
    validation: dict[str, Artifact] | None = None,
    **changes: Any,
) -> TrainJob:
    """A job of 12 steps over both tasks of `shards`."""
    config = TrainConfig(
        **{
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 3,
            "checkpoint_every": 5,
            **changes,
        }
    )
    return TrainJob(
        name="stub",
        learner=learner or StubLearner(),
        config=config,
        mix={"drawn/detection": 0.75, "drawn/counting": 0.25},
        shards={"drawn": shards},
        validation=validation or {},
    )


def history_of(output: Artifact) -> list[dict[str, float]]:
    return json.loads(output.read_bytes("history.json"))


def weights_of(output: Artifact) -> dict[str, torch.Tensor]:
    return torch.load(Path(output.path, "export", "model.pt"), weights_only=True)
