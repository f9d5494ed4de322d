import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.ocr.doclaynet import CELLS, CLASSES, DATASETS, FILE, IMAGE_FOLDER
from dataset_builders.datasets.ocr.doclaynet_cells import FORMS, place
from dataset_builders.errors import SettingError
from dataset_builders.records import ImageRef, Object, Reject
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.detection import FORMATS
from tests.formats.scenes import write

(SPEC,) = DATASETS


def records() -> dict[str, Any]:
    """A page of a title, a text and a Picture; a page with a footer; the first annotated again."""
    page = {"width": 1025, "height": 1025, "doc_name": "NASDAQ_FFIN_2002.pdf", "precedence": 0}
    boxes = [
        (1, 11, [100, 50, 500, 40]),
        (1, 10, [100, 100, 800, 200]),
        (1, 7, [434.5, -0.49, 100, 30.49]),
        (2, 5, [18.25, 1005, 200, 10.5]),
        (3, 11, [100, 52, 500, 40]),
    ]
    return {
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
        "images": [
            {"id": 1, "file_name": "132a.png", "page_no": 9, **page},
            {"id": 2, "file_name": "77bc.png", "page_no": 10, **page},
            {"id": 3, "file_name": "9e01.png", "page_no": 9, **page, "precedence": 1},
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "iscrowd": 0,
                "precedence": int(image == 3),
            }
            for number, (image, category, box) in enumerate(boxes)
        ],
    }


def build(
    root: Path, content: Any, cells: dict[str, Any] | None = None, **options: Any
) -> SimpleNamespace:
    """Build a file, with texts for some of its pages."""
    write(root / FILE, json.dumps(content))
    (root / IMAGE_FOLDER).mkdir(parents=True, exist_ok=True)
    for name, page in (cells or {}).items():
        write(root / CELLS / f"{name}.json", page if isinstance(page, str) else json.dumps(page))
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions(**options)))


def page_of(*cells: tuple[list[float], str]) -> dict[str, Any]:
    """A page of 500 x 2000 units: 2.05 pixels of the image across for one, and 0.5125 down."""
    metadata = {"original_width": 500, "original_height": 2000, "page_no": 9}
    return {
        "metadata": metadata,
        "cells": [{"bbox": box, "text": text, "font": {}} for box, text in cells],
    }


def told(built: SimpleNamespace, image_id: str, task: str) -> dict[str, str]:
    return {
        text_of(s.turns[0]): text_of(s.turns[1])
        for s in built.samples
        if s.image_id == image_id and s.task == task
    }


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, records(), region_names=3)
    assert told(built, "1", "region_qa") == {
        "What type of layout element is [0]?": "Title",
        "What type of layout element is [1]?": "Text",
        "What type of layout element is [2]?": "Picture",
    }
    first = next(s for s in built.samples if s.image_id == "1")
    assert first.objects == (
        Object(box=(100.0, 50.0, 600.0, 90.0), label="Title"),
        Object(box=(100.0, 100.0, 900.0, 300.0), label="Text"),
        Object(box=(434.5, 0.0, 534.5, 30.0), label="Picture"),  # began above the page
    )
    assert first.image_uri == "doclaynet/PNG/132a.png"
    assert (first.image_source, first.width, first.height) == ("doclaynet_train", 1025, 1025)
    assert first.absent_labels is None
    lines = {"Title": "Title[0]", "Text": "Text[1]", "Picture": "Picture[2]"}
    found = told(built, "1", "detection")
    assert len(found) == 3
    for asked, answer in found.items():
        names = asked.removeprefix("Please detect ").partition(" in this")[0].split("; ")
        assert answer == "\n".join(lines[name] for name in names)

    assert told(built, "2", "region_qa") == {"What type of layout element is [0]?": "Page-footer"}
    assert list(told(built, "2", "detection").values()) == ["Page-footer[0]"]
    assert not [s for s in built.samples if s.task == "ocr"]


