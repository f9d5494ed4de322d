"""What the training loop trains: OPN, and the stages of the region-token model.

A **learner** is a frozen description, hashed into the run's fingerprint; recipes make it. ``build``
turns it, on each worker, into a **trainee** (`pipelines.training.trainees`): the module with its
collator, its loss and its export. The loop knows nothing else about models. Heavy imports happen in
``build``, because `fo1 plan` makes learners too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, cast

import fo1_model
from fo1_model.config import ADDED, TOWERS, LoraSettings, ModelConfig
from fo1_model.opn.config import AugmentationConfig, OPNConfig, OPNCriterionConfig
from fo1_model.sizes import SIZES
from pipelines.errors import SettingError

if TYPE_CHECKING:
    from pipelines.training.evaluators import Evaluator
    from pipelines.training.trainees import Trainee


Precision = Literal["fp32", "bf16"]
Folders = Mapping[str, Path]
"""Folder or file of weights of others that a part of a module starts from, by part."""


class Learner(Protocol):
    """The description of a trainee; a frozen dataclass of plain values."""

    @property
    def continues(self) -> bool:
        """Whether it goes on from a parent run."""

    @property
    def towers(self) -> tuple[str, ...]:
        """Names for ``TrainConfig.activation_checkpointing``; none: nothing is recomputed."""

    @property
    def answers(self) -> bool:
        """Whether the model answers questions, so that benchmarks can be put to it."""

    def inputs(self) -> Mapping[str, str]:
        """Return fingerprints of files of the package that the weights start from, by name."""

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Refuse a description, a parent run and weights of others that do not fit together.

        Args:
            has_parent: Whether a parent run is given.
            weights: Parts that weights of others are given for.

        Raises:
            SettingError: They do not fit.
        """

    def check_weights(self, weights: Folders) -> None:
        """Refuse folders that do not hold what the description says; reads no weights.

        Args:
            weights: Folder of weights of others, by part.

        Raises:
            SettingError: Or that of `fo1_model.errors`, for another family, size or a missing file.
        """

    def check_parent(self, read: Callable[[str], bytes]) -> None:
        """Refuse a parent run whose model does not fit the description; reads no weights.

        Args:
            read: Returns the content of a file of its model folder.

        Raises:
            SettingError: It does not.
        """

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",
    ) -> Trainee:
        """Make the trainee, the same on every worker.

        Args:
            parent: Model folder of the run that it goes on from.
            weights: Folder of weights of others, by part.
            seed: Seed of new weights.
            precision: The least that weights are read in; the engine converts what is wider.
        """

    def evaluator(self, folder: Path, device: str) -> Evaluator:
        """Return the model that a trainee exported to `folder`, to be evaluated on `device`."""


@dataclass(frozen=True, kw_only=True)
class OPNLearner:
    """The object proposal network, on ``ground_truth`` shards."""

    network: OPNConfig
    """Sizes of the network."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random views of the training images."""
    criterion: OPNCriterionConfig = field(default_factory=OPNCriterionConfig)
    """The loss and its weights."""
    fine: tuple[str, ...] = ()
    """Datasets whose boxes are parts as well as objects: they train the ``fine`` prompt."""
    warm_start: bool = False
    """Whether to start from an OmDet-Turbo.

    `network` then has its sizes (`fo1_model.opn.warm_start`).
    """
    continues: ClassVar[bool] = False
    towers: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[bool] = False

    def inputs(self) -> dict[str, str]:
        """Return nothing: OPN starts from random weights, or from some that the job names."""
        return {}

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Refuse a parent run, and weights of any part but a warm start's ``omdet``."""
        if has_parent:
            raise SettingError("OPN goes on from no run: leave out the parent run")
        _check_parts("OPN", weights, ("omdet",) if self.warm_start else ())
        if self.warm_start and not weights:
            raise SettingError("OPN, warm_start=True: name the folder of an OmDet-Turbo")

    def check_weights(self, weights: Folders) -> None:
        """Refuse an OmDet-Turbo of other sizes."""
        from fo1_model.opn.warm_start import warm_start_config

        if weights and (found := warm_start_config(weights["omdet"])) != self.network:
            raise SettingError(
                f"{weights['omdet']} has other sizes than the run: {found}, not {self.network}"
            )

    def check_parent(self, read: Callable[[str], bytes]) -> None:
        """Refuse nothing: there is no parent."""

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",  # noqa: ARG002 - it is small
    ) -> Trainee:
        """Make a new network from `seed`, or from an OmDet-Turbo."""
        from pipelines.training.trainees import OPNTrainee

        weights = weights or {}
        self.check(has_parent=parent is not None, weights=weights)
        if not weights:
            from fo1_model.opn.network import new_opn

            return OPNTrainee(new_opn(self.network, seed), self)
        from fo1_model.opn.warm_start import warm_start

        self.check_weights(weights)
        return OPNTrainee(warm_start(weights["omdet"]), self)

    def evaluator(self, folder: Path, device: str) -> Evaluator:
        """Return the network that a trainee exported to `folder`, to be evaluated on `device`."""
        from fo1_model.opn.network import load_opn
        from pipelines.training.evaluators import OPNEvaluator

        return OPNEvaluator(load_opn(folder), self.fine, device)


