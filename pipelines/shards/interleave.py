"""From a sample and its regions to messages with region indices. Pure.

The first user message becomes ``<image>``, a newline, a line of ``<regionN><regionfeat>`` for every
region, and the question, as the release builds it (mm_utils.make_message_context). Without regions
the question follows ``<image>`` at once: what stands between them belongs to the model that reads
it (``ModelConfig.image_gap``). A sample without image is its conversation alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dataset_builders.records import BadRecord, Part, Sample, Turn
from fo1_model import grammar
from pipelines.schemas import RegionExample
from pipelines.shards.assign import Assignment


def referenced_objects(turns: Iterable[Turn], role: str | None = None) -> frozenset[int]:
    """Return the objects that the conversation names, or that one role names."""
    return frozenset(
        index
        for turn in turns
        if role in (None, turn.role)
        for part in turn.parts
        for index in part.objects
    )


def join_samples(samples: Sequence[Sample]) -> Sample:
    """Return one conversation of several about the same image.

    The turns come one after the other, over shared objects. The first sample gives the id, with the
    number of samples joined to it behind a plus.

    Raises:
        ValueError: The samples are of different images, tasks or objects.
    """
    first = samples[0]
    for sample in samples[1:]:
        if _shared(sample) != _shared(first):
            raise ValueError(
                f"{sample.sample_id} is not about the image, task and objects of {first.sample_id}"
            )
    if len(samples) == 1:
        return first
    turns = tuple(turn for sample in samples for turn in sample.turns)
    return replace(first, sample_id=f"{first.sample_id}+{len(samples) - 1}", turns=turns)


def _shared(sample: Sample) -> tuple[object, ...]:
    return sample.image_source, sample.image_id, sample.window, sample.task, sample.objects


def interleave(sample: Sample, assignment: Assignment, *, answer: bool = True) -> RegionExample:
    """Write the conversation of a sample with the regions of its assignment.

    Targets describe the last answer: one entry a grounded phrase (equal phrases united, text "" for
    a bare mention); an answer without objects is one entry with its whole text and no boxes.

    Args:
        sample: The sample.
        assignment: Its regions, and the objects that they stand for.
        answer: True writes every turn, for training. False leaves the last answer out, for
            evaluation: its objects need not all have a region then.

    Raises:
        BadRecord: ``unsafe_text`` when a text holds a tag of the region language, ``malformed``
            when the conversation does not end with an answer.
        RuntimeError: An answer does not read back as its targets; the message has the sample id.
    """
    if not sample.turns or sample.turns[-1].role != "assistant":
        raise BadRecord("malformed", "the conversation does not end with an answer")
    last = sample.turns[-1]
    turns = sample.turns if answer else sample.turns[:-1]
    num_regions = len(assignment.boxes)
    messages = []
    for position, turn in enumerate(turns):
        text = _render(sample.sample_id, turn, assignment.region_of)
        if turn.role == "assistant":
            _check_reads_back(sample.sample_id, text, turn, assignment)
        if position == 0 and sample.image_uri:
            text = grammar.image_question(text, num_regions)
        messages.append({"role": turn.role, "content": text})
    return RegionExample(
        sample_id=sample.sample_id,
        dataset=sample.dataset,
        task=sample.task,
        image_id=sample.image_id,
        window=sample.window,
        width=sample.width,
        height=sample.height,
        boxes=assignment.boxes,
        scores=assignment.scores,
        box_sources=assignment.sources,
        messages=tuple(messages),
        targets=_targets(sample, last, assignment.region_of),
    )


def _render(sample_id: str, turn: Turn, region_of: dict[int, int]) -> str:
    """Return the text of a turn, checked to mention its regions and nothing else."""
    _check_text(turn)
    parts = []
    for part in turn.parts:
        missing = [index for index in part.objects if index not in region_of]
        if missing:
            raise RuntimeError(
                f"{sample_id}: a {turn.role} turn names objects {missing}, which have no region"
            )
        parts.append((part.text, sorted({region_of[index] for index in part.objects})))
    try:
        text = grammar.render(parts)
    except ValueError as error:
        raise BadRecord("unsafe_text", str(error)) from error
    expected = [region for _, regions in parts for region in regions]
    if list(grammar.mentioned_regions(text)) != expected or grammar.IMAGE in text:
        raise RuntimeError(
            f"{sample_id}: {text!r} does not mention regions {expected} and nothing else"
        )
    return text


def _check_text(turn: Turn) -> None:
    """Refuse a tag in a text, and one that only neighbouring texts make together."""
    texts = [part.text for part in turn.parts if part.text is not None]
    plain = "".join(part.text for part in turn.parts if part.text is not None and not part.objects)
    for text in [*texts, plain]:
        if grammar.reserved_text(text):
            raise BadRecord(
                "unsafe_text",
                f"a {turn.role} turn holds a tag of the region language: {text[:80]!r}",
            )


def _united(parts: Iterable[Part]) -> dict[str, list[int]]:
    """Return objects by phrase, in order of first mention.

    Equal phrases are united; bare mentions are those of the phrase "".
    """
    phrases: dict[str, list[int]] = {}
    for part in parts:
        if part.objects:
            known = phrases.setdefault(part.text or "", [])
            known += [index for index in part.objects if index not in known]
    return phrases


def _targets(sample: Sample, turn: Turn, region_of: dict[int, int]) -> tuple[dict[str, Any], ...]:
    phrases = _united(turn.parts)
    if not phrases:
        return (
            {"text": "".join(part.text or "" for part in turn.parts), "regions": [], "boxes": []},
        )
    return tuple(
        {
            "text": text,
            "regions": sorted({region_of[index] for index in objects if index in region_of}),
            "boxes": [list(sample.objects[index].box) for index in objects],
        }
        for text, objects in phrases.items()
    )


def _check_reads_back(sample_id: str, text: str, turn: Turn, assignment: Assignment) -> None:
    """Check that the answer, like every one we emit, parses back to what it was made from."""
    parsed = grammar.parse(text, len(assignment.boxes))
    region_of = assignment.region_of
    expected = tuple(
        (phrase, tuple(sorted({region_of[index] for index in objects})))
        for phrase, objects in _united(turn.parts).items()
        if phrase
    )
    if parsed.problem or parsed.phrases != expected:
        raise RuntimeError(
            f"{sample_id}: {text!r} reads back as {parsed.phrases}, not {expected} "
            f"({parsed.problem})"
        )
