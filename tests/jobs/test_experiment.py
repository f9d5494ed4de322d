"""Several settings of a recipe, run over what they share, in one table."""

from pathlib import Path

import pytest

from jobs import experiment
from jobs.command.command_line import main
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.catalogue import RECIPES

WORDS = ["size=debug", "detector=ground_truth_jitter", "proposals=8", "steps=1", "stage1_steps=1"]
TWO = ("stage2", {"as it is": (), "primary tower trained": ("primary_vit=trained",)})


@pytest.mark.slow
def test_settings_share_what_they_have_in_common(tmp_path, drawn_world, monkeypatch, capsys):
    """The second setting differs in stage 2 alone: it makes one run and its answers, no more."""
    monkeypatch.setitem(experiment.EXPERIMENTS, "two", TWO)
    flags = ["--root", str(tmp_path / "root"), "--data", str(drawn_world), "--workers", "0"]
    assert main(["experiment", "two", *WORDS, "batch_size=4", *flags]) == 0
    output = capsys.readouterr().out
    first, second = output.split("(2/2) primary tower trained")
    made = [line.split("]")[1].split()[:2] for line in second.splitlines() if line.startswith("[")]
    assert made == [
        ["train", "stage2"],
        *(["evaluate", f"{name}/stage2"] for name in _benchmarks(first)),
    ]
    table = second.split("drawn_val\n")[1]
    assert table.index("as it is") < table.index("primary tower trained")
    page = Path(tmp_path, "root", "pages", "experiment-two.html").read_text()
    assert "primary tower trained" in page
    assert main(["experiment", "two", *WORDS, "batch_size=4", *flags]) == 0
    assert "[1/" not in capsys.readouterr().out, "all of it was done"
    assert main(["experiment", "two", *WORDS, "batch_size=4", *flags, "--force"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    anew = [" ".join(line.split("]")[1].split()[:2]) for line in lines]
    assert anew.count("build drawn_train") == 1, "what both share is made anew once"
    assert anew.count("train stage2") == 2


def _benchmarks(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if "evaluate " in line and "/stage2" in line]
    return [line.split("evaluate ")[1].split("/")[0] for line in lines]


@pytest.mark.parametrize("name", experiment.EXPERIMENTS)
def test_every_setting_is_one_that_the_recipe_takes(name):
    recipe, settings = experiment.EXPERIMENTS[name]
    assert len(
        {str(RECIPES[recipe](**parse_arguments(RECIPES[recipe], own))) for own in settings.values()}
    ) == len(settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one of ablations"),
        (["everything"], "unknown experiment 'everything'; known: ablations"),
        (["ablation"], "did you mean 'ablations'?"),
        (["ablations", "pyramid=true"], "argument 'pyramid' is given twice"),
        (["ablations", "stpes=3"], "did you mean 'steps'"),
    ],
)
def test_wrong_words_are_refused_before_any_work(words, message, tmp_path, drawn_world, capsys):
    flags = ["--root", str(tmp_path / "root"), "--data", str(drawn_world), "--workers", "0"]
    assert main(["experiment", *words, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "root").rglob("manifest.json"))
