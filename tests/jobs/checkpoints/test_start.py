"""From a checkpoint on: a released folder through every verb, and stage 2 from a stage 1 export."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from fo1_model.checkpoint import load_model, new_model
from fo1_model.release import export_release
from fo1_model.sizes import debug
from fo1_model.weights import open_weights
from jobs.command.command_line import main

pytestmark = pytest.mark.slow
RECORDED = Path(__file__).parents[4] / "shared" / "parity" / "base"
"""A folder in the released layout, written by the released code, where this machine has it."""
DATA = ["detector=ground_truth_jitter", "proposals=8"]
TRAIN = ["size=debug", *DATA, "steps=2", "batch_size=4", "validate_every=0"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, drawn_world):
    root = tmp_path_factory.mktemp("root")
    return ["--root", str(root), "--data", str(drawn_world), "--workers", "0"]


def runs(flags, name: str) -> list[Path]:
    return sorted(path.parent for path in Path(flags[1], "runs", name).glob("*/manifest.json"))


def test_stage_two_from_an_export_ends_in_the_bits_of_the_chain(flags, tmp_path, capsys):
    chained = ["stage2", *TRAIN, "stage1_steps=2"]
    for verb in ("build", "propose", "shard", "train"):
        assert main([verb, *chained, *flags]) == 0
    (whole,) = runs(flags, "stage2")
    assert main(["train", "stage2", *TRAIN, "start=stage1", *flags]) == 0
    assert runs(flags, "stage2") == [whole], "a run that is named is the parent of the chain"

    folder = tmp_path / "somebody's model"
    assert main(["export", "stage1", str(folder), *flags[:2]]) == 0
    assert main(["train", "stage2", *TRAIN, f"start={folder}", *flags]) == 0
    (again,) = [run for run in runs(flags, "stage2") if run != whole]
    (imported,) = runs(flags, "imported-somebody-s-model")
    weights = "export/model.safetensors"
    assert (again / weights).read_bytes() == (whole / weights).read_bytes()
    assert (whole / weights).read_bytes() != (imported / weights).read_bytes(), "it has trained"

    # Its content counts, and neither its name nor its place.
    capsys.readouterr()
    shutil.move(folder, tmp_path / "moved")
    assert main(["train", "stage2", *TRAIN, f"start={tmp_path / 'moved'}", *flags]) == 0
    assert f"{again}  (was done)" in capsys.readouterr().out


def released(folder: Path) -> Path:
    """A random model of debug's size, as the authors publish theirs."""
    model, processor = new_model(debug(), seed=3)
    export_release(model, processor, folder, dtype=torch.bfloat16)
    return folder


@pytest.mark.parametrize("which", ["random", "recorded"])
def test_a_released_folder_goes_through_every_verb(which, flags, tmp_path, capsys):
    if which == "recorded" and not RECORDED.is_dir():
        pytest.skip("the recorded folder is not on this machine")
    folder = RECORDED if which == "recorded" else released(tmp_path / "VLM-FO1-random")
    picture = next(Path(flags[3], "drawn", "val").glob("*.jpg"))
    asked = [f"image={picture}", "query=red circle; blue square", f"out={tmp_path / 'a.png'}"]
    words = ["predict", f"checkpoint={folder}", *asked]
    assert main([*words, "boxes=4,4,40,40;50,50,90,90", *flags[:2]]) == 0
    assert "Please detect red circle; blue square in this image." in capsys.readouterr().out
    assert Image.open(tmp_path / "a.png").width >= 128
    assert main([*words, *flags[:2]]) == 2
    assert "no manifest tells which detector it was trained with" in capsys.readouterr().err

    evaluate = ["evaluate", "drawn_val", f"checkpoint={folder}", *flags]
    assert main(evaluate) == 2
    assert "say detector=NAME" in capsys.readouterr().err
    assert main([*evaluate, *DATA]) == 0
    assert f"imported-{folder.name}" in capsys.readouterr().out

    stage2 = ["stage2", *TRAIN, f"start={folder}", *flags]
    for verb in ("shard", "train"):
        assert main([verb, *stage2]) == 0
    (imported,) = runs(flags, f"imported-{folder.name}")
    trained = [run for run in runs(flags, "stage2") if is_from(run, imported)]
    assert len(trained) == 1

    for source, name in ((imported, "same"), (trained[0], "trained")):
        words = ["export", str(source), str(tmp_path / name), "layout=release", "dtype=bfloat16"]
        assert main([*words, *flags[:2]]) == 0
    theirs, same = open_weights(folder), open_weights(tmp_path / "same")
    assert same.shapes == theirs.shapes
    assert all(torch.equal(same.read(name), tensor) for name, tensor in theirs.tensors())
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())
    after = open_weights(tmp_path / "trained")
    assert after.shapes == theirs.shapes
    moved = [name for name, tensor in theirs.tensors() if not torch.equal(after.read(name), tensor)]
    assert moved
    assert not any(name.startswith("model.vision_tower.image_tower.") for name in moved)
    load_model(tmp_path / "trained")


def is_from(run: Path, imported: Path) -> bool:
    inputs = json.loads((run / "manifest.json").read_text())["inputs"]
    return inputs.get("runs/imported") == imported.name
