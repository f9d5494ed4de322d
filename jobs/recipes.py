"""Named recipes: functions whose keyword arguments are the sweep surface, returning one frozen Recipe.

A recipe says what is trained on what; `jobs.steps` turns it into artifacts. ``my_module:my_recipe`` names a
recipe outside the project. Values are marked paper, release or ours.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dataset_builders import DATASETS, BuildOptions
from fo1_model.config import SIZES, ModelConfig
from fo1_model.detectors.configs import DetectorConfig
from fo1_model.opn.config import OPN_SIZES, AugmentationConfig, OPNConfig, OPNCriterionConfig
from jobs.detectors import DetectorChoice, is_trained_here, parse_detector
from jobs.mixes import Mix, datasets_of, parse_mix
from pipelines.assign import AssignConfig
from pipelines.learners import FO1Learner, OPNLearner
from pipelines.rejection import RejectionConfig
from pipelines.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    name: str
    """Name of its artifact below ``runs/``."""
    learner: OPNLearner | FO1Learner
    """What trains; one that ``continues`` goes on from the training before it."""
    mix: Mix
    """Sources of its samples."""
    config: TrainConfig
    """How long, how fast."""
    weights: str | None = None
    """Weights of others that it starts from: a folder or a model of the hub. Hashed by content."""
    validation: tuple[str, ...] = ()
    """Sources ``dataset/task`` of held-out examples, where the config validates."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the results of a chain of artifacts; no path, no worker count."""

    name: str
    """For people: names the report."""
    detector: DetectorConfig
    """Where proposals come from."""
    detector_sources: tuple[str | None, ...] = (None,)
    """Run, weights or box file of each leaf of the detector, as the user named it. Hashed by content."""
    detector_training: Training | None = None
    """Trains the detector, on ground-truth boxes, where it is one of ours."""
    trainings: tuple[Training, ...] = ()
    """In order, each able to start from the one before."""
    datasets: tuple[str, ...] = ()
    """Datasets whose shards are made although no training reads them."""
    benchmarks: tuple[str, ...] = ()
    """Names in ``jobs.benchmarks.BENCHMARKS``; every training is evaluated on each."""
    options: BuildOptions = field(default_factory=BuildOptions)
    """Which samples the builders make."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """How objects meet proposals in training shards."""
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    """How rejection samples are composed."""
    turns: int = 1
    """Most questions about one picture in a training example; they share its regions and its encoding."""
    exclude: str = "found"
    """Benchmarks whose images training shards leave out: names of `dataset_builders.leakage`, "found" for all
    whose files are there, or "none"."""
    max_side_px: int | None = None
    """Longer side of the pictures in training shards; None keeps their original bytes."""
    shuffled_regions: bool = False
    """Control: every index shows another box, in training and in evaluation. Must fall to chance."""
    max_new_tokens: int | None = None
    """Longest answer in evaluation; None leaves it to the benchmark."""
    constraint: str = "none"
    """What answers in evaluation may say, see ``PredictConfig.constraint``."""
    score: str = "proposal"
    """Score of a named region in evaluation, see ``PredictConfig.score``."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """Folder of a dataset, where it is not ``<data>/<its usual name>``. Not hashed: contents are."""


DRAWN_REJECTION = RejectionConfig(share=0.5)
"""The tiny model sees few samples: one rejection sample for each detection sample of the drawn world. ours"""
DRAWN_QUESTIONS = BuildOptions(
    single_names=3, counting=2, region_names=4, visual_prompts=0, absent_counts=0.0
)
"""Questions about one drawn scene: enough of each kind to fill an example of four turns."""
Size = Literal["debug", "tiny"]
RegionFeatures = Literal["hybrid", "auxiliary", "primary"]


def opn(
    *,
    size: Literal["tiny", "swin_tiny", "large"] = "tiny",
    mix: str = "drawn_train/detection",
    validation: str = "drawn_val/detection",
    steps: int = 400,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    warm_start: str | None = None,
    zoom: float = 1.0,
    ignore_band: bool = False,
    ema_decay: float = 0.0,
    validate_every: int = 200,
    proposals: int = 12,
    seed: int = 0,
) -> Recipe:
    """Train the proposal network on annotated boxes, and measure its proposals on held-out scenes.

    warm_start: folder or hub name of an OmDet-Turbo, which also decides the sizes. zoom: pictures are shown
    between 1/zoom and zoom times their size. ignore_band: boxes that overlap an object in part are no
    negatives (OLN). ema_decay: of the averaged weights. validate_every: steps between held-out figures.
    """
    training = Training(
        name="opn",
        learner=OPNLearner(
            network=OPN_SIZES[size]() if warm_start is None else _omdet_sizes(warm_start),
            augmentation=AugmentationConfig(zoom=zoom),
            criterion=OPNCriterionConfig(ignore_band=(0.1, 0.5) if ignore_band else None),
            fine=tuple(name for name in datasets_of(parse_mix(mix)) if name in _FINE),
            warm_start=warm_start is not None,
        ),
        mix=parse_mix(mix),
        config=TrainConfig(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(50, steps // 6),
            final_learning_rate=0.02,
            weight_decay=1e-4,
            ema_decay=ema_decay,
            validate_every=validate_every,
            seed=seed,
        ),
        weights=warm_start,
        validation=(validation,) if validate_every else (),
    )
    return Recipe(
        name="opn",
        detector=_drawn_detector("opn", proposals).config,
        detector_training=training,
        benchmarks=("drawn_val",),
    )


def stage1(
    *,
    size: Size = "tiny",
    mix: str = "drawn_stage1",
    detector: str = "opn",
    proposals: int = 12,
    learning_rate: float = 3e-3,
    steps: int = 300,
    batch_size: int = 16,
    opn_steps: int = 400,
    region_features: RegionFeatures = "hybrid",
    pyramid: bool = True,
    shuffled_regions: bool = False,
    max_repeats: float | None = None,
    seed: int = 0,
) -> Recipe:
    """Region-language alignment: pyramid, connector and new rows train, all else is frozen (paper 3.3).

    region_features, pyramid: the ablations of the paper's tables 8 and 9. max_repeats: most times that an
    example is seen; small sources get less than their weight then.
    """
    return Recipe(
        name="stage1",
        trainings=(
            Training(
                name="stage1",
                learner=_first_learner("stage1", _model(size, region_features, pyramid), size),
                mix=parse_mix(mix),
                config=replace(
                    _stage_config(learning_rate, steps, batch_size, shuffled_regions, seed),
                    max_repeats=max_repeats,
                ),
            ),
        ),
        benchmarks=("drawn_val", "drawn_refs_val"),
        options=DRAWN_QUESTIONS,
        rejection=DRAWN_REJECTION,
        turns=3,
        shuffled_regions=shuffled_regions,
        **_detector(detector, proposals, opn_steps, seed),
    )


def stage2(
    *,
    size: Size = "tiny",
    mix: str = "drawn_stage2",
    stage1_mix: str = "drawn_stage1",
    detector: str = "opn",
    proposals: int = 12,
    learning_rate: float = 1e-3,
    stage1_learning_rate: float = 3e-3,
    steps: int = 500,
    stage1_steps: int = 300,
    batch_size: int = 16,
    opn_steps: int = 400,
    region_features: RegionFeatures = "hybrid",
    pyramid: bool = True,
    primary_vit: Literal["frozen", "trained"] = "frozen",
    shuffled_regions: bool = False,
    max_repeats: float | None = None,
    seed: int = 0,
) -> Recipe:
    """Stage 1, then perception fine-tuning of everything but the primary vision tower (paper 3.3).

    region_features, pyramid, primary_vit: the ablations of the paper's tables 8 and 9.
    """
    first = stage1(
        size=size,
        mix=stage1_mix,
        detector=detector,
        proposals=proposals,
        learning_rate=stage1_learning_rate,
        steps=stage1_steps,
        batch_size=batch_size,
        opn_steps=opn_steps,
        region_features=region_features,
        pyramid=pyramid,
        shuffled_regions=shuffled_regions,
        max_repeats=max_repeats,
        seed=seed,
    )
    second = Training(
        name="stage2",
        learner=FO1Learner(
            stage="stage2" if primary_vit == "frozen" else "stage2_primary",
            learning_rates=_language_rate(size, learning_rate),
        ),
        mix=parse_mix(mix),
        config=replace(
            _stage_config(learning_rate, steps, batch_size, shuffled_regions, seed), max_repeats=max_repeats
        ),
    )
    return replace(
        first,
        name="stage2",
        trainings=(*first.trainings, second),
        benchmarks=(*first.benchmarks, "drawn_val_all"),
    )


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
    mix, chosen = parse_mix("coco"), parse_detector(detector, {"max_boxes": proposals})
    first = Training(
        name="coco_stage1",
        learner=_first_learner("stage1", _model(size), size),
        mix=mix,
        config=_stage_config(1e-3, steps, batch_size, False, seed),
    )
    second = Training(
        name="coco_stage2",
        learner=FO1Learner(stage="stage2", learning_rates=_language_rate(size, 1e-4)),
        mix=mix,
        config=_stage_config(1e-4, steps, batch_size, False, seed),
    )
    return Recipe(
        name="coco_sample",
        trainings=(first, second),
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


_FINE = {spec.name for spec in DATASETS.values() if spec.granularity == "fine"}
"""Datasets whose boxes are parts as well as whole objects."""


def find_recipe(name: str) -> Callable[..., Recipe]:
    """A named recipe, or ``my_module:my_recipe``. Raises ValueError naming the known ones."""
    if name in RECIPES:
        return RECIPES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}, or my_module:my_recipe")
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recipe {name!r}: {error}; is the module on PYTHONPATH?") from error
    return recipe


def _drawn_detector(text: str, proposals: int) -> DetectorChoice:
    """A detector of the drawn world, where boxes of two objects never overlap by more than 0.3.

    The floor keeps answers about objects: the released scripts use 0.3 on UPN's scores.
    """
    floor = 0.1 if re.match(r"opn\b", text) else 0.0
    return parse_detector(text, {"score_min": floor, "nms_iou": 0.4, "max_boxes": proposals})


def _detector(text: str, proposals: int, opn_steps: int, seed: int) -> dict:
    """Fields of a Recipe that say where proposals come from."""
    chosen = _drawn_detector(text, proposals)
    where: dict = {"detector": chosen.config, "detector_sources": chosen.sources}
    if is_trained_here(chosen):
        where["detector_training"] = opn(steps=opn_steps, proposals=proposals, seed=seed).detector_training
    return where


def _omdet_sizes(name: str) -> OPNConfig:
    """Sizes of the OmDet-Turbo that a run starts from."""
    from fo1_model.opn.warm_start import warm_start_config
    from pipelines.supplies import find_weights

    return warm_start_config(find_weights(name))


def _first_learner(stage: str, model: ModelConfig, size: str) -> FO1Learner:
    """The learner of the first stage: on the pretrained base where the size has one."""
    return FO1Learner(stage=stage, model=model, base=size if size == "tiny" else "")


def _stage_config(
    learning_rate: float, steps: int, batch_size: int, shuffled_regions: bool, seed: int
) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=min(20, steps // 10),
        final_learning_rate=0.05,
        weight_decay=0.01,
        shuffled_regions=shuffled_regions,
        seed=seed,
    )


def _language_rate(size: str, learning_rate: float) -> dict[str, float]:
    """The tiny decoder looks regions up already: at the full rate it forgets that and learns by heart."""
    return {"language": learning_rate / 5} if size == "tiny" else {}


def _model(size: str, region_features: str = "hybrid", pyramid: bool = True) -> ModelConfig:
    model = SIZES[size]()
    return replace(model, region=replace(model.region, features=region_features, pyramid=pyramid))
