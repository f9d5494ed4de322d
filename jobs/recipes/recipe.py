"""What a recipe is: the training runs, and what they and their evaluation are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataset_builders import BuildOptions
from fo1_model.detectors.configs import DetectorConfig
from jobs.named_mixes import Mix
from pipelines.shards.config import AssignConfig
from pipelines.shards.rejection import RejectionConfig
from pipelines.train_config import TrainConfig
from pipelines.training.learners import FO1Learner, OPNLearner


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    name: str
    """Name of its artifact below ``runs/``."""
    learner: OPNLearner | FO1Learner
    """Model that trains; one that ``continues`` goes on from the training before it."""
    mix: Mix
    """Sources of its samples."""
    config: TrainConfig
    """How long and how fast it trains."""
    start: str | None = None
    """Checkpoint that a learner which ``continues`` goes on from, as the user named it.

    None: the training before it. Hashed by content.
    """
    weights: Mapping[str, str] = field(default_factory=dict)
    """Weights of others that parts of it start from: a folder or hub name each.

    Hashed by content.
    """
    validation: tuple[str, ...] = ()
    """Sources ``dataset/task`` of held-out examples, where the config validates."""
    validation_benchmarks: tuple[str, ...] = ()
    """Benchmarks of which a slice is answered, where the config validates."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the results of a chain of artifacts; no path, no worker count."""

    name: str
    """Name for people, which the report has."""
    detector: DetectorConfig
    """Detector whose boxes become proposals."""
    detector_sources: tuple[str | None, ...] = (None,)
    """Run, weights or box file of each leaf of the detector, as the user named it.

    Hashed by content.
    """
    detector_training: Training | None = None
    """Training of the detector, on ground-truth boxes, where it is one of ours."""
    trainings: tuple[Training, ...] = ()
    """Trainings in order, each able to start from the one before."""
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
    """Most questions about one image in a training example.

    They share its regions and its encoding.
    """
    exclude: str = "found"
    """Benchmarks whose images training shards leave out.

    Names of `dataset_builders.benchmark_leakage` with commas, "found" for all whose files are
    there, or "none".
    """
    max_side_px: int | None = None
    """Longer side of the images in training shards, px; None keeps their original bytes."""
    shuffled_regions: bool = False
    """Control: every index shows another box, in training and in evaluation.

    Metrics must fall to chance.
    """
    max_new_tokens: int | None = None
    """Longest answer in evaluation, tokens; None leaves it to the benchmark."""
    constraint: str = "none"
    """What answers in evaluation may say, see ``PredictConfig.constraint``."""
    score: str = "proposal"
    """Score of a named region in evaluation, see ``PredictConfig.score``."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """Folder of a dataset, where it is not ``<data>/<its usual name>``.

    Not hashed: contents are.
    """
