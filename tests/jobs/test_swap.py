"""A detector swapped under a trained model: what its boxes go into is made anew, no more."""

from pathlib import Path

import pytest

from jobs.command.command_line import main

pytestmark = pytest.mark.slow
WORDS = [
    "stage1",
    "size=tiny",
    "opn_steps=12",
    "steps=4",
    "validate_every=0",
    "batch_size=8",
    "proposals=10",
]
SWAPS = ("ground_truth_jitter", "rt_detr_untrained")


@pytest.fixture(scope="module")
def flags(tmp_path_factory, drawn_world):
    """The chain with OPN's boxes: detector, caches, shards, trained tiny model, evaluation."""
    root = tmp_path_factory.mktemp("swap") / "root"
    given = ["--root", str(root), "--data", str(drawn_world), "--workers", "0"]
    assert main(["run", *WORDS, *given]) == 0
    return given


def artifacts(flags) -> dict[str, int]:
    """kind/name/fingerprint -> time of the manifest, of everything that is done."""
    root = Path(flags[1])
    found = (path for path in root.glob("*/**/manifest.json") if "train" not in path.parts)
    return {str(path.parent.relative_to(root)): path.stat().st_mtime_ns for path in found}


def made_by(words, flags) -> list[str]:
    """Artifacts that a command makes, without fingerprints; none that was there may change."""
    before = artifacts(flags)
    assert main([*words, *flags]) == 0
    after = artifacts(flags)
    assert {name: after[name] for name in before} == before
    return sorted(name.rpartition("/")[0] for name in after if name not in before)


@pytest.mark.parametrize("detector", SWAPS)
def test_a_finished_run_is_asked_with_other_boxes(flags, detector, capsys):
    """The paper's claim: no training, only boxes, questions over them, and answers."""
    words = ["evaluate", "drawn_val", "checkpoint=stage1", f"detector={detector}"]
    new = ["predictions/drawn_val/stage1", f"proposals/drawn_val/{detector}"]
    assert made_by(words, flags) == [*new, "shards/drawn_val/proposals_scored"]
    assert f"{detector} on drawn_val" in capsys.readouterr().out
    assert made_by(words, flags) == []


@pytest.mark.parametrize("detector", SWAPS)
def test_caches_and_shards_are_regenerated_beside_the_old_ones(flags, detector, capsys):
    swapped = [*WORDS, f"detector={detector}"]
    assert main(["plan", *swapped, *flags]) == 0
    plan = capsys.readouterr().out.split("\n\n")[0].splitlines()
    state = {line.split()[2]: line.split()[0] for line in plan}
    assert {state[name] for name in state if name.startswith("samples/")} == {"done"}
    assert "runs/opn" not in state  # what this detector does not need
    assert state["proposals/drawn_train/" + detector] == "missing"
    assert state["shards/drawn_train/proposals"] == state["runs/stage1"] == "stale"

    made = made_by(["propose", *swapped], flags)
    assert f"proposals/drawn_train/{detector}" in made
    assert all(name.startswith("proposals/") and name.endswith(detector) for name in made)
    made = made_by(["shard", *swapped], flags)
    assert "shards/drawn_train/proposals" in made
    assert all(name.startswith("shards/") for name in made)
    old = {name.rpartition("/")[0] for name in artifacts(flags)}
    assert {"proposals/drawn_train/opn", "proposals/drawn_train/" + detector} <= old


def test_both_caches_are_compared_on_a_page(flags, capsys):
    assert main(["proposals", "diff", "drawn_val/opn", "drawn_val/rt_detr_untrained", *flags]) == 0
    assert "R50@100" in capsys.readouterr().out
    page = Path(
        flags[1], "pages", "proposals-diff-drawn_val-opn-rt_detr_untrained.html"
    ).read_text()
    assert page.count("data:image") > 5


def test_a_weights_based_detector_is_named_when_its_path_is_not_known(flags, tmp_path, capsys):
    boxes = tmp_path / "boxes.jsonl"
    names = sorted(path.name for path in Path(flags[3], "drawn").glob("*/*.jpg"))
    boxes.write_text(
        "".join(f'{{"image": "{name}", "boxes": [[1, 1, 60, 60]]}}\n' for name in names)
    )
    assert main(["run", *WORDS, f"detector=file:{boxes}", *flags]) == 0
    capsys.readouterr()
    newest = max(
        (name for name in artifacts(flags) if name.startswith("runs/stage1/")),
        key=artifacts(flags).get,
    )
    assert (
        main(["evaluate", "drawn_val", f"checkpoint={newest.removeprefix('runs/')}", *flags]) == 2
    )
    assert "say detector=file:PATH" in capsys.readouterr().err
