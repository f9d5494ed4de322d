"""Cases: each question joined with its stored answer and with the truth of its sample."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from dataset_builders.records import Sample
from pipelines.artifacts import Artifact
from pipelines.evaluation.metrics.cases import Answer, Case, Target, as_boxes
from pipelines.evaluation.stored_inputs import load_samples, read_examples, read_rows
from pipelines.schemas import RegionExample
from pipelines.shards import rejection


def load_cases(predictions: Artifact, shards: Artifact, samples: Artifact) -> list[Case]:
    """Join every question of the predicted tasks with its answer and its truth.

    Args:
        predictions: The finished answers.
        shards: What they answer.
        samples: What the shards were made from.

    Returns:
        One case a question, in stored order.

    Raises:
        RuntimeError: A question has no answer, or an answer no question; the message names the
            sample.
    """
    facts = {sample.sample_id: sample for sample in load_samples(samples)}
    # Taken out one by one, so that answers to nothing are seen at the end.
    answered = {row["sample_id"]: row for row in read_rows(predictions)}
    cases = []
    for example, _ in read_examples(shards, predictions.manifest()["config"]["tasks"]):
        row = answered.pop(example.sample_id, None)
        if row is None:
            raise RuntimeError(
                f"sample {example.sample_id} has no prediction in {predictions.path}"
            )
        cases.append(make_case(example, row, facts.get(origin_of(example))))
    if answered:
        raise RuntimeError(f"prediction of sample {min(answered)} has no question in {shards.path}")
    return cases


def make_case(example: RegionExample, row: Mapping[str, Any], sample: Sample | None) -> Case:
    """Put question, answer and truth together.

    Args:
        example: The question, with the targets of the true answer.
        row: The answer, a row of `PREDICTION_SCHEMA`.
        sample: What the example was made from; without it crowds and the names asked stay unknown.
    """
    # A target without box and region is plain text: "None", a number, a name.
    grounded = [t for t in example.targets if t["boxes"] or t["regions"]]
    plain = [t["text"] for t in example.targets if not (t["boxes"] or t["regions"])]
    ignored: dict[str, list] = defaultdict(list)
    for item in sample.objects if sample else ():
        if item.ignore:
            ignored[item.label].append(item.box)
    return Case(
        sample_id=example.sample_id,
        image_id=example.image_id,
        task=example.task,
        targets=tuple(
            Target(text=t["text"], regions=tuple(t["regions"]), boxes=as_boxes(t["boxes"]))
            for t in grounded
        ),
        answers=_answers(row),
        text=row["text"],
        reference=plain[0] if plain else _plain_text(sample),
        problem=row["problem"],
        asked=_asked(example, sample),
        ignored={label: as_boxes(boxes) for label, boxes in ignored.items()},
    )


def origin_of(example: RegionExample) -> str:
    """Return the sample_id of the sample that an example was made from.

    A rejection example is made from a detection sample and carries its id with a suffix.
    """
    return example.sample_id.removesuffix(f"/{rejection.TASK}")


def _answers(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    """Return the phrases of a prediction row, with the boxes and scores of their regions."""
    place = {region: index for index, region in enumerate(row["regions"])}
    boxes, scores = as_boxes(row["boxes"]), np.asarray(row["scores"], dtype=np.float32)
    phrases = [(phrase["text"], phrase["regions"]) for phrase in row["phrases"]]
    bare = sorted(set(row["regions"]) - {region for _, regions in phrases for region in regions})
    if bare:
        phrases.append(("", bare))  # mentioned outside any phrase
    return tuple(
        Answer(
            text=text,
            regions=tuple(sorted(regions)),
            boxes=boxes[[place[region] for region in sorted(regions)]],
            scores=scores[[place[region] for region in sorted(regions)]],
        )
        for text, regions in phrases
    )


def _plain_text(sample: Sample | None) -> str:
    """Return what the true answer says outside its grounded phrases."""
    parts = sample.turns[-1].parts if sample else ()
    return "".join(part.text or "" for part in parts if not part.objects)


def _asked(example: RegionExample, sample: Sample | None) -> tuple[str, ...] | None:
    """Return the known names that the last question holds; None when absence is not known."""
    if sample is None or sample.absent_labels is None:
        return None
    questions = [message["content"] for message in example.messages if message["role"] == "user"]
    known = {item.label for item in sample.objects} | set(sample.absent_labels)
    if not known or not questions:
        return ()
    # Longest first, so that "hot dog" is not read as "dog".
    pattern = "|".join(
        re.escape(name) for name in sorted(known, key=lambda name: (-len(name), name))
    )
    return tuple(dict.fromkeys(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", questions[-1])))
