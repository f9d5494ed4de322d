"""infra/README.md names every file of the folder, and of each benchmark the newest report."""

import re

from tests import ROOT

INFRA = ROOT / "infra"
TEXT = (INFRA / "README.md").read_text()
HELD_BY_OTHERS = {"train_variants.py"}
"""Modules that a benchmark imports."""


def test_every_script_and_manifest_is_named():
    named = set(re.findall(r"`([\w./-]+)`", TEXT))
    folders = {name for name in named if name.endswith("/")}
    for path in INFRA.rglob("*"):
        name = path.relative_to(INFRA).as_posix()
        if (
            path.is_dir()
            or name == "README.md"
            or name.startswith("benchmarks/")
            or path.suffix in (".png", ".pyc")
        ):
            continue
        assert name in named, f"infra/README.md does not name {name}"
    assert all((INFRA / folder).is_dir() for folder in folders)


def test_every_benchmark_has_a_row_with_its_newest_report():
    rows = re.findall(r"^\| `(\w+\.py)` \|.*?\[([\d-]+)\]\(([^)]+)\)", TEXT, re.MULTILINE)
    assert {script for script, *_ in rows} == {
        path.name for path in (INFRA / "benchmarks").glob("*.py")
    } - HELD_BY_OTHERS
    for script, date, path in rows:
        topic = script.removesuffix(".py").replace("_", "-")
        reports = sorted((INFRA / "benchmarks/reports").glob(f"????-??-??-{topic}.md"))
        assert reports[-1] == INFRA / path
        assert reports[-1].name.startswith(date)
