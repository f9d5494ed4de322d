"""Osprey-724K: questions, conversations and descriptions about numbered regions of COCO images.

Five files, each an array of ``{file_name, height, width, annotation: [{segmentation, bbox?}],
conversations | description}``. What is made of one of their records:

| file                   | samples                                                                 |
| ---------------------- | ----------------------------------------------------------------------- |
| short_form, part_level | `region_qa`, one a question, with the limit of the authors' loader      |
| conversation           | `region_qa`, the conversation as a whole                                |
| detail_description     | `region_caption`, one a region, up to `region_texts` of them an image   |
| lvis_positive_negative | one a question: `region_qa` when the answer is yes, `rejection` when no |

``<regionK>`` means ``annotation[K-1]``; in lvis_positive_negative the N-th mention means
``annotation[N-1]``, whatever its number.

Source: https://github.com/CircleRadon/Osprey (osprey/datasets/osprey_724k.py).
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataset_builders.box_checks import (
    BoxGuard,
    clean_box,
    four_numbers,
    get,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import COCO_TRAIN, coco_id, coco_uri
from dataset_builders.masks import segmentation_box
from dataset_builders.readers.coco_images import MAX_IMAGE_SIDE
from dataset_builders.readers.conversations import check_usable, read_turns, stream_records
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Object, Part, Reject, Sample, Turn
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.mentions import mention_parts, named_rows
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_label

NAME = "osprey"
LIMIT = " Answer the question using a single word or phrase."
"""What the authors' loader appends to the questions of short_form and part_level."""
UNNAMED = "object"
"""Label of a region whose annotation names no category."""
# the files spell some tags <Region1>, <regin1>, <region 1>, <region1] or <region of1>
_MENTION = re.compile(r"<reg(?:io|i)n(?: of)? ?(\d{1,6})[>\]]", re.IGNORECASE)
_RESIDUE = re.compile(r"\breg(?:io|i)n ?\d+", re.IGNORECASE)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_DESCRIPTION = re.compile(rf"\s*{_MENTION.pattern}\s*:(.*)", re.IGNORECASE | re.DOTALL)

Told = list[tuple[str, str]]
"""Messages of a record, as (role, text)."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """One record of a file with its boxes."""

    name: str
    """Record id of its rejects."""
    number: str
    """Number that tells its samples from those of other records."""
    content: Any
    """The record as stored."""
    facts: ImageFacts
    """The boxes; ids are positions in `annotation`, those of rejected boxes left out."""
    num_regions: int
    """Length of `annotation`, rejected boxes included."""
    options: BuildOptions

    def row(self, position: int) -> int:
        """Return the row of the object at a position in `annotation`.

        Raises:
            BadRecord: unknown_object.
        """
        if not 0 <= position < self.num_regions:
            raise BadRecord("unknown_object", f"region {position + 1} of {self.num_regions}")
        if position not in self.facts.ids:
            raise BadRecord("unknown_object", f"region {position + 1} has no usable box")
        return self.facts.ids.index(position)

    def parts(
        self, text: str, row_of: Callable[[re.Match[str]], int] | None = None
    ) -> tuple[Part, ...]:
        """Return a text as parts.

        Args:
            text: A message or description.
            row_of: Returns the row of a mention; None takes its number, counted from 1.

        Raises:
            BadRecord: What is wrong with a mention; unsafe_text for a region that is named outside
                a tag.
        """
        made = mention_parts(text, _MENTION, row_of or (lambda found: self.row(int(found[1]) - 1)))
        for part in made:
            if part.text is not None and (found := _RESIDUE.search(part.text)):
                raise BadRecord("unsafe_text", f"{found.group()!a} outside a tag")
        return made

    def sample(self, task: str, turns: tuple[Turn, ...], number: int | None = None) -> Sample:
        """Return a sample of the record.

        Raises:
            BadRecord: It names no region, or more than the budget.
        """
        named = named_rows(*(turn.parts for turn in turns))
        if not named:
            raise BadRecord("unsupported", "names no region")
        if len(named) > self.options.max_objects:
            raise BadRecord(
                "too_many_regions", f"{len(named)} regions, budget {self.options.max_objects}"
            )
        full = self.number if number is None else f"{self.number}.{number}"
        return self.facts.sample(dataset=NAME, task=task, number=full, turns=turns)


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of the five files, their rejects, and the ledger last.

    Unit "image" is a record, "box" one of its annotations, "record" a question, conversation or
    description.

    Raises:
        SettingError: A file is not of its form.
    """
    counter = RecordCounter()
    for kind, make in _KINDS.items():
        own = RecordCounter()
        files = folders.matches(_file(kind))
        if len(files) != 1:
            raise SettingError(f"{_file(kind)}: want one such file, found {files}")
        guard = BoxGuard("xywh", source=files[0])
        for position, (name, content) in enumerate(stream_records(folders.path(files[0]))):
            try:
                record, lost = _record(name, f"{kind}.{position}", content, options, guard)
            except BadRecord as error:
                yield own.reject(name, error, "image")
                continue
            own.use("image")
            own.use("box", len(record.facts.objects))
            for number, problem in lost:
                yield own.reject(f"{name}/annotation/{number}", problem, "box")
            yield from make(record, own)
        guard.check()
        check_usable(
            own,
            files[0],
            wanted="file_name, width, height, annotation and conversations or description",
        )
        counter.add(own)
    yield counter.ledger()


