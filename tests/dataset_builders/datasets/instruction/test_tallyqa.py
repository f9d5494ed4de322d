import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.instruction.tallyqa import DATASETS
from dataset_builders.errors import SettingError
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, rotated, write

SPECS = {spec.name: spec for spec in DATASETS}
LOCATED = (
    " Count each instance of the target object. "
    "Locate them with object indexes and then answer the question with the number of objects."
)


def row(number: int, image: Any, question: Any, answer: Any, **more: Any) -> dict[str, Any]:
    return {
        "answer": answer,
        "data_source": "imported_genome",
        "image": image,
        "image_id": 92410408,
        "question": question,
        "question_id": number,
    } | more


def questions() -> list[Any]:
    return [
        row(10, "train2014/COCO_train2014_000000000009.jpg", "How many dogs are there?", 2),
        row(
            11, "train2014/COCO_train2014_000000000009.jpg", "How many dogs are in the picture?", 3
        ),
        row(
            12,
            "train2014/COCO_train2014_000000000009.jpg",
            "How many cats are there?",
            0,
            issimple=True,
        ),
        row(13, "train2014/COCO_train2014_000000000025.jpg", "How many dogs are there?", 1),
        row(14, "VG_100K_2/2410408.jpg", "How many headlights does the black bus have?", 4),
        row(15, "VG_100K/25.jpg", "How many dogs are there?", 0),
    ]


def instances() -> dict[str, Any]:
    """Two dogs on image 9; image 25 is not listed."""
    return {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "width": 64, "height": 48}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1, 2, 10, 20], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 18, "bbox": [30, 5, 10.5, 20], "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 18, "bbox": [30, 5, -10, 20], "iscrowd": 0},
            {"id": 4, "image_id": 9, "category_id": 44, "bbox": [0, 0, 64, 48], "iscrowd": 0},
        ],
        "categories": [
            {"id": 18, "name": "dog"},
            {"id": 44, "name": "bottle"},
            {"id": 17, "name": "cat"},
        ],
    }


def build(
    root: Path,
    written: Any,
    name: str = "tallyqa",
    *,
    boxes: Any = None,
    drop: tuple[str, ...] = (),
) -> Any:
    image = Image.new("RGB", (64, 48))
    for place, data in {
        "coco/train2017/000000000009.jpg": jpeg(image),
        "coco/train2017/000000000025.jpg": rotated(image),
        "coco/train2017/000000000030.jpg": jpeg(image),
        "coco/val2017/000000000040.jpg": jpeg(image),
        "vg/VG_100K/25.jpg": jpeg(image),
        "vg/VG_100K_2/2410408.jpg": jpeg(image.resize((80, 60))),
        "vg/VG_100K_2/1.jpg": b"no picture",
    }.items():
        if not place.startswith(drop or ("-",)):
            write(root / place, data)
    if boxes is not None:
        write(root / "coco/annotations/instances_train2017.json", json.dumps(boxes))
    write(root / f"tallyqa/{SPECS[name].files[0].rpartition('/')[2]}", json.dumps(written))
    return collect(SPECS[name].samples(DataFolders(str(root)), BuildOptions()))


def boxes_that_are_whole() -> dict[str, Any]:
    listed = instances()
    del listed["annotations"][2]
    return listed


def test_numbers_alone_without_boxes(tmp_path: Path) -> None:
    built = build(tmp_path, questions())
    assert built.rejects == []
    assert built.ledger.used == {"record": 6}
    assert [text_of(sample.turns[1]) for sample in built.samples] == [
        "There are 2.",
        "There are 3.",
        "There are 0.",
        "There are 1.",
        "There are 4.",
        "There are 0.",
    ]
    assert all(sample.objects == () for sample in built.samples)
    first, fourth, fifth = built.samples[0], built.samples[3], built.samples[4]
    assert (
        text_of(first.turns[0])
        == "How many dogs are there? Answer the question with the number of objects."
    )
    assert (first.sample_id, first.task) == ("tallyqa/9/counting/10", "counting")
    assert (first.image_source, first.image_uri) == (
        "coco_train2017",
        "coco/train2017/000000000009.jpg",
    )
    assert (fourth.image_id, fourth.width, fourth.height) == (
        "25",
        64,
        48,
    )  # turned upright by its EXIF
    # by the path, not by the shifted image_id
    assert (fifth.image_source, fifth.image_id) == ("visual_genome", "2410408")
    assert (fifth.image_uri, fifth.width, fifth.height) == ("vg/VG_100K_2/2410408.jpg", 80, 60)


