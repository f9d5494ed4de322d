"""The whole chain through the command, debug size, in this process; then what reads it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs.command.command_line import main

pytestmark = pytest.mark.slow
WORDS = [
    "stage2",
    "size=debug",
    "detector=ground_truth_jitter",
    "proposals=8",
    "steps=2",
    "stage1_steps=2",
]
WORDS += ["validate_every=2", "keep_best=max:validation/drawn_val.f1"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, drawn_world):
    root = tmp_path_factory.mktemp("chain") / "root"
    given = ["--root", str(root), "--data", str(drawn_world), "--workers", "0"]
    assert main(["run", *WORDS, "batch_size=4", *given]) == 0
    return given


def artifacts(flags, kind: str) -> list[Path]:
    return sorted(Path(flags[1], kind).rglob("manifest.json"))


def test_every_artifact_is_done_and_adds_up(flags, capsys):
    assert main(["plan", *WORDS, "batch_size=4", *flags]) == 0
    steps, *budgets = capsys.readouterr().out.split("\n\n")
    lines = steps.splitlines()
    assert len(budgets) == 2, "what each training's mix amounts to"
    assert not any("~" in line for table in budgets for line in table.splitlines()[1:])
    assert len(lines) > 15
    assert all(line.startswith("done ") for line in lines)
    for kind in ("samples", "proposals", "shards", "predictions"):
        for manifest in artifacts(flags, kind):
            ledger = json.loads(manifest.read_text())["ledger"]
            assert ledger["rows_in"] == ledger["rows_out"] + ledger["rejects"] > 0


def test_a_second_run_makes_nothing(flags, capsys):
    before = {
        path: path.stat().st_mtime_ns
        for kind in ("samples", "runs")
        for path in artifacts(flags, kind)
    }
    assert main(["run", *WORDS, "batch_size=4", *flags]) == 0
    assert "[1/" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_candidates_were_judged_beside_the_training(flags):
    (judged,) = Path(flags[1], "runs", "stage2").glob("*/validation.json")
    (figures,) = json.loads(judged.read_text())
    assert {"validation/loss", "validation/drawn_val.f1"} <= figures.keys()
    assert (judged.parent / "export" / "config.json").is_file()
    assert not (judged.parent / "candidates").exists()


def test_pages_show_pictures_and_tables(flags):
    pages = Path(flags[1], "pages")
    report = (pages / "stage2.html").read_text()
    assert "start" in report
    assert "drawn_val" in report
    assert "data:image" in report
    assert (pages / "inspect-drawn_train-proposals.html").read_text().count("data:image") > 5


def test_a_run_is_evaluated_with_another_detector_without_training(flags, capsys):
    runs = artifacts(flags, "runs")
    words = ["evaluate", "drawn_refs_val", "checkpoint=stage2", "detector=ground_truth", *flags]
    assert main(words) == 0
    assert "drawn_refs_val" in capsys.readouterr().out
    assert artifacts(flags, "runs") == runs
    caches = {path.parent.parent.name for path in artifacts(flags, "proposals")}
    assert caches == {"ground_truth_jitter", "ground_truth"}


def test_force_makes_the_answers_of_a_checkpoint_anew(flags, capsys):
    """Its own artifacts, and nothing that they are made from."""
    words = ["evaluate", "drawn_val", "checkpoint=stage2", "detector=ground_truth_jitter", *flags]
    assert main(words) == 0
    times = {
        path: path.stat().st_mtime_ns
        for kind in ("samples", "proposals", "shards", "runs", "predictions")
        for path in artifacts(flags, kind)
    }
    assert main([*words, "--force"]) == 0
    changed = {path for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert {path.parts[-5:-1][0] for path in changed} == {"predictions"}
    assert len(changed) == 1


def test_predict_draws_its_answer(flags, tmp_path, capsys):
    picture = next(Path(flags[3], "drawn", "val").glob("*.jpg"))
    words = [f"image={picture}", "query=red circle; blue square", f"out={tmp_path / 'answer.png'}"]
    assert (
        main(["predict", "checkpoint=stage2", *words, "boxes=4,4,40,40;50,50,90,90", *flags]) == 0
    )
    assert "Please detect red circle; blue square in this image." in capsys.readouterr().out
    assert Image.open(tmp_path / "answer.png").width >= 128
    # The run's proposals came from annotations, which a new picture does not have.
    assert main(["predict", "checkpoint=stage2", *words, *flags]) == 2
    assert "give boxes=" in capsys.readouterr().err


def test_verbs_name_what_is_missing(flags, tmp_path, capsys):
    fresh = ["--root", str(tmp_path / "root"), *flags[2:]]
    assert main(["shard", *WORDS, *fresh]) == 2
    message = capsys.readouterr().err
    assert "needs samples/drawn_train, which is missing" in message
    assert "make it with: fo1 build stage2 size=debug" in message
