import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import refcoco_mdetr
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import collect, text_of

SPECS = {spec.name: spec for spec in refcoco_mdetr.DATASETS}
Write = Callable[..., DataFolders]


def image(
    number: Any, coco: int, caption: Any, width: int = 200, height: int = 100
) -> dict[str, Any]:
    return {
        "id": number,
        "original_id": coco,
        "file_name": f"COCO_train2014_{coco:012d}.jpg",
        "width": width,
        "height": height,
        "caption": caption,
        "dataset_name": "refcoco",
        "tokens_negative": [],
    }


def box(image_id: Any, coco: int, bbox: Any, category: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": 1000 + coco,
        "original_id": coco,
        "image_id": image_id,
        "category_id": category,
        "bbox": bbox,
        "area": 1.0,
        "iscrowd": 0,
        "tokens_positive": [[0, 3]],
    } | more


def content() -> dict[str, Any]:
    """Two expressions of image 320 with one of 321 between; boxes are listed in another order."""
    return {
        "info": {},
        "images": [
            image(7, 320, "right  man "),
            image(8, 321, "the train", 120, 90),
            image(9, 320, "left man"),
        ],
        "annotations": [
            box(9, 50, [10, 20, 30, 40]),
            box(7, 51, [100, 20, 30, 40.5]),
            box(8, 52, [0, 0, 60, 90], 7),
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "train"}],
    }


def grefcoco() -> dict[str, Any]:
    """As `content`, with an expression for both men and two for nothing."""
    made = content()
    made["images"] += [
        image(10, 320, "both men"),
        image(11, 320, "the blue man"),
        image(12, 322, "a dog"),
    ]
    nothing = {"iscrowd": -1, "area": -1, "empty": True}
    made["annotations"] += [
        box(10, 51, [100, 20, 30, 40.5], empty=False),
        box(10, 50, [10, 20, 30, 40], empty=False),
        box(11, -1, [0, 0, 0, 0], -1, **nothing),
        box(12, -1, [0, 0, 0, 0], -1, **nothing),
    ]
    return made


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(made: Any, name: str = "refcoco") -> DataFolders:
        (tmp_path / "coco/train2017").mkdir(parents=True, exist_ok=True)
        (tmp_path / "mdetr_annotations").mkdir(exist_ok=True)
        (tmp_path / f"mdetr_annotations/finetune_{name}_train.json").write_text(json.dumps(made))
        return DataFolders(str(tmp_path))

    return write


def build(folders: DataFolders, name: str = "refcoco", options: BuildOptions | None = None) -> Any:
    return collect(SPECS[f"{name}_mdetr"].samples(folders, options or BuildOptions()))


def test_the_datasets_of_this_module() -> None:
    assert {name: spec.files for name, spec in SPECS.items()} == {
        "refcoco_mdetr": ("mdetr_annotations/finetune_refcoco_train.json",),
        "refcocop_mdetr": ("mdetr_annotations/finetune_refcoco+_train.json",),
        "refcocog_mdetr": ("mdetr_annotations/finetune_refcocog_train.json",),
        "grefcoco_mdetr": ("mdetr_annotations/finetune_grefcoco_train.json",),
    }
    assert all(spec.stages == () for spec in SPECS.values())


def test_golden_samples(write: Write) -> None:
    built = build(write(content()))
    assert built.rejects == []
    assert built.ledger.used == {"category": 2, "box": 3, "record": 3}
    samples = {sample.sample_id: sample for sample in built.samples}
    assert sorted(samples) == sorted(
        f"refcoco_mdetr/{image}/{task}/{number}"
        for image, number in ((320, 7), (320, 9), (321, 8))
        for task in ("referring", "region_caption")
    )
    right, left = (samples[f"refcoco_mdetr/320/referring/{number}"] for number in (7, 9))
    assert right.objects == left.objects
    assert right.objects == (
        Object(box=(100.0, 20.0, 130.0, 60.5), label="person"),
        Object(box=(10.0, 20.0, 40.0, 60.0), label="person"),
    )
    assert (right.image_source, right.image_id) == ("coco_train2017", "320")
    assert right.image_uri == "coco/train2017/000000000320.jpg"
    assert (right.width, right.height) == (200, 100)
    assert text_of(right.turns[0]) == (
        "Please detect right man in this image. Answer the question with object indexes."
    )
    assert text_of(right.turns[1]) == "right man[0]"
    assert text_of(left.turns[1]) == "left man[1]"
    train = samples["refcoco_mdetr/321/region_caption/8"]
    assert train.objects == (Object(box=(0.0, 0.0, 60.0, 90.0), label="train"),)
    assert text_of(train.turns[0]) == "Provide a brief description for [0]."
    assert text_of(train.turns[1]) == "the train"


