"""Captions whose phrases name objects: from character spans to parts, by spans alone.

A phrase is never searched for again: the same words may stand elsewhere in the caption. Spans are
counted in Unicode code points, their end exclusive, in the caption exactly as stored. A caption
becomes one sample of task `grounding`; those of its phrases that tell an object apart become
expressions of task `referring`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset_builders.box_checks import whole_number
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.records import BadRecord, Part, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.tasks.referring import expression_sample
from dataset_builders.validation import check_text

Span = tuple[int, int]
"""First character and the one behind the last."""
MIN_WORDS = 2
"""Fewest words of an expression, articles and the like not counted: "man" alone tells few apart.
ours"""
_SMALL_WORDS = frozenset(
    ("a", "an", "the", "his", "her", "its", "their", "this", "that", "these", "some")
)


@dataclass(frozen=True)
class Mention:
    """One annotation: its object, and where the caption names it."""

    spans: tuple[Span, ...]
    """Places in the caption as stored, checked by `read_spans`."""
    row: int | None
    """Row of its object; None when its box was rejected or is an ignore region: what names it stays
    text."""


@dataclass(frozen=True)
class Phrase:
    """A piece of the caption and all objects that it names."""

    start: int
    """First character of the piece in the caption."""
    end: int
    """Character behind its last one."""
    rows: tuple[int, ...]
    """Rows of the objects that it names, ascending."""

    def text(self, caption: str) -> str:
        """Return the piece, its blanks folded."""
        return " ".join(caption[self.start : self.end].split())


def read_spans(value: Any, caption: str) -> tuple[Span, ...]:
    """Return a stored list of [begin, end] as spans.

    Raises:
        BadRecord: The reason is malformed: it is no such list, or a span lies outside the caption.
    """
    if not isinstance(value, list | tuple) or not value:
        raise BadRecord("malformed", f"spans are {str(value)[:80]!r}, not a list of [begin, end]")
    spans = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRecord("malformed", f"span is {str(pair)[:80]!r}, not [begin, end]")
        start, end = (whole_number(number, what="character") for number in pair)
        if not 0 <= start < end <= len(caption) or not caption[start:end].strip():
            raise BadRecord(
                "malformed", f"span [{start}, {end}) of a caption of {len(caption)} characters"
            )
        spans.append((start, end))
    return tuple(spans)


def find_phrases(caption: str, mentions: Iterable[Mention]) -> tuple[Phrase, ...]:
    """Return the phrases that can be grounded, in reading order, none overlapping another.

    Spans of one mention that touch, or stand one blank apart, are one phrase; others are phrases of
    their own. Mentions of the same span share a phrase. Of overlapping phrases the longest is kept.
    A phrase of which one object is not known stays text.
    """
    named: dict[Span, set[int | None]] = {}
    for mention in mentions:
        for span in _joined(caption, mention.spans):
            named.setdefault(span, set()).add(mention.row)
    kept: list[Phrase] = []
    # the longest first: it takes its place before the shorter ones that it overlaps
    for (start, end), rows in sorted(
        named.items(), key=lambda item: (item[0][0] - item[0][1], item[0])
    ):
        known = sorted(row for row in rows if row is not None)
        if len(known) == len(rows) and all(
            end <= other.start or other.end <= start for other in kept
        ):
            kept.append(Phrase(start, end, tuple(known)))
    return tuple(sorted(kept, key=lambda phrase: phrase.start))


def _joined(caption: str, spans: Sequence[Span]) -> list[Span]:
    """Return the spans of a mention, those that belong together joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if (
            joined
            and (start <= joined[-1][1] or caption[joined[-1][1] : start].isspace())
            and (start - joined[-1][1] <= 1)
        ):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return [_trimmed(caption, *span) for span in joined]


