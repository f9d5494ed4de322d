"""What ``--help`` shows: of the command, of each verb, of each recipe."""

import re
from dataclasses import fields

import pytest

from fo1_model.config import RegionConfig
from jobs.command.command_line import main
from jobs.command.flags import FLAGS, SHOWN
from jobs.command.verbs import VERBS
from jobs.recipes.argument_help import argument_table, meaning_of
from jobs.recipes.arguments import arguments_of
from jobs.recipes.catalogue import RECIPES
from jobs.recipes.settings import SETTINGS


def shown(words: list[str], capsys) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_alone_it_shows_the_help(capsys):
    text = shown([], capsys)
    assert text == shown(["--help"], capsys) == shown(["-h"], capsys)
    for verb in VERBS.values():
        assert re.search(rf"^  {verb.name} ", text, re.MULTILINE)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_shows_its_words_flags_and_examples_and_no_others(name, capsys):
    verb, text = VERBS[name], shown([name, "--help"], capsys)
    for form in verb.forms:
        assert f"fo1 {name} {form.words}" in text
    for example in verb.examples:
        assert example in text
    listed = set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    assert listed == {FLAGS[flag].name for flag in (*verb.flags, *SHOWN)}


def test_helps_differ():
    from jobs.command.help import help_text

    texts = {help_text([name]) for name in VERBS}
    assert len(texts) == len(VERBS)
    assert help_text(["train", "stage2"]) != help_text(["train", "stage1"])


def test_evaluate_covers_both_forms(capsys):
    text = shown(["evaluate", "--help"], capsys)
    for word in ("RECIPE", "BENCHMARK", "checkpoint", "constraint", "drawn_refs_val", "stage2"):
        assert word in text
    of_benchmark = shown(["evaluate", "drawn_val", "--help"], capsys)
    assert "checkpoint" in of_benchmark
    assert "learning_rate" not in of_benchmark
    assert "learning_rate" in shown(["evaluate", "stage2", "--help"], capsys)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_recipe_shows_every_argument(verb, name, capsys):
    text = shown([verb, name, "--help"], capsys)
    for argument in arguments_of(RECIPES[name]):
        assert re.search(rf"^  {argument} ", text, re.MULTILINE), argument


@pytest.mark.parametrize("name", RECIPES)
def test_every_argument_means_something(name):
    for argument in arguments_of(RECIPES[name]).values():
        meaning = meaning_of(argument)
        assert meaning.endswith("."), argument.name
        assert len(meaning.split()) > 2


def row(text: str, argument: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(f"  {argument} "))


def test_values_are_those_of_the_size_and_of_the_words(capsys):
    text = shown(["train", "stage2", "size=debug", "batch_size=7", "--help"], capsys)
    assert "at size=debug" in text
    settings = SETTINGS["debug"]
    assert row(text, "steps")[-1] == str(settings.stage2.config.steps)
    assert row(text, "stage1_learning_rate")[-1] == f"{settings.stage1.config.learning_rate:g}"
    assert row(text, "stage1_mix")[-1] == "drawn_stage1"
    assert row(text, "detector")[-1] == "ground_truth_jitter"
    assert row(text, "batch_size")[-1] == "7"
    assert row(text, "mix")[1:3] == ["text", "none"]
    assert row(text, "pyramid")[1:] == ["true|false", "true", "true"]
    assert "at size=tiny" in shown(["plan", "stage2", "--help"], capsys)


def test_groups_stand_under_their_headings(capsys):
    text = shown(["train", "stage1", "--help"], capsys)
    places = [text.index(f"\n{name}:\n") for name in ("data", "model", "training", "evaluation")]
    assert places == sorted(places)
    data, model, training, evaluation = (text[place:] for place in places)
    assert "\n  detector " in data.split("\nmodel:")[0]
    assert "\n  pyramid " in model.split("\ntraining:")[0]
    assert "\n  seed " in training.split("\nevaluation:")[0]
    assert "\n  keep_best " in evaluation


def test_the_meaning_is_that_of_the_field_in_which_an_argument_ends():
    argument = arguments_of(RECIPES["stage1"])["region_features"]
    assert argument.field.config is RegionConfig
    assert argument.default == next(f.default for f in fields(RegionConfig) if f.name == "features")


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_table_keeps_to_the_terminal(width):
    for recipe in RECIPES.values():
        lines = argument_table(recipe, width=width, values={"mix": "x"}, column="here").splitlines()
        longest = 2 + 4 * 28  # four cells of at most 26 columns; below them the meaning wraps
        assert max(map(len, lines)) <= max(width, longest)
        meanings = [line for line in lines if line.startswith("      ")]
        assert all(len(line) <= max(width, 40) for line in meanings)


def documented(*, first: int = 1, second: str = "a") -> None:
    """Stand for a recipe of one's own.

    Args:
        first: Number of things. A second sentence is left out.
        second: Name that is so long that it has to go on
            in another line.
    """


def test_a_recipe_of_one_s_own_is_documented_by_its_docstring():
    found = {name: meaning_of(a) for name, a in arguments_of(documented).items()}
    assert found == {
        "first": "Number of things.",
        "second": "Name that is so long that it has to go on in another line.",
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["proposals", "diff", "--help"], "Images on the page"),
        (["experiment", "ablations", "--help"], "primary_vit"),
        (["predict", "--help"], "query"),
        (["export", "--help"], "layout"),
        (["import-release", "--help"], "dtype"),
        (["submit", "--help"], "--no-wait"),
        (["submit", "--address", "http://h:1", "--help"], "--no-wait"),
        (["inspect", "stage1", "dataset=coco", "--help"], "learning_rate"),
        (["list", "--help"], "datasets NAME"),
        (["--root", "x", "plan", "stage1", "--help"], "learning_rate"),
    ],
)
def test_other_verbs_are_as_complete(words, expected, capsys):
    assert expected in shown(words, capsys)
