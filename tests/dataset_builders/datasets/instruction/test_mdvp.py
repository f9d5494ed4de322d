import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction.mdvp import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

COCO = "/mnt/petrelfs/someone/data/coco/train2017/000000000500.jpg"
BOXES = [[10, 20, 30, 40], [50, 5, 40.5, 70], [0, 0, 200, 100]]


def record(*values: Any, **changes: Any) -> dict[str, Any]:
    said = values or ("What is <Mark 1> doing to Region 2?", "It looks at it.")
    told = [
        {"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(said)
    ]
    return {"image": COCO, "bbox": BOXES, "conversations": told} | changes


def write_image(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(path)


def put(root: Path, *records: Any, name: str = "natural_QA_box") -> DataFolders:
    write_image(root, "coco/train2017/000000000500.jpg")
    path = root / f"mdvp/stage_2_fine-tuning/MDVP-Data/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))
    return DataFolders(str(root))


def built(root: Path, *records: Any, options: BuildOptions | None = None) -> Any:
    return collect(DATASETS[0].samples(put(root, *records), options or BuildOptions()))


def said(sample: Any) -> list[str]:
    return [text_of(turn) for turn in sample.turns]


def test_golden_samples(tmp_path: Path) -> None:
    found = built(
        tmp_path,
        record(),
        record(
            "<image>\nName each marked region.",
            "Region 1: cat\nRegion 2: a dog\n<Region 3>: room",
            "Sure?",
            3,
        ),
        record("Is region 1 in <mark 3>?", "Yes, Mark 1 is.", bbox=[*BOXES[:2], [0, 0, 100, 100]]),
    )
    assert found.rejects == []
    assert found.ledger.used == {"record": 3, "box": 9}
    first, second, third = found.samples
    assert first.sample_id == "mdvp/500/region_qa/natural_QA_box.0"
    assert (first.image_source, first.image_uri) == (
        "coco_train2017",
        "coco/train2017/000000000500.jpg",
    )
    assert (first.width, first.height, first.task) == (200, 100, "region_qa")
    assert first.objects == (
        Object(box=(10.0, 20.0, 40.0, 60.0), label="marked region"),
        Object(box=(50.0, 5.0, 90.5, 75.0), label="marked region"),
        Object(box=(0.0, 0.0, 200.0, 100.0), label="marked region"),
    )
    assert said(first) == ["What is [0] doing to [1]?", "It looks at it."]
    # no box is named by the user, so all of them are shown
    assert said(second) == [
        "[0,1,2] Name each marked region.",
        "[0]: cat\n[1]: a dog\n[2]: room",
        "Sure?",
        "3",
    ]
    assert said(third) == ["Is [0] in [2]?", "Yes, [0] is."]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (
            "/data/COCO_train2014/train2014/COCO_train2014_000000000500.jpg",
            "coco/train2017/000000000500.jpg",
        ),
        ("coco/val2014/COCO_val2014_000000000500.jpg", "coco/train2017/000000000500.jpg"),
        ("/data/vg/VG_100K/7.jpg", "vg/VG_100K/7.jpg"),
        ("/data/vg/VG_100K/8.jpg", "vg/VG_100K_2/8.jpg"),
        ("/data/vg/VG_100K_2/7.jpg", "vg/VG_100K/7.jpg"),
        ("/x/flickr30k_images/9.jpg", "flickr30k/flickr30k-images/9.jpg"),
        ("/x/vcr/vcr1images/m/c@0.jpg", "vcr/vcr1images/m/c@0.jpg"),
        ("/x/gqa/images/4.jpg", "gqa/images/4.jpg"),
        ("/x/gqa/4.jpg", "gqa/images/4.jpg"),
        ("android/a.png", "mdvp/images/android/a.png"),
    ],
)
def test_paths_of_the_authors(tmp_path: Path, path: str, uri: str) -> None:
    for name in (
        "vg/VG_100K/7.jpg",
        "vg/VG_100K_2/8.jpg",
        "flickr30k/flickr30k-images/9.jpg",
        "vcr/vcr1images/m/c@0.jpg",
        "gqa/images/4.jpg",
        "mdvp/images/android/a.png",
    ):
        write_image(tmp_path, name)
    (sample,) = built(tmp_path, record(image=path)).samples
    assert sample.image_uri == uri


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "malformed"),
        ({}, "malformed"),
        (record(image="/data/secret/1.jpg"), "unknown_image"),
        (record(image="/data/coco/train2017/../1.jpg"), "unsafe_path"),
        (record(image="//etc/passwd"), "unsafe_path"),
        (record(image="/"), "unsafe_path"),
        (record(image=3), "malformed"),
        (record(image="/data/train2017/cat.jpg"), "malformed"),
        (record(image="/data/train2017/000000000501.jpg"), "missing_image"),
        (record(image="none.jpg"), "missing_image"),
        (record(bbox=None), "malformed"),
        (record(bbox=[]), "malformed"),
        (record(bbox=None, points=[[3, 4]]), "unsupported"),
        (record(points=[[3, 4]]), "unsupported"),
        (record("What is Region 4?", "?"), "unknown_object"),
        (record("What is Region 0?", "?"), "unknown_object"),
        (record("What is here?", "It is Region 7"), "unknown_object"),
        (record("Compare Regions 1 and 2.", "Alike"), "unsupported"),
        (record("Compare Region 1 and 2.", "Alike"), "unsupported"),
        (record("Compare Region 1-3.", "Alike"), "unsupported"),
        (record("What is region1?", "A cat"), "unsupported"),
        (record("What is <region>?", "A cat"), "unsafe_text"),
        (record("What is Region 1?", ["a"]), "malformed"),
        (record("What is Region 1?", True), "malformed"),
        (record("What is Region 1?", float("nan")), "malformed"),
        (record("What is Region 1?"), "malformed"),
        (record("<image><image> What is Region 1?", "A cat"), "several_images"),
        (record("Region 1 Region 1", "A cat"), "contradiction"),
    ],
)
def test_bad_records(tmp_path: Path, bad: Any, reason: str) -> None:
    found = built(tmp_path, bad, record())
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("record", reason, "natural_QA_box.json/0")
    ]
    assert len(found.samples) == 1


