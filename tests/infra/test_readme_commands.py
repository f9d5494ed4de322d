"""What the READMEs tell people to type is understood, and their links lead somewhere."""

import importlib.util
import re
import shlex

import pytest

from jobs.benchmarks import BENCHMARKS
from jobs.chain.checks import check_names
from jobs.command.command_line import parse
from jobs.experiment import EXPERIMENTS
from jobs.recipes.catalogue import named_recipe
from jobs.submit import recipes_of
from pipelines.errors import SettingError
from tests import ROOT

READMES = ["README.md", "infra/README.md"]
READMES += [f"{name}/README.md" for name in ("dataset_builders", "fo1_model", "pipelines", "jobs")]
BY_RECIPE = ("plan", "build", "propose", "shard", "inspect", "train", "evaluate", "run")
MAX_README_LINES = 220


STARTS = (".venv/bin/fo1", "fo1", ".venv/bin/python", "python")
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """Commands of the fenced blocks of a README: ``fo1`` and ``python`` ones, as their words."""
    found: list[list[str]] = []
    for language, block in BLOCKS.findall((ROOT / name).read_text()):
        if language not in ("", "bash"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"(\w+=\S* +)*(\.venv/bin/)?(fo1|python) ", line):
                continue  # a diagram, or a script of the shell
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&>")
            lexer.whitespace_split = True
            parts: list[list[str]] = [[]]
            for word in lexer:
                parts.append([]) if set(word) <= set("|&>") else parts[-1].append(word)
            for words in parts:
                start = next((i for i, word in enumerate(words) if word in STARTS), None)
                found += [words[start:]] if start is not None else []
    return found


COMMANDS = [pytest.param(words, id=" ".join(words)) for name in READMES for words in commands(name)]


def test_there_are_commands():
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_understood(words):
    if words[0].endswith("python"):
        assert words[1] == "-m" or (ROOT / words[1]).is_file()
        assert words[1] != "-m" or importlib.util.find_spec(words[2])
        return
    command = parse([word for word in words[1:] if word != "--help"])
    verb, own = command.verb.name, command.words
    if verb == "submit":
        command = parse(own)
        verb, own = command.verb.name, command.words
    if "my_recipes:counting" in own:
        return  # the module of an example, which a test of jobs writes and runs
    if verb in BY_RECIPE and own[0] not in BENCHMARKS and own[0] != "tiny_base":
        asked = [word for word in own if not (verb == "inspect" and word.startswith("dataset="))]
        try:
            check_names(named_recipe(asked))
        except SettingError as error:  # understood; weights are not on this machine
            if "hf download" not in str(error) and "=FOLDER: there is no such" not in str(error):
                raise
    elif verb == "experiment":
        assert own[0] in EXPERIMENTS
        for recipe in recipes_of(verb, own):
            named_recipe(recipe)


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / name).read_text()):
        assert "://" in target or (folder / target).exists(), f"{name} links to {target}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES
