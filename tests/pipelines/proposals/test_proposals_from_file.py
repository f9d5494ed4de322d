"""Proposals from a file of boxes: the whole step over a small world, and its resumption."""

import json
import shutil
from pathlib import Path

import pytest

from fo1_model.detectors import BoxFileConfig
from pipelines.errors import SettingError
from tests.pipelines.coco_world import SIZE, Steps, write_world
from tests.pipelines.shards.test_kill import content


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, with a box file that is wrong about some of its images."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "data", broken=True)
    boxes = [[1, 2, 31, 42], [90, 70, 200, 200], [5, 5, 25, 25]]
    good = {"bbox_list": boxes, "score_list": [0.25, 0.75, 0.5]}
    rows = [{"image": f"train2017/{number:06d}.jpg"} | good for number in range(6)]
    rows += [
        {"image": "000006.jpg", "bbox_list": [[1, 2, 3]]},
        {"image": "000007", "bbox_list": [], "width": SIZE[0], "height": SIZE[1]},
        {"image_id": 8, "bbox_list": [[1, 1, 9, 9]], "width": 640, "height": 480},
        {"image_id": "9", "bbox_list": [[1, 1, 9, 9]]},
        {"image": "x.jpg", "bbox_list": []},
        {"image": "y.jpg", "bbox_list": [[1, 2, 3]]},
    ]
    write_lines(folder / "boxes.jsonl", rows)
    return folder


def box_steps(world: Path, root: Path, **runtime) -> Steps:
    steps = Steps(world / "data", root, max_reject_fraction=0.9, **runtime)
    steps.detector, steps.box_file = BoxFileConfig(), str(world / "boxes.jsonl")
    return steps


def rows_of(steps: Steps) -> dict[str, dict]:
    tables = [steps.proposals.read_table(f"part-{bucket:05d}.parquet") for bucket in range(8)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


def test_the_whole_step(world: Path, tmp_path: Path) -> None:
    steps = box_steps(world, tmp_path)
    ledger = steps.propose()["ledger"]
    rows = rows_of(steps)
    assert sorted(rows, key=int) == [str(number) for number in range(12)]
    assert {name: row["status"] for name, row in rows.items() if row["status"] != "ok"} == {
        "3": "undecodable_image",
        "4": "missing_image",
        "5": "size_mismatch",
        "6": "malformed_boxes",
        "8": "size_mismatch",
        "10": "not_in_file",
        "11": "not_in_file",
    }
    # best first, clipped to the picture, no score changed
    assert rows["0"]["boxes"] == [[90, 70, 96, 80], [5, 5, 25, 25], [1, 2, 31, 42]]
    assert rows["0"]["scores"] == [0.75, 0.5, 0.25]
    assert (rows["7"]["boxes"], rows["9"]["scores"]) == ([], [1.0])
    assert rows["8"]["error"] == "640x480 annotated, 96x80 decoded"
    assert rows["6"]["error"].startswith("record 6: ")
    assert (ledger["rows_in"], ledger["rows_out"], ledger["unmatched_in_file"]) == (12, 5, 2)
    assert ledger["rejects_by_reason"]["not_in_file"] == 2


def test_another_byte_is_another_artifact_and_another_place_is_not(
    world: Path, tmp_path: Path
) -> None:
    steps = box_steps(world, tmp_path)
    before = steps.proposals.fingerprint
    assert set(steps.proposals_inputs) == {"images", "boxes"}
    steps.box_file = str(shutil.copy(world / "boxes.jsonl", tmp_path / "moved.jsonl"))
    assert steps.proposals.fingerprint == before
    with Path(steps.box_file).open("a") as stream:
        stream.write("\n")
    assert steps.proposals.fingerprint != before


def test_a_file_about_other_pictures_fails_before_any_is_opened(
    world: Path, tmp_path: Path
) -> None:
    steps = box_steps(world, tmp_path)
    steps.box_file = str(
        write_lines(tmp_path / "boxes.jsonl", [{"image": "elsewhere/1.jpg", "boxes": []}])
    )
    with pytest.raises(SettingError, match=r"boxes\.jsonl names none of the 12 images"):
        steps.propose()
    assert steps.proposals.finished() == {}


@pytest.mark.parametrize("lost", ["manifest.json", "buckets/00003.json", "all"])
def test_what_a_killed_run_left_is_finished_to_the_same_bytes(
    lost: str, world: Path, tmp_path: Path
) -> None:
    whole, killed = box_steps(world, tmp_path / "whole"), box_steps(world, tmp_path / "killed")
    for steps in (whole, killed):
        steps.propose()
    folder = Path(killed.proposals.path)
    (folder / "manifest.json").unlink()
    for marker in folder.glob("buckets/*.json") if lost == "all" else [folder / lost]:
        marker.unlink(missing_ok=True)
    assert killed.proposals.status() == "partial"
    killed.propose()
    assert content(killed.proposals) == content(whole.proposals)
