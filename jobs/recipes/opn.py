"""The recipe of the proposal network, and the detector that a recipe names."""

import re
from typing import Any

from dataset_builders import DATASETS
from fo1_model.opn.config import OPN_SIZES, AugmentationConfig, OPNConfig, OPNCriterionConfig
from jobs.detector_arguments import DetectorChoice, parse_detector
from jobs.mixes import datasets_of, parse_mix
from jobs.recipes.recipe import Recipe, Training
from jobs.recipes.settings import OPN_SETTINGS, OPNSize, changed_config
from pipelines.training.learners import OPNLearner

_FINE = {spec.name for spec in DATASETS.values() if spec.granularity == "fine"}
"""Datasets whose boxes are parts as well as whole objects."""


def opn(
    *,
    size: OPNSize = "tiny",
    mix: str | None = None,
    validation: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    warm_start: str | None = None,
    zoom: float | None = None,
    ignore_band: bool = False,
    ema_decay: float | None = None,
    validate_every: int | None = None,
    keep_best: str | None = None,
    proposals: int | None = None,
    seed: int = 0,
) -> Recipe:
    """Train the proposal network on annotated boxes, and measure its proposals on held-out pictures.

    warm_start: folder or hub name of an OmDet-Turbo, which also decides the sizes. zoom: pictures are shown
    between 1/zoom and zoom times their size. ignore_band: boxes that overlap an object in part are no
    negatives (OLN). ema_decay: of the averaged weights. validate_every: steps between held-out figures.
    keep_best: such as max:validation/r50@100.
    """
    settings = OPN_SETTINGS[size]
    sources = parse_mix(mix or settings.mix)
    config = changed_config(
        settings.config,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        ema_decay=ema_decay,
        validate_every=validate_every,
        keep_best=keep_best,
        seed=seed,
    )
    training = Training(
        name="opn",
        learner=OPNLearner(
            network=OPN_SIZES[size]() if warm_start is None else _omdet_sizes(warm_start),
            augmentation=AugmentationConfig(zoom=settings.zoom if zoom is None else zoom),
            criterion=OPNCriterionConfig(ignore_band=(0.1, 0.5) if ignore_band else None),
            fine=tuple(name for name in datasets_of(sources) if name in _FINE),
            warm_start=warm_start is not None,
        ),
        mix=sources,
        config=config,
        weights={} if warm_start is None else {"omdet": warm_start},
        validation=(validation or settings.validation,) if config.validate_every else (),
    )
    boxes = settings.proposals if proposals is None else proposals
    return Recipe(
        name="opn",
        detector=choose_detector("opn", boxes, drawn=size == "tiny").config,
        detector_training=training,
        benchmarks=(settings.benchmark,),
    )


def choose_detector(text: str, proposals: int, *, drawn: bool) -> DetectorChoice:
    """A detector with the defaults of the size.

    On drawn scenes boxes of two objects never overlap by more than 0.3, and the floor keeps answers about
    objects: the released scripts use 0.3 on UPN's scores.
    """
    settings: dict[str, Any] = {"max_boxes": proposals}
    if drawn:
        floor = 0.1 if re.match(r"opn\b", text) else 0.0
        settings |= {"score_min": floor, "nms_iou": 0.4}
    return parse_detector(text, settings)


def _omdet_sizes(name: str) -> OPNConfig:
    """Sizes of the OmDet-Turbo that a run starts from."""
    from fo1_model.opn.warm_start import warm_start_config
    from pipelines.proposals.detector_inputs import find_weights

    return warm_start_config(find_weights(name))
