"""From examples to batches: what a learner does with them on the CPU, without its module.

A **collator** encodes examples one by one (decode, augment or tokenise), says how long each is, and puts some
of them side by side. It is picklable and holds no weights, so the loader runs it in a thread or in processes
of its own. Heavy imports happen when it works, because `fo1 plan` makes learners too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from fo1_model.opn.config import AugmentationConfig, OPNConfig
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
    """Boxes, conversation, ids."""
    image: bytes
    """Original bytes of the image file."""
    seed: int
    """For random augmentation: of this position in the plan, whatever the number of workers."""


class Collator(Protocol):
    """Makes a learner's batches; picklable."""

    @property
    def packs(self) -> bool:
        """Whether a batch costs the sum of its examples' tokens; else each costs as much as the longest."""

    def encode(self, example: Example) -> Any:
        """One example by itself, ready to be put beside others."""

    def length(self, encoded: Any) -> int:
        """Tokens of one encoded example, by which batches are grouped."""

    def collate(self, encoded: Sequence[Any]) -> Any:
        """One batch, with a method ``to(device)``."""

    def weigh(self, batch: Any) -> float:
        """What the sum of the batch's losses is divided by, added up over all workers (tokens, boxes)."""


def batch_of(collator: Collator, examples: Sequence[Example]) -> Any:
    """One batch of examples."""
    return collator.collate([collator.encode(example) for example in examples])


@dataclass(frozen=True, kw_only=True)
class OPNCollator:
    """Pictures with boxes for the object proposal network."""

    network: OPNConfig
    """Sizes of its input."""
    augmentation: AugmentationConfig | None
    """Random views, drawn from each example's seed; None shows the pictures as they are."""
    fine: tuple[str, ...]
    """Datasets that train the ``fine`` prompt."""
    packs: ClassVar[bool] = False

    def encode(self, example: Example) -> tuple[OPNExample, int]:
        """Picture and boxes, with the seed. ValueError, naming the example, when it has no picture."""
        from fo1_model.opn.targets import OPNExample

        record = example.record
        image, boxes = view(record, example.image)
        if image is None:
            raise ValueError(f"{record.sample_id} has no image, which a detector needs")
        shown = OPNExample(
            image=image,
            boxes=boxes,
            ignore=np.asarray(record.ignore or [False] * len(boxes), bool),
            prompt="fine" if record.dataset in self.fine else "coarse",
            complete=record.complete,
        )
        return shown, example.seed

    def length(self, encoded: tuple[OPNExample, int]) -> int:  # noqa: ARG002
        """Cells of the network's three maps: every picture is scaled to the same square."""
        return sum((self.network.image_size // stride) ** 2 for stride in (8, 16, 32))

    def collate(self, encoded: Sequence[tuple[OPNExample, int]]) -> OPNBatch:
        """One batch."""
        from fo1_model.opn.targets import collate

        shown, seeds = [example for example, _ in encoded], [seed for _, seed in encoded]
        return collate(shown, self.network, seeds=seeds, augmentation=self.augmentation)

    def weigh(self, batch: OPNBatch) -> float:
        """Number of objects."""
        return float(sum(len(boxes) for boxes in batch.boxes))


@dataclass(frozen=True)
class FO1Collator:
    """Conversations about regions, for the region-token model."""

    processor: Processor
    """The model's."""
    packs: bool = False
    """Put examples end to end in one row instead of padding each to the longest."""

    def encode(self, example: Example) -> Encoded:
        """Ids, labels, pixels, boxes."""
        record = example.record
        return self.processor.encode(
            *view(record, example.image), record.messages, sample_id=record.sample_id
        )

    def length(self, encoded: Encoded) -> int:
        """Text, image and region tokens."""
        return len(encoded.input_ids)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        """One batch, padded to its longest example or packed."""
        return self.processor.pack(encoded) if self.packs else self.processor.collate(encoded)

    def weigh(self, batch: Batch) -> float:
        """Supervised tokens, each times the weight of its example."""
        return float(batch.loss_weights[:, 1:][batch.labels[:, 1:] >= 0].sum())
