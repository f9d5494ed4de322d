"""What a training run is made from: its job. Small, hashed, and free of heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.evaluation.predict import VERSION as PREDICT_VERSION
from pipelines.evaluation.predict import PredictConfig
from pipelines.fingerprints import canonical, fingerprint
from pipelines.loading.sample_plan import check_weights
from pipelines.model_identity import run_key
from pipelines.train_config import VALIDATION, TrainConfig, best_rule
from pipelines.training.learners import Learner

VERSION = 1
"""Raised when the same inputs would give other weights."""
SPEED_FILE = "speed.json"
"""File of a finished run that says how fast it was, one record a report.

A record has ``step`` and the metrics of `pipelines.training.throughput`. The file is written from
MLflow, so that it holds what came before a restart.
"""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that others trained, on disk."""

    path: str
    """Folder or file, which every worker reads: on a cluster it is on every machine. Not hashed."""
    digest: str
    """Digest of its content (`pipelines.proposals.detector_inputs.content_digest`)."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A benchmark that candidates are asked a slice of."""

    shards: Artifact
    """Shards of its questions."""
    samples: Artifact
    """Samples with their truth."""
    config: PredictConfig
    """How the questions are answered."""
    coco: bool
    """Whether COCO AP is among the metrics (`pipelines.evaluation.score.evaluate`)."""

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of questions and truth, and of how they are asked."""
        how = fingerprint(
            kind="predictions",
            version=PREDICT_VERSION,
            config=self.config,
            inputs={"coco": str(self.coco)},
        )
        return {
            "questions": self.shards.fingerprint,
            "truth": self.samples.fingerprint,
            "asked": how,
        }


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a run is made from: small, picklable, and the same for any number of workers."""

    name: str
    """Name of the run's artifact, such as ``stage1``."""
    learner: Learner
    """What is trained."""
    config: TrainConfig
    """How it is trained."""
    mix: dict[str, float]
    """Weight of each source ``dataset/task``; empty for a run of no steps."""
    shards: dict[str, Artifact]
    """Shards of each dataset in the mix."""
    weights: Mapping[str, Weights] = field(default_factory=dict)
    """Weights of others that parts of a new model start from, by part.

    The learner says which parts it takes.
    """
    validation: dict[str, Artifact] = field(default_factory=dict)
    """Shards of held-out examples, by source ``dataset/task``, where the config validates."""
    benchmarks: dict[str, Questions] = field(default_factory=dict)
    """Benchmarks that candidates are asked, by name, where the config validates."""
    parent: Artifact | None = None
    """Finished run whose model this one starts from."""
    tracking_uri: str | None = field(default=None, repr=False)
    """MLflow server; None for a database under the root. Not hashed.

    It may hold a password, so it is not shown.
    """

    def __post_init__(self) -> None:
        # All that is known without files is checked here, so that `fo1 plan` refuses it too.
        if self.config.steps:
            check_weights(self.mix)
        if unknown := sorted({source.split("/")[0] for source in self.mix} - set(self.shards)):
            raise SettingError(f"mix names {', '.join(unknown)}, whose shards are not given")
        evaluated = {*self.validation, *self.benchmarks}
        if evaluated and not self.config.validate_every:
            raise SettingError(
                "validation: held-out shards are given; set TrainConfig.validate_every too"
            )
        if self.config.validate_every and not evaluated:
            raise SettingError(
                f"validate_every={self.config.validate_every}: give `validation` shards or "
                "`benchmarks`, or set 0"
            )
        if self.benchmarks and not self.learner.answers:
            raise SettingError(
                f"validation asks {', '.join(self.benchmarks)}, but this learner answers no "
                "questions: leave benchmarks out"
            )
        if self.config.keep_best:
            self._check_keep_best()
        towers = self.learner.towers
        if unknown := sorted(set(self.config.activation_checkpointing) - set(towers)):
            known = (
                f"choose among {', '.join(towers)}"
                if towers
                else "this learner has none: leave it out"
            )
            raise SettingError(
                f"TrainConfig.activation_checkpointing names {', '.join(unknown)}; {known}"
            )
        if self.config.compile and not towers:
            raise SettingError(
                "TrainConfig.compile: this learner has no layers to compile; leave it out"
            )
        self.learner.check(has_parent=self.parent is not None, weights=self.weights)

    @property
    def weight_paths(self) -> dict[str, Path]:
        """Folder or file of the weights of others, by part."""
        return {part: Path(weights.path) for part, weights in self.weights.items()}

    def artifacts(self) -> list[Artifact]:
        """Return what it is made from: shards, held-out shards, benchmarks, the parent run."""
        names = sorted({source.split("/")[0] for source in self.mix})
        parent = [self.parent] if self.parent is not None else []
        asked = [
            artifact
            for each in self.benchmarks.values()
            for artifact in (each.shards, each.samples)
        ]
        return [*(self.shards[name] for name in names), *self.validation.values(), *asked, *parent]

    def _check_keep_best(self) -> None:
        """Refuse a metric that cannot be among the measured: a benchmark's is ``NAME.metric``."""
        name = best_rule(self.config.keep_best)[1].removeprefix(VALIDATION)
        if "." in name and name.split(".")[0] not in self.benchmarks:
            asked = ", ".join(self.benchmarks) or "none"
            raise SettingError(
                f"TrainConfig.keep_best={self.config.keep_best!r}: the run validates on benchmarks "
                f"{asked}"
            )
        if "." not in name and not self.validation:
            raise SettingError(
                f"TrainConfig.keep_best={self.config.keep_best!r}: there are no held-out shards; "
                "name a metric of a benchmark, such as "
                f"max:{VALIDATION}{next(iter(self.benchmarks))}.f1"
            )

    def inputs(self) -> dict[str, str]:
        """Return the fingerprint of each input, by name."""
        datasets = sorted({source.split("/")[0] for source in self.mix})
        inputs = {
            f"shards/{self.shards[name].name}": self.shards[name].fingerprint for name in datasets
        }
        for source, shards in self.validation.items():
            inputs[f"validation/{source}"] = shards.fingerprint
        for name, asked in self.benchmarks.items():
            inputs |= {
                f"{VALIDATION}benchmark/{name}/{part}": mark
                for part, mark in asked.fingerprints().items()
            }
        for part, weights in self.weights.items():
            inputs[f"weights/{part}"] = weights.digest
        if self.parent is not None:
            inputs[run_key(self.parent)] = self.parent.fingerprint
        return inputs | dict(self.learner.inputs())

    def description(self) -> dict[str, Any]:
        """Return what is hashed beside the inputs; also the parameters in MLflow."""
        return {
            "learner": canonical(self.learner),
            "train": canonical(self.config),
            "mix": canonical(self.mix),
        }

    def artifact(self, root: str) -> Artifact:
        """Return the artifact that this job makes."""
        key = fingerprint(
            kind="runs", version=VERSION, config=self.description(), inputs=self.inputs()
        )
        return Artifact(root=root, kind="runs", name=self.name, fingerprint=key)
