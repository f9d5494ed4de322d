import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection import vaw
from dataset_builders.errors import SettingError
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg

(VAW,) = vaw.DATASETS
TYPES = {
    "color": ["red", "green", "blue", "white"],
    "material": ["wooden", "metal"],
    "location": ["in the back"],
    "machine state": ["turned off"],
}
DETECT = "Please detect {} in this image. Answer the question with object indexes."
Write = Callable[..., DataFolders]


def _row(
    image: Any, number: int, name: str, positive: Any, negative: Any, **more: Any
) -> dict[str, Any]:
    return {
        "image_id": image,
        "instance_id": str(number),
        "instance_bbox": [number, 10, 20, 30],
        "instance_polygon": None,
        "object_name": name,
        "positive_attributes": positive,
        "negative_attributes": negative,
    } | more


def _rows() -> list[dict[str, Any]]:
    """Instances on three images.

    Image 9: two cars, labelled for red and green; a chair. Image 25: a door that is only not red.
    Image 30: two cups, of which one is unlabelled.
    """
    return [
        _row(9, 1, "car", ["red", "white"], ["green"]),
        _row(25, 4, "door", [], ["red"]),
        _row("9", 2, "car", ["in the back"], ["red", "green"]),
        _row(30, 5, "cup", ["blue"], ["red"]),
        _row(9, 3, "chair", ["wooden", "metal"], ["in the back"]),
        _row(30, 6, "cup", [], []),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(
        rows: list[Any], types: Any = TYPES, images: dict[str, str] | None = None
    ) -> DataFolders:
        for folder in ("vg/VG_100K", "vg/VG_100K_2", "vaw/data"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in (
            images or {"9": "VG_100K", "25": "VG_100K_2", "30": "VG_100K"}
        ).items():
            (tmp_path / f"vg/{folder}/{name}.jpg").write_bytes(jpeg(Image.new("RGB", (100, 80))))
        (tmp_path / "vaw/data/train_part1.json").write_text(json.dumps(rows[:1]))
        (tmp_path / "vaw/data/train_part2.json").write_text(json.dumps(rows[1:]))
        (tmp_path / "vaw/data/attribute_types.json").write_text(json.dumps(types))
        return DataFolders(str(tmp_path))

    return put


def _said(built: Any, image: str, task: str) -> set[tuple[str, str]]:
    return {
        (text_of(sample.turns[0]), text_of(sample.turns[1]))
        for sample in built.samples
        if (sample.image_id, sample.task) == (image, task)
    }


def test_three_images_by_hand(write: Write) -> None:
    built = collect(VAW.samples(write(_rows()), BuildOptions(single_names=5)))
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 6}
    several = {said for said in _said(built, "9", "detection") if "; " in said[0]}
    assert _said(built, "9", "detection") - several == {
        (DETECT.format("red car"), "red car[0]"),
        (DETECT.format("wooden chair"), "wooden chair[2]"),
        (DETECT.format("metal chair"), "metal chair[2]"),
    }
    ((asked, answer),) = several
    assert sorted(answer.split("\n")) == ["metal chair[2]", "red car[0]", "wooden chair[2]"]
    assert [asked.count(phrase) for phrase in ("red car", "metal chair", "wooden chair")] == [
        1,
        1,
        1,
    ]
    assert _said(built, "9", "region_qa") == {
        ("What color is [0]?", "red and white"),
        ("What is [2] made of?", "wooden and metal"),
    }
    first = built.samples[0]
    assert [(item.box, item.label) for item in first.objects] == [
        ((1.0, 10.0, 21.0, 40.0), "car"),
        ((2.0, 10.0, 22.0, 40.0), "car"),
        ((3.0, 10.0, 23.0, 40.0), "chair"),
    ]
    assert (first.image_source, first.image_uri) == ("visual_genome", "vg/VG_100K/9.jpg")
    # white is known of one car only; where a thing is, is no adjective
    assert (first.absent_labels, first.absent_regime) == (("green car",), "attribute")
    (pure,) = [sample for sample in built.samples if sample.image_id == "25"]
    assert (pure.task, pure.image_uri) == ("rejection", "vg/VG_100K_2/25.jpg")
    assert tuple(map(text_of, pure.turns)) == (DETECT.format("red door"), "None")
    (color,) = [sample for sample in built.samples if sample.image_id == "30"]
    # one cup is labelled for nothing: neither "blue cup" nor "red cup" can be asked for
    assert tuple(map(text_of, color.turns)) == ("What color is [0]?", "blue")
    assert color.absent_labels == ()


def test_a_thing_with_the_same_last_word_must_be_labelled_too(write: Write) -> None:
    def ask(*others: dict[str, Any]) -> tuple[set[str], set[str]]:
        rows = [_row(9, 1, "car", ["red"], ["green"]), *others]
        built = collect(VAW.samples(write(rows), BuildOptions()))
        found = {
            part.text
            for s in built.samples
            if s.task == "detection"
            for part in s.turns[1].parts
            if part.objects
        }
        return found, {label for sample in built.samples for label in sample.absent_labels}

    assert ask(_row(9, 2, "tree", [], [])) == ({"red car"}, {"green car"})
    assert ask(_row(9, 2, "sports car", [], [])) == (set(), set())
    assert ask(_row(9, 2, "Cars", [], ["red"])) == ({"red car"}, set())
    assert ask(_row(9, 2, "sports car", ["red"], ["green"])) == (
        set(),
        {"green car", "green sports car"},
    )


def test_plurals_of_one_name_are_answered_together(write: Write) -> None:
    rows = [_row(9, 1, "car", ["red"], []), _row(9, 2, "cars", ["red"], [])]
    built = collect(VAW.samples(write(rows), BuildOptions()))
    assert _said(built, "9", "detection") == {(DETECT.format("red car"), "red car[0,1]")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instance_bbox": [1, 10, 0, 30]}, "empty_box"),
        ({"instance_bbox": [500, 10, 20, 30]}, "outside_box"),
        ({"instance_bbox": [1, 10, -20, 30]}, "inverted_box"),
        ({"instance_bbox": [1, float("nan"), 20, 30]}, "not_finite_box"),
        ({"instance_bbox": [1, 10, 20]}, "malformed"),
        ({"object_name": ""}, "empty_text"),
        ({"object_name": None}, "malformed"),
        ({"positive_attributes": ["<object>"]}, "unsafe_text"),
        ({"positive_attributes": ["red"], "negative_attributes": ["red"]}, "contradiction"),
        ({"negative_attributes": None}, "malformed"),
        ({"instance_id": "1"}, "duplicate_id"),
        ({"image_id": "9.jpg"}, "malformed"),
    ],
)
def test_a_bad_instance_is_one_reject_and_its_name_is_in_doubt(
    write: Write, change: dict[str, Any], reason: str
) -> None:
    rows = _rows()
    rows[2] |= change
    built = collect(VAW.samples(write(rows), BuildOptions()))
    (reject,) = built.rejects
    assert (reject.reason, reject.unit, reject.record_id) == (reason, "box", "instances/3")
    if "image_id" not in change:  # else nobody knows where it belongs
        asked = {question for question, _ in _said(built, "9", "detection")}
        assert not any("car" in question for question in asked)
        assert not any("car" in label for sample in built.samples for label in sample.absent_labels)
        assert ("What color is [0]?", "red and white") in _said(built, "9", "region_qa")


