"""Low-rank adapters (LoRA, arXiv 2106.09685) on the decoder, made and read by peft.

The decoder's own weights stay frozen beside them, to the bit. A stored model has the adapters
merged in, so that everything reads it as any other; the adapters alone lie in a folder of their
own, which ``peft.PeftModel.from_pretrained`` loads onto the plain VLM that training started from.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fo1_model.config import LoraSettings, VLMConfig
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.vlms import VLMFamily, build_family

ADAPTER = "adapter"
"""Folder of the adapters alone, inside a model folder."""
_NAME = "default"
"""Peft's name of the one adapter of a model."""


def check_targets(config: VLMConfig, settings: LoraSettings) -> None:
    """Refuse targets that are no linear layers of a VLM's decoder; allocates nothing.

    Raises:
        SettingError: Naming the target, and the layers that there are.
    """
    family = build_family(config)
    with torch.device("meta"):
        _targets(family, family.build(), settings)


def add_adapters(model: FO1Model, settings: LoraSettings, seed: int) -> None:
    """Put fresh adapters beside the decoder's linear layers; they change no output yet.

    Args:
        model: The model, changed in place.
        settings: Which.
        seed: Seed of their first matrix; the second is zero.

    Raises:
        SettingError: As `check_targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    pattern = _targets(model.family, model.vlm, settings)
    scale: Any = settings.alpha  # peft says int, and divides
    config = LoraConfig(r=settings.rank, lora_alpha=scale, target_modules=pattern)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.vlm, adapter_name=_NAME)
    model.vlm.peft_config = {_NAME: config}


def has_adapters(model: FO1Model) -> bool:
    """Return whether the model has adapters that are not merged."""
    return any(True for _ in _adapted(model))


@contextlib.contextmanager
def merged(model: FO1Model) -> Iterator[FO1Model]:
    """Inside, the model has plain linear layers with the adapters added to their weights.

    Sums are made in float32 and rounded to the type of the weight once. Behind, everything is as it
    was, to the bit.
    """
    kept = dict(_adapted(model))
    for name, layer in kept.items():
        _replace(model.vlm, name, _merged_linear(layer))
    try:
        yield model
    finally:
        for name, layer in kept.items():
            _replace(model.vlm, name, layer)


def write_adapter(model: FO1Model, folder: Path) -> None:
    """Write the adapters as peft reads them, under the names of the plain VLM.

    The same adapters give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.{part}.weight": matrix[_NAME].weight.detach().cpu().contiguous()
        for name, layer in _adapted(model)
        for part, matrix in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.vlm.peft_config[_NAME].save_pretrained(str(folder))


def _targets(family: VLMFamily, vlm: Any, settings: LoraSettings) -> str:
    """Return the pattern of the full names of the layers, each of which is there."""
    decoder = family.language_model(vlm)
    place = next(name for name, module in vlm.named_modules() if module is decoder)
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise SettingError(
                f"lora_targets={','.join(settings.targets)}: the decoder has no linear layer "
                f"{target}; it has {', '.join(known)}"
            )
    names = "|".join(re.escape(target) for target in settings.targets)
    return rf"{re.escape(place)}\.(?:.*\.)?(?:{names})"


def _adapted(model: FO1Model) -> Iterator[tuple[str, Any]]:
    """Yield the decoder's layers that have an adapter, by their name in the VLM."""
    for name, module in model.vlm.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def _merged_linear(layer: Any) -> nn.Linear:
    base: nn.Linear = layer.base_layer
    low, high = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    delta: Tensor = (high.float() @ low.float()) * layer.scaling[_NAME]
    weight = (base.weight.float() + delta).to(base.weight.dtype).detach()
    with torch.device("meta"):
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if base.bias is not None:
        plain.bias = base.bias
    return plain


def _replace(vlm: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(vlm.get_submodule(parent), own, module)
