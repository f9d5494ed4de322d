"""Arrays of big JSON files, one element at a time: memory holds one chunk and one element, whatever the size.

Python's own decoder reads each element, so values are those of `json.load`, NaN and Infinity included.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 20
MAX_VALUE_CHARS = 1 << 28
"""Longest single value, 256 MB: a file broken in its middle fails here, not when memory is full."""
_BLANKS = re.compile(r"[ \t\n\r]*")
_REST_OF_NUMBER = re.compile(r"[0-9.eE+-]*\Z")
_DECODER = json.JSONDecoder()


def stream_array(path: Path, key: str | None) -> Iterator[Any]:
    """Yield the elements of one array of a JSON file; nothing when it is not there.

    key: of the file's outermost object, or None for a file that is one array. What follows the array in the
    file is not read. Raises ValueError naming a file that is not JSON.
    """
    with path.open("rb") as stream:
        text = _Text(stream)
        try:
            opening = text.take()
            if opening == "{" and key is not None:
                yield from _member(text, key)
            elif opening == "[":
                yield from (value for value in _array(text) if key is None)
            elif opening != "{":
                raise ValueError("it holds neither an object nor an array")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name} is not valid JSON: {error}") from error


def _member(text: "_Text", key: str) -> Iterator[Any]:
    """Walk through the outermost object as far as the array of this name, and yield its elements."""
    mark = text.take() if text.peek() == "}" else ","
    while mark == ",":
        name = text.value()
        if not isinstance(name, str) or text.take() != ":":
            raise ValueError("an object has something else than names and values")
        if text.peek() != "[":
            text.value()
        elif name == key:
            text.take()
            yield from _array(text)
            return
        else:
            text.take()
            for _ in _array(text):
                pass
        mark = text.take()
    if mark != "}":
        raise ValueError(f"{mark!r} in place of a comma or a closing brace")


def _array(text: "_Text") -> Iterator[Any]:
    mark = text.take() if text.peek() == "]" else ","
    while mark == ",":
        yield text.value()
        mark = text.take()
    if mark != "]":
        raise ValueError(f"{mark!r} in place of a comma or a closing bracket")


class _Text:
    """A cursor over the text of a file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _more(self) -> bool:
        """Read on, dropping what lies behind the cursor; False at the end of the file."""
        if self._ended:
            return False
        if len(self._text) - self._at > MAX_VALUE_CHARS:
            raise ValueError(f"a value is longer than {MAX_VALUE_CHARS} characters")
        # twice as much each time for a long value, so that reading it again from its start stays cheap
        chunk = self._stream.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._ended = not chunk
        self._text = self._text[self._at :] + self._decode.decode(chunk, final=self._ended)
        self._at = 0
        return True

    def peek(self) -> str:
        """Return the next character that is not blank, and stay before it; nothing at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self) -> str:
        """Return the next character that is not blank, and move past it."""
        mark = self.peek()
        self._at += len(mark)
        return mark

    def value(self) -> Any:
        """Return the next value and move past it."""
        while True:
            self.peek()
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # "1.", cut from 1.5, reads as 1: a number at the end of the text may go on in the next chunk
            if not _REST_OF_NUMBER.match(self._text, end) or not self._more():
                self._at = end
                return value
