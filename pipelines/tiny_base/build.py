"""The tiny base: a pre-trained tiny VLM and a pre-trained tiny DaViT, as stages 1 and 2 expect to start from.

The paper starts from Qwen2.5-VL and Florence-2's DaViT, which nobody can train in passing. The tiny model
starts from this base (ours), made in one process in four phases:

    auxiliary   DaViT on boxes of drawn scenes: colour, shape, whole object or not      (`tiny_towers`)
    primary     the VLM's ViT on patches of drawn scenes                                (`tiny_towers`)
    look-up     the decoder on lists that grow, with captions of drawn scenes among     (`tiny_decoder`)
    save        one safetensors file, float16, with recipe, seed and figures in its metadata

Nothing of the region language, the region encoder or the new vocabulary rows exists in a base: stage 1 makes
them. The defaults take about half an hour on one core.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fo1_model.auxiliary_tower import AuxiliaryTower
from fo1_model.config import SIZES
from fo1_model.vlms import build_family
from fo1_model.vlms.tiny_tokenizer import tokenizer_digest
from pipelines.tiny_base.decoder import DecoderTraining, LookupConfig
from pipelines.tiny_base.towers import (
    Log,
    PatchHeads,
    Picture,
    RegionHeads,
    auxiliary_step,
    draw_pictures,
    primary_step,
    train_tower,
)

FILE_NAME = "tiny_base.safetensors"
METADATA = "tiny_base"
"""Key of the file's metadata: JSON with recipe, config, figures and tokenizer digest."""


@dataclass(frozen=True, kw_only=True)
class TinyBaseConfig:
    """How the tiny base is made. The defaults made the shipped file."""

    size: str = "tiny"
    """Key of ``fo1_model.config.SIZES``."""
    seed: int = 0
    """Of every draw and start."""
    pictures: int = 8000
    """Drawn scenes that the towers train on; apart from those of the drawn world by their seeds."""
    held_out: int = 200
    """Drawn scenes that measure the towers."""
    auxiliary_steps: int = 2400
    """Steps of 16 scenes."""
    auxiliary_rate: float = 1.5e-3
    """Peak learning rate."""
    primary_steps: int = 1200
    """Steps of 16 scenes."""
    primary_rate: float = 2e-3
    """Peak learning rate."""
    lookup_steps: int = 600
    """Steps of 24 to 64 conversations with AdamW."""
    lookup_rate: float = 1.5e-3
    """Their learning rate."""
    refine_steps: int = 3600
    """Steps with Muon after them."""
    refine_rate: float = 1.5e-3
    """Their peak learning rate."""
    caption_share: float = 0.05
    """Share of look-up steps that caption pictures instead."""

    def __post_init__(self) -> None:
        for name in (
            "pictures",
            "held_out",
            "auxiliary_steps",
            "primary_steps",
            "lookup_steps",
            "refine_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"TinyBaseConfig.{name}={getattr(self, name)} must be at least 1")
        if self.size not in SIZES:
            raise ValueError(
                f"TinyBaseConfig.size={self.size!r} is not known; choose one of {', '.join(SIZES)}"
            )


def train_tiny_base(
    config: TinyBaseConfig, output_folder: str | Path, *, log: Log = print, threads: int = 1
) -> dict[str, float]:
    """Make the base and write ``tiny_base.safetensors`` into ``output_folder``.

    log: gets a line of progress every few seconds. threads: of the CPU; their number changes a run by
    rounding only. Returns the figures reached, which are in the file's metadata too.
    """
    torch.set_num_threads(threads)
    log(f"tiny base: drawing {config.pictures + config.held_out} scenes")
    train = list(draw_pictures(config.seed, 1, config.pictures))
    held_out = list(draw_pictures(config.seed, 2, config.held_out))
    weights, figures = train_auxiliary(config, train, held_out, log)
    more_weights, more_figures = train_vlm(config, train, held_out, log)
    save_base(config, weights | more_weights, figures | more_figures, Path(output_folder))
    return figures | more_figures


def train_auxiliary(
    config: TinyBaseConfig, train: Sequence[Picture], held_out: Sequence[Picture], log: Log
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The auxiliary tower's weights ``auxiliary.*``, and its held-out hits."""
    model_config = SIZES[config.size]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tower = AuxiliaryTower(model_config.auxiliary)
        tower.model.to(memory_format=torch.channels_last)
        heads = RegionHeads(sum(model_config.auxiliary.dims))
        figures = train_tower(
            "auxiliary tower",
            nn.ModuleList([tower, heads]),
            lambda batch, seed: auxiliary_step(tower, heads, model_config, batch, seed),
            (train, held_out),
            (config.auxiliary_steps, config.auxiliary_rate, config.seed),
            log,
        )
    return {f"auxiliary.{name}": value for name, value in tower.state_dict().items()}, figures


def train_vlm(
    config: TinyBaseConfig, train: Sequence[Picture], held_out: Sequence[Picture], log: Log
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The VLM's weights ``vlm.*``, and what its vision tower and its decoder reach."""
    family = build_family(SIZES[config.size]().vlm)
    lookup = LookupConfig(
        steps=config.lookup_steps,
        rate=config.lookup_rate,
        refine_steps=config.refine_steps,
        refine_rate=config.refine_rate,
        caption_share=config.caption_share,
        seed=config.seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vlm: Any = family.build()
        heads = PatchHeads(family.primary_dim, family.hidden_size)
        figures = train_tower(
            "primary tower",
            nn.ModuleList([family.vision_tower(vlm), heads]),
            lambda batch, _: primary_step(family, vlm, heads, batch),
            (train, held_out),
            (config.primary_steps, config.primary_rate, config.seed),
            log,
        )
        figures |= DecoderTraining(lookup, family, vlm, train[:1000], held_out).run(log)
    # A tied head repeats the embedding.
    weights = {
        f"vlm.{name}": value for name, value in vlm.state_dict().items() if name != "lm_head.weight"
    }
    return weights, figures


def save_base(
    config: TinyBaseConfig, weights: dict[str, Tensor], figures: dict[str, float], folder: Path
) -> None:
    """Write the base, float16, with recipe, model config, figures and tokenizer digest as metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    # One entry: the format writes several in random order, and the same recipe must make the same bytes.
    metadata = {
        "recipe": asdict(config),
        "config": SIZES[config.size]().to_dict(),
        "figures": figures,
        "tokenizer": tokenizer_digest(),
    }
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(halves, folder / FILE_NAME, {METADATA: json.dumps(metadata, sort_keys=True)})