def test_pages_annotated_again_are_left_out(tmp_path: Path) -> None:
    built = build(tmp_path, records())
    assert [(r.record_id, r.reason, r.unit) for r in built.rejects] == [
        ("images/2", "duplicate_id", "image"),
        ("annotations/4", "image_rejected", "box"),
    ]
    assert "page 9 of 'NASDAQ_FFIN_2002.pdf' annotated again" in built.rejects[0].detail
    listed = list(SPEC.images[0].images(DataFolders(str(tmp_path))))
    assert [i.image_id for i in listed if isinstance(i, ImageRef)] == ["1", "2"]
    assert [i.reason for i in listed if isinstance(i, Reject)] == ["duplicate_id"]
    content = records()
    content["annotations"][0]["precedence"] = 1  # on a page with precedence 0
    built = build(tmp_path, content, {"132a": in_page(*CELLS_PX)})
    assert built.reasons["contradiction"] == 1
    assert {s.image_id for s in built.samples} == {"2"}


def test_every_class_is_asked_for_before_any_comes_again(tmp_path: Path) -> None:
    content = records()
    content["annotations"] = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 11 if number == 7 else 10,
            "bbox": [20 * number, 9, 15, 9],
        }
        for number in range(40)
    ]
    for seed in range(5):
        built = build(tmp_path, content, seed=seed, region_names=2)
        assert set(told(built, "1", "region_qa").values()) == {"Title", "Text"}


# the title is two cells, one line; the text two lines; a blank; something in the image
CELLS_PX = [
    ([110.7, 55.35, 307.5, 82.0], "Annual"),
    ([328.0, 55.35, 492.0, 82.0], "Report  2002"),
    ([110.7, 112.75, 820.0, 143.5], "Leigh Taliaferro, M.D., values"),
    ([110.7, 153.75, 820.0, 184.5], "consistency."),
    ([110.7, 200.0, 820.0, 220.0], "  "),
    ([440.0, 5.0, 520.0, 25.0], "LOGO"),
]


def stored_as(form: str, box: list[float]) -> list[float]:
    """The four numbers for a box in pixels, by hand for a page of 500 x 2000 units."""
    x1, x2 = box[0] / 2.05, box[2] / 2.05
    y1, y2 = box[1] / 0.5125, box[3] / 0.5125
    return {
        "left, top, width, height on the page": [x1, y1, x2 - x1, y2 - y1],
        "left, top, width, height in the image": [
            box[0],
            box[1],
            box[2] - box[0],
            box[3] - box[1],
        ],
        "corners on the page": [x1, y1, x2, y2],
        "corners from the lower left of the page": [x1, 2000 - y2, x2, 2000 - y1],
        "x0, x1, y0, y1 from the lower left of the page": [x1, x2, 2000 - y2, 2000 - y1],
    }[form]


@pytest.mark.parametrize("form", FORMS)
def test_the_text_of_elements_whatever_the_numbers_are(tmp_path: Path, form: str) -> None:
    page = page_of(*((stored_as(form, box), text) for box, text in CELLS_PX))
    a, b, c, d = stored_as(form, CELLS_PX[0][0])
    assert place((a, b, c, d), form, (500, 2000), (1025, 1025)) == pytest.approx(CELLS_PX[0][0])
    built = build(tmp_path, records(), {"132a": page})
    assert told(built, "1", "ocr") == {
        "Please provide the ocr results of [0] in the image.": "Annual Report 2002",
        "Please provide the ocr results of [1] in the image.": (
            "Leigh Taliaferro, M.D., values consistency."
        ),
    }
    assert [s.sample_id for s in built.samples if s.task == "ocr"] == [
        "doclaynet/1/ocr/0",
        "doclaynet/1/ocr/1",
    ]
    assert built.ledger.read["record"] == 2
    assert build(tmp_path, records(), region_texts=1).tasks["ocr"] == 1


def in_page(*cells: tuple[list[float], str]) -> dict[str, Any]:
    return page_of(*((stored_as(FORMS[0], box), text) for box, text in cells))


def test_texts_that_two_elements_share_are_not_read(tmp_path: Path) -> None:
    """A cell that sticks out of the text by half makes it doubtful; the title is still read."""
    across = ([100.0, 280.0, 800.0, 315.0], "half in, half out")
    built = build(tmp_path, records(), {"132a": in_page(*CELLS_PX, across)})
    assert list(told(built, "1", "ocr").values()) == ["Annual Report 2002"]


