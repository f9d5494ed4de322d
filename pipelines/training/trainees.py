"""Modules in training: what the loop asks of one, and those of OPN and of the region-token model.

A learner (`pipelines.training.learners`) makes a trainee on each worker. Heavy imports happen when
it works, because `fo1 plan` makes learners too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.loading.collators import Collator, FO1Collator, OPNCollator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fo1_model.batch import Batch
    from fo1_model.model import FO1Model
    from fo1_model.opn.network import OPN
    from fo1_model.processing import Processor
    from pipelines.train_config import TrainConfig
    from pipelines.training.learners import FO1Learner, OPNLearner


@dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """What a forward pass gives."""

    total: Tensor
    """float32[]: the loss, summed over the batch."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Parts of the loss for the log, summed likewise."""
    by_example: Tensor | None = None
    """float64[examples, 2], without gradient: each example's loss, and its part of the divisor.

    The divisor is that of `Collator.weigh`. None where the loss does not come apart.
    """


class Trainee(Protocol):
    """A module in training, and what is particular to it."""

    @property
    def module(self) -> nn.Module:
        """On the CPU, with ``requires_grad`` final once `parameter_groups` was called."""

    @property
    def collator(self) -> Collator:
        """What makes the batches."""

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Freeze what does not train; return the groups of the rest.

        Returns:
            Groups ``{name, params, lr, weight_decay}``.
        """

    def loss(self, forward: Callable[..., Any], batch: Any) -> BatchLoss:
        """Return the loss of a batch, on its device; `forward` calls the module."""

    def flops(self, batch: Any) -> float | None:
        """Return the FLOPs of a forward and backward pass; None where nobody counts them.

        Args:
            batch: As the collator made it, on the CPU (`pipelines.training.flops`).
        """

    def export(self, folder: Path) -> None:
        """Write the model folder that evaluation, prediction and later stages read."""


class OPNTrainee:
    """The object proposal network in training."""

    def __init__(self, module: OPN, learner: OPNLearner) -> None:
        from fo1_model.opn.criterion import OPNCriterion

        self.module = module
        self.collator = OPNCollator(
            network=learner.network, augmentation=learner.augmentation, fine=learner.fine
        )
        self._criterion = OPNCriterion(learner.criterion)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Return two groups of all parameters: matrices, and vectors, which do not decay."""
        # Norms and biases are vectors; decay has no meaning for them.
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
        """Return the loss of a batch and its parts; it does not come apart by example."""
        outputs = forward(batch.pixels, batch.prompts, batch.boxes, batch.seeds)
        loss_sum, _, logs = self._criterion(outputs, batch)
        return BatchLoss(total=loss_sum, parts=logs)

    def flops(self, batch: Any) -> None:
        """Return nothing: FLOPs of OPN are not counted."""

    def export(self, folder: Path) -> None:
        """Write the model folder."""
        from fo1_model.opn.network import save_opn

        save_opn(self.module, folder)


class FO1Trainee:
    """The region-token model in one of its stages."""

    def __init__(self, module: FO1Model, processor: Processor, learner: FO1Learner) -> None:
        self.module, self._processor, self._learner = module, processor, learner
        self.collator = FO1Collator(processor, learner.packs)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Freeze what the stage does not train; return the rest's groups (`fo1_model.stages`)."""
        from fo1_model.acceleration import accelerate
        from fo1_model.stages import parameter_groups

        # Here, while the module is still on the CPU, as `accelerate` needs it.
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
        """Return the loss of a batch, in all and by example."""
        output = forward(batch)
        return BatchLoss(total=output.loss_sum, by_example=output.by_sample)

    def flops(self, batch: Batch) -> float | None:
        """Return the FLOPs of a forward and backward pass."""
        from pipelines.training.flops import train_flops

        return train_flops(self.module, batch)

    def export(self, folder: Path) -> None:
        """Write the model folder, adapters merged in, and beside the model the adapters alone."""
        from fo1_model.checkpoint import save_model
        from fo1_model.lora import ADAPTER, has_adapters, merged, write_adapter

        with merged(self.module) as whole:
            save_model(whole, self._processor, folder)
        if has_adapters(self.module):
            write_adapter(self.module, folder / ADAPTER)