@pytest.mark.parametrize("first", ["images", "annotations", "categories"])
def test_the_arrays_may_come_in_any_order(write: Write, first: str) -> None:
    made = content()
    shuffled = {first: made[first]} | {key: made[key] for key in reversed(made) if key != first}
    assert build(write(shuffled)).samples == build(write(made)).samples


def test_grefcoco_keeps_its_rows_without_target(write: Write) -> None:
    built = build(write(grefcoco(), "grefcoco"), "grefcoco")
    assert built.rejects == []
    assert built.ledger.used == {"category": 2, "box": 7, "record": 6}
    assert built.tasks == {"referring": 4, "region_caption": 3, "rejection": 2}
    samples = {sample.sample_id: sample for sample in built.samples}
    assert text_of(samples["grefcoco_mdetr/320/referring/10"].turns[1]) == "both men[0,1]"
    blue = samples["grefcoco_mdetr/320/rejection/11"]
    assert text_of(blue.turns[1]) == "None"
    assert (blue.absent_labels, blue.absent_regime) == (("the blue man",), "constructed")
    assert len(blue.objects) == 2
    alone = samples["grefcoco_mdetr/322/rejection/12"]
    assert alone.objects == ()
    assert (alone.width, alone.height) == (200, 100)
    # RefCOCO has no such rows: there they are bad boxes, never silently a rejection
    elsewhere = build(write(grefcoco()))
    assert elsewhere.tasks["rejection"] == 0
    assert [r.reason for r in elsewhere.rejects if r.unit == "box"] == ["malformed", "malformed"]


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"empty": False}, {"malformed": 1, "unknown_object": 1}),
        ({"empty": "true"}, {"malformed": 1, "unknown_object": 1}),
        ({"bbox": [1, 1, 5, 5]}, {"contradiction": 1, "unknown_object": 1}),
        ({"image_id": 10}, {"contradiction": 1, "unknown_object": 1}),  # beside two boxes
        ({"image_id": 99}, {"unknown_image": 1, "unknown_object": 1}),
    ],
)
def test_a_doubtful_mark_of_no_target_rejects(write: Write, change: dict, reasons: dict) -> None:
    made = grefcoco()
    made["annotations"][5] |= change
    built = build(write(made, "grefcoco"), "grefcoco")
    assert built.reasons == reasons
    assert built.tasks["rejection"] == 1


def test_an_expression_for_several_objects_is_never_cut_to_those_that_are_left(
    write: Write,
) -> None:
    made = grefcoco()
    made["annotations"][4]["bbox"] = [500, 500, 9, 9]  # the second of both men
    built = build(write(made, "grefcoco"), "grefcoco")
    assert [(r.unit, r.reason) for r in built.rejects] == [
        ("box", "outside_box"),
        ("record", "unknown_object"),
    ]
    assert "both men" not in {sample.turns[1].parts[0].text for sample in built.samples}


def test_annotations_of_a_repeated_id_are_counted_once(write: Write) -> None:
    made = content()
    made["annotations"][0]["bbox"] = [10, 20, 0, 40]
    made["images"].append(image(9, 320, "the man on the left"))
    built = build(write(made))
    assert built.reasons == {"empty_box": 1, "unknown_object": 2}
    assert built.ledger.read == {"category": 2, "box": 3, "record": 4}


