import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.ocr.syntext import DATASETS, curve_corners, decode
from dataset_builders.errors import SettingError
from dataset_builders.records import BadRecord
from tests.dataset_builders.conftest import collect, text_of

ONE, TWO = DATASETS
STRAIGHT = [377, 117, 405, 117, 434, 117, 463, 117, 465, 130, 436, 130, 407, 130, 378, 130]
GENAXIS = [39, 69, 78, 65, 88, 73, 83, 0, 52, 72, 69, 65, 84, 82, 69]
# from (100, 60) over (120, 20) and (180, 20) to (200, 60): highest in its middle,
# 60 / 4 + 20 * 3 / 4 = 30
CROWD = [20, 20, 30, 20, 40, 20, 60, 20, 60, 40, 40, 40, 30, 40, 20, 40.5]
ARC = [100, 60, 120, 20, 180, 20, 200, 60, 200, 90, 180, 50, 120, 50, 100, 90]


def padded(codes: list[int], length: int = 25) -> list[int]:
    return codes + [96] * (length - len(codes))


def annotation(number: int, image: int, bezier: Any, rec: Any, **more: Any) -> dict[str, Any]:
    row = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [10, 10, 50, 20],
        "iscrowd": 0,
        "area": 1000,
    }
    return row | {"bezier_pts": bezier, "rec": rec} | more


def content() -> dict[str, Any]:
    sizes = {0: (600, 200), 1: (400, 100), 2: (500, 300)}
    return {
        "images": [
            {"id": n, "file_name": f"{n:07d}.jpg", "width": w, "height": h}
            for n, (w, h) in sizes.items()
        ],
        "annotations": [
            annotation(1, 0, STRAIGHT, padded(GENAXIS)),
            annotation(2, 1, ARC, padded([65, 0, 66], 100)),
            annotation(3, 0, CROWD, padded([51, 52, 47, 48]), iscrowd=1),
            annotation(4, 2, ARC, padded(list(range(1, 25)))),
        ],
        "categories": [{"id": 1, "name": "text"}],
    }


def build(root: Path, written: Any, spec: Any = ONE) -> Any:
    folder = root / spec.files[0].partition("/")[0]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "annotations/train.json").write_text(json.dumps(written))
    return collect(spec.samples(DataFolders(str(root)), BuildOptions()))


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, content())
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 4, "record": 3, "category": 1}
    straight, arc, third = built.samples
    assert straight.sample_id == "curved_syntext1/0/ocr/0"
    assert (straight.image_source, straight.image_id) == ("curved_syntext1", "0")
    assert (straight.image_uri, straight.width, straight.height) == (
        "syntext1/images/0000000.jpg",
        600,
        200,
    )
    assert text_of(straight.turns[0]) == "Please provide the ocr results of [0] in the image."
    assert text_of(straight.turns[1]) == "Genaxis Theatre"
    assert straight.objects[0].box == (377.0, 117.0, 465.0, 130.0)
    assert [(o.label, o.ignore) for o in straight.objects] == [("text", False), ("text", True)]
    assert text_of(arc.turns[1]) == "a b"
    assert arc.objects[0].box[0::2] == (100.0, 200.0)
    # a box around the control points would start at 20
    assert arc.objects[0].box[1] == pytest.approx(30.0, abs=0.1)
    assert arc.objects[0].box[3] == 90.0
    assert text_of(third.turns[1]) == "!\"#$%&'()*+,-./012345678"


def test_the_second_version_has_its_own_folder(tmp_path: Path) -> None:
    built = build(tmp_path, content(), TWO)
    assert built.samples[0].sample_id == "curved_syntext2/0/ocr/0"
    assert built.samples[0].image_uri == "syntext2/images/0000000.jpg"
    assert built.samples[0].image_source == "curved_syntext2"


