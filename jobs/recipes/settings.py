"""What OPN and the stages are trained with at each size, value by value.

A value is the paper's, the release's, or ours. A recipe's argument that is left at ``none`` is
taken from here. The authors published no training code: the paper gives learning rates, what is
frozen, the data sets, the share of rejection samples and the number of proposals; all else is ours
and marked so. ``tiny`` learns the drawn world on two CPU cores in minutes; ``debug`` runs the whole
path in seconds and learns nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from dataset_builders import BuildOptions
from fo1_model.config import ModelConfig
from fo1_model.sizes import SIZES
from jobs.recipes.arguments import format_value
from pipelines.shards.rejection import RejectionConfig
from pipelines.train_config import TrainConfig

Size = Literal["debug", "tiny", "paper"]
OPNSize = Literal["tiny", "swin_tiny", "large"]


@dataclass(frozen=True, kw_only=True)
class OPNSettings:
    """How OPN is trained at one of its sizes (`fo1_model.opn.config.OPN_SIZES`)."""

    mix: str
    """Mix of detection data, in the words of `jobs.mixes`."""
    validation: str
    """Held-out source that is judged during the training."""
    benchmark: str
    """Benchmark whose images its proposals are measured on at the end."""
    config: TrainConfig
    """How long and how fast it trains."""
    proposals: int
    """Boxes an image when it proposes."""
    zoom: float = 1.0
    """Training images are shown between 1/zoom and zoom times their size."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How one stage is trained at one size."""

    mix: str
    """Name in `jobs.named_mixes.MIXES`."""
    config: TrainConfig
    """How long and how fast it trains."""
    language_rate: float = 1.0
    """Learning rate of the decoder, as a share of the others'."""


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """Everything about a size that recipes do not ask for."""

    model: Callable[[], ModelConfig]
    """Makes the config of the model."""
    base: str = ""
    """Name of the packaged base that stage 1 starts from.

    Empty: from `weights`, or from random ones.
    """
    weights: Mapping[str, str] = field(default_factory=dict)
    """Published weights that stage 1 starts from: folder or hub name of each part."""
    stage1: StageSettings
    """Settings of region-language alignment."""
    stage2: StageSettings
    """Settings of perception fine-tuning."""
    opn: OPNSize = "tiny"
    """Size of the proposal network, where the recipe trains one."""
    detector: str = "opn"
    """Detector whose boxes become proposals (paper 3.1)."""
    proposals: int
    """Boxes an image."""
    options: BuildOptions = field(default_factory=BuildOptions)
    """Which samples the builders make."""
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    """How rejection samples are composed."""
    turns: int
    """Most questions about one image in a training example."""
    benchmarks: tuple[str, ...]
    """Benchmarks that every training of the recipes is asked."""
    stage2_benchmarks: tuple[str, ...] = ()
    """Benchmarks that they are asked besides in the recipe of stage 2."""
    validation: tuple[str, ...] = ()
    """Held-out sources that are judged during training, where it validates."""
    validation_benchmarks: tuple[str, ...] = ()
    """Benchmarks of which a slice is answered during training, where it validates."""
    evaluates_start: bool = False
    """Whether the model is asked before it is trained, too: the first row of the table."""


def _drawn(size: Size, **settings: Any) -> SizeSettings:
    """Return what the sizes that train on drawn scenes have in common; all of it ours."""
    return SizeSettings(
        model=SIZES[size],
        # Enough questions of each kind about one scene to fill an example of several turns.
        options=BuildOptions(
            single_names=3, counting=2, region_names=4, visual_prompts=0, absent_counts=0.0
        ),
        # The tiny model sees few samples: one rejection sample for each detection sample.
        rejection=RejectionConfig(share=0.5),
        turns=3,
        benchmarks=("drawn_val", "drawn_refs_val"),
        stage2_benchmarks=("drawn_val_all",),
        validation=("drawn_val/detection",),
        validation_benchmarks=("drawn_val",),
        evaluates_start=True,
        **settings,
    )


_DRAWN_TRAIN = TrainConfig(
    steps=300,
    batch_size=16,
    learning_rate=3e-3,
    warmup_steps=20,
    final_learning_rate=0.05,
    weight_decay=0.01,
    validate_every=100,
    validation_examples=40,
)
_DEBUG_TRAIN = replace(
    _DRAWN_TRAIN, steps=4, warmup_steps=0, batch_size=4, checkpoint_every=2, validate_every=0
)

_PAPER_TRAIN = TrainConfig(
    learning_rate=1e-3,  # paper 4.1, stage 1
    steps=20_000,  # ours: five million examples
    batch_size=256,  # ours
    warmup_steps=600,  # ours: 3 %, the usual start of such fine-tuning
    final_learning_rate=0.0,  # ours
    weight_decay=0.0,  # ours
    betas=(0.9, 0.999),  # ours: AdamW's own
    gradient_clip=1.0,  # ours
    precision="bf16",  # release: of the published weights
    zero_stage=2,  # ours
    micro_batch_size=16,  # ours, as the token budget; both only cut a batch
    max_tokens_per_micro_batch=16_384,
    shuffle_shards=8,  # ours
    activation_checkpointing=("language",),  # ours: gradients flow through the frozen decoder
    max_skipped_steps=20,  # ours
    spike_factor=10.0,  # ours
    checkpoint_every=500,  # ours
    keep_last=2,  # ours
    validate_every=2000,  # ours
    validation_examples=500,  # ours
    keep_best="min:validation/loss",  # ours
    log_every=10,  # ours
)

