"""The recipe of the proposal network, and the detector that a recipe names."""

import re
from typing import Annotated, Any, Unpack

from dataset_builders import DATASETS
from fo1_model.opn.config import OPN_SIZES, AugmentationConfig, OPNConfig, OPNCriterionConfig
from jobs.detector_arguments import DetectorChoice, parse_detector
from jobs.mixes import datasets_of, parse_mix
from jobs.recipes.arguments import fields_given
from jobs.recipes.recipe import Recipe, Training
from jobs.recipes.settings import OPN_SETTINGS, OPNSize, changed_config
from jobs.recipes.shared_arguments import MixWords, OPNArguments
from pipelines.train_config import TrainConfig
from pipelines.training.learners import OPNLearner

_FINE = {spec.name for spec in DATASETS.values() if spec.granularity == "fine"}
"""Datasets whose boxes are parts as well as whole objects."""


def opn(
    *,
    size: OPNSize = "tiny",
    mix: MixWords = None,
    validation: Annotated[str | None, "data"] = None,
    proposals: Annotated[int | None, "data"] = None,
    zoom: Annotated[float | None, "data", AugmentationConfig] = None,
    warm_start: Annotated[str | None, "model"] = None,
    ignore_band: Annotated[bool, "training"] = False,
    ema_decay: Annotated[float | None, "training", TrainConfig] = None,
    **given: Unpack[OPNArguments],
) -> Recipe:
    """Train the proposal network on annotated boxes, and measure its proposals on held-out images.

    Args:
        size: Named size of the network, with its settings.
        mix: Mix of detection data that it trains on; fo1 list mixes names them.
        validation: Held-out source dataset/task that is judged during the training.
        proposals: Boxes an image when it proposes.
        zoom: Images are shown between 1/zoom and zoom times their size.
        warm_start: Folder or hub name of an OmDet-Turbo to start from, which also decides the
            sizes.
        ignore_band: Boxes that overlap an object in part (IoU 0.1 to 0.5) are no negatives (OLN).
        ema_decay: Share of the averaged weights that a step keeps.
        **given: See `OPNArguments`.
    """
    settings = OPN_SETTINGS[size]
    sources = parse_mix(mix or settings.mix)
    fields = fields_given(given, OPNArguments, TrainConfig)
    config = changed_config(settings.config, ema_decay=ema_decay, **fields)
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
    """Return a detector with the defaults of the size.

    On drawn scenes boxes of two objects never overlap by more than 0.3, and the floor keeps answers
    about objects: the released scripts use 0.3 on UPN's scores.

    Args:
        text: Detector in the words of the command line.
        proposals: Most boxes an image.
        drawn: Whether it looks at drawn scenes.
    """
    settings: dict[str, Any] = {"max_boxes": proposals}
    if drawn:
        floor = 0.1 if re.match(r"opn\b", text) else 0.0
        settings |= {"score_min": floor, "nms_iou": 0.4}
    return parse_detector(text, settings)


def _omdet_sizes(name: str) -> OPNConfig:
    """Return the sizes of the OmDet-Turbo that a run starts from."""
    from fo1_model.opn.warm_start import warm_start_config
    from pipelines.proposals.detector_inputs import find_weights

    return warm_start_config(find_weights(name))
