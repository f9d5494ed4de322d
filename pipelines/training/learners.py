"""What the training loop trains: OPN, and the stages of the region-token model.

A **learner** is a frozen description, hashed into the run's fingerprint; recipes make it. ``build`` turns it,
on each worker, into a **trainee**: the module with its collator, its loss and its export. The loop in
`pipelines.training.driver` knows nothing else about models. Heavy imports happen in ``build``, because `fo1 plan`
makes learners too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import fo1_model
from fo1_model.config import SIZES, TOWERS, ModelConfig
from fo1_model.opn.config import AugmentationConfig, OPNConfig, OPNCriterionConfig
from pipelines.loading.collators import Collator, FO1Collator, OPNCollator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fo1_model.model import FO1Model
    from fo1_model.opn.network import OPN
    from fo1_model.processing import Batch, Processor
    from pipelines.train_config import TrainConfig
    from pipelines.training.evaluators import Evaluator


Precision = Literal["fp32", "bf16"]
Folders = Mapping[str, Path]
"""Part of a module -> folder or file of weights of others that it starts from."""


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """What a forward pass gives."""

    total: Tensor
    """float32[]: the loss, summed over the batch."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Parts of it for the log, summed likewise."""
    by_example: Tensor | None = None
    """float64[examples, 2]: what each example of the batch adds to the loss, and to what it is divided by
    (`Collator.weigh`), without gradient. None where the loss does not come apart."""


class Trainee(Protocol):
    """A module in training, and what is particular to it."""

    @property
    def module(self) -> nn.Module:
        """On the CPU, with ``requires_grad`` final once `parameter_groups` was called."""

    @property
    def collator(self) -> Collator:
        """Makes the batches."""

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Freeze what does not train; return groups ``{name, params, lr, weight_decay}`` of the rest."""

    def loss(self, forward: Callable[..., Any], batch: Any) -> BatchLoss:
        """Loss of a batch. forward: calls the module."""

    def flops(self, batch: Any) -> float | None:
        """FLOPs of a forward and backward pass (`pipelines.training.flops`); None where nobody counts them.

        batch: as the collator made it, on the CPU.
        """

    def export(self, folder: Path) -> None:
        """Write the model folder that evaluation, prediction and later stages read."""


class Learner(Protocol):
    """The description of a trainee; a frozen dataclass of plain values."""

    @property
    def continues(self) -> bool:
        """Whether it goes on from a parent run."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Names for ``TrainConfig.activation_checkpointing``; empty: nothing is recomputed or compiled."""

    @property
    def answers(self) -> bool:
        """Whether the model answers questions, so that benchmarks can be put to it."""

    def inputs(self) -> Mapping[str, str]:
        """Fingerprints of files that come with the package and that the weights start from."""

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Raise ValueError when the description, the presence of a parent run and the parts that weights of
        others are given for do not fit together."""

    def check_weights(self, weights: Folders) -> None:
        """Raise ValueError when what lies there is not what the description says; reads no weights."""

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",
    ) -> Trainee:
        """Make the trainee, the same on every worker.

        parent: model folder of the run it goes on from. weights: part -> folder of weights of others.
        precision: the least that its weights are read in; the engine converts what is wider.
        """

    def judge(self, folder: Path, device: str) -> Evaluator:
        """The model that a trainee exported to `folder`, to be judged."""


@dataclass(frozen=True, kw_only=True)
class OPNLearner:
    """The object proposal network, on ``ground_truth`` shards."""

    network: OPNConfig
    """Sizes of the network."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random views of the training pictures."""
    criterion: OPNCriterionConfig = field(default_factory=OPNCriterionConfig)
    """The loss."""
    fine: tuple[str, ...] = ()
    """Datasets whose boxes are parts as well as whole objects: they train the ``fine`` prompt."""
    warm_start: bool = False
    """Start from an OmDet-Turbo, whose sizes `network` has then (`fo1_model.opn.warm_start`)."""
    continues: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[bool] = False

    def inputs(self) -> dict[str, str]:
        """Nothing: OPN starts from random weights, or from some that the job names."""
        return {}

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Refuse a parent run, and weights of any part but a warm start's ``omdet``."""
        if has_parent:
            raise ValueError("OPN goes on from no run: leave out the parent run")
        _check_parts("OPN", weights, ("omdet",) if self.warm_start else ())
        if self.warm_start and not weights:
            raise ValueError("OPN, warm_start=True: name the folder of an OmDet-Turbo")

    def check_weights(self, weights: Folders) -> None:
        """Refuse an OmDet-Turbo of other sizes."""
        from fo1_model.opn.warm_start import warm_start_config

        if weights and (found := warm_start_config(weights["omdet"])) != self.network:
            raise ValueError(
                f"{weights['omdet']} has other sizes than the run: {found}, not {self.network}"
            )

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",  # noqa: ARG002 - it is small
    ) -> Trainee:
        """A new network from `seed`, or from an OmDet-Turbo."""
        weights = weights or {}
        self.check(has_parent=parent is not None, weights=weights)
        if not weights:
            from fo1_model.opn.network import new_opn

            return _OPNTrainee(new_opn(self.network, seed), self)
        from fo1_model.opn.warm_start import warm_start

        self.check_weights(weights)
        return _OPNTrainee(warm_start(weights["omdet"]), self)

    def judge(self, folder: Path, device: str) -> Evaluator:
        """As `Learner.judge`."""
        from fo1_model.opn.network import load_opn
        from pipelines.training.evaluators import OPNEvaluator

        return OPNEvaluator(load_opn(folder), self.fine, device)


