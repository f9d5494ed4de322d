"""Counting questions in TallyQA's form: questions with numbers for answers.

TallyQA has no boxes. Where a question asks for a category of a COCO file over the same images, and
its boxes agree exactly with the answer, it also names the objects; everywhere else it is the number
alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.names import plural
from dataset_builders.readers.coco_files import open_coco
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, ImageSource, Item
from dataset_builders.tasks.prompts import conversation, counted_answer, question
from dataset_builders.validation import check_text

MAX_ANSWER = 10_000
"""Largest answer: TallyQA's end at 15; anything beyond this is not a count."""
_ASKED = re.compile(
    r"how many (.+?)(?: are| is| do you see| can you see| can be seen)?(?: there)?"
    r"(?: in (?:the|this) (?:image|picture|photo))?\s*\?",
    re.IGNORECASE,
)


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    questions: str,
    instances: str,
    folder: str,
    source: ImageSource,
) -> Iterator[Item]:
    """Yield one sample a question, the rejects, and the ledger last.

    Args:
        folders: Where the datasets lie.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        questions: Name of TallyQA's file.
        instances: Name of the COCO file.
        folder: Folder of the images.
        source: What the images belong to.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    seen: set[int] = set()
    with open_coco(folders, file=instances, folder=folder, source=source) as coco:
        by_uri: dict[str, int] = {}
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
            else:
                counter.use("image")
                # TallyQA names its images by their path below the folder of all of them
                by_uri[item.facts.ref.image_uri.partition("/")[2]] = int(item.facts.ref.image_id)
        names = coco.names
        before = counter.num_read
        for position, record in enumerate(stream_array(folders.path(questions), None)):

            def make(record: Any = record) -> list[Sample]:
                asked = read_question(record, seen)
                image = get(record, "image")
                if not isinstance(image, str):
                    raise BadRecord("malformed", f"image is {type(image).__name__}, not a path")
                if image not in by_uri:
                    raise BadRecord("unknown_image", f"image {image[:200]!r}")
                facts = coco.image(by_uri[image]).facts
                return [question_sample(facts, names, *asked, options, dataset=dataset)]

            yield from counter.record(f"questions/{position}", make)
    if counter.num_read == before:
        raise SettingError(
            f"{Path(questions).name} holds no questions: TallyQA's files are one JSON list"
        )
    yield counter.ledger()


def read_question(record: Any, seen: set[int]) -> tuple[int, str, int]:
    """Return id, text and answer of a record of TallyQA.

    Args:
        record: The record as stored.
        seen: Ids read so far; that of the record is added.

    Raises:
        BadRecord: The reason is malformed, duplicate_id, bad_answer, or one of `check_text`.
    """
    number = whole_number(get(record, "question_id"), what="question_id")
    if number in seen:
        raise BadRecord("duplicate_id", f"question {number}")
    seen.add(number)
    text = " ".join(check_text(get(record, "question"), what="question").split())
    answer = whole_number(get(record, "answer"), what="answer")
    if not 0 <= answer <= MAX_ANSWER:
        raise BadRecord("bad_answer", f"{answer} is not a count")
    return number, text, answer


def question_sample(
    facts: ImageFacts,
    categories: tuple[str, ...],
    number: int,
    text: str,
    answer: int,
    options: BuildOptions,
    *,
    dataset: str,
) -> Sample:
    """Return the sample of one question.

    The objects are named where they are certain and agree with the answer.

    Args:
        facts: What is known of the image.
        categories: Names that are annotated exhaustively on the image; empty where nothing is
            known.
        number: Id of the question.
        text: The question.
        answer: The number.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
    """
    asked = _ASKED.fullmatch(text)
    nouns = {noun: name for name in categories for noun in (name.lower(), plural(name.lower()))}
    name = nouns.get(asked[1].lower()) if asked else None
    rows = _agreeing_rows(facts, name, answer, categories)
    wording = "counting_number" if rows is None else "counting_located"
    seed = seed_of(options.seed, dataset, number)
    located = None if rows is None or name is None else (name, rows)
    turns = conversation(
        question(wording, text, seed=seed, paraphrases=options.paraphrases),
        counted_answer(answer, located),
    )
    return facts.sample(dataset=dataset, task="counting", number=number, turns=turns)


def _agreeing_rows(
    facts: ImageFacts, name: str | None, answer: int, categories: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Return the rows of all objects of a category when they are certain and fit the answer."""
    if name is None or name in facts.crowded():
        return None
    if answer == 0:
        return () if name in facts.absent(categories) else None
    rows = facts.present().get(name, ())
    return rows if len(rows) == answer else None
