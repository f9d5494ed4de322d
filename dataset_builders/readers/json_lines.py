"""Files of one JSON value a line, read as bytes: memory holds one line, whatever the size."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builders.records import BadRecord

MAX_LINE_BYTES = 1 << 24
"""Longest line that is read, 16 MB; a longer one is a reject, not memory."""


def stream_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (record id, value) for each line that is not blank.

    The record id names file and line, counted from 1. In place of the value of a line that is too
    long or not JSON stands a BadRecord, to be rejected by the caller: `opened` raises it. NaN and
    Infinity are read, as `json.load` does.
    """
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            name = f"{path.name}/{number}"
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
                yield name, BadRecord("text_too_long", f"the line is over {MAX_LINE_BYTES} bytes")
            elif line.strip():
                yield name, _value(line)


def opened(value: Any) -> Any:
    """Return a value of `stream_lines`, or raise the BadRecord that stands in its place."""
    if isinstance(value, BadRecord):
        raise value
    return value


def _value(line: bytes) -> Any:
    """Return the value of a line, or why it has none."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadRecord("malformed", f"the line is not JSON: {type(error).__name__}")
