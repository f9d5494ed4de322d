"""Training smaller or faster with the same result: recomputed layers, compiled ones, attention."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fo1_model.config import TOWERS
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model


def accelerate(
    model: FO1Model,
    *,
    recomputed: Sequence[str],
    compiles: bool,
    precision: Literal["fp32", "bf16"],
) -> None:
    """Prepare a model for training on the device that is there, before it is moved.

    Args:
        model: The model, changed in place.
        recomputed: Towers for `recompute`.
        compiles: Whether the decoder's layers are compiled.
        precision: Type that it will train in.
    """
    model.vlm.set_attn_implementation(attention_implementation(precision))
    recompute(model, recomputed)
    if compiles:
        compile_decoder(model)


def recompute(model: FO1Model, towers: Sequence[str]) -> None:
    """Let layers of these towers keep their inputs only and run again in the backward pass.

    Losses and gradients stay the same, about a third more time is spent on what trains; a frozen
    tower keeps nothing anyway.

    Args:
        model: The model, changed in place.
        towers: Names among `TOWERS`.

    Raises:
        SettingError: For a tower that is unknown or that the model lacks.
    """
    if unknown := sorted(set(towers) - set(TOWERS)):
        raise SettingError(
            f"activation checkpointing of {', '.join(unknown)}: choose among {', '.join(TOWERS)}"
        )
    for name in towers:
        if name == "auxiliary":
            if model.auxiliary is None:
                raise SettingError(
                    "activation checkpointing of auxiliary: this model has no such tower"
                )
            model.auxiliary.set_gradient_checkpointing()
            continue
        family = model.family
        tower = (
            family.vision_tower(model.vlm)
            if name == "primary"
            else family.language_model(model.vlm)
        )
        layers: list[Any] = [
            layer for layer in tower.modules() if isinstance(layer, GradientCheckpointingLayer)
        ]
        if not layers:
            raise SettingError(
                f"activation checkpointing of {name}: transformers cannot recompute its layers"
            )
        for layer in layers:
            layer.gradient_checkpointing = True
            # Not reentrant: under the reentrant form a layer whose input needs no gradient gets
            # none itself.
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def compile_decoder(model: FO1Model, backend: str = "inductor") -> None:
    """Compile each layer of the decoder in place, for sequences of any length.

    The towers stay as they are: their shapes change with every image, and each shape would be
    compiled.
    """
    decoder: Any = model.family.language_model(model.vlm)
    for layer in decoder.layers:
        layer.compile(backend=backend, dynamic=True)


def attention_implementation(precision: Literal["fp32", "bf16"]) -> str:
    """Return transformers' name of the fastest attention that is here.

    FlashAttention 2 needs its package, a GPU and bf16; else it is torch's
    scaled_dot_product_attention.
    """
    has_package = importlib.util.find_spec("flash_attn") is not None
    return (
        "flash_attention_2"
        if has_package and precision == "bf16" and torch.cuda.is_available()
        else "sdpa"
    )