def _file(kind: str) -> str:
    # the authors' list says osprey_conversations.json, the download osprey_conversation.json
    return f"osprey/osprey_{kind}{'*' if kind == 'conversation' else ''}.json"


def _record(
    name: str, number: str, content: Any, options: BuildOptions, guard: BoxGuard
) -> tuple[_Record, list[tuple[int, BadRecord]]]:
    file_name = get(content, "file_name")
    if not isinstance(file_name, str):
        raise BadRecord("malformed", f"file_name is {type(file_name).__name__}, not text")
    image_id = coco_id(file_name)
    width, height = (whole_number(get(content, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"image {image_id} is {width}x{height}")
    annotations = get(content, "annotation")
    if not isinstance(annotations, list):
        raise BadRecord("malformed", f"annotation is {type(annotations).__name__}, not a list")
    objects, ids, lost = [], [], []
    for position, annotation in enumerate(annotations):
        try:
            objects.append(_object(annotation, width, height, guard))
            ids.append(position)
        except BadRecord as error:
            lost.append((position, error))
    ref = COCO_TRAIN.ref(image_id, coco_uri(image_id), width, height)
    facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(ids))
    record = _Record(
        name=name,
        number=number,
        content=content,
        facts=facts,
        num_regions=len(annotations),
        options=options,
    )
    return record, lost


def _object(annotation: Any, width: int, height: int, guard: BoxGuard) -> Object:
    stored = annotation.get("bbox") if isinstance(annotation, dict) else None
    if stored is None:
        corners = segmentation_box(get(annotation, "segmentation"), width, height)
    else:
        values = four_numbers(stored, what="bbox")
        guard.look(values, width, height)
        corners = xywh_to_xyxy(values)
    names = (annotation.get(field) for field in ("category", "category_name"))
    label = next((name for name in names if isinstance(name, str)), UNNAMED)
    return Object(box=clean_box(corners, width, height), label=check_label(label))


def _told(record: _Record, counter: RecordCounter) -> Told | Reject:
    """Return the messages of a record, or the reject of all of them."""
    try:
        return read_turns(record.content)
    except BadRecord as error:
        return counter.reject(record.name, error)


def _pairs(record: _Record, counter: RecordCounter) -> Iterator[Sample | Reject]:
    """Yield the samples of short_form and part_level: one a question, with the limit."""
    told = _told(record, counter)
    if isinstance(told, Reject):
        yield told
        return
    for number in range(len(told) // 2):
        make = partial(_pair, record, number, told[2 * number][1], told[2 * number + 1][1])
        yield from counter.record(f"{record.name}/conversations/{2 * number}", make)


def _pair(record: _Record, number: int, asked: str, answer: str) -> list[Sample]:
    turns = conversation((*record.parts(asked), Part(LIMIT)), record.parts(answer))
    return [record.sample("region_qa", turns, number)]


def _conversation(record: _Record, counter: RecordCounter) -> Iterator[Sample | Reject]:
    """Yield the sample of a whole conversation."""

    def make() -> Iterator[Sample]:
        turns = tuple(Turn(role, record.parts(text)) for role, text in read_turns(record.content))
        yield record.sample("region_qa", turns)

    yield from counter.record(record.name, make)


def _positive_negative(record: _Record, counter: RecordCounter) -> Iterator[Sample | Reject]:
    """Yield the samples of lvis_positive_negative: the N-th mention is the N-th region."""
    told = _told(record, counter)
    if isinstance(told, Reject):
        yield told
        return
    counts = [len(_MENTION.findall(text)) for _, text in told[::2]]
    for number in range(len(told) // 2):
        make = partial(
            _yes_no, record, number, told[2 * number][1], told[2 * number + 1][1], counts
        )
        yield from counter.record(f"{record.name}/conversations/{2 * number}", make)


def _yes_no(
    record: _Record, number: int, asked: str, answer: str, counts: list[int]
) -> list[Sample]:
    if sum(counts) != record.num_regions:
        raise BadRecord("contradiction", f"{sum(counts)} mentions of {record.num_regions} regions")
    said = _YES_NO.match(answer)
    if said is None:
        raise BadRecord("bad_answer", f"{answer[:80]!a} says neither yes nor no")
    positions = iter(range(sum(counts[:number]), record.num_regions))
    parts = record.parts(asked, lambda _: record.row(next(positions)))
    task = "region_qa" if said[1].lower() == "yes" else "rejection"
    return [record.sample(task, conversation(parts, (Part(answer),)), number)]


def _descriptions(record: _Record, counter: RecordCounter) -> Iterator[Sample | Reject]:
    """Yield samples of detail_description, up to `region_texts` drawn from the good ones."""
    listed = record.content.get("description")
    if not isinstance(listed, list):
        error = BadRecord("malformed", f"description is {type(listed).__name__}, not a list")
        yield counter.reject(record.name, error)
        return
    good: list[Sample] = []
    for number, stored in enumerate(listed):
        made = counter.record(
            f"{record.name}/description/{number}", partial(_description, record, number, stored)
        )
        for item in made:
            if isinstance(item, Reject):
                yield item
            else:
                good.append(item)
    limit = record.options.region_texts
    rng = random.Random(seed_of(record.options.seed, NAME, record.number))
    yield from (good[row] for row in sorted(rng.sample(range(len(good)), min(limit, len(good)))))


def _description(record: _Record, number: int, stored: Any) -> list[Sample]:
    found = _DESCRIPTION.fullmatch(stored) if isinstance(stored, str) else None
    if found is None:
        raise BadRecord("malformed", f"description {str(stored)[:80]!a} is not '<regionK>: text'")
    if int(found[1]) != number + 1:
        raise BadRecord("contradiction", f"description {number} says it is of region {found[1]}")
    row = record.row(number)
    seed = seed_of(record.options.seed, NAME, record.number, number)
    asked = question("region_detail", (row,), seed=seed, paraphrases=record.options.paraphrases)
    answer = record.parts(found[2].strip())
    return [record.sample("region_caption", conversation(asked, answer), number)]


_KINDS: dict[str, Callable[[_Record, RecordCounter], Iterator[Sample | Reject]]] = {
    "short_form": _pairs,
    "conversation": _conversation,
    "detail_description": _descriptions,
    "part_level": _pairs,
    "lvis_positive_negative": _positive_negative,
}

DATASETS = (
    DatasetSpec(
        name=NAME,
        images=(COCO_TRAIN,),
        build=build,
        files=tuple(_file(kind) for kind in _KINDS),
        tasks=("region_qa", "region_caption", "rejection"),
        stages=(2,),
        licence="CC BY-NC 4.0; images under their own Flickr licences",
        source="https://huggingface.co/datasets/AntGroup-MI/Osprey-724K",
        layout=(
            "osprey/osprey_short_form.json               questions about regions, short answers\n"
            "osprey/osprey_conversation.json             conversations about regions\n"
            "osprey/osprey_detail_description.json       a description a region\n"
            "osprey/osprey_part_level.json               questions about parts of objects\n"
            "osprey/osprey_lvis_positive_negative.json   yes or no: is the region this?\n"
            "coco/train2017/                             images of COCO, by file_name"
        ),
        num_samples=724_000,
    ),
)
