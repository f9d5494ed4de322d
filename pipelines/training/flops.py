"""FLOPs of training on one batch, by torch's own counter, and the peak FLOP/s of known GPUs.

They are for utilisation: what is counted is what the model is worth, not what a run spends. So
there is no padding, no recomputed activation, no blank stand-in, and of causal attention only the
half that is not masked. A multiply and an add are two FLOPs. Only products of matrices and
convolutions count; norms, activations and the optimizer are left out, as usual (PaLM,
https://arxiv.org/abs/2204.02311, appendix B).

A shadow of the model without weights (``meta`` tensors, which have shapes only) runs forward and
backward under ``FlopCounterMode``: so every family is counted by its own code, and what trains or
is frozen by autograd itself. The shadow does not run a step's batch, whose shape is new each time.
It runs the pieces that the batch is a sum of, and remembers them:

- an image: one pass through the towers, and the region encoder with one and with two boxes, because
  FLOPs are linear in the boxes; after a handful of shapes, further ones are fitted to those;
- a sequence: two short passes of the decoder, because FLOPs are ``a * tokens + b * tokens**2``;
- the head: one pass, because FLOPs are linear in the supervised positions.

That takes seconds in a run's first steps, even for billions of parameters, a millisecond in others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

from fo1_model.batch import IGNORE, Batch, TokenIds
from fo1_model.config import ModelConfig
from fo1_model.lora import has_adapters
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.region_pooling import FeatureMap
from fo1_model.vlms import Grid

logger = logging.getLogger("pipelines")

PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""bf16 FLOP/s without sparsity, by the start of the device's name as CUDA gives it (NVIDIA's data
sheets; where a sheet has the sparse number only, half of it). "HBM3" is what the SXM form is
called.
"""
_MOST_MEASURED = 6
"""Shapes of images that are counted by running them; further ones are fitted to these."""
_PROBES = (8, 16)
"""Lengths in tokens of the two sequences that tell a decoder's linear and quadratic part."""


def peak_flops(device: torch.device) -> float | None:
    """Return the bf16 FLOP/s that a device could do at most.

    Returns:
        None for a CPU, an unknown GPU and a slice of one (MIG).
    """
    return None if device.type != "cuda" else peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return `PEAK_FLOPS` of a device's name, None for one that is not known.

    "NVIDIA A10" is not the start of "NVIDIA A100-SXM4-80GB".
    """
    if "MIG" in name:
        return None
    known = [
        start
        for start in PEAK_FLOPS
        if name == start or name.startswith((f"{start} ", f"{start}-"))
    ]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def train_flops(model: FO1Model, batch: Batch) -> float | None:
    """Return the FLOPs of the forward and backward pass of a batch.

    What trains is read from ``requires_grad``. The batch may be on any device; on the CPU nothing
    waits.

    Returns:
        None for a model whose code does not run without weights, and for a decoder whose FLOPs do
        not add up as a sequence's here (`_uncounted`); the reason is logged, once.
    """
    trains = tuple(parameter.requires_grad for parameter in model.parameters())
    known = _COUNTERS.get(model)
    changed = known is None or known[0] != trains
    if changed and (reason := _uncounted(model)):
        logger.warning("FLOPs are not counted, %s: %s", model.model_config.vlm.family, reason)
        known = _COUNTERS[model] = trains, None
    elif known is None or changed:
        given = json.dumps([model.model_config.to_dict(), asdict(model.token_ids)], sort_keys=True)
        known = _COUNTERS[model] = trains, _counter(given, trains)
    if known[1] is None:
        return None
    try:
        return known[1].count(batch)
    except (RuntimeError, NotImplementedError) as error:
        # Utilisation is worth no run: a family of tomorrow may read the values of its weights.
        logger.warning("FLOPs are not counted, %s: %s", model.model_config.vlm.family, error)
        _COUNTERS[model] = trains, None
        return None


def _uncounted(model: FO1Model) -> str:
    """Return why a decoder's FLOPs would be counted wrong, empty where they are right."""
    text = model.family.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        # A delta net works in chunks of tokens, which the two short probes do not fill.
        return f"layers of {', '.join(sorted(kinds))} are not a sum over pairs of tokens"
    if getattr(text, "num_experts", 0) or getattr(text, "num_local_experts", 0):
        return "torch does not count the grouped products of experts"
    return "adapters stand beside its layers" if has_adapters(model) else ""


