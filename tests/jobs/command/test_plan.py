"""``fo1 plan`` for a person and, with ``--json``, for a program."""

import json
import shlex

import pytest

from jobs.command.command_line import main
from jobs.command.plan import SOMETHING_TO_DO

WORDS = ["data", "mix=drawn_val*counting=2"]
KEYS = {"kind", "name", "fingerprint", "status", "path", "command"}


@pytest.fixture
def flags(tmp_path, drawn_world):
    return ["--root", str(tmp_path / "root"), "--data", str(drawn_world), "--workers", "0"]


def facts(words: list[str], status: int, capsys) -> dict:
    assert main(["plan", *words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_json_says_what_the_table_says(flags, capsys):
    found = facts([*WORDS, *flags], SOMETHING_TO_DO, capsys)
    assert found["recipe"] == {"name": "data", "words": WORDS}
    assert main(["plan", *WORDS, *flags]) == 0
    table = capsys.readouterr().out.splitlines()
    for item, line in zip(found["artifacts"], table, strict=False):
        assert item.keys() == KEYS
        assert line.split()[:3] == [
            item["status"],
            item["fingerprint"],
            f"{item['kind']}/{item['name']}",
        ]
        assert line.endswith(item["command"])
    kinds = [item["kind"] for item in found["artifacts"]]
    assert kinds == ["samples", "proposals", "shards"]
    notes = [line.removeprefix("note: ") for line in table if line.startswith("note: ")]
    assert found["notes"] == notes


def test_its_commands_make_what_is_missing(flags, capsys):
    """The words survive a shell: ``*`` in a mix would be a pattern there."""
    for item in facts([*WORDS, *flags], SOMETHING_TO_DO, capsys)["artifacts"]:
        assert main([*shlex.split(item["command"])[1:], *flags]) == 0
    capsys.readouterr()
    done = facts([*WORDS, *flags], 0, capsys)["artifacts"]
    assert {(item["status"], item["command"]) for item in done} == {("done", None)}


def test_json_holds_the_budget_of_the_mixes(flags, capsys):
    words = ["stage1", "size=debug", "detector=ground_truth_jitter", *flags]
    (budget,) = facts(words, SOMETHING_TO_DO, capsys)["budget"]
    assert (budget["training"], budget["steps"], budget["batch_size"]) == ("stage1", 4, 4)
    assert sum(item["drawn"] for item in budget["sources"]) == 16
    first = budget["sources"][0]
    assert (first["source"], first["available"]) == ("drawn_train/region_name", None)
    assert first["nominal"] is True


def test_nothing_but_json_on_standard_output(tmp_path, capsys):
    assert main(["plan", "stage1", "--json", "--data", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("fo1: ")