def test_cells_beside_all_elements_fail(tmp_path: Path) -> None:
    beside = [([10.0, 500.0 + 20 * row, 60.0, 515.0 + 20 * row], "word") for row in range(20)]
    with pytest.raises(
        SettingError, match=r"of 20 text cells stand in layout elements .* cannot tell which"
    ):
        build(tmp_path, records(), {"132a": in_page(*beside)})
    # 16 of 21 are fewer than four fifths, though no other form explains more
    inside = [([110.0, 110.0 + 11 * row, 160.0, 120.0 + 11 * row], "word") for row in range(16)]
    with pytest.raises(
        SettingError, match=r"of 21 text cells .* 76% as left, top, width, height on the page"
    ):
        build(tmp_path, records(), {"132a": in_page(*inside, *beside[:5])})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("{", "malformed"),
        ([], "malformed"),
        ({"metadata": {}}, "malformed"),
        ({"metadata": {"original_width": 0, "original_height": 2000}}, "bad_size"),
        ({"metadata": {"original_width": "500", "original_height": 2000}}, "malformed"),
        ({"cells": {}}, "malformed"),
        ({"cells": [{"bbox": [1, 2, 3], "text": "x"}]}, "malformed"),
        ({"cells": [{"bbox": [1, 2, 3, 4], "text": None}]}, "malformed"),
    ],
)
def test_bad_files_of_cells(tmp_path: Path, change: Any, reason: str) -> None:
    whole = in_page(*CELLS_PX)
    bad = {**whole, **change} if isinstance(change, dict) else change
    built = build(tmp_path, records(), {"132a": whole, "77bc": bad})
    assert built.reasons[reason] == 1
    (reject,) = [r for r in built.rejects if r.unit == "record"]
    assert reject.record_id == "doclaynet/JSON/77bc.json"
    assert told(built, "2", "region_qa")
    assert len(told(built, "1", "ocr")) == 2


def test_a_page_whose_name_no_file_can_have(tmp_path: Path) -> None:
    content = records()
    content["images"][1]["file_name"] = "x" * 300 + ".png"
    built = build(tmp_path, content, {"132a": in_page(*CELLS_PX)})
    assert [r.reason for r in built.rejects if r.unit == "record"] == ["malformed"]
    assert len(told(built, "1", "ocr")) == 2


def test_unsafe_text_is_rejected(tmp_path: Path) -> None:
    cells = [(box, text.replace("consistency.", "<objects>")) for box, text in CELLS_PX]
    built = build(tmp_path, records(), {"132a": in_page(*cells)})
    assert built.reasons["unsafe_text"] == 1
    assert [r.record_id for r in built.rejects if r.unit == "record"] == [
        "doclaynet/JSON/132a.json#1"
    ]
    assert list(told(built, "1", "ocr").values()) == ["Annual Report 2002"]


def test_classes_are_those_that_are_documented(tmp_path: Path) -> None:
    content = records()
    content["categories"][9]["name"] = "Paragraph"
    built = build(tmp_path, content)
    assert built.reasons["unknown_category"] == 2  # the class and its one box
    assert told(built, "1", "detection")
    for row in content["categories"]:
        row["name"] = "thing"
    with pytest.raises(SettingError, match="no usable categories"):
        build(tmp_path, content)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"COCO/train\.json not found"):
        list(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))


def test_generated_files_build(tmp_path: Path) -> None:
    (form,) = [form for form in FORMATS if form.datasets == ("doclaynet",)]
    form.write(tmp_path, 0)
    folders = DataFolders(str(tmp_path))
    built = collect(SPEC.samples(folders, BuildOptions()))
    assert set(built.tasks) == set(SPEC.tasks)
    assert all(built.ledger.used[unit] > 0.8 * read for unit, read in built.ledger.read.items())
    assert built.samples == collect(SPEC.samples(folders, BuildOptions())).samples
    listed = {i.image_id for i in SPEC.images[0].images(folders) if isinstance(i, ImageRef)}
    assert {sample.image_id for sample in built.samples} <= listed
