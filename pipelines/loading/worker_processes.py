"""Steps loaded by processes of their own, in order, through torch's DataLoader.

A step crosses from process to process as a short pickle and one block of shared memory that holds
all its tensors. So however many small tensors a step has, it takes one file handle, and none of
them is copied on arrival.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
STEPS_AHEAD = 2
"""Steps that each process works ahead."""
_ALIGNMENT = 64
"""Alignment of each tensor in the block, in bytes: fits vector instructions and every dtype."""


class Packed:
    """A value with its tensors taken out.

    The tensors are copied when this is pickled. A queue pickles in a thread of its own, so a
    process copies one step while it loads the next. What may fail, the value's own pickle and the
    allocation, is done before: an error in that thread would reach no one.
    """

    def __init__(
        self, skeleton: bytes, block: Tensor, uncopied: Sequence[tuple[int, Tensor]] = ()
    ) -> None:
        self.skeleton = skeleton
        """Pickle of the value, its tensors replaced by their place in the block."""
        self.block = block
        """uint8[bytes of all tensors], in shared memory."""
        self._uncopied = uncopied

    def __reduce__(self) -> tuple[Any, ...]:
        for start, tensor in self._uncopied:
            self.block[start : start + tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))
        return Packed, (self.skeleton, self.block)


def pack(value: Any) -> Packed:
    """Take the tensors out of `value`. They must be on the CPU; strides are not kept."""
    tensors: list[Tensor] = []
    offsets = [0]

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if not isinstance(item, Tensor):
                return None
            start = offsets[-1]
            tensors.append(item.detach().contiguous())
            offsets.append(start + -(-tensors[-1].nbytes // _ALIGNMENT) * _ALIGNMENT)
            return start, item.dtype, tuple(item.shape)

    stream = io.BytesIO()
    Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    # Made shared, not moved there: a move would write all of it twice.
    storage = torch.UntypedStorage._new_shared(offsets[-1])
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    return Packed(stream.getvalue(), block, list(zip(offsets, tensors, strict=False)))


def unpack(packed: Packed) -> Any:
    """Return what `pack` was given; the tensors are views of the block."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: Any) -> Tensor:
            start, dtype, shape = place
            size = dtype.itemsize * torch.Size(shape).numel()
            return packed.block[start : start + size].view(dtype).view(shape)

    # The bytes come from a process that this one started.
    return Unpickler(io.BytesIO(packed.skeleton)).load()


class _Steps(Dataset[Packed], Generic[T]):
    def __init__(self, load: Callable[[int], T]) -> None:
        self._load = load

    def __getitem__(self, step: int) -> Packed:
        return pack(self._load(step))


def load_in_processes(load: Callable[[int], T], steps: range, processes: int) -> Iterator[T]:
    """Yield ``load(step)`` of each step in order, worked out ahead by so many processes.

    What `load` raises is raised here, as the same type where that takes a message alone, with the
    traceback of the process in the message.

    Args:
        load: Picklable; its result depends on the step alone.
        steps: In order.
        processes: Number of processes.

    Raises:
        RuntimeError: A process died; the message names the step that was waited for.
    """
    arriving = iter(
        DataLoader(
            _Steps(load),
            sampler=steps,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=processes,
            prefetch_factor=STEPS_AHEAD,
            # A fork would copy the locks of Ray, of the tokenizer and of CUDA in whatever state.
            multiprocessing_context="spawn",
            # Its own, or the training's random numbers would move on.
            generator=torch.Generator(),
        )
    )
    for step in steps:
        try:
            packed = next(arriving)
        except RuntimeError as error:
            if "exited unexpectedly" in str(error):
                raise RuntimeError(
                    f"a loader process died while step {step} was waited for ({error}): it ran "
                    "out of memory, or crashed in a library; a run without loader processes shows "
                    "where"
                ) from error
            raise
        yield unpack(packed)


def _as_it_is(packed: Any) -> Any:
    return packed