@lru_cache(8)  # several runs in one process, tests above all, are of few models
def _counter(given: str, trains: tuple[bool, ...]) -> _Counter | None:
    config, ids = json.loads(given)
    ids = TokenIds(image=ids["image"], region=ids["region"], new=tuple(ids["new"]))
    return _Counter(ModelConfig.from_dict(config), ids, trains)


class _Counter:
    """Counts the batches of one model, as long as the same parameters train."""

    def __init__(self, config: ModelConfig, token_ids: TokenIds, trains: tuple[bool, ...]) -> None:
        self._images: dict[tuple[Any, ...], tuple[float, float]] = {}
        self._measured: list[tuple[list[float], tuple[float, float]]] = []
        self._texts: dict[bool, tuple[float, float, float]] = {}
        # Building must not move the generators that the step draws from.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self._model = FO1Model(FO1Config.of(config, token_ids)).eval()
        for own, train in zip(self._model.parameters(), trains, strict=True):
            own.requires_grad_(train)
        # Fused attention has its own counting rules, and its backward pass is counted with a
        # recomputation.
        self._model.vlm.set_attn_implementation("eager")
        for module in self._model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]

    def count(self, batch: Batch) -> float:
        """Return the FLOPs of a batch: images with boxes, sequences, supervised positions."""
        total = 0.0
        for index, grid in enumerate(batch.grids):
            fixed, per_box = self._image(batch, index, grid)
            total += fixed + per_box * len(batch.boxes[index])
        flows = any(p.requires_grad for p in self._before_decoder(has_images=bool(batch.grids)))
        if flows not in self._texts:
            self._texts[flows] = self._text(flows=flows)
        linear, quadratic, head = self._texts[flows]
        for length in _lengths(batch):
            total += linear * length + quadratic * length * (length + 1) / 2
        return total + head * int((batch.labels[:, 1:] != IGNORE).sum())

    def _before_decoder(self, *, has_images: bool) -> Iterator[Tensor]:
        model = self._model
        yield from model.vlm.get_input_embeddings().parameters()
        yield from model.new_rows.parameters()
        if has_images:
            yield from model.family.vision_tower(model.vlm).parameters()
            yield from model.image_projector.parameters()
            yield from model.region_encoder.parameters()
            if model.auxiliary is not None and model.region_encoder.use_auxiliary:
                yield from model.auxiliary.parameters()

    def _image(self, batch: Batch, index: int, grid: Grid) -> tuple[float, float]:
        """Return the FLOPs of one image without boxes, and of each box."""
        shape = tuple(batch.auxiliary[index].shape)
        key = (grid, shape)
        if key not in self._images:
            features = _features(self._model, grid, shape)
            if len(self._measured) < _MOST_MEASURED:
                self._images[key] = self._measure(batch, grid, shape, batch.sizes[index])
                self._measured.append((features, self._images[key]))
            else:
                self._images[key] = _fitted(self._measured, features)
        return self._images[key]

    def _measure(
        self, batch: Batch, grid: Grid, shape: tuple[int, ...], size: tuple[int, int]
    ) -> tuple[float, float]:
        """Return the FLOPs of one image without boxes, and of each box, by running it."""
        model = self._model
        box = torch.tensor([[0.0, 0.0, *size]])
        one = replace(
            batch,
            pixels=_pixels(model, grid),
            grids=(grid,),
            auxiliary=(torch.ones(shape),),
            sizes=(size,),
            boxes=(box,),
        )
        maps: list[Any] = []
        hook = model.region_encoder.register_forward_pre_hook(
            lambda _, given: maps.extend(given[:2])
        )
        with_one = _counted(lambda: model.visual_tokens(one)[:2])
        hook.remove()
        levels, primary = maps

        def regions(num_boxes: int) -> float:
            inputs = [_cut_off(level) for level in levels], _cut_off(primary)
            return _counted(lambda: [model.region_encoder(*inputs, box.expand(num_boxes, 4))])

        per_box = regions(2) - regions(1)
        return with_one - per_box, per_box

    def _text(self, *, flows: bool) -> tuple[float, float, float]:
        """Return the FLOPs of a token, of a pair of tokens that see each other, of the head.

        A head's FLOPs are those of one supervised position.
        """
        model, family = self._model, self._model.family
        hidden = torch.empty(1, 1, family.hidden_size, device="meta")

        def decode(length: int) -> float:
            inputs = hidden.expand(1, length, -1).clone().requires_grad_(flows)
            positions = torch.arange(length).expand(family.num_position_axes, 1, -1)
            return _counted(lambda: [model.decode(inputs, torch.ones(1, length), positions)])

        (short, few), (long, many) = ((length, decode(length)) for length in _PROBES)
        # few = a * short + b * short ** 2, and the same for long.
        quadratic = (many / long - few / short) / (long - short)
        decoder = family.language_model(model.vlm)
        flows = flows or any(parameter.requires_grad for parameter in decoder.parameters())
        head = _counted(lambda: [model.logits(hidden.clone().requires_grad_(flows))])
        return few / short - quadratic * short, quadratic, head


