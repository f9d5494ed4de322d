"""What `fo1 plan` calls stale: exactly what a change reaches, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.chain.chain import Chain
from jobs.chain.recipe_chain import recipe_chain
from jobs.recipes.opn import opn
from jobs.recipes.stages import stage2
from pipelines.cluster import RuntimeConfig
from tests.fo1_model.small_published import write_florence, write_vlm

NAMES = {
    "samples/drawn_train",
    "samples/drawn_refs_train",
    "samples/drawn_val",
    "samples/drawn_refs_val",
    "samples/drawn_val_all",
    "proposals/drawn_train/opn",
    "proposals/drawn_val/opn",
    "shards/drawn_train/ground_truth",
    "shards/drawn_val/ground_truth",
    "shards/drawn_train/proposals",
    "shards/drawn_refs_train/proposals",
    "shards/drawn_val/proposals_scored",
    "shards/drawn_refs_val/proposals_scored",
    "shards/drawn_val_all/proposals_scored",
    "runs/opn",
    "runs/start",
    "runs/stage1",
    "runs/stage2",
    *(
        f"predictions/{benchmark}/{run}"
        for run in ("start", "stage1", "stage2")
        for benchmark in ("drawn_val", "drawn_refs_val", "drawn_val_all")
    ),
}
TRAINED = {name for name in NAMES if name.startswith(("runs/stage", "predictions/"))}


@pytest.fixture
def runtime(tmp_path):
    write_world(tmp_path / "datasets" / "drawn")
    return RuntimeConfig(root=str(tmp_path / "root"), data=str(tmp_path / "datasets"))


def write_world(folder: Path) -> None:
    """Annotation files with one picture and one box; plans read nothing else."""
    categories = [{"id": 1, "name": "red circle"}, {"id": 2, "name": "blue square"}]
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        coco = {
            "images": [{"id": 1, "file_name": "000000000001.jpg", "width": 64, "height": 48}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": [4, 4, 20, 20],
                    "area": 400,
                    "iscrowd": 0,
                }
            ],
            "categories": categories,
        }
        for file in (
            folder / "annotations" / f"instances_{split}.json",
            folder / "refs" / "instances.json",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(coco))
    (folder / "refs" / "refs(drawn).p").write_bytes(b"not read by a plan")


def finish(made: Chain) -> None:
    """Pretend that every artifact was made."""
    for step in made.steps.values():
        if step.artifact.status() != "done":
            step.artifact.commit({})


def unfinished(made: Chain) -> set[str]:
    return {
        f"{step.artifact.kind}/{step.artifact.name}"
        for step in made.steps.values()
        if step.artifact.status() != "done"
    }


def plan(runtime: RuntimeConfig, **changes) -> Chain:
    return recipe_chain(stage2(size="debug", **{"detector": "opn", **changes}), runtime)


def test_everything_is_missing_then_done(runtime):
    made = plan(runtime)
    assert unfinished(made) == NAMES
    assert {step.artifact.status() for step in made.steps.values()} == {"missing"}
    finish(made)
    assert unfinished(plan(runtime)) == set()


def test_inputs_come_before_what_reads_them(runtime):
    seen = set()
    for step in plan(runtime).steps.values():
        assert all(needed.artifact.path in seen for needed in step.inputs)
        seen.add(step.artifact.path)


def test_another_detector_leaves_samples_alone(runtime):
    finish(plan(runtime))
    made = plan(runtime, detector="ground_truth_jitter")
    changed = {f"proposals/drawn_{split}/ground_truth_jitter" for split in ("train", "val")}
    changed |= {
        name for name in NAMES if name.startswith("shards/") and not name.endswith("ground_truth")
    }
    assert unfinished(made) == changed | TRAINED
    # Caches of another detector are another artifact; what has the same name is stale.
    states = {step.artifact.name: step.artifact.status() for step in made.steps.values()}
    assert states["drawn_train/ground_truth_jitter"] == "missing"
    assert states["drawn_train/proposals"] == "stale"
    finish(made)
    assert unfinished(plan(runtime)) == set(), "the first detector's artifacts are still there"


def test_other_weights_touch_only_runs_and_answers(runtime):
    finish(plan(runtime))
    assert unfinished(plan(runtime, mix="drawn_stage2*counting=2")) == {
        name for name in TRAINED if name.endswith("stage2")
    }
    changed = unfinished(plan(runtime, stage1_mix="drawn_stage1*counting=2"))
    assert changed == {name for name in TRAINED if not name.endswith("start")}


def test_published_weights_count_by_what_they_hold(runtime, tmp_path):
    write_vlm(tmp_path / "vlm")
    write_florence(tmp_path / "auxiliary")

    def planned(vlm="vlm", auxiliary="auxiliary"):
        return plan(runtime, vlm=str(tmp_path / vlm), auxiliary=str(tmp_path / auxiliary))

    finish(planned())
    (tmp_path / "vlm").rename(tmp_path / "moved")
    assert unfinished(planned("moved")) == set()
    (tmp_path / "moved" / "generation_config.json").write_text("{}")
    reached = TRAINED | {"runs/start"}
    assert unfinished(planned("moved")) == reached
    with pytest.raises(ValueError, match=r"^auxiliary=.*gone: there is no such folder"):
        planned("moved", "gone")


def test_workers_and_places_change_nothing(runtime, tmp_path):
    finish(plan(runtime))
    other = RuntimeConfig(root=runtime.root, data=runtime.data, workers=5)
    assert unfinished(plan(other)) == set()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "datasets" / "drawn").rename(tmp_path / "elsewhere" / "drawn")
    moved = RuntimeConfig(root=runtime.root, data=str(tmp_path / "elsewhere"))
    assert unfinished(plan(moved)) == set()


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_annotation_reaches_what_was_made_from_it(runtime, split):
    finish(plan(runtime, detector="opn_untrained"))
    file = Path(runtime.data, "drawn", "annotations", f"instances_{split}.json")
    coco = json.loads(file.read_text())
    coco["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(coco))
    changed = unfinished(plan(runtime, detector="opn_untrained"))
    if split == "train":
        made_from = {"samples/drawn_train", "shards/drawn_train/proposals"}
        assert changed == made_from | {name for name in TRAINED if not name.endswith("start")}
    else:
        asked = {
            f"predictions/{name}/{run}"
            for name in ("drawn_val", "drawn_val_all")
            for run in ("start", "stage1", "stage2")
        }
        made_from = {"samples/drawn_val", "samples/drawn_val_all"}
        made_from |= {"shards/drawn_val/proposals_scored", "shards/drawn_val_all/proposals_scored"}
        assert changed == made_from | asked
    assert not any(name.startswith("proposals/") for name in changed), "the pictures are the same"


def test_the_trained_detector_depends_on_the_training_annotations(runtime):
    finish(plan(runtime))
    file = Path(runtime.data, "drawn", "annotations", "instances_train.json")
    file.write_text(file.read_text().replace('"bbox": [4,', '"bbox": [5,'))
    untouched = {
        "samples/drawn_refs_train",
        "samples/drawn_val",
        "samples/drawn_refs_val",
        "samples/drawn_val_all",
        "shards/drawn_val/ground_truth",
        "runs/start",
    }
    assert unfinished(plan(runtime)) == NAMES - untouched


def validated(runtime: RuntimeConfig, *benchmarks: str, **changes) -> Chain:
    """The plan of a recipe whose last stage asks candidates of these benchmarks."""
    recipe = stage2(size="debug", detector="ground_truth_jitter", validate_every=0, **changes)
    *first, last = recipe.trainings
    last = replace(
        last, config=replace(last.config, validate_every=2), validation_benchmarks=tuple(benchmarks)
    )
    return recipe_chain(replace(recipe, trainings=(*first, last)), runtime)


def test_what_candidates_are_asked_is_an_input_of_the_run(runtime):
    finish(validated(runtime, "drawn_val"))
    file = Path(runtime.data, "drawn", "annotations", "instances_val.json")
    made = validated(runtime, "drawn_val")
    assert unfinished(made) == set()
    steps = {f"{s.artifact.kind}/{s.artifact.name}": s for s in made.steps.values()}
    needed = {f"{s.artifact.kind}/{s.artifact.name}" for s in steps["runs/stage2"].inputs}
    assert needed >= {"shards/drawn_val/proposals_scored", "samples/drawn_val", "runs/stage1"}
    assert not any("drawn_val" in s.artifact.name for s in steps["runs/stage1"].inputs)
    file.write_text(file.read_text().replace('"bbox": [4,', '"bbox": [5,'))
    changed = {
        name for name in unfinished(validated(runtime, "drawn_val")) if name.startswith("runs/")
    }
    assert changed == {"runs/stage2"}
    stage = {
        "runs/stage2",
        *(f"predictions/{n}/stage2" for n in ("drawn_val", "drawn_refs_val", "drawn_val_all")),
    }
    finish(validated(runtime, "drawn_val"))
    assert unfinished(validated(runtime, "drawn_val", "drawn_refs_val")) == stage
    with pytest.raises(ValueError, match="unknown benchmark 'cars'"):
        validated(runtime, "cars")
    recipe = opn(validate_every=2)
    detector = replace(recipe.detector_training, validation_benchmarks=("drawn_val",))
    with pytest.raises(ValueError, match="a detector answers no questions"):
        recipe_chain(replace(recipe, detector_training=detector), runtime)


def test_unknown_names_are_refused_before_anything_is_read(runtime):
    with pytest.raises(ValueError, match=r"unknown dataset 'cars'; all \d+ are in"):
        plan(runtime, mix="cars/detection=1")
    for wrong in ({"mix": "cars/detection=1"}, {"validation": "cars/detection"}):
        with pytest.raises(ValueError, match=r"unknown dataset 'cars'; all \d+ are in"):
            recipe_chain(opn(**wrong), runtime)
    with pytest.raises(ValueError, match="drawn_train has no task 'referring'"):
        plan(runtime, mix="drawn_train/referring=1")
