"""The recipes of the two stages: region-language alignment, and perception fine-tuning after it."""

from dataclasses import replace
from typing import Any, Literal

from fo1_model.config import ModelConfig
from jobs.detector_arguments import is_trained_here
from jobs.mixes import parse_mix
from jobs.recipes.opn import choose_detector, opn
from jobs.recipes.recipe import Recipe, Training
from jobs.recipes.settings import SETTINGS, Size, SizeSettings, StageSettings, changed_config
from pipelines.train_config import TrainConfig
from pipelines.training.learners import FO1Learner

RegionFeatures = Literal["hybrid", "auxiliary", "primary"]


def stage1(
    *,
    size: Size = "tiny",
    mix: str | None = None,
    detector: str | None = None,
    proposals: int | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    max_tokens: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    zero_stage: int | None = None,
    offload_optimizer: bool = False,
    turns: int | None = None,
    max_repeats: float | None = None,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    keep_best: str | None = None,
    vlm: str | None = None,
    auxiliary: str | None = None,
    opn_steps: int | None = None,
    region_features: RegionFeatures = "hybrid",
    pyramid: bool = True,
    shuffled_regions: bool = False,
    seed: int = 0,
) -> Recipe:
    """Region-language alignment: pyramid, connector and new rows train, all else is frozen (paper 3.3).

    region_features, pyramid: the ablations of the paper's tables 8 and 9. max_tokens: of one forward pass.
    turns: most questions about one picture in an example. max_repeats: most times that an example is seen;
    small sources get less than their weight then. vlm, auxiliary: folder or hub name of published weights.
    """
    settings = SETTINGS[size]
    weights = {
        name: given
        for name, given in {"vlm": vlm, "auxiliary": auxiliary}.items()
        if given is not None
    }
    model = _model(settings, region_features, pyramid)
    start = FO1Learner(stage="stage1", model=model, base="" if weights else settings.base)
    training = stage_training(
        "stage1",
        settings,
        settings.stage1,
        start,
        mix,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        max_tokens_per_micro_batch=max_tokens,
        precision=precision,
        zero_stage=zero_stage,
        offload_optimizer=offload_optimizer,
        max_repeats=max_repeats,
        checkpoint_every=checkpoint_every,
        validate_every=validate_every,
        keep_best=keep_best,
        shuffled_regions=shuffled_regions,
        seed=seed,
    )
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
        config=TrainConfig(steps=0, batch_size=1, learning_rate=1.0, seed=seed),
        validation=(),
        validation_benchmarks=(),
    )
    return Recipe(
        name="stage1",
        trainings=(untrained, training) if settings.evaluates_start else (training,),
        benchmarks=settings.benchmarks,
        options=settings.options,
        rejection=settings.rejection,
        turns=settings.turns if turns is None else turns,
        shuffled_regions=shuffled_regions,
        **_detector(settings, detector, proposals, opn_steps, seed),
    )


def stage2(
    *,
    size: Size = "tiny",
    mix: str | None = None,
    stage1_mix: str | None = None,
    detector: str | None = None,
    proposals: int | None = None,
    learning_rate: float | None = None,
    stage1_learning_rate: float | None = None,
    steps: int | None = None,
    stage1_steps: int | None = None,
    batch_size: int | None = None,
    micro_batch_size: int | None = None,
    max_tokens: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    zero_stage: int | None = None,
    offload_optimizer: bool = False,
    turns: int | None = None,
    max_repeats: float | None = None,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    keep_best: str | None = None,
    vlm: str | None = None,
    auxiliary: str | None = None,
    opn_steps: int | None = None,
    region_features: RegionFeatures = "hybrid",
    pyramid: bool = True,
    primary_vit: Literal["frozen", "trained"] = "frozen",
    shuffled_regions: bool = False,
    seed: int = 0,
) -> Recipe:
    """Stage 1, then perception fine-tuning of everything but the primary vision tower (paper 3.3).

    Arguments are those of stage1, for both stages where they have no name of their own. region_features,
    pyramid, primary_vit: the ablations of the paper's tables 8 and 9.
    """
    both: dict[str, Any] = {
        "batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "precision": precision,
        "zero_stage": zero_stage,
        "offload_optimizer": offload_optimizer,
        "max_repeats": max_repeats,
        "checkpoint_every": checkpoint_every,
        "validate_every": validate_every,
        "keep_best": keep_best,
        "shuffled_regions": shuffled_regions,
        "seed": seed,
    }
    first = stage1(
        size=size,
        mix=stage1_mix,
        detector=detector,
        proposals=proposals,
        learning_rate=stage1_learning_rate,
        steps=stage1_steps,
        max_tokens=max_tokens,
        turns=turns,
        vlm=vlm,
        auxiliary=auxiliary,
        opn_steps=opn_steps,
        region_features=region_features,
        pyramid=pyramid,
        **both,
    )
    settings = SETTINGS[size]
    second = stage_training(
        "stage2",
        settings,
        settings.stage2,
        FO1Learner(stage="stage2" if primary_vit == "frozen" else "stage2_primary"),
        mix,
        learning_rate=learning_rate,
        steps=steps,
        max_tokens_per_micro_batch=max_tokens,
        **both,
    )
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
    **given: Any,
) -> Training:
    """One stage: the settings of the size, and what is given instead of them (fields of TrainConfig)."""
    config = changed_config(stage.config, **given)
    validates = config.validate_every > 0
    if stage.language_rate != 1.0:
        learner = replace(
            learner, learning_rates={"language": config.learning_rate * stage.language_rate}
        )
    return Training(
        name=name,
        learner=learner,
        mix=parse_mix(mix or stage.mix),
        config=config,
        validation=size.validation if validates else (),
        validation_benchmarks=size.validation_benchmarks if validates else (),
    )


def _detector(
    settings: SizeSettings,
    text: str | None,
    proposals: int | None,
    opn_steps: int | None,
    seed: int,
) -> dict[str, Any]:
    """Fields of a Recipe that say where proposals come from."""
    proposals = settings.proposals if proposals is None else proposals
    chosen = choose_detector(text or settings.detector, proposals, drawn=settings.opn == "tiny")
    where: dict[str, Any] = {"detector": chosen.config, "detector_sources": chosen.sources}
    if is_trained_here(chosen):
        trained = opn(size=settings.opn, steps=opn_steps, proposals=proposals, seed=seed)
        where["detector_training"] = trained.detector_training
    return where


def _model(settings: SizeSettings, region_features: str, pyramid: bool) -> ModelConfig:
    model = settings.model()
    return replace(model, region=replace(model.region, features=region_features, pyramid=pyramid))
