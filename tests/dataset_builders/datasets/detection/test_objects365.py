import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection.objects365 import DATASETS, UNPUBLISHED
from dataset_builders.datasets.detection.objects365_names import (
    GROUPS,
    MENDED,
    confused_with,
    mended,
    spellings,
)
from dataset_builders.errors import SettingError
from dataset_builders.records import ImageRef, Object, Reject
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.detection import FORMATS

SPECS = {spec.name: spec for spec in DATASETS}
FIELDS = {"isfake": 0, "isreflected": 0, "iscrowd": 0}


def v2_records() -> dict[str, Any]:
    """A person and a basket beside a group; a van; nothing; an image that was never published."""
    return {
        "images": [
            {
                "id": 420917,
                "file_name": "images/v1/patch8/objects365_v1_00420917.jpg",
                "width": 100,
                "height": 80,
            },
            {
                "id": 5,
                "file_name": "images/v2/patch16/objects365_v2_00900001.jpg",
                "width": 60,
                "height": 50,
            },
            {
                "id": 6,
                "file_name": "images/v2/patch20/objects365_v2_00900002.jpg",
                "width": 60,
                "height": 50,
            },
            {
                "id": 7,
                "file_name": "images/v2/patch16/objects365_v2_00908726.jpg",
                "width": 60,
                "height": 50,
            },
        ],
        "annotations": [
            {"id": 1, "image_id": 420917, "category_id": 1, "bbox": [10, 10, 20.5, 30], **FIELDS},
            {"id": 2, "image_id": 420917, "category_id": 9, "bbox": [30, 30, 10, 10], **FIELDS},
            {
                "id": 3,
                "image_id": 420917,
                "category_id": 1,
                "bbox": [50, 0, 50, 40],
                **FIELDS,
                "iscrowd": 1,
            },
            {"id": 4, "image_id": 5, "category_id": 7, "bbox": [-1, 5, 30, 20], **FIELDS},
            {"id": 5, "image_id": 7, "category_id": 7, "bbox": [5, 5, 30, 20], **FIELDS},
        ],
        "categories": [
            {"id": 1, "name": "Person"},
            {"id": 3, "name": "Moniter/TV"},
            {"id": 9, "name": "Bakset"},
            {"id": 7, "name": "Van"},
            {"id": 8, "name": "Car"},
            {"id": 5, "name": "Table Tennis "},
            {"id": 6, "name": "Cup"},
        ],
    }


def build(root: Path, content: Any, name: str = "objects365", **options: Any) -> SimpleNamespace:
    spec = SPECS[name]
    file = root / spec.files[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    (root / spec.images[0].image_paths[0]).mkdir(parents=True, exist_ok=True)
    return collect(spec.samples(DataFolders(str(root)), BuildOptions(**options)))


def asked(built: SimpleNamespace, image_id: str) -> Counter[tuple[str, str, str]]:
    """(task, name asked for, answer) of the samples of an image."""
    found = []
    for sample in built.samples:
        if sample.image_id == image_id:
            text = text_of(sample.turns[0])
            for frame in ("Please detect ", "How many ", "Provide a brief description for "):
                text = text.removeprefix(frame)
            name = text.partition(" in this")[0].partition(" are there")[0].removesuffix(".")
            found.append((sample.task, name, text_of(sample.turns[1])))
    return Counter(found)


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, v2_records())
    people = asked(built, "420917")
    both = (
        "Person; Basket"
        if ("detection", "Person; Basket", "Person[0]\nBasket[1]") in people
        else None
    )
    several = both or "Basket; Person"
    assert people == Counter(
        [
            ("detection", "Person", "Person[0]"),
            ("detection", "Basket", "Basket[1]"),
            ("detection", several, "Person[0]\nBasket[1]" if both else "Basket[1]\nPerson[0]"),
            (
                "counting",
                "Basket",
                "Basket[1]\nThere are 1.",
            ),  # persons stand in a group: not counted
            ("region_name", "[0]", "Person"),
            ("region_name", "[1]", "Basket"),
        ]
    )
    first = next(sample for sample in built.samples if sample.image_id == "420917")
    assert first.objects == (
        Object(box=(10.0, 10.0, 30.5, 40.0), label="Person"),
        Object(box=(30.0, 30.0, 40.0, 40.0), label="Basket"),
        Object(box=(50.0, 0.0, 100.0, 40.0), label="Person", ignore=True),
    )
    assert first.image_uri == "objects365/train/patch8/objects365_v1_00420917.jpg"
    assert (first.image_source, first.width, first.height, first.window) == (
        "objects365",
        100,
        80,
        None,
    )
    assert first.absent_regime == "exhaustive"
    assert first.absent_labels is not None
    assert first.absent_labels[0] in ("Monitor", "TV")
    assert first.absent_labels[1:] == ("Van", "Car", "Table Tennis ball", "Cup")

    assert asked(built, "5") == Counter(
        [
            ("detection", "Van", "Van[0]"),
            ("counting", "Van", "Van[0]\nThere are 1."),
            ("region_name", "[0]", "Van"),
        ]
    )
    van = next(sample for sample in built.samples if sample.image_id == "5")
    assert van.objects == (Object(box=(0.0, 5.0, 29.0, 25.0), label="Van"),)
    assert van.absent_labels is not None
    assert "Car" not in van.absent_labels, "a van may have been boxed as a car, or a car as a van"
    assert "Person" in van.absent_labels

    (nothing,) = [sample for sample in built.samples if sample.image_id == "6"]
    assert (nothing.sample_id, text_of(nothing.turns[1])) == ("objects365/6/rejection/0", "None")
    assert len(nothing.absent_labels or ()) == 7


