"""DeepSpeed, and nothing else: an engine made from a `TrainConfig`, its steps and its sharded checkpoints.

This is the only file that imports DeepSpeed. Its configuration is derived here from the fields of the run's
own config; there is no second one. The optimizer is torch's AdamW, so that no kernel is compiled when a run
starts.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

# Decide before the import, so that the presence of a GPU does not change a run that is asked to use none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
import deepspeed.ops

if TYPE_CHECKING:
    from pipelines.train_job import TrainConfig

TAG = "state"
"""Folder of DeepSpeed's files inside a checkpoint."""
STATE_FILE = "state.json"
"""What belongs to the run rather than to a rank: step, history, and what a checkpoint fits."""


class Engine:
    """A module under training: forward, backward, step, save, load."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        config: TrainConfig,
        *,
        num_micro_batches: int,
        micro_batch_size: int,
    ) -> None:
        """Hand the module to DeepSpeed; torch.distributed must be initialised.

        groups: torch optimizer groups, each with ``lr``; ``weight_decay`` and a ``name`` where they differ.
        num_micro_batches: backward passes before a step.
        """
        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                raise ValueError(f"{name} has no dimension, which DeepSpeed cannot send: give it shape [1]")
        _compile_nothing()
        deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False, verbose=False)
        self._frozen_names = sorted(n for n, p in module.named_parameters() if not p.requires_grad)
        self._base_rates = [float(group["lr"]) for group in groups]
        self.names = [str(group.get("name", i)) for i, group in enumerate(groups)]
        optimizer = torch.optim.AdamW(
            groups, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(config, num_micro_batches, micro_batch_size),
            dist_init_required=False,
        )
        self._loss_scale = dist.get_world_size()

    @property
    def module(self) -> nn.Module:
        """The module itself, as built by the learner."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self._engine.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the module, through DeepSpeed's hooks."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, whose *sum* over ranks and micro-batches is the loss of the step."""
        # DeepSpeed averages over ranks; the loss is a sum over them, and is normalised already.
        self._engine.backward(loss * self._loss_scale, scale_wrt_gas=False)

    def micro_step(self) -> None:
        """End a micro-batch; the last one of a step reduces gradients, clips and updates."""
        self._engine.step()

    def set_learning_rate(self, factor: float) -> list[float]:
        """Set every group to `factor` times its own rate; return the rates."""
        rates = [rate * factor for rate in self._base_rates]
        for group, rate in zip(self._engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates

    def gradient_norm(self) -> float:
        """Norm of the whole gradient of the last step, before clipping."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write this rank's shard and `state` (JSON values) into `folder`; every rank calls it.

        Frozen parameters are left out: they are in the model that the run started from.
        """
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
        if dist.get_rank() == 0:
            whole = {"world_size": dist.get_world_size(), "frozen": self._frozen_names, "state": state}
            (folder / STATE_FILE).write_text(json.dumps(whole), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote and return its state.

        ValueError when the checkpoint comes from another number of workers or another choice of frozen
        parameters; then nothing was changed.
        """
        saved = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        world_size = dist.get_world_size()
        if saved["world_size"] != world_size:
            raise ValueError(
                f"{folder} was written by {saved['world_size']} workers and cannot be read by {world_size}: "
                f"resume with --workers {saved['world_size']}, or start anew with --force"
            )
        if saved["frozen"] != self._frozen_names:
            different = sorted(set(saved["frozen"]) ^ set(self._frozen_names))
            raise ValueError(f"{folder}: other parameters were frozen then: {', '.join(different[:5])}")
        self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        return saved["state"]

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[nn.Module]:
        """Inside, every rank sees whole parameters, whatever the ZeRO stage; every rank must enter."""
        partitioned = [p for p in self.module.parameters() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            yield self.module


def deepspeed_config(config: TrainConfig, num_micro_batches: int, micro_batch_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run, every value from `config` or the sizes of its batches."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.gradient_clip,
        "bf16": {"enabled": config.precision == "bf16"},
        # Sums over ranks and micro-batches stay in float32: a world size changes their order and no more.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_scatter": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }


def _compile_nothing() -> None:
    """Keep DeepSpeed from compiling and from loading compilers when a run starts.

    On a CPU it builds a shared-memory op: a minute, and an error without a C++ compiler. Setting its table of
    ops also skips probing compilers for all others (DeepSpeed 0.19, ops/__init__.py). Its Muon optimizer,
    which is imported whatever the optimizer, hands functions to torch.compile at import and so loads all of
    the compiler, 3 s a process; we never call them.
    """
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    with mock.patch.object(torch, "compile", lambda function, **_: function):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
