"""Models on disk, and new ones.

A model is a folder of ``config.json``, ``model.safetensors`` and ``tokenizer.json``. Weights are read from
safetensors only. A tied head is not stored twice.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fo1_model.config import SIZES, ModelConfig
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.tiny_tokenizer import tiny_tokenizer

FORMAT = 1
"""Version of the folder's layout."""
ASSETS = Path(__file__).parent / "assets"
BASES = {"tiny": "tiny_base.safetensors"}
"""Sizes whose pretrained VLM and auxiliary tower come with the package."""
_PRETRAINED = ("vlm.", "auxiliary.")


def new_model(
    config: ModelConfig,
    seed: int,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    base: dict[str, Tensor] | None = None,
) -> tuple[FO1Model, Processor]:
    """A model with fresh weights, the same for the same seed, and its processor.

    tokenizer: the base VLM's; the tiny one by default. base: weights ``vlm.*`` and ``auxiliary.*`` to start
    from; both parts must be complete. New vocabulary rows start as ``ModelConfig.new_rows`` says.

    Raises ValueError when base lacks a weight, has one too many, or a shape differs.
    """
    processor = Processor(config, tokenizer if tokenizer is not None else tiny_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FO1Model(config, processor.token_ids)
        if base is not None:
            parts = [name for name in model.state_dict() if name.startswith(_PRETRAINED)]
            _load(model, base, expected=set(parts), what="the base weights")
        generator = torch.Generator().manual_seed(seed)
        start: dict[str, Any] = {
            "spread": config.new_rows.spread,
            "like": {processor.id_of(new): processor.id_of(old) for new, old in config.new_rows.like.items()},
        }
        model.new_rows.initialise(model.vlm.get_input_embeddings().weight, generator, **start)
        if model.new_output_rows is not None:
            model.new_output_rows.initialise(model.vlm.get_output_embeddings().weight, generator, **start)
    return model.eval(), processor


def load_base(name: str, seed: int = 0) -> tuple[FO1Model, Processor]:
    """A model of a named size on its pretrained VLM and auxiliary tower; region modules and new rows are
    fresh.

    Raises ValueError for a size without a pretrained base.
    """
    if name not in BASES:
        raise ValueError(f"no pretrained base for {name!r}; choose one of {', '.join(BASES)}")
    return new_model(SIZES[name](), seed, base=load_file(ASSETS / BASES[name]))


def save_model(model: FO1Model, processor: Processor, folder: str | Path) -> None:
    """Write the model folder; the same model gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    skipped = _tied_names(model)
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name not in skipped
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {"format": FORMAT, "model": model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[FO1Model, Processor]:
    """The model of a folder, in eval mode, and its processor.

    Raises ValueError when the folder's format is unknown, or weights are missing, left over or of another
    shape.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/config.json has format {config.get('format')!r}; this code reads {FORMAT}"
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = Processor(ModelConfig.from_dict(config["model"]), tokenizer)
    model = FO1Model(processor.config, processor.token_ids)
    _load(model, load_file(folder / "model.safetensors"), expected=None, what=f"{folder}/model.safetensors")
    return model.to(device=device, dtype=dtype).eval(), processor


def _tied_names(model: FO1Model) -> set[str]:
    """Names of the state that repeat another tensor's storage."""
    return {"vlm.lm_head.weight"} if model.family.tied else set()


def _load(model: FO1Model, weights: dict[str, Tensor], *, expected: set[str] | None, what: str) -> None:
    """Copy ``weights`` into the model; they must be exactly ``expected`` (all of the state by default)."""
    own = model.state_dict()
    tied = _tied_names(model)
    expected = (set(own) if expected is None else expected) - tied
    given = set(weights) - tied
    if missing := sorted(expected - given):
        raise ValueError(f"{what}: {len(missing)} weights are missing, such as {missing[0]}")
    if extra := sorted(given - expected):
        raise ValueError(f"{what}: {len(extra)} weights are not the model's, such as {extra[0]}")
    for name in sorted(expected):
        if weights[name].shape != own[name].shape:
            raise ValueError(
                f"{what}: {name} is {list(weights[name].shape)}, the model has {list(own[name].shape)}"
            )
    with torch.no_grad():
        for name in sorted(expected):
            own[name].copy_(weights[name])