@pytest.mark.parametrize(
    ("place", "change", "units"),
    [
        (
            ("annotations", 0),
            {"bbox": [10, 20, 0, 40]},
            {("box", "empty_box"), ("record", "unknown_object")},
        ),
        (
            ("annotations", 0),
            {"bbox": [1, 2, 3]},
            {("box", "malformed"), ("record", "unknown_object")},
        ),
        (("annotations", 0), {"bbox": None}, {("box", "malformed"), ("record", "unknown_object")}),
        (
            ("annotations", 0),
            {"category_id": 5},
            {("box", "unknown_category"), ("record", "unknown_object")},
        ),
        (("annotations", 0), {"iscrowd": 1}, {("record", "contradiction")}),
        (("annotations", 0), {"iscrowd": -1}, {("box", "malformed"), ("record", "unknown_object")}),
        (
            ("annotations", 0),
            {"image_id": None},
            {("box", "malformed"), ("record", "unknown_object")},
        ),
        (("images", 2), {"caption": None}, {("record", "malformed"), ("box", "unknown_image")}),
        (("images", 2), {"caption": " \t"}, {("record", "empty_text")}),
        (("images", 2), {"caption": "a <region3>"}, {("record", "unsafe_text")}),
        (("images", 2), {"caption": "left \ud800"}, {("record", "unsafe_text")}),
        (("images", 2), {"caption": "x" * 30_000}, {("record", "text_too_long")}),
        (
            ("images", 2),
            {"original_id": 321},
            {("record", "contradiction"), ("box", "unknown_image")},
        ),
        (
            ("images", 2),
            {"file_name": "a.jpg"},
            {("record", "malformed"), ("box", "unknown_image")},
        ),
        (("images", 2), {"file_name": 4}, {("record", "malformed"), ("box", "unknown_image")}),
        (("images", 2), {"width": 0}, {("record", "bad_size"), ("box", "unknown_image")}),
        (("images", 2), {"width": 10**9}, {("record", "bad_size"), ("box", "unknown_image")}),
        (("images", 2), {"width": 210}, {("record", "contradiction")}),
        (("images", 2), {"id": 7}, {("record", "duplicate_id"), ("box", "unknown_image")}),
        (("categories", 1), {"id": 1}, {("category", "duplicate_id")}),
    ],
)
def test_bad_records_are_rejected_with_their_reason(
    write: Write, place: tuple[str, int], change: dict, units: set
) -> None:
    made = content()
    made[place[0]][place[1]] |= change
    if place[0] == "categories":
        made["annotations"][2]["category_id"] = 1
    built = build(write(made))
    assert {(reject.unit, reject.reason) for reject in built.rejects} == units
    assert len(built.samples) == (6 if place[0] == "categories" else 4)


def test_wrong_files_are_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"finetune_refcocog_train\.json not found"):
        build(write(content()), "refcocog")
    with pytest.raises(
        SettingError, match=r"(?s)finetune_refcoco_train\.json lists no images.*one image entry"
    ):
        build(write({"annotations": []}))
    with pytest.raises(SettingError, match=r"finetune_refcoco_train\.json is not valid JSON"):
        build(write([]))
    # COCO's own file: no captions
    coco = content()
    coco["images"] = [image(i, i + 1, "x") for i in range(200)]
    for record in coco["images"]:
        del record["caption"]
    coco["annotations"] = []
    with pytest.raises(SettingError, match=r"none of the first 100 records.*no field 'caption'"):
        build(write(coco))
    corners = content()
    corners["images"] = [image(i, 320, f"man {i}") for i in range(60)]
    corners["annotations"] = [box(i, i, [60 + i, 40, 130 + i, 90]) for i in range(60)]
    with pytest.raises(
        SettingError, match=r"finetune_refcoco_train\.json: boxes are declared xywh"
    ):
        build(write(corners))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_records_are_used_or_rejected(data: Any, write: Write) -> None:
    made = grefcoco()
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-3, 10**20)
        | st.floats()
        | st.text(max_size=9)
        | st.lists(st.integers(-5, 300), max_size=4)
        | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        array = made[data.draw(st.sampled_from(["images", "annotations", "categories"]))]
        index = data.draw(st.integers(0, len(array) - 1))
        if isinstance(array[index], dict) and array[index] and data.draw(st.integers(0, 4)):
            array[index][data.draw(st.sampled_from(sorted(array[index])))] = data.draw(junk)
        else:
            array[index] = data.draw(junk)
    for sample in build(write(made, "grefcoco"), "grefcoco").samples:
        validate(sample)
