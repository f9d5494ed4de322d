"""Conversations in LLaVA's form: ``{id, image, conversations: [{from: human | gpt, value}]}``.

Source of the form: https://github.com/haotian-liu/LLaVA (docs/Finetune_Custom_Data.md); ShareGPT4V,
Osprey, Visual-CoT and MDVP write the same.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.errors import SettingError
from dataset_builders.images import check_uri
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Part, Turn

IMAGE_MARKER = "<image>"
"""Stands in the first message of the user, before or behind its text, where the image is shown."""
_ROLE = {"human": "user", "gpt": "assistant"}
_LINE_END = re.compile(r"\r\n?")


def stream_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (record id, record) for each element of a file that is one array; ids count from 0.

    Raises:
        SettingError: The file is not JSON, or holds no array with records.
    """
    position = -1
    for position, record in enumerate(stream_array(path, None)):
        yield f"{path.name}/{position}", record
    if position < 0:
        raise SettingError(f"{path.name} holds no array of records")


def check_usable(counter: RecordCounter, file: str, *, wanted: str) -> None:
    """Raise when nothing of a file could be used: it is of another form, or another split.

    Records that are left out for another reason, such as images that are not there, are no sign of
    that.

    Args:
        counter: Counts of this file alone.
        file: Name of the file, for the message.
        wanted: Fields that its records should have, for the message.

    Raises:
        SettingError: No record was used, and all were malformed or of a benchmark.
    """
    ledger = counter.ledger()
    if not sum(ledger.used.values()) and set(counter.reasons) <= {"malformed", "benchmark_image"}:
        count = sum(ledger.read.values())
        raise SettingError(
            f"{file}: none of its {count} records could be used; each should have {wanted}"
        )


def read_turns(record: Any) -> list[tuple[str, str]]:
    """Return (role, text) for each message: "user" and "assistant" in alternation.

    The image marker is taken away where it opens or closes the user's first message; anywhere else
    it stays in the text, which `check_text` then rejects. Blanks around a message are dropped, line
    ends are a line feed; all else is as stored, and not yet checked.

    Raises:
        BadRecord: The reason is malformed for a message that is no text, a field that is missing or
            roles that do not alternate; several_images for more than one marker; empty_text for a
            message without text.
    """
    stored = get(record, "conversations")
    if not isinstance(stored, list) or not stored or len(stored) % 2:
        raise BadRecord(
            "malformed", f"conversations is {_show(stored)}, not a list of question and answer"
        )
    turns = []
    for number, message in enumerate(stored):
        role, value = get(message, "from"), get(message, "value")
        wanted = ("human", "gpt")[number % 2]
        if role != wanted:
            raise BadRecord(
                "malformed", f"message {number} is from {_show(role)}, not from {wanted!r}"
            )
        turns.append((_ROLE[wanted], message_text(value, what=f"message {number}")))
    if (count := sum(text.count(IMAGE_MARKER) for role, text in turns if role == "user")) > 1:
        raise BadRecord("several_images", f"{count} image markers")
    first = turns[0][1]
    turns[0] = ("user", first.removeprefix(IMAGE_MARKER).removesuffix(IMAGE_MARKER).strip())
    for number, (_, text) in enumerate(turns):
        if not text:
            raise BadRecord("empty_text", f"message {number} has no text")
    return turns


def message_text(stored: Any, *, what: str) -> str:
    """Return a message without blanks around it and with line feeds for line ends, not yet checked.

    Raises:
        BadRecord: The reason is malformed: it is no text.
    """
    if not isinstance(stored, str):
        raise BadRecord("malformed", f"{what} is {type(stored).__name__}, not text")
    return _LINE_END.sub("\n", stored).strip()


def read_image(record: Any) -> str | None:
    """Return the path of the record's image, as stored; None for a conversation without one.

    Raises:
        BadRecord: The reason is malformed, several_images or unsafe_path.
    """
    stored = record.get("image") if isinstance(record, dict) else get(record, "image")
    if stored is None:
        return None
    if isinstance(stored, list) and len(stored) != 1:
        raise BadRecord(
            "several_images" if stored else "malformed", f"image is a list of {len(stored)}"
        )
    path = stored[0] if isinstance(stored, list) else stored
    if not isinstance(path, str):
        raise BadRecord("malformed", f"image is {type(path).__name__}, not a path")
    return check_uri(path)


def text_turns(turns: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    """Return messages that name no region as turns."""
    return tuple(Turn(role, (Part(text),)) for role, text in turns)


def _show(value: Any) -> str:
    return f"{str(value)[:80]!r}" if isinstance(value, str | int | float) else type(value).__name__
