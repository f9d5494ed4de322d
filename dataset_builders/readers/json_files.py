"""Arrays of big JSON files, one element at a time: memory holds one chunk and one element.

Python's own decoder reads each element, so values are those of `json.load`, NaN and Infinity
included.
"""

import codecs
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dataset_builders.errors import SettingError

CHUNK_BYTES = 1 << 20
"""Least number of bytes that are read at once."""
MAX_VALUE_CHARS = 1 << 28
"""Most characters of a single value, 256 MB: a file broken in its middle fails here, not when
memory is full."""
_BLANKS = re.compile(r"[ \t\n\r]*")
_REST_OF_NUMBER = re.compile(r"[0-9.eE+-]*\Z")
_DECODER = json.JSONDecoder()


def stream_array(path: Path, key: str | None) -> Iterator[Any]:
    """Yield the elements of one array of a JSON file; nothing when it is not there.

    What follows the array in the file is not read.

    Args:
        path: The file.
        key: Name of the array in the file's outermost object; None for a file that is one array.

    Raises:
        SettingError: The file is not JSON; the message names it.
    """
    with _opened(path) as text:
        opening = text.take()
        if opening == "{" and key is not None:
            for name in _members(text):
                if name == key and text.peek() == "[":
                    text.take()
                    yield from _array(text)
                    return
                _skip(text)
        elif opening == "[":
            yield from (value for value in _array(text) if key is None)
        elif opening != "{":
            raise _NotJSONError("it holds neither an object nor an array")


def stream_arrays(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for every element of the named arrays of a JSON object, in file order.

    Raises:
        SettingError: The file is not a JSON object; the message names it.
    """
    with _opened(path) as text:
        if text.take() != "{":
            raise _NotJSONError("it holds no object")
        for name in _members(text):
            if name in keys and text.peek() == "[":
                text.take()
                for value in _array(text):
                    yield name, value
            else:
                _skip(text)


def read_members(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """Return the named members of a JSON object, whole: for the small tables of a big file.

    Raises:
        SettingError: The file is not a JSON object; the message names it.
    """
    found: dict[str, Any] = {}
    with _opened(path) as text:
        if text.take() != "{":
            raise _NotJSONError("it holds no object")
        for name in _members(text):
            if name in keys:
                found[name] = text.value()
            else:
                _skip(text)
    return found


@contextmanager
def _opened(path: Path) -> Iterator["_Text"]:
    """Open a cursor over a file; what is wrong with its text becomes one error that names it."""
    with path.open("rb") as stream:
        try:
            yield _Text(stream)
        # not JSON, not UTF-8, a number of too many digits, too many brackets in each other
        except (ValueError, RecursionError) as error:
            raise SettingError(f"{path.name} is not valid JSON: {error}") from error


def _members(text: "_Text") -> Iterator[str]:
    """Yield the name of each member of an object that was opened; the caller reads its value."""
    mark = text.take() if text.peek() == "}" else ","
    while mark == ",":
        name = text.value()
        if not isinstance(name, str) or text.take() != ":":
            raise _NotJSONError("an object has something else than names and values")
        yield name
        mark = text.take()
    if mark != "}":
        raise _NotJSONError(f"{mark!r} in place of a comma or a closing brace")


def _skip(text: "_Text") -> None:
    """Move past a value; an array element by element, so that a long one is never held whole."""
    if text.peek() == "[":
        text.take()
        for _ in _array(text):
            pass
    else:
        text.value()


def _array(text: "_Text") -> Iterator[Any]:
    """Yield the elements of an array that was opened."""
    mark = text.take() if text.peek() == "]" else ","
    while mark == ",":
        yield text.value()
        mark = text.take()
    if mark != "]":
        raise _NotJSONError(f"{mark!r} in place of a comma or a closing bracket")


class _NotJSONError(ValueError):
    """Text that is not JSON, found by this module."""


class _Text:
    """A cursor over the text of a file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _more(self) -> bool:
        """Read on, dropping what lies behind the cursor; return False at the end of the file."""
        if self._ended:
            return False
        if len(self._text) - self._at > MAX_VALUE_CHARS:
            raise _NotJSONError(f"a value is longer than {MAX_VALUE_CHARS} characters")
        # twice as much each time for a long value: reading it again from its start stays cheap
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
            # "1.", cut from 1.5, reads as 1: a number at the end of the text may go on in the next
            # chunk
            if not _REST_OF_NUMBER.match(self._text, end) or not self._more():
                self._at = end
                return value