def test_images_that_were_never_published(tmp_path: Path) -> None:
    built = build(tmp_path, v2_records())
    assert [(r.record_id, r.reason, r.unit) for r in built.rejects] == [
        ("images/3", "missing_image", "image"),
        ("annotations/4", "image_rejected", "box"),
    ]
    assert built.ledger.used == {"image": 3, "box": 4, "category": 7}
    assert len(UNPUBLISHED) == 3
    listed = list(SPECS["objects365"].images[0].images(DataFolders(str(tmp_path))))
    assert [i.image_id for i in listed if isinstance(i, ImageRef)] == ["420917", "5", "6"]
    assert [i.reason for i in listed if isinstance(i, Reject)] == ["missing_image"]


def test_a_compound_name_is_asked_for_by_its_parts(tmp_path: Path) -> None:
    records = v2_records()
    records["annotations"][3]["category_id"] = 3
    names = set()
    for seed in range(12):
        built = build(tmp_path, records, seed=seed)
        (sample,) = [s for s in built.samples if s.sample_id == "objects365/5/detection/0"]
        name = sample.objects[0].label
        assert text_of(sample.turns[1]) == f"{name}[0]"
        assert not {"Monitor", "TV", "Monitor/TV"} & set(sample.absent_labels or ())
        names.add(name)
    assert names == {"Monitor", "TV"}


def test_a_rejected_box_leaves_its_category_in_doubt_under_any_name(tmp_path: Path) -> None:
    records = v2_records()
    boxes = [[2, 2, 9, 9], [20, 2, 0, 9]]
    records["annotations"] += [
        {"id": 10 + n, "image_id": 5, "category_id": 3, "bbox": box, **FIELDS}
        for n, box in enumerate(boxes)
    ]
    for seed in range(4):  # called Monitor by some, TV by others
        built = build(tmp_path, records, seed=seed)
        assert built.reasons["empty_box"] == 1
        found = [sample for sample in built.samples if sample.image_id == "5"]
        assert {text_of(s.turns[1])[:3] for s in found if s.task in ("detection", "counting")} == {
            "Van"
        }
        assert not {"Monitor", "TV"} & set(found[0].absent_labels or ())


