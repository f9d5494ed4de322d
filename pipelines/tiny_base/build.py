"""The tiny base: a pre-trained tiny VLM and a tiny DaViT, from which stages 1 and 2 start.

The paper starts from Qwen2.5-VL and Florence-2's DaViT, which nobody can train in passing. The tiny
model starts from this base (ours), made in one process in four phases:

    auxiliary   DaViT on boxes of drawn scenes: colour, shape, whole object or not    (`towers`)
    primary     the VLM's ViT on patches of drawn scenes                              (`towers`)
    look-up     the decoder on lists that grow, with captions of drawn scenes among   (`decoder`)
    save        one safetensors file, float16, with recipe, seed and metrics in its metadata

Nothing of the region language, the region encoder or the new vocabulary rows exists in a base:
stage 1 makes them. The defaults take about half an hour on one core.
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
from fo1_model.sizes import SIZES
from fo1_model.vlms import build_family
from fo1_model.vlms.tiny_tokenizer import tokenizer_digest
from pipelines.errors import SettingError
from pipelines.tiny_base.decoder import DecoderTraining, LookupConfig, square_images
from pipelines.tiny_base.drawn_images import DrawnImage, draw_images
from pipelines.tiny_base.lookup_init import lay_out_lookup
from pipelines.tiny_base.towers import (
    Log,
    PatchHeads,
    RegionHeads,
    auxiliary_step,
    primary_step,
    train_tower,
)

FILE_NAME = "tiny_base.safetensors"
"""Name of the file that holds a base."""
CAPTIONED = 1000
"""Number of drawn scenes of which the square ones are captioned while the decoder learns."""
METADATA = "tiny_base"
"""Key of the file's metadata: JSON with recipe, config, figures (metrics) and tokenizer digest."""


@dataclass(frozen=True, kw_only=True)
class TinyBaseConfig:
    """How the tiny base is made. The defaults made the shipped file."""

    size: str = "tiny"
    """Size of the model: a key of ``fo1_model.sizes.SIZES``."""
    seed: int = 0
    """Seed of every draw and start."""
    pictures: int = 8000
    """Number of drawn scenes that the towers train on.

    Their seeds keep them apart from those of the drawn world.
    """
    held_out: int = 200
    """Number of drawn scenes that measure the towers."""
    auxiliary_steps: int = 2400
    """Number of steps of the auxiliary tower, of 16 scenes each."""
    auxiliary_rate: float = 1.5e-3
    """Peak learning rate of the auxiliary tower."""
    primary_steps: int = 1200
    """Number of steps of the primary tower, of 16 scenes each."""
    primary_rate: float = 2e-3
    """Peak learning rate of the primary tower."""
    lookup_steps: int = 600
    """Number of steps of the decoder with AdamW, of 24 to 64 conversations each."""
    lookup_rate: float = 1.5e-3
    """Learning rate of the decoder with AdamW."""
    refine_steps: int = 3600
    """Number of steps of the decoder with Muon, after those with AdamW."""
    refine_rate: float = 1.5e-3
    """Peak learning rate of the decoder with Muon."""
    caption_share: float = 0.05
    """Share of the decoder's steps that caption images instead of reading lists."""

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
                raise SettingError(
                    f"TinyBaseConfig.{name}={getattr(self, name)} must be at least 1"
                )
        if self.size not in SIZES:
            raise SettingError(
                f"TinyBaseConfig.size={self.size!r} is not known; choose one of {', '.join(SIZES)}"
            )


