"""Configs of the shard step; all of them change the bytes of the shards. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.errors import SettingError
from pipelines.shards.rejection import RejectionConfig

REGIONS = ("proposals", "proposals_scored", "ground_truth")
"""Where the regions of examples may come from (`ShardsConfig.regions`)."""


@dataclass(frozen=True, kw_only=True)
class AssignConfig:
    """How proposals and objects become regions. The defaults are for training."""

    match_iou: float = 0.5
    """Least IoU of an object and its proposal. ours

    0.7 suits text boxes, whose neighbours are close.
    """
    max_regions: int = 100
    """Most regions of an example (paper 3.1: at most 100)."""
    duplicates: Literal["drop", "keep_as_negative", "keep"] = "drop"
    """What happens to an unmatched proposal of IoU >= match_iou to an object.

    ``drop`` leaves it out, so that an answer is complete and names nothing twice;
    ``keep_as_negative`` drops it from IoU 0.5 on; ``keep`` is for evaluation.
    """
    inject: bool = True
    """Whether objects that no proposal covers are added.

    Objects that a question points at are added in any case.
    """
    p_ground_truth: float = 0.2
    """Probability that a matched region gets the annotated box instead of the proposal's. ours"""
    ignore_overlap: float | None = 0.5
    """Share of an unmatched proposal's area in an ignore region from which on it is dropped.

    None keeps all.
    """
    merge_iou: float = 0.95
    """IoU from which on objects are one region with several labels (MDETR: flickr_combined.py)."""
    order: Literal["shuffle", "score"] = "shuffle"
    """Order of regions: a seeded permutation, or descending score with unscored boxes last."""

    def __post_init__(self) -> None:
        for name in ("match_iou", "merge_iou"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise SettingError(
                    f"{name}={getattr(self, name)} is no IoU threshold: use a value in (0, 1]"
                )
        if not 0.0 <= self.p_ground_truth <= 1.0:
            raise SettingError(
                f"p_ground_truth={self.p_ground_truth} is no probability: use 0 to 1"
            )
        if self.max_regions < 1:
            raise SettingError(f"max_regions={self.max_regions}: use at least 1")


def evaluation_config(max_regions: int = 100, match_iou: float = 0.5) -> AssignConfig:
    """Return the config of evaluation: the proposals as they are, by score.

    Nothing is injected, dropped or replaced.
    """
    return AssignConfig(
        match_iou=match_iou,
        max_regions=max_regions,
        duplicates="keep",
        inject=False,
        p_ground_truth=0.0,
        ignore_overlap=None,
        order="score",
    )


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """How samples become examples; all of it changes the bytes of the shards."""

    regions: Literal["proposals", "proposals_scored", "ground_truth"] = "proposals"
    """Where regions come from, and what for.

    ``proposals`` for training; ``proposals_scored`` for evaluation (score order, nothing injected,
    the last answer left out); ``ground_truth`` for training a detector (one example an image, no
    conversation).
    """
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Rules for ``proposals``; `max_regions` and `match_iou` count for ``proposals_scored`` too."""
    rejection: RejectionConfig | None = field(default_factory=RejectionConfig)
    """Which detection samples become rejection examples, too, and how; None makes none."""
    exclude: tuple[str, ...] = ()
    """Benchmarks whose images are left out (`dataset_builders.benchmark_leakage`).

    Not allowed for ``proposals_scored``.
    """
    plain_with_regions: float = 0.5
    """Share of conversations without regions that get the list of proposals all the same. ours

    With it the list is no cue.
    """
    max_side_px: int | None = None
    """Longer side of the images, in px; larger ones are encoded anew.

    None keeps the original bytes of all.
    """
    turns: int = 1
    """Most questions about one image in a training example. ours

    They share its regions, so that the image is encoded once for all of them.
    """
    seed: int = 0
    """Seed of the order of regions and of the choice between annotated and proposed boxes."""

    def __post_init__(self) -> None:
        if self.regions not in REGIONS:
            raise SettingError(f"regions={self.regions!r}: use one of {', '.join(REGIONS)}")
        if self.turns < 1 or (self.turns > 1 and self.regions != "proposals"):
            raise SettingError(f"turns={self.turns}: use 1, or more with regions='proposals'")
        if not 0.0 <= self.plain_with_regions <= 1.0:
            raise SettingError(
                f"plain_with_regions={self.plain_with_regions} is no share: use 0 to 1"
            )
        if self.max_side_px is not None and self.max_side_px < 28:
            raise SettingError(f"max_side_px={self.max_side_px}: use 28 or more, or none")
        if self.regions == "proposals_scored" and (self.exclude or self.max_side_px):
            raise SettingError(
                "regions='proposals_scored' takes neither `exclude` nor `max_side_px`"
            )
