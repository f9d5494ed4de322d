from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection.visdrone import DATASETS, covered_share, read_line
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.detection import FORMATS
from tests.formats.scenes import jpeg, rotated, write

(SPEC,) = DATASETS

STREET = """10,10,20,30,1,1,0,0
50,50,20,20,1,2,0,0,
100,10,40,20,1,4,0,1
"""
"""Somebody walking, somebody sitting, a car; the second line ends with a comma."""
BESIDE_IGNORED = "0,0,100,80,0,0,0,0\r\n150,100,30,20,1,9,1,2\r\n"
"""A bus beside an ignored region on a quarter of the image."""
UNSURE = "20,20,10,10,0,4,0,0\n40,40,10,10,1,11,0,0\n60,60,10,10,1,10,0,0\n\n"
"""A car that is not evaluated, something else, a motor; ignore regions are 0.6 % of the image."""


def build(root: Path, annotations: dict[str, str | bytes], **options: Any) -> SimpleNamespace:
    """Build files of annotations over plain images of 200 x 160."""
    folder = root / "visdrone/VisDrone2019-DET-train"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        write(folder / f"annotations/{name}.txt", text)
        image = folder / f"images/{name}.jpg"
        if not image.exists():
            write(image, jpeg(Image.new("RGB", (200, 160), (90, 90, 90))))
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions(**options)))


def answers(built: SimpleNamespace, image_id: str) -> Counter[tuple[str, str]]:
    return Counter((s.task, text_of(s.turns[1])) for s in built.samples if s.image_id == image_id)


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, {"a": STREET, "b": BESIDE_IGNORED, "c": UNSURE})
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 8}

    street = next(s for s in built.samples if s.image_id == "a")
    assert street.objects == (
        Object(box=(10.0, 10.0, 30.0, 40.0), label="person"),
        Object(box=(50.0, 50.0, 70.0, 70.0), label="person"),
        Object(box=(100.0, 10.0, 140.0, 30.0), label="car"),
    )
    assert (street.width, street.height, street.image_source) == (200, 160, "visdrone_train")
    assert street.image_uri == "visdrone/VisDrone2019-DET-train/images/a.jpg"
    assert street.absent_regime == "exhaustive"
    assert street.absent_labels == (
        *("bicycle", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor"),
    )
    found = answers(built, "a")
    assert found["detection", "person[0,1]"] == found["detection", "car[2]"] == 1
    assert (
        found["counting", "person[0,1]\nThere are 2."]
        == found["counting", "car[2]\nThere are 1."]
        == 1
    )
    assert found["visual_prompt", "person[0,1]"] == 1

    # things may stand in the ignored region: nothing is absent, nothing counted
    beside = [s for s in built.samples if s.image_id == "b"]
    assert answers(built, "b") == {("detection", "bus[1]"): 1, ("region_name", "bus"): 1}
    assert beside[0].objects[0] == Object(
        box=(0.0, 0.0, 100.0, 80.0), label="ignored region", ignore=True
    )
    assert beside[0].absent_labels is beside[0].absent_regime is None

    unsure = [s for s in built.samples if s.image_id == "c"]
    assert [(item.label, item.ignore) for item in unsure[0].objects] == [
        ("car", True),
        ("others", True),
        ("motor", False),
    ]
    assert answers(built, "c") == {
        ("detection", "motor[2]"): 1,
        ("counting", "motor[2]\nThere are 1."): 1,
        ("region_name", "motor"): 1,
    }
    assert unsure[0].absent_labels == (
        *("person", "bicycle", "van", "truck", "tricycle", "awning-tricycle", "bus"),
    )


def test_sizes_are_those_of_the_image_as_shown(tmp_path: Path) -> None:
    write(
        tmp_path / "visdrone/VisDrone2019-DET-train/images/a.jpg",
        rotated(Image.new("RGB", (160, 200), "gray")),
    )
    built = build(tmp_path, {"a": "150,100,30,95,1,4,0,0\n"})
    assert (built.samples[0].width, built.samples[0].height) == (160, 200)
    assert built.samples[0].objects[0].box == (150.0, 100.0, 160.0, 195.0)


def test_crowded_images_are_cut_into_windows(tmp_path: Path) -> None:
    cars = [f"{10 * (i % 20)},{20 * (i // 20)},8,16,1,4,0,0" for i in range(120)]
    # across the border of the left window, 110: 8 and 2 of their 12 columns of pixels are inside
    cars += ["102,150,12,8,1,9,0,0", "108,150,12,8,1,10,0,0"]
    built = build(tmp_path, {"a": "\n".join(cars)})
    windows = {s.window for s in built.samples}
    assert windows == {(0, 0, 110, 160), (90, 0, 200, 160)}
    left = next(s for s in built.samples if s.window == (0, 0, 110, 160))
    assert len(left.objects) == 6 * 11 + 2
    assert left.objects[-2:] == (
        Object(box=(102.0, 150.0, 110.0, 158.0), label="bus"),
        Object(box=(108.0, 150.0, 110.0, 158.0), label="motor", ignore=True),
    )
    right = next(s for s in built.samples if s.window == (90, 0, 200, 160))
    assert len(right.objects) == 6 * 11 + 2
    assert not any(item.ignore for item in right.objects)
    assert build(tmp_path, {"a": "\n".join(cars)}, max_objects=1000).samples[0].window is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("10,10,20,30,1,4,0", "malformed"),
        ("10,10,20,30,1,4,0,0,0", "malformed"),
        ("10,10,20,30,1,4,0,x", "malformed"),
        ("10,10,20,3_0,1,4,0,0", "malformed"),
        ("10,10,20.5,30,1,4,0,0", "malformed"),
        ("10,10,20,30,2,4,0,0", "malformed"),
        ("10,10,20,30,1,4,3,0", "malformed"),
        ("10,10,20,30,1,4,0,9", "malformed"),
        ("10,10,20,30,1,4,0," + "0" * 300, "malformed"),
        ("\u00b2,10,20,30,1,4,0,0", "malformed"),
        ("10,10,20,30,1,12,0,0", "unknown_category"),
        ("10,10,0,30,1,4,0,0", "empty_box"),
        ("10,10,-5,30,1,4,0,0", "inverted_box"),
        ("500,10,5,30,1,4,0,0", "outside_box"),
        ("10,10," + "9" * 40 + ",30,1,4,0,0", "not_finite_box"),
    ],
)
def test_bad_lines_are_rejected_and_cast_doubt(tmp_path: Path, line: str, reason: str) -> None:
    built = build(tmp_path, {"a": STREET + line + "\n", "b": STREET})
    assert built.reasons == {reason: 1}
    assert built.rejects[0].unit == "box"
    assert built.rejects[0].record_id == "annotations/a/4"
    whole, doubtful = answers(built, "b"), answers(built, "a")
    assert whole["detection", "car[2]"] == 1
    assert not any("car" in text for task, text in doubtful if task != "region_name")
    known = any("person" in text for task, text in doubtful if task == "detection")
    assert known == (reason not in ("malformed", "unknown_category")), (
        "the category was read, so it alone is in doubt"
    )
    for sample in built.samples:
        assert sample.image_id == "b" or "car" not in (sample.absent_labels or ())