def test_an_image_in_neither_folder_takes_its_instances_along(write: Write) -> None:
    folders = write(_rows(), images={"9": "VG_100K", "25": "VG_100K_2"})
    built = collect(VAW.samples(folders, BuildOptions()))
    assert [(reject.reason, reject.unit) for reject in built.rejects] == [
        ("missing_image", "image"),
        ("image_rejected", "box"),
        ("image_rejected", "box"),
    ]


def test_a_broken_image_is_a_reject(write: Write, tmp_path: Path) -> None:
    folders = write(_rows())
    (tmp_path / "vg/VG_100K/30.jpg").write_bytes(b"no picture")
    assert collect(VAW.samples(folders, BuildOptions())).reasons == {
        "undecodable_image": 1,
        "image_rejected": 2,
    }


def test_other_files_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"attribute_types.json: want type -> list of attributes"
    ):
        list(VAW.samples(write(_rows(), types={"red": "color"}), BuildOptions()))
    with pytest.raises(SettingError, match=r"train_part2.json holds no instances"):
        list(VAW.samples(write(_rows()[:1]), BuildOptions()))
    corners = [_row(9, n, "car", [], [], instance_bbox=[60, 40, 90, 70 + n % 9]) for n in range(50)]
    with pytest.raises(SettingError, match="boxes are declared xywh"):
        list(VAW.samples(write(corners), BuildOptions()))
    with pytest.raises(SettingError, match="none of the first 100 records"):
        list(VAW.samples(write([{"id": n} for n in range(200)]), BuildOptions()))
