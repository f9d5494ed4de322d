"""VCR: questions about people and things of a film still, their answers, and why.

Files: ``train.jsonl``, a question a line, and stills with a JSON file beside each. A sentence is a
list of words and of lists of object numbers, counted from 0 (``question_orig`` and its like count
from 1 and are not read). Boxes and names stand in the file beside each image; they are a
detector's, with its score. Each question is a conversation: the question, the right answer, "Why?",
the right reason (region_qa, or instruction where no object is named).

Source: https://github.com/rowanz/r2c (dataloaders/vcr.py).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import folder_source
from dataset_builders.images import check_uri, safe_join
from dataset_builders.readers.coco_images import MAX_IMAGE_SIDE
from dataset_builders.readers.conversations import check_usable
from dataset_builders.readers.json_lines import opened, stream_lines
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.detokenise import detokenised
from dataset_builders.tasks.mentions import joined, named_rows
from dataset_builders.tasks.prompts import conversation
from dataset_builders.validation import check_label

NAME, FILE, FOLDER = "vcr", "vcr/train.jsonl", "vcr/vcr1images"
IMAGES = folder_source("vcr", FOLDER, num_buckets=128)
WHY = "Why?"
"""Asks for the reason: VCR's second task gives question and answer, and wants the rationale."""
NUM_CHOICES = 4
MAX_METADATA_BYTES = 1 << 24
"""Longest metadata file that is read: 16 MB."""


@dataclass(frozen=True)
class _Still:
    """An image with its boxes."""

    facts: ImageFacts
    """The boxes; ids are numbers of the metadata, those of rejected boxes left out."""
    names: tuple[str, ...]
    """Name of every box, rejected ones included."""