def train_tiny_base(
    config: TinyBaseConfig, output_folder: str | Path, *, log: Log = print, threads: int = 1
) -> dict[str, float]:
    """Make the base and write ``tiny_base.safetensors``.

    Args:
        config: The recipe.
        output_folder: Folder that gets the file.
        log: Gets a line of progress every few seconds.
        threads: Threads of the CPU; their number changes a run by rounding only.

    Returns:
        The metrics reached, in 0..1, which are in the file's metadata too.

    Raises:
        SettingError: The size's decoder does not fit the start of the look-up, or no drawn scene is
            square.
    """
    torch.set_num_threads(threads)
    # Both checks are the decoder's, whose turn comes last: it would fail after the towers' minutes.
    check_size(config.size)
    log(f"tiny base: drawing {config.pictures + config.held_out} scenes")
    train = list(draw_images(config.seed, 1, config.pictures))
    held_out = list(draw_images(config.seed, 2, config.held_out))
    for name, images in (("pictures", train[:CAPTIONED]), ("held_out", held_out)):
        if not square_images(images):
            raise SettingError(
                f"TinyBaseConfig.{name}={getattr(config, name)}: none of these scenes is square, "
                "as captions need; draw more, or with another seed"
            )
    weights, metrics = train_auxiliary(config, train, held_out, log)
    more_weights, more_metrics = train_vlm(config, train, held_out, log)
    save_base(config, weights | more_weights, metrics | more_metrics, Path(output_folder))
    return metrics | more_metrics


def check_size(size: str) -> None:
    """Raise SettingError unless a decoder of this size fits the start of the look-up."""
    family = build_family(SIZES[size]().vlm)
    with torch.random.fork_rng(devices=[]):
        lay_out_lookup(family.language_model(family.build()), seed=0)


def train_auxiliary(
    config: TinyBaseConfig, train: Sequence[DrawnImage], held_out: Sequence[DrawnImage], log: Log
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the auxiliary tower.

    Args:
        config: The recipe.
        train: Drawn scenes to train on.
        held_out: Drawn scenes that measure the tower.
        log: Gets lines of progress.

    Returns:
        Its weights ``auxiliary.*``, and its held-out hits in 0..1.
    """
    model_config = SIZES[config.size]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tower = AuxiliaryTower(model_config.auxiliary)
        # Convolutions over few channels are faster in this order of memory on a CPU.
        tower.model.to(memory_format=torch.channels_last)
        heads = RegionHeads(sum(model_config.auxiliary.dims))
        metrics = train_tower(
            "auxiliary tower",
            nn.ModuleList([tower, heads]),
            lambda batch, seed: auxiliary_step(tower, heads, model_config, batch, seed),
            (train, held_out),
            (config.auxiliary_steps, config.auxiliary_rate, config.seed),
            log,
        )
    return {f"auxiliary.{name}": value for name, value in tower.state_dict().items()}, metrics


def train_vlm(
    config: TinyBaseConfig, train: Sequence[DrawnImage], held_out: Sequence[DrawnImage], log: Log
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the VLM: its vision tower first, then its decoder over the frozen tower.

    Args:
        config: The recipe.
        train: Drawn scenes to train on.
        held_out: Drawn scenes that measure it.
        log: Gets lines of progress.

    Returns:
        Its weights ``vlm.*``, and what tower and decoder reach, in 0..1.
    """
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
        metrics = train_tower(
            "primary tower",
            nn.ModuleList([family.vision_tower(vlm), heads]),
            lambda batch, _: primary_step(family, vlm, heads, batch),
            (train, held_out),
            (config.primary_steps, config.primary_rate, config.seed),
            log,
        )
        metrics |= DecoderTraining(lookup, family, vlm, train[:CAPTIONED], held_out).run(log)
    # A tied head repeats the embedding.
    weights = {
        f"vlm.{name}": value for name, value in vlm.state_dict().items() if name != "lm_head.weight"
    }
    return weights, metrics


def save_base(
    config: TinyBaseConfig, weights: dict[str, Tensor], metrics: dict[str, float], folder: Path
) -> None:
    """Write the base in float16, with recipe, model config, metrics and tokenizer digest."""
    folder.mkdir(parents=True, exist_ok=True)
    # One entry: the format writes several in random order, and the same recipe must make the same
    # bytes.
    metadata = {
        "recipe": asdict(config),
        "config": SIZES[config.size]().to_dict(),
        "figures": metrics,
        "tokenizer": tokenizer_digest(),
    }
    halves = {name: value.half().contiguous() for name, value in weights.items()}
    save_file(halves, folder / FILE_NAME, {METADATA: json.dumps(metadata, sort_keys=True)})