SETTINGS: dict[str, SizeSettings] = {
    "debug": _drawn(
        "debug",
        detector="ground_truth_jitter",
        proposals=8,
        stage1=StageSettings(mix="drawn_stage1", config=_DEBUG_TRAIN),
        stage2=StageSettings(mix="drawn_stage2", config=replace(_DEBUG_TRAIN, learning_rate=1e-3)),
    ),
    "tiny": _drawn(
        "tiny",
        base="tiny",
        proposals=12,
        stage1=StageSettings(mix="drawn_stage1", config=_DRAWN_TRAIN),
        stage2=StageSettings(
            mix="drawn_stage2",
            config=replace(_DRAWN_TRAIN, steps=500, learning_rate=1e-3),
            # The tiny decoder looks regions up already: at the full rate it forgets that and
            # learns by heart.
            language_rate=0.2,
        ),
    ),
    "paper": SizeSettings(
        # release: the sizes, where no vlm is named. ours: auxiliary images are squashed to
        # 768 x 768, so that they batch; plain questions have the base's form.
        model=lambda: _on_the_base(SIZES["qwen2_5_vl_3b"]()),
        weights={
            "vlm": "Qwen/Qwen2.5-VL-3B-Instruct",  # paper 4.1
            "auxiliary": "microsoft/Florence-2-large",  # paper 3.1, as the release's names say
        },
        opn="large",
        proposals=100,  # paper 3.1
        turns=4,  # ours
        rejection=RejectionConfig(share=0.2),  # paper 4.1
        stage1=StageSettings(mix="stage1", config=_PAPER_TRAIN),  # paper, table 10; weights ours
        stage2=StageSettings(
            mix="stage2",  # paper, table 10; weights ours
            config=replace(
                _PAPER_TRAIN,
                learning_rate=1e-5,  # paper 4.1
                steps=30_000,  # ours
                warmup_steps=900,  # ours
                activation_checkpointing=("language", "auxiliary"),  # ours
            ),
        ),
        benchmarks=("coco_val",),
        validation=("coco_val/detection",),
        validation_benchmarks=("coco_val",),
    ),
}
"""Settings by size of the region-token model."""

_PAPER_OPN = TrainConfig(
    steps=90_000,  # ours, as all below: the paper gives no setting of OPN's training
    batch_size=64,
    learning_rate=1e-4,
    warmup_steps=2000,
    final_learning_rate=0.02,
    weight_decay=1e-4,
    ema_decay=0.9999,  # RT-DETR's
    validate_every=5000,
    log_every=10,
    shuffle_shards=8,
)

OPN_SETTINGS: dict[str, OPNSettings] = {
    "tiny": OPNSettings(
        mix="drawn_train/detection",
        validation="drawn_val/detection",
        benchmark="drawn_val",
        proposals=12,
        config=TrainConfig(
            steps=400,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=50,
            final_learning_rate=0.02,
            weight_decay=1e-4,
            validate_every=200,
        ),
    ),
    **{
        size: OPNSettings(
            mix="opn",
            validation="coco_val/detection",
            benchmark="coco_val",
            proposals=100,  # paper 3.1
            config=_PAPER_OPN,
            zoom=2.0,
        )
        for size in ("swin_tiny", "large")
    },
}
"""Settings by size of the proposal network."""


def changed_config(usual: TrainConfig, **given: Any) -> TrainConfig:
    """Return `usual`, but for the fields that are given; a short run's warm-up is a sixth of it."""
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("validate_every") == 0:
        changes.setdefault("keep_best", "")
    steps = changes.get("steps", usual.steps)
    return replace(usual, **changes, warmup_steps=min(usual.warmup_steps, steps // 6))


def usual_arguments(recipe: str, size: str) -> dict[str, Any]:
    """Return what the arguments of a named recipe are at a size where they are left at none.

    Empty for a recipe whose settings are not here, and for a size that there is not.
    """
    if recipe == "opn" and size in OPN_SETTINGS:
        opn = OPN_SETTINGS[size]
        named = {field.name: getattr(opn, field.name) for field in fields(opn)}
        return {**_train_arguments(opn.config), **named}
    if recipe not in ("stage1", "stage2") or size not in SETTINGS:
        return {}
    settings = SETTINGS[size]
    first, last = settings.stage1, settings.stage1 if recipe == "stage1" else settings.stage2
    return {
        **_train_arguments(last.config),
        "mix": last.mix,
        "stage1_mix": first.mix,
        "stage1_steps": first.config.steps,
        "stage1_learning_rate": first.config.learning_rate,
        "detector": settings.detector,
        "proposals": settings.proposals,
        "opn_steps": OPN_SETTINGS[settings.opn].config.steps,
        "turns": settings.turns,
        **settings.weights,
    }


def _train_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of a config under the names that recipes have for them."""
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    return {**own, "max_tokens": config.max_tokens_per_micro_batch}


def describe_sizes() -> Iterator[str]:
    """Yield a line for each training at each size: its settings that are not TrainConfig's own."""
    for name, opn in OPN_SETTINGS.items():
        yield f"opn size={name}: mix={opn.mix} validation={opn.validation} {_changed(opn.config)}"
    for name, size in SETTINGS.items():
        for stage, settings in (("stage1", size.stage1), ("stage2", size.stage2)):
            yield (
                f"{stage} size={name}: mix={settings.mix} detector={size.detector} "
                f"proposals={size.proposals} turns={size.turns} {_changed(settings.config)}"
            )


def _changed(config: TrainConfig) -> str:
    """Return the fields of a config that differ from their defaults, as ``name=value``."""
    own = {f.name: getattr(config, f.name) for f in fields(config)}
    usual = {f.name: f.default for f in fields(config)}
    return " ".join(f"{n}={format_value(value)}" for n, value in own.items() if value != usual[n])


def _on_the_base(model: ModelConfig) -> ModelConfig:
    return replace(model, auxiliary=replace(model.auxiliary, resize="squash"), image_gap="")
