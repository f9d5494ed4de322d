import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection.crowdhuman import DATASETS, FILE, IMAGE_FOLDER
from dataset_builders.errors import SettingError
from dataset_builders.readers import json_lines
from dataset_builders.records import ImageRef, Object
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.detection import FORMATS
from tests.formats.scenes import jpeg, write

(SPEC,) = DATASETS
FIRST, SECOND, THIRD = (
    "273278,c9db000d5146c15",
    "273271,1a0d6000b9e1f5b7",
    "283554,35288000868e92d4",
)


def person(vbox: list[Any], **extra: Any) -> dict[str, Any]:
    return {
        "tag": "person",
        "hbox": [0, 0, 5, 5],
        "head_attr": {},
        "fbox": [-40, -3, 400, 900],
        "vbox": vbox,
        "extra": {"box_id": 0, "occ": 0, **extra},
    }


def mask(vbox: list[Any]) -> dict[str, Any]:
    return {**person(vbox, ignore=1), "tag": "mask"}


def lines() -> list[dict[str, Any]]:
    """Two persons and a small mask; a person beside an ignored one; a person and a mask as big."""
    return [
        {
            "ID": FIRST,
            "gtboxes": [person([10, 10, 20, 60]), mask([90, 0, 10, 10]), person([95, 20, 30, 70])],
        },
        {"ID": SECOND, "gtboxes": [person([10, 10, 20, 60]), person([50, 10, 20, 60], ignore=1)]},
        {
            "ID": THIRD,
            "gtboxes": [
                person([10, 10, 20, 60], ignore=0),
                {**mask([40, 20, 40, 30]), "extra": {}},
            ],
        },
    ]


def build(
    root: Path, records: list[Any], size: tuple[int, int] = (120, 100), **options: Any
) -> SimpleNamespace:
    """Build lines over plain images."""
    text = "\n".join(
        record if isinstance(record, str) else json.dumps(record) for record in records
    )
    write(root / FILE, text + "\n")
    for name in (FIRST, SECOND, THIRD):
        write(root / IMAGE_FOLDER / f"{name}.jpg", jpeg(Image.new("RGB", size, (90, 90, 90))))
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions(**options)))


def told(built: SimpleNamespace, image_id: str) -> list[tuple[str, str, str]]:
    return [
        (s.sample_id, text_of(s.turns[0]).partition(" in this")[0], text_of(s.turns[1]))
        for s in built.samples
        if s.image_id == image_id
    ]


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, lines())
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 7}
    assert told(built, FIRST) == [
        (f"crowdhuman/{FIRST}/detection/0", "Please detect person", "person[0,2]"),
        (
            f"crowdhuman/{FIRST}/counting/0",
            "How many people are there",
            "people[0,2]\nThere are 2.",
        ),
    ]
    first = built.samples[0]
    assert first.objects == (
        Object(box=(10.0, 10.0, 30.0, 70.0), label="person"),
        Object(box=(90.0, 0.0, 100.0, 10.0), label="mask", ignore=True),
        Object(box=(95.0, 20.0, 120.0, 90.0), label="person"),
    )
    assert first.image_uri == f"crowdhuman/Images/{FIRST}.jpg"
    assert (first.image_source, first.width, first.height) == ("crowdhuman", 120, 100)
    assert first.absent_labels is None
    # somebody ignored, or a mask as big as a person: they can be found, but not counted
    assert told(built, SECOND) == [
        (f"crowdhuman/{SECOND}/detection/0", "Please detect person", "person[0]")
    ]
    assert told(built, THIRD) == [
        (f"crowdhuman/{THIRD}/detection/0", "Please detect person", "person[0]")
    ]
    assert [item.ignore for item in built.samples[2].objects] == [False, True]


def test_options(tmp_path: Path) -> None:
    assert set(build(tmp_path, lines(), counting=0).tasks) == {"detection"}
    assert set(build(tmp_path, lines(), single_names=0).tasks) == {"counting"}


