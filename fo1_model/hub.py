"""Our models for transformers' auto classes: ``AutoConfig``, ``AutoModel``, ``AutoProcessor``.

What the auto classes are given are light stand-ins, which load the real classes when they are called. So
nothing here imports the model, and registering can happen while transformers itself is still being imported.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from fo1_model.config import MODEL_TYPE

if TYPE_CHECKING:
    from fo1_model.model import FO1Model
    from fo1_model.processing import Processor


class FO1Config(PreTrainedConfig):
    """``config.json`` of a model folder as transformers sees it; ``model`` is a ``ModelConfig``'s values."""

    model_type = MODEL_TYPE


class FO1AutoModel:
    """Gives ``AutoModel`` an ``FO1Model``."""

    config_class = FO1Config

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        **_: Any,
    ) -> "FO1Model":
        """The model of a folder, in eval mode.

        dtype (or its older name): of the weights; "auto" and None keep each as it is stored. device_map: one
        device. What else the auto classes pass is about repositories, and a folder has none of it.
        """
        from fo1_model.checkpoint import read_model

        return read_model(path, dtype=_dtype(dtype or torch_dtype), device=device_map or "cpu")


class FO1Processor:
    """Gives ``AutoProcessor`` a ``Processor``."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **_: Any) -> "Processor":
        """The processor of a folder."""
        from fo1_model.checkpoint import load_processor

        return load_processor(path)


def register(module: Any) -> None:
    """Register with the auto class that a module of transformers has just defined."""
    match module.__name__.rpartition(".")[2]:
        case "configuration_auto":
            module.AutoConfig.register(MODEL_TYPE, FO1Config, exist_ok=True)
        case "modeling_auto":
            module.AutoModel.register(FO1Config, FO1AutoModel, exist_ok=True)
        case "processing_auto":
            module.AutoProcessor.register(FO1Config, FO1Processor, exist_ok=True)


def _dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={value!r} is no floating torch dtype")
    return dtype
