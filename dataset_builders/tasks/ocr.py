"""Text regions and what is written in them: the questions that every OCR dataset gives.

What is made of one image, or of each window into a crowded one, out of at most `region_texts`
regions that the seed chooses:

| question                                         | answer                                     |
| ------------------------------------------------ | ------------------------------------------ |
| one each for the first `SINGLE_READINGS` of them | the text                                   |
| one for all others together                      | a line a region: its name, a colon, a text |

A region without readable text (the datasets' ``###``, or a text that is rejected) is an ignore
region. Text is stored and asked for in logical order, Arabic too. A region whose box overlaps
another one much is not asked about: the boxes of slanted words cover their neighbours, and a reader
of the box would see both. ours
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_builders.box_checks import MAX_COORDINATE, BoxGuard, clean_box
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_label, check_text

SINGLE_READINGS = 2
"""Number of regions of an image that are asked for alone. ours"""
MAX_OVERLAP = 0.3
"""Greatest IoU with another box of a region that is asked about. ours"""
DONT_CARE = "###"
"""Stands for the text of a region that nobody could read."""
LABEL = "text"
"""Label of a region where the dataset names none."""


@dataclass(frozen=True, kw_only=True)
class TextRegion:
    """A text region as a file states it."""

    corners: tuple[float, float, float, float]
    """The upright box around it: x1, y1, x2, y2 in pixels, not yet clipped."""
    text: Any
    """What is written there, as stored; None when the dataset does not say."""
    label: str = LABEL
    """What the dataset calls it."""


@dataclass(frozen=True, kw_only=True)
class TextImage:
    """The text regions of one image."""

    facts: ImageFacts
    """Boxes of the regions; `ids` are places in the file."""
    texts: Mapping[int, str]
    """Id of a region -> its text, those that can be asked for."""


def quad_corners(points: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the upright box around points, whatever their order: x1, y1, x2, y2 in pixels.

    Args:
        points: Coordinates x1, y1, x2, y2, ... in pixels.
    """
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def numbers(stored: object, count: int, *, what: str) -> list[float]:
    """Return stored coordinates as floats.

    Raises:
        BadRecord: The reason is malformed or not_finite_box.
    """
    if (
        not isinstance(stored, list)
        or len(stored) != count
        or any(type(v) not in (int, float) for v in stored)
    ):
        raise BadRecord("malformed", f"{what} is {str(stored)[:80]!r}, not {count} numbers")
    if not all(-MAX_COORDINATE <= value <= MAX_COORDINATE for value in stored):
        raise BadRecord("not_finite_box", f"{what} is {str(stored)[:120]!r}")
    return [float(value) for value in stored]


def reading(text: object) -> str:
    """Return a transcription as one line, blanks folded.

    Raises:
        BadRecord: The text is not safe.
    """
    return check_label(" ".join(check_text(text, what="text").split()), what="text")


def read_regions(
    ref: ImageRef,
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[Any], TextRegion],
    counter: RecordCounter,
    guard: BoxGuard,
    *,
    name: str,
    read: Callable[[Any], str] = reading,
) -> tuple[list[Reject], TextImage]:
    """Read the text regions of one image.

    Each is a record of unit "box", and its text one of unit "record". A region whose text is
    rejected stays, as an ignore region.

    Args:
        ref: The image, its size known.
        rows: Place in the file and stored region, for each region.
        parse: Reads one, raising BadRecord.
        counter: Counts the records.
        guard: Looks at the boxes.
        name: Name of the file or record, for the rejects.
        read: Returns a stored text, checked.

    Returns:
        The rejects, and what is left.
    """
    rejects: list[Reject] = []
    objects, ids, texts = [], [], {}
    for place, row in rows:
        try:
            region = parse(row)
            guard.look(region.corners, ref.width, ref.height)
            box = clean_box(region.corners, ref.width, ref.height)
        except BadRecord as error:
            rejects.append(counter.reject(f"{name}/{place}", error, "box"))
            continue
        counter.use("box")
        if region.text is not None:
            try:
                texts[place] = read(region.text)
                counter.use()
            except BadRecord as error:
                rejects.append(counter.reject(f"{name}/{place}", error))
        objects.append(Object(box=box, label=region.label, ignore=place not in texts))
        ids.append(place)
    facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(ids))
    return rejects, TextImage(facts=facts, texts=texts)


def reading_samples(image: TextImage, options: BuildOptions, *, dataset: str) -> list[Sample]:
    """Return the samples of one image; see the table of this module.

    Raises:
        BadRecord: The reason is too_many_regions: no windows make the image sparse.
    """
    samples: list[Sample] = []
    whole = dict(zip(image.facts.ids, (item.box for item in image.facts.objects), strict=True))
    apart = _apart(image)
    for view in image.facts.windows(options.max_objects):
        rng = random.Random(seed_of(options.seed, dataset, view.ref.image_id, *(view.window or ())))
        # a region that the window cuts could not be read in full
        rows = [
            row
            for row, place in enumerate(view.ids)
            if place in apart and view.objects[row].box == whole[place]
        ]
        most = min(options.region_texts, options.max_objects, len(rows))
        chosen = rng.sample(rows, most)
        groups = [[row] for row in chosen[:SINGLE_READINGS]] + [sorted(chosen[SINGLE_READINGS:])]
        for number, group in enumerate(group for group in groups if group):
            seed = rng.getrandbits(32)
            asked = question("ocr", group, seed=seed, paraphrases=options.paraphrases)
            answer = _answer(group, [image.texts[view.ids[row]] for row in group])
            turns = conversation(_listed(asked), answer)
            samples.append(view.sample(dataset=dataset, task="ocr", number=number, turns=turns))
    return samples


def _apart(image: TextImage) -> set[int]:
    """Return the ids of the readable regions whose boxes overlap no other one too much."""
    boxes = np.array([item.box for item in image.facts.objects], np.float64).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = set()
    for row, place in enumerate(image.facts.ids):
        if place not in image.texts:
            continue
        low, high = (
            np.maximum(boxes[row, :2], boxes[:, :2]),
            np.minimum(boxes[row, 2:], boxes[:, 2:]),
        )
        shared = np.prod((high - low).clip(0), axis=1)
        overlaps = shared / (areas[row] + areas - shared)
        overlaps[row] = 0.0
        if overlaps.max() <= MAX_OVERLAP:
            kept.add(place)
    return kept


def _listed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return a question with commas between the regions of a mention."""
    listed: list[Part] = []
    for part in parts:
        for position, row in enumerate(part.objects):
            listed += [Part(", ")] * (position > 0) + [Part(objects=(row,))]
        listed += [part] * (not part.objects)
    return tuple(listed)


def _answer(rows: Sequence[int], texts: Sequence[str]) -> tuple[Part, ...]:
    """Return the texts of some regions: alone for one, a line a region for several."""
    if len(rows) == 1:
        return (Part(texts[0]),)
    parts: list[Part] = []
    for row, text in zip(rows, texts, strict=True):
        parts += [Part("\n")] * bool(parts) + [Part(objects=(row,)), Part(f": {text}")]
    return tuple(parts)