class _OPNTrainee:
    def __init__(self, module: OPN, learner: OPNLearner) -> None:
        from fo1_model.opn.criterion import OPNCriterion

        self.module = module
        self.collator = OPNCollator(
            network=learner.network, augmentation=learner.augmentation, fine=learner.fine
        )
        self._criterion = OPNCriterion(learner.criterion)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        matrices = [p for p in self.module.parameters() if p.ndim > 1]
        vectors = [p for p in self.module.parameters() if p.ndim <= 1]
        return [
            {
                "name": "opn",
                "params": matrices,
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
            },
            {
                "name": "opn_no_decay",
                "params": vectors,
                "lr": config.learning_rate,
                "weight_decay": 0.0,
            },
        ]

    def loss(self, forward: Callable[..., Any], batch: Any) -> BatchLoss:
        outputs = forward(batch.pixels, batch.prompts, batch.boxes, batch.seeds)
        loss_sum, _, logs = self._criterion(outputs, batch)
        return BatchLoss(total=loss_sum, parts=logs)

    def flops(self, batch: Any) -> None:
        """Not counted."""

    def export(self, folder: Path) -> None:
        from fo1_model.opn.network import save_opn

        save_opn(self.module, folder)


@dataclass(frozen=True, kw_only=True)
class FO1Learner:
    """One stage of the region-token model, on ``proposals`` shards."""

    stage: str
    """Name in ``fo1_model.stages.STAGES``: what trains and what is frozen."""
    model: ModelConfig | None = None
    """The model to make; None goes on from the parent run's."""
    base: str = ""
    """Name in ``fo1_model.checkpoint.BASES`` of the pretrained towers that a new model starts from; empty
    for random weights."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate of parts that differ from ``TrainConfig.learning_rate``."""
    packs: bool = False
    """Put the examples of a forward pass end to end in one row, each attending to itself alone
    (``Processor.pack``), instead of padding them. Worth it with FlashAttention and a token budget."""
    towers: ClassVar[tuple[str, ...]] = TOWERS
    answers: ClassVar[bool] = True

    @property
    def continues(self) -> bool:
        """Whether it goes on from a parent run: when it makes no model of its own."""
        return self.model is None

    def inputs(self) -> dict[str, str]:
        """sha256 of the pretrained base, where the run starts from it."""
        if not self.base:
            return {}
        file = Path(fo1_model.__file__).parent / "assets" / f"{self.base}_base.safetensors"
        if not file.is_file():
            raise ValueError(f"base={self.base!r}: {file.name} is not among the package's assets")
        return {f"base/{self.base}": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Raise ValueError when ``model``, ``base``, the parent run and weights of others do not fit
        together. A new model takes both of its towers from others, or neither.
        """
        if has_parent and self.model is not None:
            raise ValueError(
                f"{self.stage}: `model` makes a new one: leave out the parent run, or `model`"
            )
        if not has_parent and self.model is None:
            raise ValueError(f"{self.stage}: name the run it continues, or give `model`")
        if self.base and (self.model is None or self.base not in SIZES):
            raise ValueError(
                f"{self.stage}, base={self.base!r}: needs `model`; one of {', '.join(SIZES)}"
            )
        if self.base and weights:
            raise ValueError(
                f"{self.stage}, base={self.base!r}: leave it out, or the weights of others"
            )
        _check_parts(self.stage, weights, self._towers())

    def _towers(self) -> tuple[str, ...]:
        """Parts of a new model that weights of others are for."""
        if self.model is None:
            return ()
        return ("vlm", "auxiliary") if self.model.builds_auxiliary else ("vlm",)

    def check_weights(self, weights: Folders) -> None:
        """Refuse towers of other families and sizes, and folders that lack a file."""
        from fo1_model.vlms.published import check_published

        if weights:
            check_published(cast("ModelConfig", self.model), weights)

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",
    ) -> Trainee:
        """The model at the start of the stage. Weights from folders are read in `precision`, others drawn
        or kept in float32."""
        import torch

        from fo1_model import checkpoint
        from fo1_model.vlms.published import published_model

        weights = weights or {}
        self.check(has_parent=parent is not None, weights=weights)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if parent is not None:
            made = checkpoint.load_model(parent, dtype=dtype)
        elif weights:
            made = published_model(cast("ModelConfig", self.model), seed, weights, dtype=dtype)
        elif self.base:
            made = checkpoint.load_base(self.base, seed, config=self.model)
        else:
            made = checkpoint.new_model(cast("ModelConfig", self.model), seed)
        return _FO1Trainee(*made, self)

    def judge(self, folder: Path, device: str) -> Evaluator:
        """As `Learner.judge`."""
        from fo1_model.checkpoint import load_model
        from pipelines.training.evaluators import FO1Evaluator

        return FO1Evaluator(*load_model(folder, device=device), device)


class _FO1Trainee:
    def __init__(self, module: FO1Model, processor: Processor, learner: FO1Learner) -> None:
        self.module, self._processor, self._learner = module, processor, learner
        self.collator = FO1Collator(processor, learner.packs)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        from fo1_model.acceleration import accelerate
        from fo1_model.stages import parameter_groups

        accelerate(
            self.module,
            recomputed=config.activation_checkpointing,
            compiles=config.compile,
            precision=config.precision,
        )
        return parameter_groups(
            self.module,
            self._learner.stage,
            config.learning_rate,
            weight_decay=config.weight_decay,
            learning_rates=self._learner.learning_rates,
        )

    def loss(self, forward: Callable[..., Any], batch: Batch) -> BatchLoss:
        output = forward(batch)
        return BatchLoss(total=output.loss_sum, by_example=output.by_sample)

    def flops(self, batch: Batch) -> float | None:
        from pipelines.training.flops import train_flops

        return train_flops(self.module, batch)

    def export(self, folder: Path) -> None:
        from fo1_model.checkpoint import save_model

        save_model(self.module, self._processor, folder)


def _check_parts(what: str, given: Collection[str], parts: tuple[str, ...]) -> None:
    """Raise ValueError when weights are given, but not for just these parts."""
    if unknown := sorted(set(given) - set(parts)):
        named = f"it takes them for {', '.join(parts)}" if parts else "it takes none"
        raise ValueError(f"{what}: weights of others are given for {', '.join(unknown)}; {named}")
    if given and (missing := [part for part in parts if part not in given]):
        raise ValueError(
            f"{what}: weights of others are given for {', '.join(given)}; give {', '.join(missing)} too"
        )
