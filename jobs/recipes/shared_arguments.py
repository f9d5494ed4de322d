"""Arguments that several recipes take, each declared once.

A recipe takes them as ``**given: Unpack[StageArguments]``. A key that is left out, or None, is what
the size says (`jobs.recipes.settings`). An annotation names the config in whose field of that name
a value ends: its docstring is the line that ``--help`` shows. Keys that end in no field of their
own have a docstring here. The first word of a class's docstring is the heading of its arguments in
the help.
"""

from typing import Annotated, Literal, TypedDict

from fo1_model.config import RegionConfig
from fo1_model.detectors.configs import Selection
from jobs.recipes.arguments import Field
from jobs.recipes.recipe import Recipe
from pipelines.train_config import TrainConfig

MixWords = Annotated[str | None, "data"]
"""A mix in words (`jobs.mixes`)."""


class DataArguments(TypedDict, total=False):
    """Data: where proposals come from, and how examples are made of them."""

    detector: str | None
    """Detector of the proposals: NAME[:SOURCE][,setting=value...], see fo1 list detectors."""
    proposals: Annotated[int | None, Field(Selection, "max_boxes")]
    opn_steps: int | None
    """Optimizer steps of the proposal network, where the recipe trains one."""
    turns: Annotated[int | None, Recipe]


class ModelArguments(TypedDict, total=False):
    """Model: what it starts from, and the ablations of the paper's tables 8 and 9."""

    vlm: str | None
    """Folder or hub name of the published weights that the vision-language model starts from."""
    auxiliary: str | None
    """Folder or hub name of the published weights that the auxiliary tower starts from."""
    region_features: Annotated[
        Literal["hybrid", "auxiliary", "primary"], Field(RegionConfig, "features")
    ]
    pyramid: Annotated[bool, RegionConfig]


class ScheduleArguments(TypedDict, total=False):
    """Training: how long, how fast, in which arithmetic."""

    steps: Annotated[int | None, TrainConfig]
    batch_size: Annotated[int | None, TrainConfig]
    learning_rate: Annotated[float | None, TrainConfig]
    seed: Annotated[int, TrainConfig]


class TrainingArguments(ScheduleArguments, total=False):
    """Training: how long, how fast, in which arithmetic."""

    micro_batch_size: Annotated[int | None, TrainConfig]
    max_tokens: Annotated[int | None, Field(TrainConfig, "max_tokens_per_micro_batch")]
    precision: Annotated[Literal["fp32", "bf16"] | None, TrainConfig]
    zero_stage: Annotated[int | None, TrainConfig]
    offload_optimizer: Annotated[bool, TrainConfig]
    max_repeats: Annotated[float | None, TrainConfig]
    checkpoint_every: Annotated[int | None, TrainConfig]
    shuffled_regions: Annotated[bool, TrainConfig]


class ValidationArguments(TypedDict, total=False):
    """Evaluation: what is judged during the training."""

    validate_every: Annotated[int | None, TrainConfig]
    keep_best: Annotated[str | None, TrainConfig]


class OPNArguments(ScheduleArguments, ValidationArguments, total=False):
    """Arguments of the proposal network's recipe that others take too."""


class StageArguments(
    DataArguments, ModelArguments, TrainingArguments, ValidationArguments, total=False
):
    """Arguments that the recipes of both stages take."""
