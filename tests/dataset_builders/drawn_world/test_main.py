import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builders.drawn_world.__main__ import main


def test_the_command_draws_a_world_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for expected in ("written", "already there"):
        assert main([str(tmp_path / "w"), "--train", "2", "--val", "1", "--seed", "4"]) == 0
        captured = capsys.readouterr()
        assert expected in captured.out
    assert json.loads((tmp_path / "w" / "drawn.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--train", "-1"], "train=-1: want 0 to 999999 scenes"), (["--seed", "-3"], "seed=-3")],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], said: str
) -> None:
    assert main([str(tmp_path / "w"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "w").exists()


def test_the_package_is_a_command_and_says_what_it_writes() -> None:
    command = [sys.executable, "-m", "dataset_builders.drawn_world", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for word in (
        "DIR",
        "--train",
        "--val",
        "--seed",
        "COCO",
        "REFER",
        "TallyQA",
        "1200",
        "examples",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