def test_curves_lie_inside_their_boxes_and_touch_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.uniform(0, 500, 16)
        x1, y1, x2, y2 = curve_corners([float(value) for value in points])
        edges = points.reshape(2, 4, 2)
        fine = np.linspace(0, 1, 4001)[:, None]
        curves = []
        for a, b, c, d in edges:  # de Casteljau, a thousand times finer
            ab, bc, cd = a + (b - a) * fine, b + (c - b) * fine, c + (d - c) * fine
            abc, bcd = ab + (bc - ab) * fine, bc + (cd - bc) * fine
            curves.append(abc + (bcd - abc) * fine)
        exact = np.concatenate(curves)
        assert np.allclose([x1, y1, x2, y2], [*exact.min(0), *exact.max(0)], atol=1.0)


def test_codes() -> None:
    assert decode(padded(GENAXIS)) == "Genaxis Theatre"
    assert decode([0, 94]) == " ~"  # a text as long as its list has no end mark
    assert decode(padded([33] * 4, 100)) == "AAAA"
    for stored, reason in (
        ([97], "malformed"),
        ([-1], "malformed"),
        ([5462] * 25, "malformed"),
        ([33, 96, 33], "malformed"),
        ([33.5], "malformed"),
        (["A"], "malformed"),
        ([], "malformed"),
        ("AB", "malformed"),
        ([33, 95, 96], "unsupported"),
    ):
        with pytest.raises(BadRecord, match=reason):
            decode(stored)


@pytest.mark.parametrize(
    ("change", "reason", "unit"),
    [
        ({"rec": [33, 95, 96]}, "unsupported", "record"),
        ({"rec": [120, 96]}, "malformed", "record"),
        ({"rec": [96] * 25}, "empty_text", "record"),
        (
            {"rec": padded([28, 82, 69, 71, 73, 79, 78, 17, 30])},
            "unsafe_text",
            "record",
        ),  # <region1>
        ({"bezier_pts": STRAIGHT[:8]}, "malformed", "box"),
        ({"bezier_pts": ["1"] * 16}, "malformed", "box"),
        ({"bezier_pts": [1e9] * 16}, "not_finite_box", "box"),
        ({"bezier_pts": [5] * 16}, "empty_box", "box"),
        ({"bezier_pts": [value + 1000 for value in ARC]}, "outside_box", "box"),
        ({"bbox": [1, 2, -5, 3]}, "inverted_box", "box"),
        ({"image_id": 77}, "unknown_image", "box"),
    ],
)
def test_a_bad_annotation_is_lost_alone(
    tmp_path: Path, change: dict[str, Any], reason: str, unit: str
) -> None:
    written = content()
    written["annotations"][3] |= change
    built = build(tmp_path, written)
    assert [(r.reason, r.unit) for r in built.rejects] == [(reason, unit)]
    # the COCO file counts annotations by their place, what is read of them goes by their id
    assert built.rejects[0].record_id in ("annotations/3", "annotation_id/4")
    assert {text_of(sample.turns[1]) for sample in built.samples} == {"Genaxis Theatre", "a b"}


def test_missing_fields_are_rejects(tmp_path: Path) -> None:
    written = content()
    del written["annotations"][0]["rec"], written["annotations"][1]["bezier_pts"]
    assert build(tmp_path, written).reasons == {"malformed": 2}


def test_files_of_another_form_are_told_apart(tmp_path: Path) -> None:
    written = content()
    written["categories"].append({"id": 2, "name": "dog"})
    with pytest.raises(SettingError, match="2 categories; CurvedSynText has one"):
        build(tmp_path, written)
    written = content()
    written["annotations"] = [
        annotation(n, 0, STRAIGHT, [5000, 31, *[5462] * 23]) for n in range(120)
    ]
    with pytest.raises(
        SettingError, match=r"none of the first 100 records .* holds 5462; the alphabet"
    ):
        build(tmp_path, written)
    written["annotations"] = [
        annotation(n, 0, [v / 600 for v in STRAIGHT], padded(GENAXIS)) for n in range(250)
    ]
    with pytest.raises(SettingError, match="normalised"):
        build(tmp_path, written)
    with pytest.raises(SettingError, match="no usable images"):
        build(tmp_path, {"annotations": []})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"syntext1/annotations/train\.json not found"):
        collect(ONE.samples(DataFolders(str(tmp_path)), BuildOptions()))