def test_version_1_is_flat_and_goes_by_category_id(tmp_path: Path) -> None:
    records = v2_records()
    for number, image in enumerate(records["images"]):
        image["file_name"] = f"obj365_train_{number:012d}.jpg"
    records["categories"] = [
        {"id": 7, "name": "bread"},
        {"id": 9, "name": "bread/bun"},
        {"id": 1, "name": "person"},
        {"id": 3, "name": "orange"},
    ]
    built = build(tmp_path, records, "objects365_v1")
    assert built.rejects == []
    first = next(sample for sample in built.samples if sample.image_id == "420917")
    assert first.image_uri == "objects365_v1/train/obj365_train_000000000000.jpg"
    assert [item.label for item in first.objects] == ["person", "bread bun", "person"]
    assert first.absent_labels == ("orange",), "bread may be what was boxed as bread/bun"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("images/../../../patch1/x.jpg", "unsafe_path"),
        ("/images/v1/patch1/x.jpg", "unsafe_path"),
        ("x.jpg", "malformed"),
        (17, "unsafe_path"),
    ],
)
def test_bad_paths(tmp_path: Path, path: Any, reason: str) -> None:
    records = v2_records()
    records["images"][2]["file_name"] = path
    built = build(tmp_path, records)
    assert built.reasons[reason] == 1
    assert {sample.image_id for sample in built.samples} == {"420917", "5"}


def test_a_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    records = v2_records()
    records["categories"][6]["name"] = ["Cup"]
    records["categories"][5]["name"] = "  "
    built = build(tmp_path, records)
    assert built.reasons["malformed"] == built.reasons["empty_text"] == 1
    assert built.ledger.used["category"] == 5


def test_wrong_files_fail_at_once(tmp_path: Path) -> None:
    spec = SPECS["objects365"]
    with pytest.raises(SettingError, match=r"zhiyuan_objv2_train\.json not found(?s:.*)patch50"):
        list(spec.samples(DataFolders(str(tmp_path)), BuildOptions()))
    with pytest.raises(SettingError, match="no usable images"):
        build(tmp_path, {"images": [], "annotations": [], "categories": []})
    records = v2_records()
    corners = [[x, 10, x + 12, 40] for x in range(40, 65)]
    records["annotations"] = [
        {"id": number, "image_id": 420917, "category_id": 1, "bbox": box, "iscrowd": 0}
        for number, box in enumerate(corners)
    ]
    with pytest.raises(SettingError, match="declared xywh"):
        build(tmp_path, records)


def test_names() -> None:
    assert [
        mended(name)
        for name in ("Table Tennis ", "Moniter/TV", "Dinning Table", "Campel", "Person")
    ] == [
        "Table Tennis ball",
        "Monitor/TV",
        "Dining Table",
        "Camel",
        "Person",
    ]
    assert spellings(
        ["Cabinet/shelf", "Towel", "Towel/Napkin", "Cup", "Cutting/chopping Board"]
    ) == {
        "Cabinet/shelf": ("Cabinet", "shelf"),
        "Towel/Napkin": ("Napkin",),
        "Cutting/chopping Board": ("cutting board", "chopping board"),
    }
    assert "SUV".lower() in confused_with("Car")
    assert {"leather shoes", "boots"} <= set(confused_with("Sneakers"))
    assert {"side table", "desk"} <= set(confused_with("Coffee Table"))
    assert list(confused_with("Umbrella Stand")) == []
    unmended = {name.lower() for name in MENDED}
    assert not [
        name for group in GROUPS for name in group if name in unmended or name != name.lower()
    ]


@pytest.mark.parametrize("name", SPECS)
def test_generated_files_build(name: str, tmp_path: Path) -> None:
    for form in FORMATS:
        if name in form.datasets:
            form.write(tmp_path, 0)
    built = collect(SPECS[name].samples(DataFolders(str(tmp_path)), BuildOptions()))
    assert set(built.tasks) <= set(SPECS[name].tasks)
    assert {"detection", "counting", "region_name"} <= set(built.tasks)
    for unit, read in built.ledger.read.items():
        assert built.ledger.used[unit] > 0.8 * read
    assert (
        built.samples
        == collect(SPECS[name].samples(DataFolders(str(tmp_path)), BuildOptions())).samples
    )
    listed = {
        i.image_id
        for i in SPECS[name].images[0].images(DataFolders(str(tmp_path)))
        if isinstance(i, ImageRef)
    }
    assert {sample.image_id for sample in built.samples} <= listed