def test_boxes_name_the_objects_where_they_agree_exactly(tmp_path: Path) -> None:
    built = build(tmp_path, questions(), boxes=boxes_that_are_whole())
    assert built.rejects == []
    answers = [text_of(sample.turns[1]) for sample in built.samples]
    assert answers == [
        "dog[0,1]\nThere are 2.",
        "There are 3.",
        "There are 0.",
        "There are 1.",
        "There are 4.",
        "There are 0.",
    ]
    assert text_of(built.samples[0].turns[0]) == f"How many dogs are there?{LOCATED}"
    assert text_of(built.samples[2].turns[0]) == f"How many cats are there?{LOCATED}"
    # an image that COCO's file does not list, and Visual Genome's: nothing is known of their boxes
    assert LOCATED not in "".join(text_of(sample.turns[0]) for sample in built.samples[3:])
    assert [(o.box, o.label) for o in built.samples[1].objects] == [
        ((1.0, 2.0, 11.0, 22.0), "dog"),
        ((30.0, 5.0, 40.5, 25.0), "dog"),
        ((0.0, 0.0, 64.0, 48.0), "bottle"),
    ]


def test_a_rejected_box_leaves_its_label_in_doubt(tmp_path: Path) -> None:
    built = build(tmp_path, questions(), boxes=instances())
    assert text_of(built.samples[0].turns[1]) == "There are 2."


def test_the_test_split_finds_val2014_in_both_folders(tmp_path: Path) -> None:
    rows = [
        row(1, "val2014/COCO_val2014_000000000040.jpg", "How many cats?", 7),
        row(2, "val2014/COCO_val2014_000000000030.jpg", "How many cats?", 15),
        row(3, "VG_100K/25.jpg", "How many cats?", 1),
    ]
    built = build(tmp_path, rows, "tallyqa_test")
    assert [(s.image_source, s.image_uri) for s in built.samples] == [
        ("coco_val2017", "coco/val2017/000000000040.jpg"),
        ("coco_train2017", "coco/train2017/000000000030.jpg"),
        ("visual_genome", "vg/VG_100K/25.jpg"),
    ]
    assert built.samples[1].sample_id == "tallyqa_test/30/counting/2"
    assert SPECS["tallyqa_test"].stages == ()
    assert SPECS["tallyqa"].stages == (2,)


def test_training_takes_no_image_of_val2017(tmp_path: Path) -> None:
    rows = [row(1, "val2014/COCO_val2014_000000000040.jpg", "How many cats?", 7), *questions()]
    built = build(tmp_path, rows)
    assert built.reasons == {"missing_image": 1}


def test_without_val2017_its_images_are_missing(tmp_path: Path) -> None:
    rows = [row(1, "val2014/COCO_val2014_000000000040.jpg", "How many cats?", 7), *questions()]
    built = build(tmp_path, rows, "tallyqa_test", drop=("coco/val2017",))
    assert built.reasons == {"missing_image": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": -1}, "bad_answer"),
        ({"answer": "2"}, "malformed"),
        ({"answer": None}, "malformed"),
        ({"image": 4}, "unsafe_path"),
        ({"image": "train2014/none.jpg"}, "malformed"),
        ({"image": "train2014/COCO_train2014_000000000077.jpg"}, "missing_image"),
        ({"image": "VG_100K/77.jpg"}, "missing_image"),
        ({"image": "VG_100K_2/1.jpg"}, "undecodable_image"),
        ({"image": "VG_100K_3/1.jpg"}, "unknown_image"),
        ({"image": "../VG_100K/25.jpg"}, "unsafe_path"),
        ({"image": "/etc/passwd"}, "unsafe_path"),
        ({"question": "  "}, "empty_text"),
        ({"question": "how many <region3>?"}, "unsafe_text"),
        ({"question": "how many \u202e?"}, "unsafe_text"),
        ({"question": "a" * 30_000}, "text_too_long"),
        ({"question_id": 11}, "duplicate_id"),
        ({"question_id": None}, "malformed"),
    ],
)
def test_bad_questions_are_rejected_with_their_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    rows = questions()
    rows[5] |= change
    built = build(tmp_path, rows)
    assert built.reasons == {reason: 1}
    assert built.rejects[0].record_id == "train/5"
    assert len(built.samples) == 5


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"(?s)tallyqa/train\.json holds no questions.*layout is"
    ):
        build(tmp_path, {"questions": questions()})
    with pytest.raises(SettingError, match="none of the first 100 records"):
        build(tmp_path, [{"question": "How many?", "image": "VG_100K/25.jpg"}] * 120)
    with pytest.raises(SettingError, match="no usable categories"):
        build(tmp_path, questions(), boxes={"images": instances()["images"]})
    with pytest.raises(SettingError, match=r"tallyqa/train\.json not found"):
        collect(SPECS["tallyqa"].samples(DataFolders(str(tmp_path / "none")), BuildOptions()))
