"""The table of detectors in the package's README names what `DETECTORS` and the command name."""

import itertools
import re

import pytest

from fo1_model.detectors import DETECTORS, UnionConfig
from jobs.detector_arguments import describe_detectors
from tests import ROOT

README = ROOT / "fo1_model/README.md"
MARK = "<!-- detectors -->"

Named = dict[str, set[bool]]
"""Name of a detector -> the ways to write it: with a source behind a colon, without one."""


def table_after(text: str, mark: str) -> list[list[str]]:
    """Cells of the rows of the table that follows a mark, its header left out."""
    _, *found = text.split(mark)
    assert len(found) == 1, f"{mark} stands once before the table"
    lines = [line.strip() for line in found[0].strip().splitlines()]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    assert len(rows) > 2, "the table follows its mark"
    # A bar inside a cell is written \|.
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def named_in_table(text: str) -> Named:
    named: Named = {}
    for first, *_ in table_after(text, MARK):
        for word in re.findall(r"`([^`]+)`", first):
            name, colon, _ = word.partition(":")
            named.setdefault(name, set()).add(bool(colon))
    return named


def named_by_command() -> Named:
    """From `fo1 list detectors`: NAME:SOURCE, NAME[:SOURCE] where none is needed, or NAME."""
    named: Named = {}
    for line in describe_detectors():
        word = line.split()[0]
        name = re.split(r"\[?:", word)[0]
        named[name] = {True, False} if "[:" in word else {":" in word}
    return named


def test_the_table_is_that_of_the_code_and_the_command() -> None:
    found = named_in_table(README.read_text(encoding="utf-8"))
    assert found == named_by_command()
    # A union has no row: it is written A+B, with the names of its members.
    assert set(found) == {name for name, kind in DETECTORS.items() if kind is not UnionConfig}


def test_sources_are_what_the_configs_need() -> None:
    ways = {"run": {True, False}, "weights": {True}, "boxes": {True}}
    expected = {
        name: ways.get(kind.needs, {False})
        for name, kind in DETECTORS.items()
        if kind is not UnionConfig
    }
    assert named_in_table(README.read_text(encoding="utf-8")) == expected


def test_a_row_that_is_missing_or_left_over_is_seen() -> None:
    table = f"{MARK}\n\n| name | what |\n| --- | --- |\n| `a`, `a:RUN` | x \\| y |\n| `b:W` | |\n"
    assert named_in_table(table + "\nno row: `c`\n") == {"a": {True, False}, "b": {True}}
    with pytest.raises(AssertionError, match="stands once"):
        named_in_table("| `a` |")
    with pytest.raises(AssertionError, match="follows"):
        named_in_table(f"{MARK}\nwords\n{table.removeprefix(MARK)}")
