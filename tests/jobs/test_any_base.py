"""Recipes over a small folder of every family: sizes are read from the folder, and it trains."""

from pathlib import Path

import pytest

from fo1_model.vlms import VLM_FAMILIES
from jobs.command.command_line import main
from tests.fo1_model.small_published import write_florence, write_small_vlm

WORDS = ["stage1", "size=debug", "detector=ground_truth_jitter", "proposals=4"]
WORDS += ["steps=2", "batch_size=2", "validate_every=0"]


@pytest.mark.parametrize("family", sorted(VLM_FAMILIES))
def test_a_folder_of_any_family_can_be_planned(family, drawn_world, tmp_path, capsys):
    write_small_vlm(family, tmp_path / "vlm")
    given = [f"vlm={tmp_path / 'vlm'}", "--root", str(tmp_path / "root")]
    assert main(["plan", *WORDS, *given, "--data", str(drawn_world)]) == 0
    said = capsys.readouterr().out
    assert "runs/stage1" in said
    assert not Path(tmp_path, "root", "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5", "internvl"])
def test_a_folder_of_another_family_goes_through_the_chain(family, drawn_world, tmp_path, capsys):
    write_small_vlm(family, tmp_path / "vlm")
    write_florence(tmp_path / "florence")
    given = [f"vlm={tmp_path / 'vlm'}", f"auxiliary={tmp_path / 'florence'}"]
    flags = ["--root", str(tmp_path / "root"), "--data", str(drawn_world), "--workers", "0"]
    assert main(["run", *WORDS, *given, *flags]) == 0
    assert "report: " in capsys.readouterr().out
