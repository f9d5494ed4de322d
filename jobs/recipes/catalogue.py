"""Named recipes: functions whose keyword arguments are the sweep surface, returning a Recipe.

A recipe says what is trained on what; `jobs.chain` turns it into artifacts. ``my_module:my_recipe``
names a recipe outside the project. An argument left at None is what `jobs.recipes.settings` says
for the size.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

from dataset_builders import BuildOptions
from fo1_model.detectors.configs import Selection
from jobs.command.suggestions import unknown
from jobs.detector_arguments import parse_detector
from jobs.mixes import datasets_of, parse_mix
from jobs.recipes.arguments import Field, parse_arguments
from jobs.recipes.opn import opn
from jobs.recipes.recipe import Recipe
from jobs.recipes.settings import SETTINGS, Size
from jobs.recipes.stages import stage1, stage2, stage_training
from pipelines.errors import SettingError
from pipelines.shards.rejection import RejectionConfig
from pipelines.train_config import TrainConfig
from pipelines.training.learners import FO1Learner

Proposals = Annotated[int, "data", Field(Selection, "max_boxes")]
"""Most boxes an image."""


def coco_sample(
    *,
    coco_root: str,
    size: Size = "debug",
    detector: Annotated[str, "data"] = "ground_truth_jitter",
    proposals: Proposals = 60,
    steps: Annotated[int, "training"] = 4,
    batch_size: Annotated[int, "training", TrainConfig] = 8,
    seed: Annotated[int, "training", TrainConfig] = 0,
) -> Recipe:
    """Run the whole chain over any folder in COCO layout.

    Args:
        coco_root: Folder with annotations/instances_train2017.json and train2017/.
        size: Named size of the model, with its settings.
        detector: Detector of the proposals: NAME[:SOURCE][,setting=value...].
        proposals: Most boxes an image.
        steps: Optimizer steps of each stage.
        batch_size: Examples a step, over all workers.
        seed: Seed of new weights and of the order of examples.
    """
    settings, chosen = SETTINGS[size], parse_detector(detector, {"max_boxes": proposals})
    given = {"steps": steps, "batch_size": batch_size, "validate_every": 0, "seed": seed}
    start = FO1Learner(stage="stage1", model=settings.model(), base=settings.base)
    first_given = {**given, "learning_rate": 1e-3}
    first = stage_training("coco_stage1", settings, settings.stage1, start, "coco", first_given)
    goes_on, second_given = FO1Learner(stage="stage2"), {**given, "learning_rate": 1e-4}
    second = stage_training("coco_stage2", settings, settings.stage2, goes_on, "coco", second_given)
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
    proposals: Annotated[int, Field(Selection, "max_boxes")] = 100,
    turns: Annotated[int, Recipe] = 1,
    paraphrases: Annotated[bool, BuildOptions] = True,
    rejection_share: Annotated[float, Field(RejectionConfig, "share")] = 0.2,
    exclude: Annotated[str, Recipe] = "found",
    max_side_px: Annotated[int | None, Recipe] = None,
    seed: Annotated[int, BuildOptions] = 0,
) -> Recipe:
    """Make samples, proposals and shards of a mix, or of one dataset (mix=NAME); no training.

    Args:
        mix: Mix or dataset; fo1 list mixes says what can be written.
        detector: Detector of the proposals: NAME[:SOURCE][,setting=value...].
        proposals: Most boxes an image.
        turns: Most questions about one image in a training example.
        paraphrases: Whether wordings are drawn; false asks in the release's own words always.
        rejection_share: Share of rejection samples among these and the detection samples.
        exclude: Benchmarks whose images training shards leave out.
        max_side_px: Longer side of the images in training shards.
        seed: Seed of every choice.
    """
    chosen = parse_detector(detector, {"max_boxes": proposals})
    return Recipe(
        name="data",
        detector=chosen.config,
        detector_sources=chosen.sources,
        datasets=tuple(datasets_of(parse_mix(mix))),
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


def find_recipe(name: str, *, others: Sequence[str] = ()) -> Callable[..., Recipe]:
    """Return a named recipe, or ``my_module:my_recipe``.

    Args:
        name: Name of the recipe.
        others: What else could have been meant, such as the benchmarks of ``fo1 evaluate``.

    Raises:
        SettingError: When there is none of that name, naming those that there are.
    """
    if name in RECIPES:
        return RECIPES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        what = "recipe or benchmark" if others else "recipe"
        known = (*RECIPES, *others)
        raise SettingError(unknown(what, name, known, more="or my_module:my_recipe"))
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that is not
        raise SettingError(f"recipe {name!r}: {error}; is it on PYTHONPATH?") from error
    except AttributeError as error:
        raise SettingError(f"recipe {name!r}: {error}") from error
    if not callable(recipe):
        raise SettingError(f"recipe {name!r}: {attribute} is no function")
    return recipe


def named_recipe(words: Sequence[str], *, others: Sequence[str] = ()) -> Recipe:
    """Return the recipe that the words name, with their arguments.

    Args:
        words: The recipe, then ``name=value`` words.
        others: See `find_recipe`.

    Raises:
        SettingError: For a recipe that there is not, or an argument that it does not take.
    """
    if not words or "=" in words[0]:
        raise SettingError(
            f"name a recipe first, one of {', '.join(RECIPES)}, or my_module:my_recipe"
        )
    recipe = find_recipe(words[0], others=others)
    made: Any = recipe(**parse_arguments(recipe, words[1:]))
    if not isinstance(made, Recipe):
        raise SettingError(f"recipe {words[0]!r} returned {type(made).__name__}, no Recipe")
    return made
