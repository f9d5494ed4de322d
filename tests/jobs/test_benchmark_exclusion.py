"""Which benchmarks' images a recipe leaves out, and how its plan says so."""

import json
from pathlib import Path

import pytest

from dataset_builders import DATASETS
from jobs.chain.recipe_chain import recipe_chain
from jobs.command.command_line import main
from jobs.recipes.catalogue import data
from pipelines.cluster import RuntimeConfig
from pipelines.shards.config import ShardsConfig
from tests.formats import write_format


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    """RefCOCO's sample, with COCO val2017 beside it."""
    write_format(tmp_path / "data", "refcoco")
    file = tmp_path / "data" / "coco" / "annotations" / "instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": [{"id": 7}], "annotations": [], "categories": []}))
    return RuntimeConfig(root=str(tmp_path / "root"), data=str(tmp_path / "data"), workers=0)


def test_found_takes_the_lists_that_are_there_and_names_the_others(runtime: RuntimeConfig) -> None:
    made = recipe_chain(data(mix="refcoco"), runtime)
    assert made.exclusion.names_for(DATASETS["refcoco"]) == ("coco_val", "refcoco")
    assert made.exclusion.names_for(DATASETS["icdar2015"]) == ()
    (note,) = made.notes
    assert "lvis_val" in note
    assert "NOT left out of training" in note
    assert "coco_val" not in note
    assert "flickr30k_eval" not in note, "it has no picture of COCO"


def test_names_are_taken_literally(runtime: RuntimeConfig) -> None:
    made = recipe_chain(data(mix="refcoco", exclude="coco_val"), runtime)
    assert made.exclusion.names_for(DATASETS["refcoco"]) == ("coco_val",)
    assert made.notes == []
    assert recipe_chain(data(mix="refcoco", exclude="none"), runtime).notes == []
    with pytest.raises(ValueError, match="unknown list 'cocoval'; did you mean 'coco_val'"):
        _ = recipe_chain(data(mix="refcoco", exclude="cocoval"), runtime)
    with pytest.raises(
        ValueError, match=r"lvis_val needs lvis/lvis_v1_val.json, which is not there"
    ):
        _ = recipe_chain(data(mix="refcoco", exclude="coco_val,lvis_val"), runtime)


def test_only_what_reads_the_list_is_made_anew(runtime: RuntimeConfig) -> None:
    def fingerprints(exclude: str) -> dict[str, str]:
        steps = recipe_chain(data(mix="refcoco", exclude=exclude), runtime).steps.values()
        return {step.artifact.kind: step.artifact.fingerprint for step in steps}

    before, after = fingerprints("coco_val"), fingerprints("none")
    assert {kind for kind in before if before[kind] != after[kind]} == {"shards"}
    file = Path(runtime.data) / "coco" / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({"info": 1, "images": [{"id": 7, "width": 3}]}))
    assert fingerprints("coco_val") == before, "the images are the same"
    file.write_text(json.dumps({"images": [{"id": 7}, {"id": 8}]}))
    assert fingerprints("coco_val")["shards"] != before["shards"]


def test_lists_and_notes_are_printed(runtime: RuntimeConfig, capsys: pytest.CaptureFixture) -> None:
    flags = ["--data", runtime.data, "--root", runtime.root]
    assert main(["list", "exclude", *flags]) == 0
    shown = capsys.readouterr().out
    assert "* coco_val        coco/annotations/instances_val2017.json" in shown
    assert "  lvis_val        lvis/lvis_v1_val.json" in shown
    assert main(["plan", "data", "mix=refcoco", *flags]) == 0
    assert "note: the images of lvis_val" in capsys.readouterr().out


def test_a_plan_says_what_a_mix_amounts_to(
    tmp_path: Path, capsys: pytest.CaptureFixture, drawn_world: Path
) -> None:
    flags = ["--data", str(drawn_world), "--root", str(tmp_path), "--workers", "0"]
    words = ["stage1", "detector=ground_truth_jitter", "steps=10", "batch_size=10", "size=debug"]
    assert main(["plan", *words, *flags]) == 0
    shown = capsys.readouterr().out
    assert "stage1: 10 steps of 10 examples" in shown
    line = next(text for text in shown.splitlines() if text.startswith("drawn_train/region_name"))
    assert line.split()[1:5] == ["35.00", "%", "?", "35"]
    for verb in ("build", "propose", "shard"):
        assert main([verb, *words, *flags]) == 0
    capsys.readouterr()
    assert main(["plan", *words, *flags]) == 0
    line = next(
        x for x in capsys.readouterr().out.splitlines() if x.startswith("drawn_train/region_name")
    )
    available, drawn, epochs = line.split()[3:6]
    assert float(epochs) == pytest.approx(int(drawn) / int(available), abs=0.01)
    assert "~" not in line


def test_a_plan_without_the_data_still_says_what_the_mix_amounts_to(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [
        "plan",
        "stage1",
        "mix=stage1",
        "steps=20000",
        "batch_size=256",
        "--data",
        str(tmp_path),
    ]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "coco_train/detection     11.43 %" in shown.out
    assert "goldg_mixed/grounding" in shown.out
    assert "rejection: 20.0 % of detection and rejection together" in shown.out
    assert "not found" in shown.err


def test_text_and_documents_ask_for_closer_proposals(tmp_path: Path) -> None:
    write_format(tmp_path / "data", "icdar2015")
    runtime = RuntimeConfig(root=str(tmp_path / "root"), data=str(tmp_path / "data"), workers=0)
    made = recipe_chain(data(mix="icdar2015"), runtime)
    built = made.train_shards["icdar2015"].execute
    configs = [cell.cell_contents for cell in built.__closure__ or ()]
    (config,) = [item for item in configs if isinstance(item, ShardsConfig)]
    assert config.assign.match_iou == 0.7
    assert {name for name, spec in DATASETS.items() if spec.match_iou > 0.5} == {
        *("icdar2015", "mlt2019", "curved_syntext1", "curved_syntext2", "wildreceipt", "doclaynet")
    }
