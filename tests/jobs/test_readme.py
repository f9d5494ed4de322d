"""The tables of ``jobs/README.md`` are those of the code, and its examples run."""

import re
import shlex
import textwrap

import pytest

from jobs import mixes
from jobs.command.command_line import main
from jobs.command.flags import FLAGS
from jobs.command.verbs import VERBS, sent_verbs
from jobs.mixes import parse_mix
from jobs.recipes.catalogue import RECIPES
from tests import ROOT

README = (ROOT / "jobs" / "README.md").read_text()


def after(mark: str) -> str:
    """What follows a mark: a table, a block of code or a line."""
    return README.split(f"<!-- {mark} -->\n")[1].split("\n\n")[0]


def table(mark: str) -> list[list[str]]:
    rows = after(mark).splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def block(mark: str) -> str:
    text = README.split(f"<!-- {mark} -->\n")[1]
    return re.match(r"```\w*\n(.*?)```", text, re.DOTALL)[1]


def test_verbs():
    assert table("verbs") == [
        [
            f"`{verb.name}`",
            verb.summary,
            " ".join(f"`{FLAGS[name].name}`" for name in verb.flags) or "-",
        ]
        for verb in VERBS.values()
    ]


def test_recipes():
    assert table("recipes") == [
        [f"`{name}`", recipe.__doc__.splitlines()[0]] for name, recipe in RECIPES.items()
    ]


def test_sent_verbs():
    assert tuple(re.findall(r"`(\w+)`", after("sent"))) == sent_verbs()


def test_the_grammar_is_that_of_the_module():
    names = [line.split("=")[0].strip() for line in block("mixes").splitlines() if "  =  " in line]
    own = textwrap.dedent(mixes.__doc__.split("\n\n")[1])
    assert names == [line.split("=")[0].strip() for line in own.splitlines() if "  =  " in line]


@pytest.mark.parametrize("row", table("mix examples"), ids=lambda row: row[0])
def test_mix_examples(row):
    assert parse_mix(row[0].strip("`"))


def test_a_recipe_of_one_s_own(tmp_path, monkeypatch, drawn_world, capsys):
    (tmp_path / "my_recipes.py").write_text(block("own recipe: my_recipes.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--root", str(tmp_path / "root"), "--data", str(drawn_world), "--workers", "0"]
    for line in block("own recipe: commands").splitlines():
        words = shlex.split(line)
        assert words[:2] == ["PYTHONPATH=.", "fo1"]
        assert main([*words[2:], *flags]) == 0
    shown = capsys.readouterr().out
    assert "Factor of the weight of counting." in shown
    assert "fo1 build my_recipes:counting share=3" in shown
    assert (tmp_path / "root" / "samples" / "drawn_train").is_dir()
