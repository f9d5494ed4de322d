"""The README of pipelines says what the code has."""

import re

import pytest

from pipelines.artifacts import KINDS
from tests import ROOT

PACKAGE = ROOT / "pipelines"
README = (PACKAGE / "README.md").read_text()


def first_column(heading: str) -> list[str]:
    """Names in the first column of the first table under a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [re.match(r"\| `([^`]+)` \|", row)[1] for row in rows]


def test_every_room_is_in_the_table_once() -> None:
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(first_column("Rooms")) == sorted(rooms)


def test_the_kinds_of_artifacts_are_those_of_the_code_in_its_order() -> None:
    assert first_column("Artifacts") == list(KINDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", README))))
def test_files_that_it_names_exist(path: str) -> None:
    assert (PACKAGE / path).exists() or (ROOT / path).exists()


@pytest.mark.parametrize(
    ("name", "path"), re.findall(r"`(\w+)` (?:in|\()\s*`((?:\w+/)*\w+\.py)`", README)
)
def test_names_that_it_points_at_are_there(name: str, path: str) -> None:
    file = next(p for p in (PACKAGE / path, ROOT / path) if p.exists())
    assert re.search(rf"^(class {name}\b|{name}\b)", file.read_text(), re.MULTILINE)
