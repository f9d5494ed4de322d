"""Named recipes: functions whose keyword arguments are the sweep surface, returning one frozen Recipe.

A recipe says what is trained on what; `jobs.chain` turns it into artifacts. ``my_module:my_recipe`` names a
recipe outside the project. An argument left at None is what `jobs.recipes.settings` says for the size.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace

from dataset_builders import BuildOptions
from jobs.detector_arguments import parse_detector
from jobs.mixes import parse_mix
from jobs.recipes.opn import opn
from jobs.recipes.recipe import Recipe
from jobs.recipes.settings import SETTINGS, Size
from jobs.recipes.stages import stage1, stage2, stage_training
from pipelines.shards.rejection import RejectionConfig
from pipelines.training.learners import FO1Learner


def coco_sample(
    *,
    coco_root: str,
    size: Size = "debug",
    detector: str = "ground_truth_jitter",
    proposals: int = 60,
    steps: int = 4,
    batch_size: int = 8,
    seed: int = 0,
) -> Recipe:
    """The whole chain over any folder in COCO layout: ``coco_root/annotations``, ``coco_root/train2017``."""
    settings, chosen = SETTINGS[size], parse_detector(detector, {"max_boxes": proposals})
    given = {"steps": steps, "batch_size": batch_size, "validate_every": 0, "seed": seed}
    start = FO1Learner(stage="stage1", model=settings.model(), base=settings.base)
    first = stage_training(
        "coco_stage1", settings, settings.stage1, start, "coco", learning_rate=1e-3, **given
    )
    goes_on = FO1Learner(stage="stage2")
    second = stage_training(
        "coco_stage2", settings, settings.stage2, goes_on, "coco", learning_rate=1e-4, **given
    )
    return Recipe(
        name="coco_sample",
        trainings=(replace(first, weights=settings.weights), second),
        benchmarks=("coco",),
        roots={"coco": coco_root},
        max_new_tokens=48,  # an untrained model never stops by itself
        detector=chosen.config,
        detector_sources=chosen.sources,
    )


def data(
    *,
    mix: str,
    detector: str = "ground_truth_jitter",
    proposals: int = 100,
    turns: int = 1,
    paraphrases: bool = True,
    rejection_share: float = 0.2,
    exclude: str = "found",
    max_side_px: int | None = None,
    seed: int = 0,
) -> Recipe:
    """Samples, proposals and shards of a mix, or of one dataset (mix=NAME); nothing is trained."""
    chosen = parse_detector(detector, {"max_boxes": proposals})
    return Recipe(
        name="data",
        detector=chosen.config,
        detector_sources=chosen.sources,
        datasets=tuple(dict.fromkeys(source.split("/")[0] for source in parse_mix(mix))),
        options=BuildOptions(paraphrases=paraphrases, seed=seed),
        rejection=RejectionConfig(share=rejection_share, paraphrases=paraphrases, seed=seed),
        turns=turns,
        exclude=exclude,
        max_side_px=max_side_px,
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    "opn": opn,
    "stage1": stage1,
    "stage2": stage2,
    "coco_sample": coco_sample,
    "data": data,
}
"""Recipes by name."""


def find_recipe(name: str) -> Callable[..., Recipe]:
    """A named recipe, or ``my_module:my_recipe``. Raises ValueError naming the known ones."""
    if name in RECIPES:
        return RECIPES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown recipe {name!r}; known: {', '.join(RECIPES)}, or my_module:my_recipe"
        )
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recipe {name!r}: {error}; is the module on PYTHONPATH?") from error
    return recipe
