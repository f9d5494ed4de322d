"""DeepSpeed, and nothing else: an engine made from a `TrainConfig`, its steps and checkpoints.

This is the only file that imports DeepSpeed. Its configuration is derived here from the fields of
the run's own config; there is no second one. The optimizer is torch's AdamW, so that no kernel is
compiled when a run starts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

# Before the import, so that the presence of a GPU does not change a run that is to use none.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
import deepspeed.ops

if TYPE_CHECKING:
    from pipelines.train_config import TrainConfig

TAG = "state"
"""Folder of DeepSpeed's files inside a checkpoint."""
STATE_FILE = "state.json"
"""File of what belongs to the run rather than to a rank: step, history, what a checkpoint fits."""


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

        Args:
            module: What is trained, on the CPU.
            groups: torch optimizer groups, each with ``lr``; ``weight_decay`` and a ``name`` where
                they differ.
            config: Of the run.
            num_micro_batches: Backward passes before a step.
            micro_batch_size: Most examples of a pass.
        """
        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                raise ValueError(
                    f"{name} has no dimension, which DeepSpeed cannot send: give it shape [1]"
                )
        _compile_nothing()
        deepspeed.init_distributed(
            dist_backend=dist.get_backend(), dist_init_required=False, verbose=False
        )
        self._frozen_names = sorted(n for n, p in module.named_parameters() if not p.requires_grad)
        self._base_rates = [float(group["lr"]) for group in groups]
        self.names = [str(group.get("name", i)) for i, group in enumerate(groups)]
        self._adamw = torch.optim.AdamW(
            groups, betas=config.betas, eps=config.epsilon, weight_decay=config.weight_decay
        )
        self._discards = False
        self._update = self._adamw.step
        # Whatever the ZeRO stage, DeepSpeed reduces, clips and clears gradients around this call
        # and copies the weights that it leaves: without an update nothing else has to be undone.
        step = lambda: None if self._discards else self._update()  # noqa: E731
        setattr(self._adamw, "step", step)  # noqa: B010
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._adamw,
            config=deepspeed_config(config, num_micro_batches, micro_batch_size),
            dist_init_required=False,
        )
        self._loss_scale = dist.get_world_size()
        self._sharded = config.zero_stage > 0
        self._norm = 0.0

    @property
    def module(self) -> nn.Module:
        """The module itself, as built by the learner."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """Device on which batches must be."""
        return self._engine.device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do a forward pass of the module, through DeepSpeed's hooks."""
        return self._engine(*args, **kwargs)

    def ends_step(self, last: bool) -> None:
        """Say, before each forward pass, whether its micro-batch is the last of the step."""
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, whose *sum* over ranks and passes is the loss of the step."""
        # DeepSpeed averages over ranks; the loss is a sum over them, and is normalised already.
        self._engine.backward(loss * self._loss_scale, scale_wrt_gas=False)

    def micro_step(self) -> None:
        """End a micro-batch that is not the last one of its step."""
        self._engine.step()

    def finish_step(self, *, discard: bool = False) -> bool:
        """End the last micro-batch of a step: clip and update, or forget the gradients.

        Args:
            discard: Forget them; every rank says the same. They are forgotten too when they are not
                finite.

        Returns:
            Whether the weights were updated, the same on every rank.
        """
        if not self._sharded:  # DeepSpeed neither keeps this norm nor looks at it
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._norm = float(nn.utils.get_total_norm(gradients))
            discard = discard or not math.isfinite(self._norm)
        self._discards = discard
        self._engine.step()
        self._discards = False
        if self._sharded:
            self._norm = float(self._engine.get_global_grad_norm() or 0.0)
            discard = discard or self._engine.optimizer.overflow
        return not discard

    def set_learning_rate(self, factor: float) -> list[float]:
        """Set every group to `factor` times its own rate; return the rates."""
        rates = [rate * factor for rate in self._base_rates]
        for group, rate in zip(self._engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates

    def gradient_norm(self) -> float:
        """Return the norm of the whole gradient of the last step, before clipping."""
        return self._norm

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write this rank's shard and `state` (JSON values) into `folder`; every rank calls it.

        Frozen parameters are left out: they are in the model that the run started from.
        """
        self._engine.save_checkpoint(
            str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True
        )
        if dist.get_rank() == 0:
            whole = {
                "world_size": dist.get_world_size(),
                "frozen": self._frozen_names,
                "state": state,
            }
            (folder / STATE_FILE).write_text(json.dumps(whole), encoding="utf-8")

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote and return its state; every rank calls it.

        With the number of ranks that wrote it the run goes on bit for bit; with another number its
        sharded state is cut anew.

        Raises:
            ValueError: Before anything is changed, when other parameters were frozen.
        """
        saved = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if saved["frozen"] != self._frozen_names:
            different = sorted(set(saved["frozen"]) ^ set(self._frozen_names))
            raise ValueError(
                f"{folder}: other parameters were frozen then: {', '.join(different[:5])}"
            )
        if saved["world_size"] == dist.get_world_size() or not self._sharded:
            self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        else:
            self._load_resharded(folder)
        return saved["state"]

    def _load_resharded(self, folder: Path) -> None:
        """Restore a checkpoint of another number of ranks, through DeepSpeed's universal format."""
        own = [
            {k: v for k, v in g.items() if k != "params"}
            for g in self._engine.optimizer.param_groups
        ]
        settings = self._engine._config
        with _universal(folder) as converted:
            settings.load_universal_checkpoint = True
            try:
                self._engine.load_checkpoint(str(converted), tag=TAG, load_module_strict=False)
            finally:
                settings.load_universal_checkpoint = False
        # Under stage 3 DeepSpeed 0.19 gives every group the settings of the first, and all parts of
        # the state one tensor to count steps in, which each part's update then advances.
        for group, values in zip(self._engine.optimizer.param_groups, own, strict=True):
            group.update(values)
        for part in self._adamw.state.values():
            if isinstance(part.get("step"), torch.Tensor):
                part["step"] = part["step"].clone()

    @contextlib.contextmanager
    def whole_parameters(self) -> Iterator[nn.Module]:
        """Inside, every rank sees whole parameters at any ZeRO stage; every rank must enter."""
        partitioned = [p for p in self.module.parameters() if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
            yield self.module


@contextlib.contextmanager
def _universal(folder: Path) -> Iterator[Path]:
    """Yield the checkpoint in `folder` cut by parameter instead of by rank.

    It lies in a temporary folder of each node. Every rank calls it. One rank a node converts;
    conversion reads a file of each old rank in turn.
    """
    own: Path | None = None
    if int(os.environ["LOCAL_RANK"]) == 0:
        own = Path(tempfile.mkdtemp(prefix="universal-"))
        from deepspeed.checkpoint import ds_to_universal

        arguments = SimpleNamespace(
            input_folder=str(folder / TAG),
            output_folder=str(own / TAG),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            # The run declares no such state: it has no tensor or pipeline parallelism.
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), own))
    try:
        yield next(
            path for node, path in found if node == socket.gethostname() and path is not None
        )
        dist.barrier()
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def deepspeed_config(
    config: TrainConfig, num_micro_batches: int, micro_batch_size: int
) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a run.

    Args:
        config: Of the run; every value comes from it or from the sizes of its batches.
        num_micro_batches: Backward passes before a step.
        micro_batch_size: Most examples of a pass.
    """
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
        "reduce_scatter": torch.cuda.is_available(),
    }
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.gradient_clip,
        "bf16": {"enabled": config.precision == "bf16"},
        # Sums over ranks and passes stay in float32: a world size changes their order and no more.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        # DeepSpeed's own AdamW for CPUs is compiled when a run starts; torch's needs no compiler.
        settings["zero_force_ds_cpu_optimizer"] = False
    return settings


def _compile_nothing() -> None:
    """Keep DeepSpeed from compiling and from loading compilers when a run starts.

    On a CPU it builds a shared-memory op: a minute, and an error without a C++ compiler. Setting
    its table of ops also skips probing compilers for all others (DeepSpeed 0.19, ops/__init__.py).
    Its Muon optimizer, which is imported whatever the optimizer, hands functions to torch.compile
    at import and so loads all of the compiler, 3 s a process; we never call them.
    """
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    with mock.patch.object(torch, "compile", lambda function, **_: function):
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
