"""CogVLM-SFT-311K: an image and a JSON file each, in three folders; English, Chinese or both.

A label file holds ``{"captions": [{"role": "caption", "content"}]}`` (caption) or
``{"conversations": [{"role": "user" | "assistant", "content"}]}`` (instruction). Folders
``labels*`` of two languages share the images of ``images/``.

Source: THUDM/CogVLM dataset.md.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import folder_source
from dataset_builders.readers.conversations import message_text, text_turns
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import ROLES, BadRecord, ImageRef, Part, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.prompts import conversation, question

MAX_FILE_BYTES = 8 * 2**20
"""Longest label file; real ones have a few kB."""
FOLDERS = (
    "cogvlm_sft/llava_details-minigpt4_3500_formate",
    "cogvlm_sft/llava_instruction_multi_conversations_formate",
    "cogvlm_sft/llava_instruction_single_conversation_formate",
)
COGVLM_IMAGES = folder_source(
    "cogvlm_sft", *(f"{folder}/images" for folder in FOLDERS), num_buckets=128
)
_LABELS = tuple(f"{folder}/labels*/*.json" for folder in FOLDERS)


def build(
    folders: DataFolders, options: BuildOptions, *, dataset: str = "cogvlm_sft"
) -> Iterator[Item]:
    """Yield one sample a caption or conversation, the rejects, and the ledger last.

    Raises:
        SettingError: None of the label files is of this form.
    """
    counter = RecordCounter()
    for pattern in _LABELS:
        for name in folders.matches(pattern):

            def make(name: str = name) -> list[Sample]:
                return _samples(folders, name, options, dataset)

            yield from counter.record(name.partition("/")[2], make)
    yield counter.ledger()


def _samples(folders: DataFolders, name: str, options: BuildOptions, dataset: str) -> list[Sample]:
    """Return the samples of a label file.

    Raises:
        BadRecord: malformed, or what the image or a text lacks.
    """
    record = _load(folders, name)
    place = PurePosixPath(name)
    uri = f"{place.parent.parent}/images/{place.stem}.jpg"
    labels = place.parent.name  # part of the number: labels in two languages share an image
    if "conversations" in record:
        messages = read_messages(record["conversations"])
        facts = ImageFacts(ref=COGVLM_IMAGES.open(folders, uri))
        turns = text_turns(messages)
        return [facts.sample(dataset=dataset, task="instruction", number=labels, turns=turns)]
    stored = get(record, "captions")
    if not isinstance(stored, list) or not stored:
        raise BadRecord("malformed", f"captions is {type(stored).__name__}, not a list of captions")
    ref = COGVLM_IMAGES.open(folders, uri)
    return [
        _caption(ref, caption, f"{labels}-{number}", options, dataset)
        for number, caption in enumerate(stored)
    ]


def read_messages(stored: Any) -> list[tuple[str, str]]:
    """Return (role, text) for each message: "user" and "assistant" in alternation.

    Raises:
        BadRecord: malformed, for a message that is no text or out of turn.
    """
    if not isinstance(stored, list) or not stored or len(stored) % 2:
        raise BadRecord(
            "malformed", "conversations is not a list of questions, each with its answer"
        )
    messages = []
    for number, message in enumerate(stored):
        role = get(message, "role")
        if role != ROLES[number % 2]:
            raise BadRecord("malformed", f"message {number} is from {str(role)[:80]!r}")
        messages.append((ROLES[number % 2], message_text(get(message, "content"), what="content")))
    return messages


def _caption(
    ref: ImageRef, stored: Any, number: str, options: BuildOptions, dataset: str
) -> Sample:
    if (role := get(stored, "role")) != "caption":
        raise BadRecord("malformed", f"a caption has the role {str(role)[:80]!r}")
    seed = seed_of(options.seed, dataset, ref.image_id, number)
    asked = question("caption_detail", "", seed=seed, paraphrases=options.paraphrases)
    turns = conversation(asked, (Part(message_text(get(stored, "content"), what="content")),))
    return ImageFacts(ref=ref).sample(dataset=dataset, task="caption", number=number, turns=turns)


def _load(folders: DataFolders, name: str) -> dict[str, Any]:
    path = folders.path(name)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadRecord("malformed", f"more than {MAX_FILE_BYTES} bytes")
    try:
        record = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadRecord("malformed", f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord("malformed", f"holds a {type(record).__name__}, not an object")
    return record


DATASETS = (
    DatasetSpec(
        name="cogvlm_sft",
        images=(COGVLM_IMAGES,),
        build=build,
        files=_LABELS,
        tasks=("caption", "instruction"),
        stages=(2,),
        licence="CC BY-NC 4.0, and OpenAI's terms",
        source="https://huggingface.co/datasets/THUDM/CogVLM-SFT-311K",
        layout="\n".join(
            f"{folder}/images/00000001.jpg, {folder}/labels*/00000001.json   {what}"
            for folder, what in zip(
                FOLDERS,
                ("captions", "conversations of several turns", "one question each"),
                strict=True,
            )
        ),
        num_samples=311_542,
    ),
)
