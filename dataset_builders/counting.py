"""Counting questions in TallyQA's form: questions with numbers for answers.

TallyQA has no boxes. Where a question asks for a category of a COCO file over the same images, and its boxes
agree exactly with the answer, it also names the objects; everywhere else it is the number alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builders import BuildOptions
from dataset_builders.coco_files import CocoFile, ImageFacts, read_coco
from dataset_builders.conventions import whole_number
from dataset_builders.json_files import stream_array
from dataset_builders.prompts import counted_answer, question, seed_of
from dataset_builders.records import BadRecord, Ledger, Reject, Sample, Turn, check_text, validate

MAX_ANSWER = 10_000
"""TallyQA's answers end at 15; anything beyond this is not a count."""
_ASKED = re.compile(
    r"how many (.+?)(?: are| is| do you see| can you see| can be seen)?(?: there)?"
    r"(?: in (?:the|this) (?:image|picture|photo))?\s*\?",
    re.IGNORECASE,
)
_IRREGULAR = {"person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "knife": "knives"}


def build(
    root: Path,
    options: BuildOptions,
    *,
    dataset: str,
    questions: str,
    instances: str,
    images: str,
    num_buckets: int,
) -> Iterator[Sample | Reject | Ledger]:
    """Yield one sample a question, the rejects, and the ledger last.

    questions, instances, images: TallyQA file, COCO file and picture folder relative to root.
    num_buckets: of the image source.
    Raises ValueError when a file is not of this form.
    """
    coco = read_coco(root / instances, images=images, num_buckets=num_buckets)
    yield from coco.rejects
    # by path: TallyQA offsets the ids of Visual Genome's images, its paths are right
    by_uri = {ref.image_uri: image_id for image_id, ref in coco.refs.items()}
    nouns = {noun: name for name in coco.categories for noun in (name.lower(), plural(name.lower()))}
    seen: set[int] = set()
    read = used = 0
    for position, record in enumerate(stream_array(root / questions, None)):
        read += 1
        try:
            sample = _sample(coco, by_uri, nouns, record, options, dataset, seen)
            validate(sample)
        except BadRecord as error:
            yield Reject.of(f"questions/{position}", error)
        else:
            used += 1
            yield sample
    if read == 0:
        raise ValueError(f"{Path(questions).name} holds no questions: TallyQA's files are one JSON list")
    yield coco.ledger(records_read=read, records_used=used)


def plural(noun: str) -> str:
    """Return the English plural of a category name by its last word. ours"""
    *before, last = noun.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return " ".join([*before, last])


def _sample(
    coco: CocoFile,
    by_uri: dict[str, int],
    nouns: dict[str, str],
    record: Any,
    options: BuildOptions,
    dataset: str,
    seen: set[int],
) -> Sample:
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise BadRecord("malformed", "not an object with an image path")
    number = whole_number(record.get("question_id"), what="question_id")
    if number in seen:
        raise BadRecord("duplicate_id", f"question {number}")
    seen.add(number)
    if record["image"] not in by_uri:
        raise BadRecord("unknown_image", f"image {record['image'][:200]!r}")
    text = " ".join(check_text(record.get("question"), what="question").split())
    answer = whole_number(record.get("answer"), what="answer")
    if not 0 <= answer <= MAX_ANSWER:
        raise BadRecord("bad_answer", f"{answer} is not a count")
    facts = coco.facts(by_uri[record["image"]])
    asked = _ASKED.fullmatch(text)
    name = nouns.get(asked[1].lower()) if asked else None
    rows = _agreeing_rows(facts, name, answer, coco.categories)
    wording = "counting_number" if rows is None else "counting_located"
    seed = seed_of(options.seed, dataset, number)
    turns = (
        Turn("user", question(wording, text, seed=seed, paraphrases=options.paraphrases)),
        Turn("assistant", counted_answer(answer, None if rows is None or name is None else (name, rows))),
    )
    return facts.sample(dataset=dataset, task="counting", number=number, turns=turns)


def _agreeing_rows(
    facts: ImageFacts, name: str | None, answer: int, categories: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Return the rows of all objects of a category when they are certain and as many as the answer says."""
    if name is None or name in facts.crowded():
        return None
    if answer == 0:
        return () if name in facts.absent(categories) else None
    rows = facts.present().get(name, ())
    return rows if len(rows) == answer else None