@dataclass
class _Stills:
    """Reads the metadata beside images.

    It keeps the last one, as the questions of an image stand together.
    """

    folders: DataFolders
    counter: RecordCounter
    guard: BoxGuard
    key: tuple[str, str] = ("", "")
    """Image and metadata file that `still` is of."""
    still: _Still | BadRecord = field(
        default_factory=lambda: BadRecord("malformed", "nothing read")
    )
    """The last image read, or why it could not be."""

    def read(self, image: str, metadata: str) -> Iterator[Reject]:
        """Read an image's boxes into `still`, if it is not there; yield their rejects."""
        if (image, metadata) == self.key:
            return
        self.key = (image, metadata)
        try:
            still, lost = _read_still(self.folders, image, metadata, self.guard)
        except BadRecord as error:
            self.still = error
            return
        self.still = still
        self.counter.use("box", len(still.facts.objects))
        for number, problem in lost:
            yield self.counter.reject(f"{metadata}/boxes/{number}", problem, "box")


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield a sample for each question, the rejects, and the ledger last.

    Unit "record" is a question; "box" is counted each time that a metadata file is read.

    Raises:
        SettingError: A file is not of its form.
    """
    counter, guard = RecordCounter(), BoxGuard("xyxy", source=FOLDER)
    stills = _Stills(folders, counter, guard)
    for name, value in stream_lines(folders.path(FILE)):
        try:
            record = opened(value)
            _check_split(record)
            image, metadata = (_path(record, key) for key in ("img_fn", "metadata_fn"))
            if PurePosixPath(image).with_suffix(".json").as_posix() != metadata:
                raise BadRecord(
                    "contradiction", f"metadata {metadata[:120]!a} of image {image[:120]!a}"
                )
        except BadRecord as error:
            yield counter.reject(name, error)
            continue
        yield from stills.read(image, metadata)
        number = name.rpartition("/")[2]
        make = partial(_sample, record, stills.still, number, options)
        yield from counter.record(name, lambda make=make: [make()])  # type: ignore[misc]
    guard.check()
    check_usable(
        counter,
        FILE,
        wanted="objects, img_fn, metadata_fn, question, answer_choices, answer_label, ...",
    )
    yield counter.ledger()


def _check_split(record: Any) -> None:
    number = get(record, "annot_id")
    if not isinstance(number, str) or not number.startswith("train-"):
        raise BadRecord(
            "benchmark_image", f"annot_id {str(number)[:60]!a} is not of the training split"
        )


def _path(record: Any, key: str) -> str:
    value = get(record, key)
    if not isinstance(value, str):
        raise BadRecord("malformed", f"{key} is {type(value).__name__}, not a path")
    return check_uri(value)


def _read_still(
    folders: DataFolders, image: str, metadata: str, guard: BoxGuard
) -> tuple[_Still, list[tuple[int, BadRecord]]]:
    content = _metadata(safe_join(folders.path(FOLDER), metadata))
    width, height = (whole_number(get(content, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise BadRecord("bad_size", f"{metadata}: {width}x{height}")
    boxes, names = get(content, "boxes"), get(content, "names")
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        raise BadRecord("malformed", f"{metadata}: boxes and names are not two lists of one length")
    objects, ids, lost = [], [], []
    for number, (stored, label) in enumerate(zip(boxes, names, strict=True)):
        try:
            corners = _corners(stored)
            guard.look(corners, width, height)
            objects.append(Object(box=clean_box(corners, width, height), label=check_label(label)))
            ids.append(number)
        except BadRecord as error:
            lost.append((number, error))
    uri = f"{FOLDER}/{image}"
    ref: ImageRef = IMAGES.ref(IMAGES.id_of(uri), uri, width, height)
    facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(ids))
    return _Still(facts, tuple(str(name) for name in names)), lost


def _metadata(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise BadRecord("text_too_long", f"{path.name}: over {MAX_METADATA_BYTES} bytes")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadRecord("missing_image", f"metadata {path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRecord):
            raise
        raise BadRecord("malformed", f"metadata {path.name} is not JSON") from error


def _corners(stored: Any) -> tuple[float, float, float, float]:
    """Return the corners of [x1, y1, x2, y2, score]."""
    if not isinstance(stored, list) or len(stored) != 5:
        raise BadRecord("malformed", f"box {str(stored)[:80]!r} is not four numbers and a score")
    *_, score = four_numbers(stored[1:], what="box")
    if not math.isfinite(score):
        raise BadRecord("malformed", f"box {str(stored)[:80]!r} has no score")
    return four_numbers(stored[:4], what="box")


def _sample(record: Any, still: _Still | BadRecord, number: str, options: BuildOptions) -> Sample:
    if isinstance(still, BadRecord):
        raise BadRecord("image_rejected", str(still))
    if get(record, "objects") != list(still.names):
        raise BadRecord("contradiction", "objects are not the names of the metadata")
    asked = _said(get(record, "question"), still, "question")
    answer = _said(_right(record, "answer"), still, "answer")
    reason = _said(_right(record, "rationale"), still, "rationale")
    named = named_rows(asked, answer, reason)
    if len(named) > options.max_objects:
        raise BadRecord(
            "too_many_regions", f"{len(named)} objects named, budget {options.max_objects}"
        )
    turns = (*conversation(asked, answer), *conversation((Part(WHY),), reason))
    # a few questions are about the scene alone
    task = "region_qa" if named else "instruction"
    return still.facts.sample(dataset=NAME, task=task, number=number, turns=turns)


def _right(record: Any, what: str) -> Any:
    choices = get(record, f"{what}_choices")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
        raise BadRecord("malformed", f"{what}_choices are not {NUM_CHOICES}")
    label = whole_number(get(record, f"{what}_label"), what=f"{what}_label")
    if not 0 <= label < NUM_CHOICES:
        raise BadRecord("bad_answer", f"{what}_label is {label}")
    return choices[label]


def _said(tokens: Any, still: _Still, what: str) -> tuple[Part, ...]:
    """Return a sentence as parts; a list of objects reads "A", "A and B" or "A, B and C"."""
    if not isinstance(tokens, list):
        raise BadRecord("malformed", f"{what} is {type(tokens).__name__}, not a list of tokens")
    words: list[str | int] = []
    for token in tokens:
        if isinstance(token, str):
            words.append(token)
            continue
        if not isinstance(token, list) or not token:
            raise BadRecord(
                "malformed", f"{str(token)[:80]!r} in {what} is no word and no list of objects"
            )
        for position, stored in enumerate(token):
            if position:
                words.append("and" if position == len(token) - 1 else ",")
            words.append(_row(stored, still, what))
    parts = joined(detokenised(words))
    if not parts:
        raise BadRecord("empty_text", f"{what} has no words")
    return parts


def _row(stored: Any, still: _Still, what: str) -> int:
    number = whole_number(stored, what=f"object number in {what}")
    if number not in still.facts.ids:
        state = "has no usable box" if 0 <= number < len(still.names) else f"of {len(still.names)}"
        raise BadRecord("unknown_object", f"{what} names object {number}, which {state}")
    return still.facts.ids.index(number)


DATASETS = (
    DatasetSpec(
        name=NAME,
        images=(IMAGES,),
        build=build,
        files=(FILE,),
        tasks=("region_qa", "instruction"),
        stages=(2,),
        licence="VCR's own, for non-commercial research; stills from films",
        source="https://visualcommonsense.com/download",
        layout=(
            f"{FILE}                      questions, one a line\n"
            f"{FOLDER}/MOVIE/CLIP.jpg    stills, by img_fn\n"
            f"{FOLDER}/MOVIE/CLIP.json   their boxes and names, by metadata_fn"
        ),
        num_samples=213_000,
    ),
)