def _trimmed(caption: str, start: int, end: int) -> Span:
    """Return a span without the blanks at its ends."""
    text = caption[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def caption_parts(caption: str, phrases: Sequence[Phrase]) -> tuple[Part, ...]:
    """Return the caption as parts, its phrases with their objects; runs of blanks become one.

    Args:
        caption: The caption as stored.
        phrases: Its phrases in reading order, not overlapping.
    """
    parts: list[Part] = []
    end = 0
    for phrase in phrases:
        parts += [
            Part(_folded(caption[end : phrase.start])),
            Part(phrase.text(caption), phrase.rows),
        ]
        end = phrase.end
    parts.append(Part(_folded(caption[end:]).rstrip()))
    parts[0] = Part((parts[0].text or "").lstrip())
    return tuple(part for part in parts if part.text)


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def labelled(facts: ImageFacts, caption: str, mentions: Iterable[Mention]) -> ImageFacts:
    """Return the facts with each object called by the first phrase that names it.

    Other objects keep their label.
    """
    labels: dict[int, str] = {}
    for mention in mentions:
        if mention.row is not None and mention.spans:
            start, end = _joined(caption, mention.spans)[0]
            labels.setdefault(mention.row, " ".join(caption[start:end].split()))
    objects = (
        replace(item, label=labels.get(row, item.label)) for row, item in enumerate(facts.objects)
    )
    return replace(facts, objects=tuple(objects))


def grounding_sample(
    facts: ImageFacts,
    caption: str,
    phrases: Sequence[Phrase],
    options: BuildOptions,
    *,
    dataset: str,
    number: int | str,
) -> Sample:
    """Return the sample of one caption.

    Args:
        facts: What is known of the image.
        caption: The caption as stored.
        phrases: Its phrases, see `find_phrases`.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        number: Id of the caption, unique among those of the image.

    Raises:
        BadRecord: The text is unsafe, the caption has no phrase, or the image shows too many
            objects.
    """
    check_text(caption, what="caption")
    if not phrases:
        raise BadRecord("unknown_object", "no phrase of the caption has a usable box")
    if facts.num_boxed > options.max_objects:
        raise BadRecord("too_many_regions", f"{facts.num_boxed} boxes, limit {options.max_objects}")
    seed = seed_of(options.seed, dataset, facts.ref.image_id, number)
    asked = question("grounding", "", seed=seed, paraphrases=options.paraphrases)
    turns = conversation(asked, caption_parts(caption, phrases))
    return facts.sample(dataset=dataset, task="grounding", number=number, turns=turns)


def expressions(
    captions: Sequence[str], named: Iterable[tuple[str, Sequence[int]]], limit: int
) -> list[tuple[str, tuple[int, ...]]]:
    """Return phrases that tell their objects apart, the longest first.

    A phrase counts when it always names the same objects, stands nowhere else in the captions, and
    has `MIN_WORDS`. There is at most one for the same objects.

    Args:
        captions: All that is said of the image.
        named: Each phrase that is grounded there, with its rows.
        limit: Most phrases.
    """
    meant: dict[str, list[tuple[int, ...]]] = {}
    for text, rows in named:
        meant.setdefault(" ".join(text.split()), []).append(tuple(sorted(rows)))
    read = " ".join(" ".join(caption.split()) for caption in captions).casefold()
    times: Counter[str] = Counter()
    for said, places in meant.items():
        times[said.casefold()] += len(places)
    best: dict[tuple[int, ...], str] = {}
    for said, places in meant.items():
        same = all(rows == places[0] for rows in places)
        clear = read.count(said.casefold()) == times[said.casefold()] == len(places)
        words = [word for word in re.findall(r"\w+", said.casefold()) if word not in _SMALL_WORDS]
        if same and clear and len(words) >= MIN_WORDS and len(said) > len(best.get(places[0], "")):
            best[places[0]] = said
    found = sorted(
        ((said, rows) for rows, said in best.items()), key=lambda item: (-len(item[0]), item)
    )
    return found[:limit]


def expression_samples(
    facts: ImageFacts,
    found: Sequence[tuple[str, tuple[int, ...]]],
    options: BuildOptions,
    *,
    dataset: str,
    number: int | str,
) -> list[Sample]:
    """Return a sample of task `referring` for each expression of `expressions`.

    Args:
        facts: What is known of the image.
        found: Expressions with the rows of their objects.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        number: Unique in the dataset; the position of the expression is put behind it.
    """
    return [
        expression_sample(
            facts, said, rows, options, dataset=dataset, number=f"{number}-{position}"
        )
        for position, (said, rows) in enumerate(found)
    ]
