"""Small folders as makers of a VLM and of Florence-2 publish theirs, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fo1_model.config import VLMConfig
from fo1_model.model import FO1Model
from fo1_model.sizes import debug
from fo1_model.vlms import build_family
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer
from tests.fo1_model.small_families import small_tokenizer, small_vlm


def write_vlm(
    folder: Path,
    config: VLMConfig | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Write the folder of a VLM with lively weights, debug's by default; return the model.

    options: further arguments of ``save_pretrained``.
    """
    vlm: Any = build_family(config or debug().vlm).build().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    vlm.to(dtype).save_pretrained(folder, **options)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return vlm


def write_small_vlm(family: str, folder: Path) -> Any:
    """Write a family's small folder under the names its makers published; return the model.

    That is, config.json, one safetensors file, and tokenizer.json with the family's special tokens.
    """
    tokenizer = small_tokenizer(family)
    vlm = write_vlm(folder, small_vlm(family, tokenizer), tokenizer)
    file = folder / "model.safetensors"
    save_file(makers_tensors(family, vlm), file, metadata={"format": "pt"})
    return vlm


def makers_tensors(family: str, vlm: Any) -> dict[str, Tensor]:
    """A VLM's tensors as the family's published files have them."""
    own = {name: value for name, value in vlm.state_dict().items() if value.numel()}
    if vlm.config.tie_word_embeddings:
        del own["lm_head.weight"]
    if family in ("llava", "llava_next", "llava_onevision"):
        own = {_llava_name(name): value for name, value in own.items()}
    elif family in ("qwen2_vl", "qwen2_5_vl"):
        starts = {"model.visual.": "visual.", "model.language_model.": "model."}
        own = {_renamed(name, starts): value for name, value in own.items()}
    elif family == "qwen3_vl_moe":
        own = {name: value.mT if ".mlp.experts." in name else value for name, value in own.items()}
    elif family in ("qwen3_5", "qwen3_5_moe"):
        own["mtp.fc.weight"] = torch.ones(2, 2)  # of several tokens at once; nobody reads it
    return {name: value.contiguous().clone() for name, value in own.items()}


def _llava_name(name: str) -> str:
    starts = {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.vision_tower.vision_model.": "vision_tower.vision_model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.": "",
    }
    return _renamed(name, starts)


def _renamed(name: str, starts: dict[str, str]) -> str:
    for ours, theirs in starts.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def florence_tensors(dims: list[int], *, mlp_ratio: int = 4) -> dict[str, Tensor]:
    """A DaViT of one block a stage under Florence-2's names, and some of the text half, float16."""
    shapes: dict[str, tuple[int, ...]] = {
        "language_model.shared.weight": (4, 4),
        "image_proj_norm.bias": (4,),
    }
    for stage, dim in enumerate(dims):
        before, kernel = (3, 7) if stage == 0 else (dims[stage - 1], 3)
        conv = f"vision_tower.convs.{stage}"
        shapes |= {
            f"{conv}.proj.weight": (dim, before, kernel, kernel),
            f"{conv}.proj.bias": (dim,),
        }
        shapes |= {
            f"{conv}.norm.{kind}": (dim if stage == 0 else before,) for kind in ("weight", "bias")
        }
        for block, attention in (
            ("spatial_block", "window_attn"),
            ("channel_block", "channel_attn"),
        ):
            half = f"vision_tower.blocks.{stage}.0.{block}"
            for name in ("conv1.fn.dw", "conv2.fn.dw"):
                shapes |= {f"{half}.{name}.weight": (dim, 1, 3, 3), f"{half}.{name}.bias": (dim,)}
            for name in (f"{attention}.norm", "ffn.norm"):
                shapes |= {f"{half}.{name}.weight": (dim,), f"{half}.{name}.bias": (dim,)}
            for name, rows, columns in (
                (f"{attention}.fn.qkv", 3 * dim, dim),
                (f"{attention}.fn.proj", dim, dim),
                ("ffn.fn.net.fc1", mlp_ratio * dim, dim),
                ("ffn.fn.net.fc2", dim, mlp_ratio * dim),
            ):
                shapes |= {f"{half}.{name}.weight": (rows, columns), f"{half}.{name}.bias": (rows,)}
    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.randn(shape, generator=generator).half() * 0.1 for name, shape in shapes.items()
    }


def write_florence(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Write a Florence-2 whose tower is debug's; returns its tensors. changes: of its
    ``vision_config``."""
    kwargs = debug().auxiliary.kwargs
    tensors = florence_tensors(kwargs["embed_dims"])
    vision = {
        "model_type": "davit",
        "dim_embed": kwargs["embed_dims"],
        "depths": kwargs["depths"],
        "num_heads": kwargs["num_heads"],
        "num_groups": kwargs["num_heads"],
        "window_size": kwargs["window_size"],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "florence2", "vision_config": vision})
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def text_logits(model: FO1Model, ids: Tensor) -> Tensor:
    """Of a text alone, float32[1, L, V]. ids: int64[1, L]."""
    mask, positions = torch.ones_like(ids), model.family.positions(ids.shape[1], [])[:, None]
    with torch.no_grad():
        return model.logits(model.decode(model.embed_ids(ids), mask, positions))
