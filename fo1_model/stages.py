"""Which parameters train in which stage, as checked parameter groups.

Stage 1 aligns regions with the frozen VLM: SimpleFP, region norms, connector, new vocabulary rows
(paper 3.3). Stage 2 trains all but the primary vision tower. Every parameter belongs to exactly
one part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fo1_model.errors import SettingError
from fo1_model.model import FO1Model

PARTS: dict[str, tuple[str, ...]] = {
    "primary": ("vlm.{visual}",),
    "language": ("vlm.", "image_projector."),
    "auxiliary": ("auxiliary.",),
    "region_encoder": ("region_encoder.",),
    "new_rows": ("new_rows.", "new_output_rows."),
}
"""Part -> prefixes of its parameter names; a parameter belongs to the part with the longest
match. Adapters (`fo1_model.lora`) stand among the decoder's own and are a part of their own.

``{visual}`` stands for each of the VLM family's ``visual_prefixes``: vision tower and
projector."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training."""

    parts: tuple[str, ...]
    """Parts that train; all others are frozen."""


STAGES: dict[str, Stage] = {
    "stage1": Stage(parts=("region_encoder", "new_rows")),
    "stage1_auxiliary": Stage(parts=("auxiliary", "region_encoder", "new_rows")),
    "stage2": Stage(parts=("language", "auxiliary", "region_encoder", "new_rows")),
    "stage2_primary": Stage(
        parts=("primary", "language", "auxiliary", "region_encoder", "new_rows")
    ),
    "stage2_lora": Stage(parts=("adapters", "auxiliary", "region_encoder", "new_rows")),
    "stage2_primary_lora": Stage(
        parts=("primary", "adapters", "auxiliary", "region_encoder", "new_rows")
    ),
}
"""Stages by name. The paper names "HFRE and connector" for stage 1 but unfreezes DaViT in stage
2 only, hence ``stage1_auxiliary``; ``stage2_primary`` (ours) unfreezes the primary vision
tower too. With ``lora`` adapters train in the place of the decoder."""
ADAPTER_NAME = ".lora_"
"""What the names of the adapters' parameters hold, as peft names them."""


def _expanded(patterns: tuple[str, ...], model: FO1Model) -> list[str]:
    prefixes = model.family.visual_prefixes
    return [pattern.format(visual=prefix) for pattern in patterns for prefix in prefixes]


def part_of_parameters(model: FO1Model) -> dict[str, str]:
    """Return the part of each parameter, by its name.

    Raises:
        ValueError: When a part is empty or a parameter belongs to none or to two.
    """
    owners: dict[str, str] = {}
    for name, _ in model.named_parameters():
        matches: dict[str, int] = {}
        for part, prefixes in PARTS.items():
            for prefix in _expanded(prefixes, model):
                if name.startswith(prefix):
                    matches[part] = max(len(prefix), matches.get(part, 0))
        # The longest match wins: "vlm." is the language model's but for the visual prefixes.
        best = [part for part, length in matches.items() if length == max(matches.values())]
        if ADAPTER_NAME in name:
            best = ["adapters"]
        if len(best) != 1:
            raise ValueError(
                f"parameter {name!r} belongs to {best or 'no part'}; PARTS must name exactly one"
            )
        owners[name] = best[0]
    expected = set(PARTS) if model.auxiliary is not None else set(PARTS) - {"auxiliary"}
    if empty := sorted(expected - set(owners.values())):
        raise ValueError(
            f"no parameter belongs to {', '.join(empty)}; PARTS names something the model lacks"
        )
    return owners


def parameter_groups(
    model: FO1Model,
    stage: str,
    learning_rate: float,
    *,
    weight_decay: float = 0.0,
    learning_rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Freeze what the stage freezes, and what no output reads, and return groups of the rest.

    Args:
        model: Its parameters' ``requires_grad`` is set.
        stage: Key of `STAGES`.
        learning_rate: Rate of every part.
        weight_decay: Decay of matrices; vectors (biases, norms) and vocabulary rows get none, as
            usual.
        learning_rates: Part -> rate of its own.

    Returns:
        Optimizer groups ``{"name", "params", "lr", "weight_decay"}``, never an empty one.

    Raises:
        SettingError: For an unknown stage or a learning rate for a part that does not train.
    """
    if stage not in STAGES:
        raise SettingError(f"stage={stage!r} is not known; choose one of {', '.join(STAGES)}")
    trained = STAGES[stage].parts
    if model.model_config.region.features == "primary":
        # Nothing reads the auxiliary tower, and a parameter without gradient stalls distributed
        # training.
        trained = tuple(part for part in trained if part != "auxiliary")
    rates = dict.fromkeys(trained, learning_rate) | dict(learning_rates or {})
    if unknown := sorted(set(rates) - set(trained)):
        raise SettingError(
            f"learning_rates names {', '.join(unknown)}; {stage} trains {', '.join(trained)}"
        )
    owners = part_of_parameters(model)
    if missing := sorted(set(trained) - set(owners.values())):
        raise SettingError(f"{stage} trains {', '.join(missing)}, which this model has not")
    idle = tuple(f"vlm.{prefix}" for prefix in model.family.idle_prefixes)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = owners[name]
        trains = part in trained and not name.startswith(idle)
        parameter.requires_grad_(trains)
        if trains:
            decays = parameter.ndim > 1 and part != "new_rows"
            groups.setdefault((part, decays), []).append(parameter)
    # Which towers are frozen has changed, and train() looks at that.
    model.train(model.training)
    return [
        {
            "name": part if decays else f"{part}_no_decay",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]
