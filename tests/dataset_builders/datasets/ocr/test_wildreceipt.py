import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.ocr.wildreceipt import DATASETS
from dataset_builders.errors import SettingError
from tests import SHARED
from tests.dataset_builders.conftest import collect, text_of

(SPEC,) = DATASETS
TOY = SHARED / "data" / "wildreceipt_toy"


def field(x1: float, y1: float, x2: float, y2: float, text: Any, label: Any = 25) -> dict[str, Any]:
    return {"box": [x1, y2, x2, y2, x2, y1, x1, y1], "text": text, "label": label}


def receipts() -> list[Any]:
    return [
        {
            "file_name": "image_files/Image_1/0/aa.jpeg",
            "height": 1200,
            "width": 900,
            "annotations": [
                field(100.0, 104.0, 500.0, 190.0, "SAFEWAY", 1),
                field(0.0, 0.0, 5.0, 5.0, "", 0),
            ],
        },
        {
            "file_name": "image_files/Image_1/1/aa.jpeg",
            "height": 300,
            "width": 200,
            "annotations": [field(10, 10, 60, 20, "TOTAL"), field(70, 10, 120, 20, "$5.00  CAD")],
        },
        {
            "file_name": "image_files/Image_2/0/bb.jpeg",
            "height": 300,
            "width": 200,
            "annotations": [field(150, 280, 260, 310, "Café")],
        },
    ]


def build(root: Path, written: list[Any] | bytes) -> Any:
    (root / "wildreceipt/image_files").mkdir(parents=True, exist_ok=True)
    lines = (
        written
        if isinstance(written, bytes)
        else b"".join(json.dumps(row).encode() + b"\n" for row in written)
    )
    (root / "wildreceipt/train.txt").write_bytes(lines)
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions()))


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, receipts())
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 5, "record": 4}
    first, *second, third = built.samples
    assert first.sample_id == "wildreceipt/image_files/Image_1/0/aa/ocr/0"
    assert first.image_id == "image_files/Image_1/0/aa"
    assert (first.image_uri, first.width, first.height) == (
        "wildreceipt/image_files/Image_1/0/aa.jpeg",
        900,
        1200,
    )
    assert [(o.box, o.label, o.ignore) for o in first.objects] == [
        ((100.0, 104.0, 500.0, 190.0), "text", False),
        ((0.0, 0.0, 5.0, 5.0), "text", True),
    ]
    assert [text_of(turn) for turn in first.turns] == [
        "Please provide the ocr results of [0] in the image.",
        "SAFEWAY",
    ]
    assert {(text_of(s.turns[0])[34:37], text_of(s.turns[1])) for s in second} == {
        ("[0]", "TOTAL"),
        ("[1]", "$5.00 CAD"),
    }
    assert third.objects[0].box == (150.0, 280.0, 200.0, 300.0)
    assert text_of(third.turns[1]) == "Café"
    assert SPEC.stages == ()


def test_a_long_receipt_is_cut_into_windows(tmp_path: Path) -> None:
    lines = [field(10, 10 * row, 180, 10 * row + 8, f"line {row}") for row in range(150)]
    written = [
        {"file_name": "image_files/a.jpeg", "height": 1500, "width": 200, "annotations": lines}
    ]
    built = build(tmp_path, written)
    assert {sample.window for sample in built.samples} == {(0, 0, 200, 825), (0, 675, 200, 1500)}
    for sample in built.samples:
        assert len(sample.objects) <= 100
        for line in text_of(sample.turns[1]).split("\n"):
            named, _, text = line.rpartition(": ")
            row = (
                int(named[1:-1])
                if named
                else int(text_of(sample.turns[0]).partition("[")[2].partition("]")[0])
            )
            assert sample.objects[row].box[1] == 10 * int(text.split()[1])


