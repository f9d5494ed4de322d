"""The recipes of the two stages: region-language alignment, and perception fine-tuning after it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Unpack

from fo1_model.config import ModelConfig, RegionConfig
from jobs.detector_arguments import is_trained_here
from jobs.mixes import parse_mix
from jobs.recipes.arguments import fields_given
from jobs.recipes.opn import choose_detector, opn
from jobs.recipes.recipe import Recipe, Training
from jobs.recipes.settings import SETTINGS, Size, SizeSettings, StageSettings, changed_config
from jobs.recipes.shared_arguments import MixWords, StageArguments
from pipelines.train_config import TrainConfig
from pipelines.training.learners import FO1Learner


def stage1(*, size: Size = "tiny", mix: MixWords = None, **given: Unpack[StageArguments]) -> Recipe:
    """Align regions with language: pyramid, connector and new rows train, nothing else (paper 3.3).

    Args:
        size: Named size of the model, with its settings; what is left at none is taken from there.
        mix: Mix that the stage trains on; fo1 list mixes names them and says what can be written.
        **given: See `StageArguments`.
    """
    settings = SETTINGS[size]
    model = _model(settings, given)
    named = {"vlm": given.get("vlm"), "auxiliary": given.get("auxiliary")}
    weights = {part: name for part, name in named.items() if name is not None}
    start = FO1Learner(stage="stage1", model=model, base="" if weights else settings.base)
    training = stage_training("stage1", settings, settings.stage1, start, mix, given)
    usual = {
        part: name
        for part, name in settings.weights.items()
        if part != "auxiliary" or model.builds_auxiliary
    }
    training = replace(training, weights={**usual, **weights})
    untrained = replace(
        training,
        name="start",
        mix={},  # it depends on no data
        config=TrainConfig(steps=0, batch_size=1, learning_rate=1.0, seed=training.config.seed),
        validation=(),
        validation_benchmarks=(),
    )
    turns = given.get("turns")
    return Recipe(
        name="stage1",
        trainings=(untrained, training) if settings.evaluates_start else (training,),
        benchmarks=settings.benchmarks,
        options=settings.options,
        rejection=settings.rejection,
        turns=settings.turns if turns is None else turns,
        shuffled_regions=training.config.shuffled_regions,
        **_detector(settings, given, seed=training.config.seed),
    )


def stage2(
    *,
    size: Size = "tiny",
    mix: MixWords = None,
    stage1_mix: MixWords = None,
    stage1_steps: Annotated[int | None, "training"] = None,
    stage1_learning_rate: Annotated[float | None, "training"] = None,
    primary_vit: Annotated[Literal["frozen", "trained"], "model"] = "frozen",
    **given: Unpack[StageArguments],
) -> Recipe:
    """Run stage 1, then fine-tune perception: everything but the primary vision tower (paper 3.3).

    Arguments hold for both stages, but those that stage 1 has a name of its own for.

    Args:
        size: Named size of the model, with its settings; what is left at none is taken from there.
        mix: Mix that stage 2 trains on; fo1 list mixes names them and says what can be written.
        stage1_mix: Mix that stage 1 trains on.
        stage1_steps: Optimizer steps of stage 1.
        stage1_learning_rate: Peak learning rate of stage 1.
        primary_vit: Whether the primary vision tower trains in stage 2 (paper, table 8).
        **given: See `StageArguments`; steps and learning_rate are those of stage 2.
    """
    settings = SETTINGS[size]
    of_stage1: StageArguments = {
        **given,
        "steps": stage1_steps,
        "learning_rate": stage1_learning_rate,
    }
    first = stage1(size=size, mix=stage1_mix, **of_stage1)
    learner = FO1Learner(stage="stage2" if primary_vit == "frozen" else "stage2_primary")
    second = stage_training("stage2", settings, settings.stage2, learner, mix, given)
    return replace(
        first,
        name="stage2",
        trainings=(*first.trainings, second),
        benchmarks=(*settings.benchmarks, *settings.stage2_benchmarks),
    )


def stage_training(
    name: str,
    size: SizeSettings,
    stage: StageSettings,
    learner: FO1Learner,
    mix: str | None,
    given: Mapping[str, Any],
) -> Training:
    """Return the training of one stage.

    Args:
        name: Name of its run.
        size: Settings of the size.
        stage: Settings of the stage at that size.
        learner: What trains; gets the learning rates of its parts here.
        mix: Mix in words; None: the stage's own.
        given: Arguments of the recipe, of which those that end in `TrainConfig` are used.
    """
    config = changed_config(stage.config, **fields_given(given, StageArguments, TrainConfig))
    validates = config.validate_every > 0
    if stage.language_rate != 1.0:
        rate = config.learning_rate * stage.language_rate
        learner = replace(learner, learning_rates={"language": rate})
    return Training(
        name=name,
        learner=learner,
        mix=parse_mix(mix or stage.mix),
        config=config,
        validation=size.validation if validates else (),
        validation_benchmarks=size.validation_benchmarks if validates else (),
    )


def _detector(settings: SizeSettings, given: StageArguments, *, seed: int) -> dict[str, Any]:
    """Return the fields of a Recipe that say where proposals come from."""
    number = given.get("proposals")
    proposals = settings.proposals if number is None else number
    words = given.get("detector") or settings.detector
    chosen = choose_detector(words, proposals, drawn=settings.opn == "tiny")
    where: dict[str, Any] = {"detector": chosen.config, "detector_sources": chosen.sources}
    if is_trained_here(chosen):
        steps = given.get("opn_steps")
        trained = opn(size=settings.opn, steps=steps, proposals=proposals, seed=seed)
        where["detector_training"] = trained.detector_training
    return where


def _model(settings: SizeSettings, given: StageArguments) -> ModelConfig:
    """Return the model of a size, with the ablations that were asked for."""
    model = settings.model()
    changed = fields_given(given, StageArguments, RegionConfig)
    return replace(model, region=replace(model.region, **changed))
