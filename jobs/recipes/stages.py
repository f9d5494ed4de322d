"""The recipes of the two stages: region-language alignment, and perception fine-tuning after it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

from fo1_model.config import LORA_TARGETS, LoraSettings, ModelConfig, RegionConfig
from jobs.detector_arguments import is_trained_here
from jobs.mixes import parse_mix
from jobs.recipes.arguments import fields_given
from jobs.recipes.opn import choose_detector, opn
from jobs.recipes.recipe import Recipe, Training
from jobs.recipes.settings import SETTINGS, Size, SizeSettings, StageSettings, changed_config
from jobs.recipes.shared_arguments import MixWords, StageArguments
from pipelines.errors import SettingError
from pipelines.proposals.detector_inputs import find_weights
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
    model, weights = _model(settings, given)
    start = FO1Learner(
        stage="stage1", model=model, base="" if "auxiliary" in weights else settings.base
    )
    training = stage_training("stage1", settings, settings.stage1, start, mix, given)
    training = replace(training, weights=weights)
    untrained = replace(
        training,
        name="start",
        mix={},  # it depends on no data
        config=TrainConfig(steps=0, batch_size=1, learning_rate=1.0, seed=training.config.seed),
        validation=(),
        validation_benchmarks=(),
    )
    trainings = (untrained, training) if settings.evaluates_start else (training,)
    return _recipe("stage1", settings, given, trainings, settings.benchmarks)


def stage2(
    *,
    size: Size = "tiny",
    mix: MixWords = None,
    stage1_mix: MixWords = None,
    stage1_steps: Annotated[int | None, "training"] = None,
    stage1_learning_rate: Annotated[float | None, "training"] = None,
    start: Annotated[str | None, "model"] = None,
    primary_vit: Annotated[Literal["frozen", "trained"], "model"] = "frozen",
    lora_rank: Annotated[int | None, "training"] = None,
    lora_alpha: Annotated[float | None, "training"] = None,
    lora_targets: Annotated[str | None, "training"] = None,
    **given: Unpack[StageArguments],
) -> Recipe:
    """Run stage 1, then fine-tune perception: everything but the primary vision tower (paper 3.3).

    Arguments hold for both stages, but those that stage 1 has a name of its own for. With start=
    there is no stage 1.

    Args:
        size: Named size of the model, with its settings; what is left at none is taken from there.
        mix: Mix that stage 2 trains on; fo1 list mixes names them and says what can be written.
        stage1_mix: Mix that stage 1 trains on.
        stage1_steps: Optimizer steps of stage 1.
        stage1_learning_rate: Peak learning rate of stage 1.
        start: Checkpoint to go on from instead of stage 1: a run, or the folder, URI or hub name
            of a model, ours or released.
        primary_vit: Whether the primary vision tower trains in stage 2 (paper, table 8).
        lora_rank: Rank of adapters that train in the decoder's place; none: the decoder trains.
        lora_alpha: Adapters are scaled by lora_alpha / lora_rank; none: twice the rank.
        lora_targets: Linear layers that get one, such as q_proj,v_proj; none: attention and MLP.
        **given: See `StageArguments`; steps and learning_rate are those of stage 2.
    """
    settings = SETTINGS[size]
    learner = _stage2_learner(primary_vit, _lora(lora_rank, lora_alpha, lora_targets))
    second = stage_training("stage2", settings, settings.stage2, learner, mix, given)
    benchmarks = (*settings.benchmarks, *settings.stage2_benchmarks)
    if start is not None:
        of_first = {
            "stage1_mix": stage1_mix,
            "stage1_steps": stage1_steps,
            "stage1_learning_rate": stage1_learning_rate,
        }
        _check_start({**given, **of_first})
        return _recipe("stage2", settings, given, (replace(second, start=start),), benchmarks)
    of_stage1: StageArguments = {
        **given,
        "steps": stage1_steps,
        "learning_rate": stage1_learning_rate,
    }
    first = stage1(size=size, mix=stage1_mix, **of_stage1)
    return _recipe("stage2", settings, given, (*first.trainings, second), benchmarks)


def _recipe(
    name: str,
    settings: SizeSettings,
    given: StageArguments,
    trainings: tuple[Training, ...],
    benchmarks: tuple[str, ...],
) -> Recipe:
    """Return a recipe of the stages, with the data of its size; the last training has its seed."""
    turns, config = given.get("turns"), trainings[-1].config
    return Recipe(
        name=name,
        trainings=trainings,
        benchmarks=benchmarks,
        options=settings.options,
        rejection=settings.rejection,
        turns=settings.turns if turns is None else turns,
        shuffled_regions=config.shuffled_regions,
        **_detector(settings, given, seed=config.seed),
    )


def _stage2_learner(primary_vit: str, lora: LoraSettings | None) -> FO1Learner:
    stage = "stage2" if primary_vit == "frozen" else "stage2_primary"
    return FO1Learner(stage=stage if lora is None else f"{stage}_lora", lora=lora)


def _lora(rank: int | None, alpha: float | None, targets: str | None) -> LoraSettings | None:
    """Return the adapters that were asked for, if any were."""
    if rank is None:
        if alpha is not None or targets is not None:
            name = "lora_alpha" if alpha is not None else "lora_targets"
            raise SettingError(
                f"{name}: there are no adapters; say lora_rank= too, or leave it out"
            )
        return None
    names = LORA_TARGETS if targets is None else tuple(targets.split(","))
    return LoraSettings(rank=rank, alpha=2.0 * rank if alpha is None else alpha, targets=names)


def _check_start(given: Mapping[str, Any]) -> None:
    """Refuse what a model that is there already cannot be asked for."""
    asked = [name for name in _OF_A_NEW_MODEL if given.get(name) is not None]
    if asked:
        raise SettingError(
            f"start= takes the model as it is, without stage 1: leave out {', '.join(asked)}, or "
            "start="
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
    # Adapters start from nothing: they learn at the full rate.
    if stage.language_rate != 1.0 and learner.lora is None:
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


def _model(settings: SizeSettings, given: StageArguments) -> tuple[ModelConfig, Mapping[str, str]]:
    """Return the model to make, and the folder or hub name of each part's weights.

    A VLM or a DaViT that is named brings its own sizes; else the model is the size's own. Ablations
    that were asked for are in it.
    """
    usual = settings.model()
    changed = fields_given(given, StageArguments, RegionConfig)
    usual = replace(usual, region=replace(usual.region, **changed))
    parts = {"vlm": given.get("vlm"), "auxiliary": given.get("auxiliary")}
    named = {part: name for part, name in parts.items() if name is not None}
    weights = {**settings.weights, **named}
    if not usual.builds_auxiliary:
        weights.pop("auxiliary", None)
    if not named:
        return usual, weights
    if "vlm" not in weights:
        raise SettingError(
            f"auxiliary={named['auxiliary']}: name the VLM that it stands beside too, vlm=FOLDER"
        )
    from fo1_model.vlms.folder_config import folder_config

    paths = {part: Path(find_weights(name, part)) for part, name in weights.items()}
    return folder_config(paths["vlm"], paths.get("auxiliary"), usual), weights


_OF_A_NEW_MODEL = (
    *("vlm", "auxiliary", "region_features", "pyramid"),
    *("stage1_mix", "stage1_steps", "stage1_learning_rate"),
)
"""Arguments of stage 2 that say how a model is made, or how stage 1 trains it."""
