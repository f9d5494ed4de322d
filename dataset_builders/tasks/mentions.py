"""Regions that a text mentions by number: cut out of it, and put in as objects."""

import re
from collections.abc import Callable, Sequence

from dataset_builders.records import BadRecord, Part


def mention_parts(
    text: str, mention: re.Pattern[str], row_of: Callable[[re.Match[str]], int]
) -> tuple[Part, ...]:
    """Return a text as parts, a bare mention of an object for every match.

    Args:
        text: The text.
        mention: Pattern of a mention.
        row_of: Returns the row of `Sample.objects` that a match means; raises BadRecord when there
            is none.

    Raises:
        BadRecord: As `row_of` and `joined` raise it.
    """
    pieces: list[str | int] = []
    end = 0
    for found in mention.finditer(text):
        pieces += [text[end : found.start()], row_of(found)]
        end = found.end()
    return joined([*pieces, text[end:]])


def joined(pieces: Sequence[str | int]) -> tuple[Part, ...]:
    """Return texts and rows as parts, in their order.

    Rows with nothing but blanks between them become one mention of several objects.

    Raises:
        BadRecord: The reason is contradiction: one of them is repeated there.
    """
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, str) and piece.strip():
            parts.append(Part(piece))
        elif isinstance(piece, str) and "\n" in piece and parts:
            parts.append(Part("\n"))
        elif isinstance(piece, int) and parts and parts[-1].text is None:
            parts[-1] = Part(objects=(*parts[-1].objects, piece))
        elif isinstance(piece, int):
            parts.append(Part(objects=(piece,)))
    while parts and parts[-1].text == "\n":
        parts.pop()
    for part in parts:
        if len(set(part.objects)) != len(part.objects):
            raise BadRecord("contradiction", f"mentions an object twice in a row: {part.objects}")
    return tuple(parts)


def named_rows(*turns: Sequence[Part]) -> set[int]:
    """Return the rows that some parts name."""
    return {row for parts in turns for part in parts for row in part.objects}