@pytest.mark.parametrize(
    ("change", "reason", "unit"),
    [
        ({"file_name": "../a.jpeg"}, "unsafe_path", "image"),
        ({"file_name": "/etc/a.jpeg"}, "unsafe_path", "image"),
        ({"file_name": "elsewhere/a.jpeg"}, "unknown_image", "image"),
        ({"file_name": "image_files/Image_1/0/aa.jpeg"}, "duplicate_id", "image"),
        ({"file_name": 5}, "malformed", "image"),
        ({"width": None}, "malformed", "image"),
        ({"height": 0}, "bad_size", "image"),
        ({"annotations": {}}, "malformed", "image"),
        ({"annotations": [field(5, 5, 5, 5, "x")]}, "empty_box", "box"),
        ({"annotations": [field(5, 5, 15, float("nan"), "x")]}, "not_finite_box", "box"),
        ({"annotations": [{"box": [1, 2, 3, 4], "text": "x"}]}, "malformed", "box"),
        ({"annotations": [{"box": [1, 2, 30, 2, 30, 40, 1, 40]}]}, "malformed", "box"),
        ({"annotations": [7]}, "malformed", "box"),
        ({"annotations": [field(5, 5, 15, 15, "")]}, "empty_text", "record"),
        ({"annotations": [field(5, 5, 15, 15, "<image>")]}, "unsafe_text", "record"),
        ({"annotations": [field(5, 5, 15, 15, "a\u202e")]}, "unsafe_text", "record"),
        ({"annotations": [field(5, 5, 15, 15, "x" * 2000)]}, "text_too_long", "record"),
        ({"annotations": [field(5, 5, 15, 15, 3)]}, "malformed", "record"),
    ],
)
def test_bad_records(tmp_path: Path, change: dict[str, Any], reason: str, unit: str) -> None:
    written = receipts()
    written[2] |= change
    built = build(tmp_path, written)
    assert [(r.reason, r.unit) for r in built.rejects] == [(reason, unit)]
    assert len(built.samples) == 3


def test_lines_that_are_no_json(tmp_path: Path) -> None:
    good = json.dumps(receipts()[0]).encode()
    deep = b"[" * 100_000
    built = build(
        tmp_path, b"\xef\xbb\xbf" + good + b"\r\n\n{broken\n\xff\xfe\n" + deep + b"\n[]\n"
    )
    assert built.reasons == {"malformed": 4}
    assert [r.record_id for r in built.rejects] == [f"train.txt/{n}" for n in (3, 4, 5, 6)]
    assert len(built.samples) == 1


def test_files_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"(?s)holds no receipts.*layout is"):
        build(tmp_path, b"a\nb\n")
    with pytest.raises(SettingError, match="none of the first 100"):
        build(tmp_path, b"1,2,3\n" * 120)
    many = [field(0.1, 0.1, 0.9, 0.9, "x") for _ in range(250)]
    with pytest.raises(SettingError, match="normalised"):
        build(tmp_path, [receipts()[0] | {"annotations": many}])
    with pytest.raises(SettingError, match=r"wildreceipt/train\.txt not found"):
        collect(SPEC.samples(DataFolders(str(tmp_path / "none")), BuildOptions()))


@pytest.mark.skipif(not TOY.is_dir(), reason="the receipts are not here")
def test_two_real_receipts(tmp_path: Path) -> None:
    (tmp_path / "wildreceipt/image_files").mkdir(parents=True)
    for name in ("1.jpeg", "2.jpeg"):
        shutil.copy(TOY / name, tmp_path / "wildreceipt/image_files" / name)
    text = (
        (TOY / "data.txt")
        .read_text()
        .replace("tests/data/kie_toy_dataset/wildreceipt/", "image_files/")
    )
    built = build(tmp_path, text.encode())
    assert built.rejects == []
    assert built.ledger.used == {
        "image": 2,
        "box": 86,
        "record": 82,
    }  # four empty boxes have the label 0
    assert len(built.samples) == 6
    first = built.samples[0]
    assert first.objects[0].box == (550.0, 104.0, 937.0, 190.0)
    stored = [json.loads(line)["annotations"] for line in text.splitlines()]
    for sample in built.samples:
        annotations = stored[int(sample.image_id[-1]) - 1]
        assert len(sample.objects) == len(annotations)
        said = text_of(sample.turns[1]).split("\n")
        asked = [part.objects[0] for part in sample.turns[0].parts if part.objects]
        texts = [line.partition(": ")[2] if len(asked) > 1 else line for line in said]
        assert texts == [annotations[row]["text"] for row in asked]
