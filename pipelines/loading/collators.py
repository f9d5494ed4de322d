"""From examples to batches: what a learner does with them on the CPU, without its module.

A **collator** encodes examples one by one (decode, augment or tokenise), says how long each is, and
puts some of them side by side. It is picklable and holds no weights, so the loader runs it in a
thread or in processes of its own. Heavy imports happen when it works, because `fo1 plan` makes
learners too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from fo1_model.opn.config import AugmentationConfig, OPNConfig
from pipelines.errors import SettingError
from pipelines.example_image import view
from pipelines.schemas import RegionExample

if TYPE_CHECKING:
    from fo1_model.batch import Batch, Encoded
    from fo1_model.opn.targets import OPNBatch, OPNExample
    from fo1_model.processing import Processor


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example as the loader hands it to a collator."""

    record: RegionExample
    """Its boxes, conversation and ids."""
    image: bytes
    """Original bytes of the image file."""
    seed: int
    """Seed of random augmentation: of its position in the plan, for any number of workers."""


class Collator(Protocol):
    """The maker of a learner's batches; picklable."""

    @property
    def packs(self) -> bool:
        """Whether a batch costs the sum of its examples' tokens, or each as much as the longest."""

    def encode(self, example: Example) -> Any:
        """Return one example by itself, ready to be put beside others."""

    def length(self, encoded: Any) -> int:
        """Return the tokens of one encoded example, by which batches are grouped."""

    def collate(self, encoded: Sequence[Any]) -> Any:
        """Return one batch, with a method ``to(device)``."""

    def weigh(self, batch: Any) -> float:
        """Return what the batch adds to the divisor of the loss, such as its tokens or boxes.

        Losses are summed and divided by the sum of these over all workers.
        """


def batch_of(collator: Collator, examples: Sequence[Example]) -> Any:
    """Return one batch of examples."""
    return collator.collate([collator.encode(example) for example in examples])


@dataclass(frozen=True, kw_only=True)
class OPNCollator:
    """What makes batches of images with boxes, for the object proposal network."""

    network: OPNConfig
    """Sizes of the network, and so of its input."""
    augmentation: AugmentationConfig | None
    """Random views, drawn from each example's seed; None shows the images as they are."""
    fine: tuple[str, ...]
    """Datasets that train the ``fine`` prompt."""
    packs: ClassVar[bool] = False

    def encode(self, example: Example) -> tuple[OPNExample, int]:
        """Return image and boxes, with the seed.

        Raises:
            SettingError: The example has no image; the message names it.
        """
        from fo1_model.opn.targets import OPNExample

        record = example.record
        image, boxes = view(record, example.image)
        if image is None:
            raise SettingError(
                f"{record.sample_id} has no image, which a detector needs: take its source out of "
                "the mix"
            )
        shown = OPNExample(
            image=image,
            boxes=boxes,
            ignore=np.asarray(record.ignore or [False] * len(boxes), bool),
            prompt="fine" if record.dataset in self.fine else "coarse",
            complete=record.complete,
        )
        return shown, example.seed

    def length(self, encoded: tuple[OPNExample, int]) -> int:  # noqa: ARG002
        """Return the cells of the network's maps: every image is scaled to the same square."""
        return sum((self.network.image_size // stride) ** 2 for stride in (8, 16, 32))

    def collate(self, encoded: Sequence[tuple[OPNExample, int]]) -> OPNBatch:
        """Return one batch."""
        from fo1_model.opn.targets import collate

        shown, seeds = [example for example, _ in encoded], [seed for _, seed in encoded]
        return collate(shown, self.network, seeds=seeds, augmentation=self.augmentation)

    def weigh(self, batch: OPNBatch) -> float:
        """Return the number of objects."""
        return float(sum(len(boxes) for boxes in batch.boxes))


@dataclass(frozen=True)
class FO1Collator:
    """What makes batches of conversations about regions, for the region-token model."""

    processor: Processor
    """The model's processor."""
    packs: bool = False
    """Whether examples go end to end in one row instead of being padded to the longest."""

    def encode(self, example: Example) -> Encoded:
        """Return ids, labels, pixels and boxes of one example."""
        record = example.record
        return self.processor.encode(
            *view(record, example.image), record.messages, sample_id=record.sample_id
        )

    def length(self, encoded: Encoded) -> int:
        """Return the number of text, image and region tokens."""
        return len(encoded.input_ids)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """Return one batch, padded to its longest example or packed."""
        return self.processor.pack(encoded) if self.packs else self.processor.collate(encoded)

    def weigh(self, batch: Batch) -> float:
        """Return the supervised tokens, each times the weight of its example."""
        return float(batch.loss_weights[:, 1:][batch.labels[:, 1:] >= 0].sum())
