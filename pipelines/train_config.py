"""How a model is trained: `TrainConfig`, small, hashed, and free of heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipelines.errors import SettingError

VALIDATION = "validation/"
"""Prefix of the names of metrics of held-out examples."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; all of it is hashed into the run's fingerprint."""

    steps: int
    """Optimizer steps; 0 exports the untrained model."""
    batch_size: int
    """Examples a step, over all workers."""
    micro_batch_size: int = 16
    """Most examples in one forward pass of one worker; the rest of its share is accumulated."""
    max_tokens_per_micro_batch: int | None = None
    """Most tokens in one forward pass, padding included; none cuts by number alone.

    Examples of like length go together, and one that is longer goes alone. Every rank does as many
    passes as the one that needs most.
    """
    learning_rate: float
    """Peak learning rate; a learner may set others for single parts."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from zero."""
    final_learning_rate: float = 0.0
    """Share of the peak learning rate that the cosine ends at."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    epsilon: float = 1e-8
    """AdamW's term in the denominator."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient; 0 clips nothing."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations; the optimizer works in float32."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: what is sharded over the workers.

    0 shards nothing, 1 the optimizer state, 2 the gradients too, 3 the parameters too.
    """
    max_repeats: float | None = None
    """Most times that an example of any source is seen; none sets no cap.

    Sources that are too small get less than their weight and the others more
    (`pipelines.loading.sample_plan.capped_weights`).
    """
    seed: int = 0
    """Seed of new weights, of the order of examples and of augmentation."""
    shuffle_shards: int = 1
    """Shards of a source whose examples are shuffled together, 1 to 16.

    As many are open at a time (`pipelines.loading.sample_plan`).
    """
    ema_decay: float = 0.0
    """Share of the averaged weights that a step keeps; 0 averages nothing.

    The average (`pipelines.training.ema`) is what is validated and exported. 0.9999 for long runs
    (RT-DETR).
    """
    validate_every: int = 0
    """Steps between candidates, evaluated beside the training; 0 validates nothing.

    A candidate is a model folder (`pipelines.training.validation`); there is one more at the end.
    None is dropped: where evaluating takes longer than these steps, or no GPU is free for it, they
    wait on disk, at most steps / validate_every folders of the model's size.
    """
    validation_examples: int = 200
    """Most examples of each held-out source and benchmark task that evaluate a candidate."""
    keep_last: int = 1
    """Checkpoints that stay, the newest ones."""
    keep_best: str = ""
    """Which weights are exported: min:NAME or max:NAME of a metric; empty: the last step's.

    NAME is a metric of held-out examples, such as ``min:validation/loss`` or
    ``max:validation/drawn_val.f1``. Of the steps that are evaluated the best is taken, of equals
    the first.
    """
    max_skipped_steps: int = 0
    """Most steps that may be left out because of their loss or gradient; one more ends the run.

    Left out is a step whose loss or gradient is not finite, or whose loss is a spike.
    """
    spike_factor: float = 0.0
    """Loss above so many times the running median of 50 steps is a spike; 0: none is."""
    activation_checkpointing: tuple[str, ...] = ()
    """Towers whose activations are computed again in the backward pass instead of being kept."""
    compile: bool = False
    """Whether to compile the decoder's layers; needs a C++ compiler, changes the last bits.

    By torch.compile.
    """
    offload_optimizer: bool = False
    """Whether the optimizer state lives in main memory, with its float32 weights.

    torch's AdamW updates them there.
    """
    shuffled_regions: bool = False
    """Control experiment: boxes are permuted among the regions.

    See `pipelines.shuffled_regions`.
    """
    checkpoint_every: int = 200
    """Steps between checkpoints; there is one at the end in any case."""
    log_every: int = 1
    """Steps between records of the history."""

    def __post_init__(self) -> None:
        self._check_batches()
        self._check_optimizer()
        self._check_engine()
        self._check_validation()

    def _check_batches(self) -> None:
        """Refuse counts of steps, examples, shards and repeats that cannot be."""
        if self.steps < 0:
            raise SettingError(f"TrainConfig.steps={self.steps}: use at least 0")
        for name in (
            "batch_size",
            "micro_batch_size",
            "checkpoint_every",
            "log_every",
            "keep_last",
        ):
            if getattr(self, name) < 1:
                raise SettingError(f"TrainConfig.{name}={getattr(self, name)}: use at least 1")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise SettingError(
                f"TrainConfig.max_tokens_per_micro_batch={self.max_tokens_per_micro_batch}: use at "
                "least 1, such as 16384, or none"
            )
        if not 1 <= self.shuffle_shards <= 16:
            raise SettingError(f"TrainConfig.shuffle_shards={self.shuffle_shards}: use 1 to 16")
        if self.max_repeats is not None and not (
            math.isfinite(self.max_repeats) and self.max_repeats > 0
        ):
            raise SettingError(
                f"TrainConfig.max_repeats={self.max_repeats}: use a positive number, or none"
            )

    def _check_optimizer(self) -> None:
        """Refuse rates and limits of the update that cannot be."""
        if not 0 <= self.warmup_steps <= self.steps:
            raise SettingError(
                f"TrainConfig.warmup_steps={self.warmup_steps}: use 0 to steps={self.steps}"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(
                f"TrainConfig.learning_rate={self.learning_rate}: use a positive number"
            )
        for name in ("gradient_clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise SettingError(f"TrainConfig.{name}={getattr(self, name)}: use at least 0")
        if self.max_skipped_steps < 0:
            raise SettingError(
                f"TrainConfig.max_skipped_steps={self.max_skipped_steps}: use at least 0"
            )
        if self.spike_factor and not (math.isfinite(self.spike_factor) and self.spike_factor > 1):
            raise SettingError(
                f"TrainConfig.spike_factor={self.spike_factor}: use more than 1, or 0 for none"
            )

    def _check_engine(self) -> None:
        """Refuse ways to hold the weights that DeepSpeed or the average cannot do."""
        if self.precision not in ("fp32", "bf16"):
            raise SettingError(f"TrainConfig.precision={self.precision!r}: use 'fp32' or 'bf16'")
        if self.zero_stage not in (0, 1, 2, 3):
            raise SettingError(f"TrainConfig.zero_stage={self.zero_stage}: use 0, 1, 2 or 3")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise SettingError(
                "TrainConfig.precision='bf16' needs a float32 copy of the weights: use zero_stage 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise SettingError("TrainConfig.offload_optimizer: use zero_stage 1, 2 or 3")
        if not 0.0 <= self.ema_decay < 1.0:
            raise SettingError(
                f"TrainConfig.ema_decay={self.ema_decay}: use a share in [0, 1), such as 0.9999"
            )
        if self.ema_decay and self.zero_stage == 3:
            raise SettingError(
                "TrainConfig.ema_decay needs whole parameters: use zero_stage 0, 1 or 2"
            )

    def _check_validation(self) -> None:
        """Refuse a choice of weights that nothing is there to make."""
        if self.validate_every < 0 or self.validation_examples < 1:
            raise SettingError(
                f"TrainConfig.validate_every={self.validate_every}, validation_examples="
                f"{self.validation_examples}: use at least 0 and 1"
            )
        if self.keep_best:
            best_rule(self.keep_best)  # refuses another form
            if not self.validate_every:
                raise SettingError(
                    f"TrainConfig.keep_best={self.keep_best!r}: set validate_every too"
                )

    def schedule(self, step: int) -> float:
        """Return the factor of the learning rate in a step: warm-up, then half a cosine.

        Args:
            step: From 0.

        Returns:
            In 0..1: linear up to 1 in `warmup_steps`, then down to `final_learning_rate`.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        # At least one, for a run may be all warm-up.
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine


def best_rule(text: str) -> tuple[int, str]:
    """Return what ``min:NAME`` or ``max:NAME`` says.

    Args:
        text: See `TrainConfig.keep_best`.

    Returns:
        The sign that makes more better, and the metric's name.

    Raises:
        SettingError: The text has another form.
    """
    direction, _, name = text.partition(":")
    if direction not in ("min", "max") or not name.startswith(VALIDATION):
        raise SettingError(
            f"TrainConfig.keep_best={text!r}: use min:NAME or max:NAME, such as "
            f"min:{VALIDATION}loss"
        )
    return (1 if direction == "max" else -1), name
