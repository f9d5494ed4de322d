"""Exported models under evaluation: metrics of held-out examples, answers to benchmarks' questions.

A learner makes the evaluator of a folder that its trainee exported (`Learner.evaluator`). Heavy
imports happen there, because `fo1 plan` makes learners too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fo1_model.detectors.configs import Selection
from fo1_model.detectors.postprocess import select
from pipelines.evaluation.metrics.cases import Scene
from pipelines.evaluation.metrics.proposals import BUDGETS, Proposed, proposal_metrics
from pipelines.evaluation.predict import PredictConfig, predict_examples
from pipelines.loading.collators import Example, FO1Collator, OPNCollator, batch_of
from pipelines.schemas import RegionExample

if TYPE_CHECKING:
    from fo1_model.model import FO1Model
    from fo1_model.opn.network import OPN
    from fo1_model.processing import Processor

IMAGES_AT_ONCE = 16
"""Images that OPN sees side by side. ours"""


class Evaluator(Protocol):
    """A model in evaluation mode. What it says depends on its weights and the examples alone."""

    def metrics(self, examples: Iterable[Example]) -> dict[str, float]:
        """Return metrics of held-out examples, by name."""


class AnsweringEvaluator(Evaluator, Protocol):
    """An evaluator that answers questions too: of learners that say so (``Learner.answers``)."""

    def answer(self, examples: Sequence[Example], config: PredictConfig) -> list[dict[str, Any]]:
        """Return a row of `PREDICTION_SCHEMA` for each question, in their order."""


class OPNEvaluator:
    """The object proposal network: its proposals against annotated boxes."""

    def __init__(self, network: OPN, fine: tuple[str, ...], device: str) -> None:
        """Put the network on its device, in evaluation mode.

        Args:
            network: The network.
            fine: Datasets whose images are looked at with the ``fine`` prompt.
            device: Such as ``cpu`` or ``cuda``.
        """
        self._network, self._device = network.to(device).eval(), device
        self._collator = OPNCollator(network=network.config, augmentation=None, fine=fine)

    def metrics(self, examples: Iterable[Example]) -> dict[str, float]:
        """Return recalls and the AP of a perfect reader (`proposal_metrics`)."""
        scenes: list[Scene] = []
        found: list[Proposed] = []
        waiting: list[Example] = []
        for example in examples:
            waiting.append(example)
            if len(waiting) == IMAGES_AT_ONCE:
                self._look(waiting, scenes, found)
                waiting = []
        if waiting:
            self._look(waiting, scenes, found)
        return proposal_metrics(
            scenes, found, sorted({label for scene in scenes for label in scene.labels})
        )

    @torch.no_grad()
    def _look(
        self, examples: Sequence[Example], scenes: list[Scene], found: list[Proposed]
    ) -> None:
        encoded = [self._collator.encode(example) for example in examples]
        batch = self._collator.collate(encoded).to(self._device)
        outputs = self._network(batch.pixels, batch.prompts)
        scores = outputs.logits[-1].float().sigmoid().cpu().numpy()
        for row, (example, (shown, _)) in enumerate(zip(examples, encoded, strict=True)):
            proposed = select(
                batch.letterboxes[row].to_original(outputs.boxes[-1, row]),
                scores[row],
                width=shown.image.width,
                height=shown.image.height,
                # In order of score, so that a smaller budget is a prefix.
                selection=Selection(max_boxes=max(BUDGETS)),
            )
            name = example.record.sample_id
            labels, ignore = _labels(example.record), tuple(shown.ignore.tolist())
            scenes.append(Scene(image_id=name, boxes=shown.boxes, labels=labels, ignore=ignore))
            found.append(Proposed(image_id=name, boxes=proposed.boxes, scores=proposed.scores))


class FO1Evaluator:
    """The region-token model: its loss on conversations, and its answers."""

    def __init__(self, model: FO1Model, processor: Processor, device: str) -> None:
        self._model, self._processor, self._device = model.to(device).eval(), processor, device

    @torch.no_grad()
    def metrics(self, examples: Iterable[Example]) -> dict[str, float]:
        """Return ``loss``, the mean over the supervised tokens."""
        collator = FO1Collator(self._processor)
        loss, weight = 0.0, 0.0
        # One example a pass: beside others its last bits would depend on theirs.
        for example in examples:
            batch = batch_of(collator, [example])
            loss += float(self._model(batch.to(self._device)).loss_sum)
            weight += collator.weigh(batch)
        return {"loss": loss / max(weight, 1e-9)}

    def answer(self, examples: Sequence[Example], config: PredictConfig) -> list[dict[str, Any]]:
        """Return a row of `PREDICTION_SCHEMA` for each question, in their order."""
        questions = [(example.record, example.image) for example in examples]
        return predict_examples(self._model, self._processor, questions, config)


def _labels(record: RegionExample) -> tuple[str, ...]:
    """Return the category of each box of a detector's example."""
    labels = ["object"] * len(record.boxes)
    for target in record.targets:
        for region in target["regions"]:
            labels[region] = target["text"]
    return tuple(labels)
