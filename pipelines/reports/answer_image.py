"""One question about one image: regions given or detected, the answer, the annotated image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset_builders.tasks.prompts import JOINER, TEMPLATES
from fo1_model import grammar
from fo1_model.detectors import Detector, DetectorInput
from fo1_model.generation import Answer, GenerationConfig, generate
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from pipelines.errors import SettingError
from pipelines.reports.drawing import OFFERED, Mark, draw_marks, region_colour


@dataclass(frozen=True, kw_only=True)
class ImageAnswer:
    """What the model said about one image."""

    answer: Answer
    """Text, phrases, regions and their log-probabilities."""
    boxes: np.ndarray
    """float32[N, 4]: the regions that were offered, xyxy in pixels of the image."""
    scores: np.ndarray | None
    """float32[N] by the detector; None when the boxes were given."""
    annotated: Image.Image
    """The image with the regions offered (thin) and those named (bold, numbered)."""


def predict_image(
    model: FO1Model,
    processor: Processor,
    image: Image.Image,
    question: str,
    *,
    boxes: np.ndarray | None = None,
    detector: Detector | None = None,
    max_new_tokens: int = 256,
    constrained: bool = False,
    names: Sequence[str] | None = None,
) -> ImageAnswer:
    """Answer a question about one image over given boxes, or over those of a detector.

    Args:
        model: The model.
        processor: Its processor.
        image: The image, RGB.
        question: What is asked, as plain text; see `question_for`.
        boxes: float32[N, 4], xyxy in pixels of the image; no more than there are region tokens.
        detector: Where the boxes come from when none are given; its best ones are taken, as many as
            there are region tokens.
        max_new_tokens: Longest answer in tokens.
        constrained: Whether the answer is held to the region language.
        names: The only phrases that a constrained answer may ground; None allows any.

    Raises:
        SettingError: Neither boxes nor a detector is given, or both are.
        ValueError: There are more boxes than region tokens, or names without the constraint.
    """
    if (boxes is None) == (detector is None):
        raise SettingError("boxes: give either boxes or a detector, and not both")
    scores = None
    if detector is not None:
        [found] = detector.detect([detector.prepare(DetectorInput(image_id="image", image=image))])
        # Proposals come best first, so the cut leaves out the worst.
        boxes, scores = (
            values[: processor.num_region_tokens] for values in (found.boxes, found.scores)
        )
    regions = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    content = grammar.image_question(question, len(regions))
    encoded = processor.encode(
        image,
        regions,
        [{"role": "user", "content": content}],
        for_generation=True,
        sample_id="image",
    )
    config = GenerationConfig(max_new_tokens=max_new_tokens, constrained=constrained)
    answer = generate(
        model, processor, [encoded], config, names=None if names is None else [names]
    )[0]
    return ImageAnswer(
        answer=answer,
        boxes=regions,
        scores=scores,
        annotated=draw_answer(image, regions, answer.parsed),
    )


def question_for(names: Sequence[str], wording: str = TEMPLATES["detection"][0]) -> str:
    """Return the question for some names, in the release's wording of detection or another.

    Args:
        names: What is asked for.
        wording: Question with ``{}`` in the place of the names.

    Raises:
        SettingError: There are no names, or one is empty or holds a tag of the region language.
    """
    if not names or any(not name.strip() or grammar.reserved_text(name) for name in names):
        raise SettingError(
            f"names={list(names)!r}: give at least one name, none empty or with a region tag in it"
        )
    return wording.replace("{}", JOINER.join(name.strip() for name in names))


def draw_answer(image: Image.Image, boxes: np.ndarray, parsed: grammar.ParsedAnswer) -> Image.Image:
    """Draw the regions offered, and those named with their index and phrase.

    Args:
        image: The image; it is not changed.
        boxes: float32[N, 4], xyxy in pixels of the image.
        parsed: The answer.

    Returns:
        A scaled copy, 560 to 1280 px on its long side.
    """
    phrase_of = {region: text for text, regions in parsed.phrases for region in regions}
    marks = [
        Mark(
            box=box.tolist(),
            tag=f"{index} {phrase_of.get(index, '')}".strip() if index in parsed.regions else "",
            colour=region_colour(index) if index in parsed.regions else OFFERED,
            faint=index not in parsed.regions,
        )
        for index, box in enumerate(boxes)
    ]
    return draw_marks(image, marks, long_side=max(560, min(1280, max(image.size))))
