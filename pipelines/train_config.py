"""How a model is trained: small, hashed, and free of heavy imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

VALIDATION = "validation/"
"""Before the names of held-out figures."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. All of it is hashed into the run's fingerprint."""

    steps: int
    """Optimizer steps; 0 exports the model as it is before any."""
    batch_size: int
    """Examples a step, over all workers."""
    micro_batch_size: int = 16
    """Most examples in one forward pass of one worker; the rest of its share is accumulated."""
    max_tokens_per_micro_batch: int | None = None
    """Most tokens in one forward pass, padding included: examples of like length go together, and a longer
    one goes alone. Every rank does as many passes as the one that needs most. None: by number alone."""
    learning_rate: float
    """Peak learning rate; a learner may set others for single parts."""
    warmup_steps: int = 0
    """Steps of linear increase from zero."""
    final_learning_rate: float = 0.0
    """Share of the peak that the cosine ends at."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    epsilon: float = 1e-8
    """AdamW's term in the denominator."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient; 0 = no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; the optimizer works in float32."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: shards nothing, optimizer state, + gradients, + parameters."""
    max_repeats: float | None = None
    """Most times that an example of any source is seen; sources that are too small get less than their weight
    and the others more (`mixing.capped_weights`). None: no cap."""
    seed: int = 0
    """Of new weights, the order of examples and augmentation."""
    shuffle_shards: int = 1
    """Shards of a source whose examples are shuffled together; as many are open at a time
    (`pipelines.loading.sample_plan`). 1 to 16."""
    ema_decay: float = 0.0
    """Share of the averaged weights that a step keeps (`pipelines.training.ema`); they are what is validated and
    exported. 0 = no average. 0.9999 for long runs (RT-DETR)."""
    validate_every: int = 0
    """Steps between candidates, one more at the end: model folders that are judged beside the training
    (`pipelines.training.validation`); 0 = none. None is dropped: where judging takes longer than these steps, or no
    GPU is free for it, they wait on disk, at most steps / validate_every folders of the model's size."""
    validation_examples: int = 200
    """Most examples that a candidate is judged by, of each held-out source and of each task of a
    benchmark."""
    keep_last: int = 1
    """Checkpoints that stay, the newest ones."""
    keep_best: str = ""
    """Which weights are exported: ``min:NAME`` or ``max:NAME`` of a held-out figure, such as
    ``min:validation/loss`` or ``max:validation/drawn_val.f1``, of the steps that are judged, of equals the
    first; empty: those after the last step."""
    max_skipped_steps: int = 0
    """Steps that may be left out because their loss or gradient was not finite, or the loss a spike; one more
    ends the run."""
    spike_factor: float = 0.0
    """A loss above so many times the running median of the last 50 is a spike. 0 = no loss is one."""
    activation_checkpointing: tuple[str, ...] = ()
    """Towers whose activations are computed again in the backward pass instead of being kept."""
    compile: bool = False
    """Compile the decoder's layers (torch.compile); needs a C++ compiler, and changes the last bits."""
    offload_optimizer: bool = False
    """Optimizer state and its float32 weights in main memory, where torch's AdamW updates them."""
    shuffled_regions: bool = False
    """Control experiment: boxes permuted among the indices (`pipelines.loading.loader.permute_regions`)."""
    checkpoint_every: int = 200
    """Steps between checkpoints; there is one at the end in any case."""
    log_every: int = 1
    """Steps between records of the history."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"TrainConfig.steps={self.steps}: use at least 0")
        for name in (
            "batch_size",
            "micro_batch_size",
            "checkpoint_every",
            "log_every",
            "keep_last",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name}={getattr(self, name)}: use at least 1")
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 1:
            raise ValueError(
                f"TrainConfig.max_tokens_per_micro_batch={self.max_tokens_per_micro_batch}: use at least 1, "
                "such as 16384, or none"
            )
        if not 1 <= self.shuffle_shards <= 16:
            raise ValueError(f"TrainConfig.shuffle_shards={self.shuffle_shards}: use 1 to 16")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"TrainConfig.warmup_steps={self.warmup_steps}: use 0 to steps={self.steps}"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"TrainConfig.learning_rate={self.learning_rate}: use a positive number"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"TrainConfig.precision={self.precision!r}: use 'fp32' or 'bf16'")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"TrainConfig.zero_stage={self.zero_stage}: use 0, 1, 2 or 3")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "TrainConfig.precision='bf16' needs a float32 copy of the weights: use zero_stage 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("TrainConfig.offload_optimizer: use zero_stage 1, 2 or 3")
        if self.max_repeats is not None and not (
            math.isfinite(self.max_repeats) and self.max_repeats > 0
        ):
            raise ValueError(
                f"TrainConfig.max_repeats={self.max_repeats}: use a positive number, or none"
            )
        if self.gradient_clip < 0 or self.weight_decay < 0:
            raise ValueError("TrainConfig.gradient_clip and weight_decay must not be negative")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(
                f"TrainConfig.ema_decay={self.ema_decay}: use a share in [0, 1), such as 0.9999"
            )
        if self.ema_decay and self.zero_stage == 3:
            raise ValueError(
                "TrainConfig.ema_decay needs whole parameters: use zero_stage 0, 1 or 2"
            )
        if self.validate_every < 0 or self.validation_examples < 1:
            raise ValueError(
                f"TrainConfig.validate_every={self.validate_every}, validation_examples="
                f"{self.validation_examples}: use at least 0 and 1"
            )
        if self.max_skipped_steps < 0:
            raise ValueError(
                f"TrainConfig.max_skipped_steps={self.max_skipped_steps}: use at least 0"
            )
        if self.spike_factor and not (math.isfinite(self.spike_factor) and self.spike_factor > 1):
            raise ValueError(
                f"TrainConfig.spike_factor={self.spike_factor}: use more than 1, or 0 for none"
            )
        if self.keep_best:
            best_rule(self.keep_best)
            if not self.validate_every:
                raise ValueError(
                    f"TrainConfig.keep_best={self.keep_best!r}: set validate_every too"
                )

    def schedule(self, step: int) -> float:
        """Factor of the learning rate in `step` (from 0): linear warm-up, then half a cosine to the end."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine


def best_rule(text: str) -> tuple[int, str]:
    """``min:NAME`` or ``max:NAME`` as the sign that makes more better, and the figure's name."""
    direction, _, name = text.partition(":")
    if direction not in ("min", "max") or not name.startswith(VALIDATION):
        raise ValueError(
            f"TrainConfig.keep_best={text!r}: use min:NAME or max:NAME, such as min:{VALIDATION}loss"
        )
    return (1 if direction == "max" else -1), name