def test_numbers_after_a_region_that_are_no_list(tmp_path: Path) -> None:
    found = built(
        tmp_path, record("What is in Region 1: 3 cats? <Mark 2>, 2 dogs?", "Region 1. 5 cats")
    )
    assert said(found.samples[0]) == ["What is in [0]: 3 cats? [1], 2 dogs?", "[0]. 5 cats"]


def test_a_lost_box(tmp_path: Path) -> None:
    boxes = [BOXES[0], [300, 5, 40, 70], BOXES[2]]
    found = built(
        tmp_path,
        record("What is Region 3?", "Room", bbox=boxes),
        record("What is Region 2?", "Room", bbox=boxes),
        record("Name all.", "Rooms", bbox=boxes),
    )
    assert [(r.unit, r.reason) for r in found.rejects] == [
        ("box", "outside_box"),
        ("box", "outside_box"),
        ("record", "unknown_object"),
        ("box", "outside_box"),
        ("record", "unknown_object"),
    ]
    assert said(found.samples[0]) == ["What is [1]?", "Room"]


def test_the_budget_of_regions(tmp_path: Path) -> None:
    found = built(
        tmp_path,
        record("All?", "Yes"),
        record("<Mark 2>?", "Yes"),
        options=BuildOptions(max_objects=2),
    )
    assert found.reasons == {"too_many_regions": 1}


@pytest.mark.parametrize("content", ["{}", "[]", '[{"a": 1}]'])
def test_a_file_of_another_form(tmp_path: Path, content: str) -> None:
    folders = put(tmp_path, record())
    (tmp_path / "mdvp/stage_2_fine-tuning/MDVP-Data/ocr.json").write_text(content)
    with pytest.raises(SettingError, match=r"ocr\.json.*(holds no array|none of its 1 records)"):
        list(DATASETS[0].samples(folders, BuildOptions()))


def test_boxes_as_corners_are_refused(tmp_path: Path) -> None:
    boxes = [[110 + n, 50, 190, 95] for n in range(30)]
    with pytest.raises(SettingError, match=r"natural_QA_box\.json.*declared xywh"):
        built(tmp_path, record("What?", "That", bbox=boxes))


def test_files_of_the_same_records_have_their_own_samples(tmp_path: Path) -> None:
    put(tmp_path, record(), name="ocr_QA_box")
    found = built(tmp_path, record())
    assert [sample.sample_id for sample in found.samples] == [
        "mdvp/500/region_qa/natural_QA_box.0",
        "mdvp/500/region_qa/ocr_QA_box.0",
    ]