@dataclass(frozen=True, kw_only=True)
class FO1Learner:
    """One stage of the region-token model, on ``proposals`` shards."""

    stage: str
    """Name in ``fo1_model.stages.STAGES``: what trains and what is frozen."""
    model: ModelConfig | None = None
    """The model to make; None goes on from the parent run's."""
    base: str = ""
    """Pretrained towers that a new model starts from; empty for random weights.

    A name in ``fo1_model.checkpoint.BASES``.
    """
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate of parts that differ from ``TrainConfig.learning_rate``."""
    packs: bool = False
    """Whether the examples of a forward pass go end to end in one row instead of being padded.

    Each attends to itself alone (``Processor.pack``). Worth it with FlashAttention and a token
    budget.
    """
    lora: LoraSettings | None = field(default=None, metadata=ADDED)
    """Adapters that train in the place of the decoder, in the stages that are named for them."""
    towers: ClassVar[tuple[str, ...]] = TOWERS
    answers: ClassVar[bool] = True

    @property
    def continues(self) -> bool:
        """Whether it goes on from a parent run: when it makes no model of its own."""
        return self.model is None

    def inputs(self) -> dict[str, str]:
        """Return the first 16 digits of the sha256 of the pretrained base, where one is named."""
        if not self.base:
            return {}
        file = Path(fo1_model.__file__).parent / "assets" / f"{self.base}_base.safetensors"
        if not file.is_file():
            raise SettingError(f"base={self.base!r}: {file.name} is not among the package's assets")
        return {f"base/{self.base}": hashlib.sha256(file.read_bytes()).hexdigest()[:16]}

    def check(self, *, has_parent: bool, weights: Collection[str] = ()) -> None:
        """Refuse ``model``, ``base``, a parent run and weights of others that do not fit together.

        A new model takes its VLM from others, or both towers, or neither.
        """
        if has_parent and self.model is not None:
            raise SettingError(
                f"{self.stage}: `model` makes a new one: leave out the parent run, or `model`"
            )
        if not has_parent and self.model is None:
            raise SettingError(f"{self.stage}: name the run it continues, or give `model`")
        if self.base and (self.model is None or self.base not in SIZES):
            raise SettingError(
                f"{self.stage}, base={self.base!r}: needs `model`; one of {', '.join(SIZES)}"
            )
        if (self.lora is not None) != self.stage.endswith("_lora"):
            raise SettingError(
                f"{self.stage}: adapters train in the stages stage2_lora and stage2_primary_lora, "
                "which need settings for them"
            )
        if self.packs and self.model is not None:
            self._check_packs(self.model)
        if self.base and "auxiliary" in weights:
            raise SettingError(
                f"{self.stage}, base={self.base!r}: leave it out, or the weights of others"
            )
        # The auxiliary tower alone can be the base's, or drawn: it reads no words.
        _check_parts(self.stage, weights, self._towers(), optional=("auxiliary",))

    def _check_packs(self, model: ModelConfig) -> None:
        """Refuse to pack for a decoder whose states run on from one sample into the next."""
        from fo1_model.vlms import build_family

        if not build_family(model.vlm).packs:
            raise SettingError(
                f"{self.stage}, packs=True: the decoder of {model.vlm.family!r} would mix the "
                "samples of a row; leave it out"
            )

    def _towers(self) -> tuple[str, ...]:
        """Return the parts of a new model that weights of others are for."""
        if self.model is None:
            return ()
        return ("vlm", "auxiliary") if self.model.builds_auxiliary else ("vlm",)

    def check_weights(self, weights: Folders) -> None:
        """Refuse towers of other families and sizes, and folders that lack a file."""
        from fo1_model.vlms.published import check_published

        if weights:
            check_published(cast("ModelConfig", self.model), weights)

    def check_parent(self, read: Callable[[str], bytes]) -> None:
        """Refuse adapters of layers that the parent's decoder lacks, and packing where it leaks."""
        if not self.packs and self.lora is None:
            return
        model = ModelConfig.from_dict(json.loads(read("config.json"))["model"])
        if self.packs:
            self._check_packs(model)
        if self.lora is not None:
            from fo1_model.lora import check_targets

            check_targets(model.vlm, self.lora)

    def build(
        self,
        parent: Path | None,
        weights: Folders | None = None,
        *,
        seed: int,
        precision: Precision = "fp32",
    ) -> Trainee:
        """Make the model as it is at the start of the stage.

        Weights from folders are read in `precision`, others drawn or kept in float32.
        """
        import torch

        from fo1_model import checkpoint
        from fo1_model.vlms.published import published_model
        from pipelines.training.trainees import FO1Trainee

        weights = weights or {}
        self.check(has_parent=parent is not None, weights=weights)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if parent is not None:
            made = checkpoint.load_model(parent, dtype=dtype)
        elif weights:
            config = cast("ModelConfig", self.model)
            made = published_model(config, seed, weights, dtype=dtype, base=self.base)
        elif self.base:
            made = checkpoint.load_base(self.base, seed, config=self.model)
        else:
            made = checkpoint.new_model(cast("ModelConfig", self.model), seed)
        if self.lora is not None:
            from fo1_model.lora import add_adapters

            add_adapters(made[0], self.lora, seed)
        return FO1Trainee(*made, self)

    def evaluator(self, folder: Path, device: str) -> Evaluator:
        """Return the model that a trainee exported to `folder`, to be evaluated on `device`."""
        from fo1_model.checkpoint import load_model
        from pipelines.training.evaluators import FO1Evaluator

        return FO1Evaluator(*load_model(folder, device=device), device)


def _check_parts(
    what: str, given: Collection[str], parts: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Refuse weights that are given, but not for just these parts; optional ones may be left."""
    if unknown := sorted(set(given) - set(parts)):
        named = f"it takes them for {', '.join(parts)}" if parts else "it takes none"
        raise SettingError(f"{what}: weights of others are given for {', '.join(unknown)}; {named}")
    if given and (missing := [part for part in parts if part not in (*given, *optional)]):
        raise SettingError(
            f"{what}: weights of others are given for {', '.join(given)}; give "
            f"{', '.join(missing)} too"
        )