_COUNTERS: WeakKeyDictionary[FO1Model, tuple[tuple[bool, ...], _Counter | None]] = (
    WeakKeyDictionary()
)
"""Model -> what trains in it, and the counter for that; None where counting failed."""


def _features(model: FO1Model, grid: Grid, shape: tuple[int, ...]) -> list[float]:
    """Return what an image's FLOPs grow with: patches, their pairs, auxiliary pixels."""
    width, height = model.family.input_size(grid)
    patches = width * height / model.family.patch_size**2
    return [1.0, patches, patches**2, float(shape[1] * shape[2])]


def _fitted(
    measured: list[tuple[list[float], tuple[float, float]]], features: list[float]
) -> tuple[float, float]:
    """Return what an image costs that is like the measured ones, of another shape."""
    known = np.array([item for item, _ in measured])
    scale = known.max(axis=0)
    costs = np.array([cost for _, cost in measured])
    # Each measured image counts alike, however small: errors are relative.
    weights, *_ = np.linalg.lstsq(known / scale / costs[:, :1], costs / costs[:, :1], rcond=1e-6)
    fixed, per_box = np.array(features) / scale @ weights
    return float(fixed), float(per_box)


def _cut_off(level: FeatureMap) -> FeatureMap:
    """Return a map that ends the way back, but gets a gradient where it got one."""
    values = level.values.detach().requires_grad_(level.values.requires_grad)
    return level._replace(values=values)


def _pixels(model: FO1Model, grid: Grid) -> Tensor:
    """Return the pixels of some image of a grid, all alike, float32[P, D]."""
    # A grid is counted in patches, or is (height, width) in pixels: its family makes it from one of
    # these.
    for size in (model.family.input_size(grid), grid[::-1]):
        pixels, found = model.family.preprocess(Image.new("RGB", size, "gray"))
        if found == grid:
            return torch.ones_like(pixels)
    raise ValueError(f"no image has the grid {grid} of {model.model_config.vlm.family}")


def _counted(run: Callable[[], Any]) -> float:
    """Return the FLOPs of running and of going back from the sum of what comes out."""
    mapping = {torch.ops.aten.convolution_backward: _conv_backward}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), counter, _ShapesOnly():
        outputs = [output.sum() for output in run() if output.requires_grad]
        if outputs:
            torch.stack(outputs).sum().backward()
    return float(counter.get_total_flops())


class _ShapesOnly(TorchDispatchMode):
    """Operations on tensors with and without values give tensors without.

    Indices and boxes keep their values, on which shapes depend; whatever meets a weight loses them.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Not a tree_map: this runs before every operation.
        given = (*args, *(kwargs or {}).values())
        nested = (item if isinstance(item, list | tuple) else (item,) for item in given)
        found = [item for items in nested for item in items if isinstance(item, Tensor)]
        if any(item.is_meta for item in found) and not all(item.is_meta for item in found):
            args, kwargs = tree_map(_without_values, (args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and found[0].is_meta:
            # The towers ask their masks whether anything is padded; of one image or sequence
            # nothing is.
            assert found[0].dtype == torch.bool
            return True
        return func(*args, **(kwargs or {}))


def _without_values(item: Any) -> Any:
    if not isinstance(item, Tensor) or item.is_meta:
        return item
    return item.to("meta")


def _conv_backward(*arguments: Any, out_val: Any) -> int:
    """Return FLOPs of a convolution's backward pass, its groups apart.

    torch counts the gradient of a grouped kernel as if each input channel met each output channel.
    """
    *shapes, groups, mask = arguments
    inputs, kernel = (
        conv_backward_flop(  # type: ignore[call-arg]
            *shapes, groups, [mask[0] and first, mask[1] and not first, False], out_val=out_val
        )
        for first in (True, False)
    )
    return inputs + kernel // groups


# With this the counter passes tensors, not shapes.
_conv_backward._get_raw = True  # type: ignore[attr-defined]


def _lengths(batch: Batch) -> list[int]:
    """Return the tokens of each sample, padding left out."""
    if batch.places is None:
        return batch.attention_mask.sum(dim=1).tolist()
    starts = (batch.places[0] == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], batch.places.shape[1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]
