"""An exponential moving average of the weights in training: what is evaluated and exported.

As DETR's descendants train (RT-DETR's ModelEMA): the average wipes out the noise of single steps.
Every rank keeps the same average, since every rank has the same weights after a step; rank 0 saves
it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE_NAME = "average.safetensors"
"""Name of the average's file inside a checkpoint."""


class WeightAverage:
    """The average of a module's trainable parameters, in float32; buffers stay the last step's."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            module: What is trained, with ``requires_grad`` final.
            decay: Share of the old average that a step keeps; less at first, see `update`.
        """
        self._decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # In float32: at 0.9999 the share of a step is below the resolution of bf16.
        self._average = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the weights after a step.

        The decay is at most (1 + n) / (10 + n), so that a short run is not held back by its random
        start.

        Args:
            num_updates: Steps done, this one included: the n above.
        """
        decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
        for name, parameter in self._parameters.items():
            self._average[name].lerp_(parameter.float(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the average as its weights; then its own again, bit for bit."""
        # Copies, for arithmetic would not bring the same bits back.
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(own)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint's folder."""
        save_file({name: value.cpu() for name, value in self._average.items()}, folder / FILE_NAME)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            KeyError: The module has other parameters.
        """
        saved = load_file(folder / FILE_NAME)
        for name, value in self._average.items():
            value.copy_(saved[name])

    @torch.no_grad()
    def _copy(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