def test_a_lost_ignored_region_leaves_everything_in_doubt(tmp_path: Path) -> None:
    built = build(tmp_path, {"a": STREET + "500,10,5,30,0,0,0,0\n"})
    assert built.reasons == {"outside_box": 1}
    assert set(built.tasks) == {"region_name"}
    assert built.samples[0].absent_labels == ()


def test_a_missing_image_takes_its_boxes_along(tmp_path: Path) -> None:
    built = build(tmp_path, {"a": STREET})
    write(tmp_path / "visdrone/VisDrone2019-DET-train/annotations/z.txt", STREET)
    write(tmp_path / "visdrone/VisDrone2019-DET-train/images/y.jpg", b"no picture")
    write(tmp_path / "visdrone/VisDrone2019-DET-train/annotations/y.txt", STREET)
    built = build(tmp_path, {"a": STREET})
    assert built.reasons == {"missing_image": 1, "undecodable_image": 1, "image_rejected": 6}
    assert built.ledger.used == {"image": 1, "box": 3}


def test_an_image_without_boxes_is_a_rejection(tmp_path: Path) -> None:
    built = build(tmp_path, {"a": "\ufeff"})
    (sample,) = built.samples
    assert (sample.task, text_of(sample.turns[1]), len(sample.absent_labels)) == (
        "rejection",
        "None",
        9,
    )


def test_wrong_folders_and_forms(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="not found"):
        list(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))
    corners = "\n".join(f"{x},100,{x + 10},120,1,4,0,0" for x in range(120, 180, 2))
    with pytest.raises(SettingError, match="declared xywh"):
        build(tmp_path, {"a": corners})
    with pytest.raises(SettingError, match=r"none of the first 100 records of unit 'box'"):
        build(tmp_path, {"a": "car 0.1 0.2 0.3 0.4\n" * 200})


def test_read_line() -> None:
    assert read_line(b" 684, 8, 273, 116, 0, 0, 0, 0 ,") == (684, 8, 273, 116, 0, 0)


def test_covered_share() -> None:
    frame = (0, 0, 10, 10)
    assert covered_share([], frame) == 0
    assert covered_share([(0, 0, 5, 4)], frame) == pytest.approx(0.2)
    # 20 + 20 - 6 that both cover
    assert covered_share([(0, 0, 5, 4), (3, 1, 8, 5)], frame) == pytest.approx(0.34)
    assert covered_share([(10, 10, 20, 20)], (10, 10, 30, 20)) == pytest.approx(0.5)


def test_generated_files_build(tmp_path: Path) -> None:
    (form,) = [form for form in FORMATS if form.datasets == ("visdrone",)]
    form.write(tmp_path, 0)
    folders = DataFolders(str(tmp_path))
    built = collect(SPEC.samples(folders, BuildOptions()))
    assert set(built.tasks) <= set(SPEC.tasks)
    assert built.reasons == {"missing_image": 1, "image_rejected": 1, "empty_box": 1}
    assert any(s.window for s in built.samples)
    assert all(built.ledger.used[unit] > 0.8 * read for unit, read in built.ledger.read.items())
    assert built.samples == collect(SPEC.samples(folders, BuildOptions())).samples