def test_crowds_are_cut_into_windows(tmp_path: Path) -> None:
    many = [person([6 * (i % 18), 8 * (i // 18), 5, 7]) for i in range(108)]
    built = build(tmp_path, [{"ID": FIRST, "gtboxes": many}], size=(160, 60))
    assert {s.window for s in built.samples} == {(0, 0, 88, 60), (72, 0, 160, 60)}
    # 14 columns are whole in the left window, the 15th, from 84 to 89, for more than half;
    # 6 in the right
    counts = {
        s.window: text_of(s.turns[1]).rpartition("\n")[2]
        for s in built.samples
        if s.task == "counting"
    }
    assert counts == {(0, 0, 88, 60): "There are 90.", (72, 0, 160, 60): "There are 36."}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ('{"ID": 5, "gtboxes": []}', "malformed"),
        ('{"ID": "a", "gtboxes": {}}', "malformed"),
        ('{"gtboxes": []}', "malformed"),
        ('{"ID": "../x", "gtboxes": []}', "unsafe_path"),
        ('{"ID": "a/x", "gtboxes": []}', "unsafe_path"),
        ('{"ID": "\\u0000", "gtboxes": []}', "unsafe_path"),
        ('{"ID": "\\ud800", "gtboxes": []}', "unsafe_path"),
        ('{"ID": "nobody", "gtboxes": []}', "missing_image"),
        (json.dumps({"ID": FIRST, "gtboxes": []}), "duplicate_id"),
        ("[" * 5000, "malformed"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, reason: str) -> None:
    built = build(tmp_path, [*lines(), line])
    assert built.reasons == {reason: 1}
    assert (built.rejects[0].unit, built.rejects[0].record_id) == (
        "image",
        "annotation_train.odgt/4",
    )
    assert built.ledger.used == {"image": 3, "box": 7}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tag": "dog"}, "malformed"),
        ({"tag": ["person"]}, "malformed"),
        ({"extra": []}, "malformed"),
        ({"extra": {"ignore": 2}}, "malformed"),
        ({"extra": {"ignore": "yes"}}, "malformed"),
        ({"vbox": [1, 2, 3]}, "malformed"),
        ({"vbox": None}, "malformed"),
        ({"vbox": [10, 10, 0, 60]}, "empty_box"),
        ({"vbox": [10, 10, -4, 60]}, "inverted_box"),
        ({"vbox": [10, 300, 20, 60]}, "outside_box"),
        ({"vbox": [10, 10, float("inf"), 60]}, "not_finite_box"),
    ],
)
def test_a_bad_person_leaves_the_others_in_doubt(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    records = lines()
    records[0]["gtboxes"][0] |= change
    built = build(tmp_path, records)
    assert built.reasons == {reason: 1}
    assert built.rejects[0].record_id == f"{FIRST}/gtboxes/0"
    assert told(built, FIRST) == []
    assert len(told(built, SECOND)) == 1


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 2000)
    long = json.dumps({"ID": "x", "gtboxes": [], "more": "y" * 9000})
    built = build(tmp_path, [long, *lines()])
    assert built.reasons == {"text_too_long": 1}
    assert built.ledger.used == {"image": 3, "box": 7}


def test_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    records = [json.dumps(record) for record in lines()]
    built = build(tmp_path, ["\ufeff" + records[0], "", *records[1:], " "])
    assert built.rejects == []
    assert built.ledger.used["image"] == 3


def test_a_missing_image_takes_its_boxes_along(tmp_path: Path) -> None:
    built = build(tmp_path, [*lines(), {"ID": "gone", "gtboxes": [person([1, 1, 9, 9])] * 3}])
    assert built.reasons == {"missing_image": 1, "image_rejected": 3}


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"annotation_train\.odgt not found"):
        list(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))
    with pytest.raises(SettingError, match="holds no lines"):
        build(tmp_path, [])
    with pytest.raises(SettingError, match="none of the first 100 records of unit 'image'"):
        build(tmp_path, ["<xml>"] * 150)
    corners = [person([x, 50, x + 10, 95]) for x in range(70, 100)]
    with pytest.raises(SettingError, match="declared xywh"):
        build(tmp_path, [{"ID": FIRST, "gtboxes": corners}])


def test_generated_files_build(tmp_path: Path) -> None:
    (form,) = [form for form in FORMATS if form.datasets == ("crowdhuman",)]
    form.write(tmp_path, 0)
    folders = DataFolders(str(tmp_path))
    built = collect(SPEC.samples(folders, BuildOptions()))
    assert set(built.tasks) == set(SPEC.tasks)
    assert built.reasons == {"missing_image": 1, "image_rejected": 1}
    assert any(s.window for s in built.samples)
    assert all(built.ledger.used[unit] > 0.8 * read for unit, read in built.ledger.read.items())
    assert built.samples == collect(SPEC.samples(folders, BuildOptions())).samples
    listed = {i.image_id for i in SPEC.images[0].images(folders) if isinstance(i, ImageRef)}
    assert {sample.image_id for sample in built.samples} <= listed
