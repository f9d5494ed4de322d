import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.ocr.scene_text import DATASETS
from dataset_builders.errors import SettingError
from tests import SHARED
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, png, rotated, write

SPECS = {spec.name: spec for spec in DATASETS}
ICDAR_TRUTH = "icdar2015/ch4_training_localization_transcription_gt"
TOY = SHARED / "data" / "icdar2015_toy"


def blank(width: int = 600, height: int = 200) -> Image.Image:
    return Image.new("RGB", (width, height))


def icdar(root: Path, number: int, truth: str | bytes, image: bytes | None = None) -> None:
    write(root / f"icdar2015/ch4_training_images/img_{number}.jpg", image or jpeg(blank()))
    write(
        root / ICDAR_TRUTH / f"gt_img_{number}.txt",
        truth if isinstance(truth, bytes) else truth.encode(),
    )


def mlt(root: Path, name: str, truth: str | bytes, image: bytes | None = None) -> None:
    (root / "mlt2019/ImagesPart1").mkdir(parents=True, exist_ok=True)
    (root / "mlt2019/ImagesPart2").mkdir(parents=True, exist_ok=True)
    write(root / "mlt2019" / name, image or jpeg(blank()))
    text = truth if isinstance(truth, bytes) else truth.encode()
    write(root / f"mlt2019/train_gt_t13/{Path(name).stem}.txt", text)


def build(root: Path, name: str, **options: Any) -> Any:
    return collect(SPECS[name].samples(DataFolders(str(root)), BuildOptions(**options)))


def test_icdar2015_golden(tmp_path: Path) -> None:
    # the documented sample line; a byte order mark, carriage returns, commas and quotes in the text
    icdar(
        tmp_path,
        1,
        "\ufeff377,117,463,117,465,130,378,130,Genaxis Theatre\r\n"
        "493,115,519,115,519,131,493,131,[06]\r\n"
        "374,155,409,155,409,170,374,170,###\r\n",
    )
    icdar(tmp_path, 2, '10,20,110,22,108,42,9,40,"10, Downing St, W1"\n')
    icdar(tmp_path, 3, "\ufeff5,5,50,5,50,20,5,20,###\r\n")
    built = build(tmp_path, "icdar2015")
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 5, "record": 3}
    first = [sample for sample in built.samples if sample.image_id == "img_1"]
    assert {(text_of(s.turns[0]), text_of(s.turns[1])) for s in first} == {
        ("Please provide the ocr results of [0] in the image.", "Genaxis Theatre"),
        ("Please provide the ocr results of [1] in the image.", "[06]"),
    }
    for sample in first:
        assert [(o.box, o.label, o.ignore) for o in sample.objects] == [
            ((377.0, 117.0, 465.0, 130.0), "text", False),
            ((493.0, 115.0, 519.0, 131.0), "text", False),
            ((374.0, 155.0, 409.0, 170.0), "text", True),
        ]
        assert sample.image_uri == "icdar2015/ch4_training_images/img_1.jpg"
        assert (sample.width, sample.height, sample.window, sample.absent_labels) == (
            600,
            200,
            None,
            None,
        )
        assert (sample.dataset, sample.task, sample.image_source) == (
            "icdar2015",
            "ocr",
            "icdar2015",
        )
    assert [s.sample_id for s in built.samples] == [
        "icdar2015/img_1/ocr/0",
        "icdar2015/img_1/ocr/1",
        "icdar2015/img_2/ocr/0",
    ]
    assert text_of(built.samples[2].turns[1]) == '"10, Downing St, W1"'
    assert built.samples[2].objects[0].box == (9.0, 20.0, 110.0, 42.0)


def test_mlt2019_golden(tmp_path: Path) -> None:
    mlt(
        tmp_path,
        "ImagesPart1/tr_img_00001.jpg",
        "78,55,419,55,419,109,78,109,Latin,###\n1,1,9,1,9,9,1,9,None,x\n",
    )
    mlt(
        tmp_path,
        "ImagesPart1/tr_img_00002.png",
        "\ufeff10,20,60,10,70,60,20,70,Arabic,شارع, ١٢\r\n",
        png(blank()),
    )
    gif = Path(tmp_path, "x.gif")
    blank(80, 40).save(gif, save_all=True, append_images=[blank(80, 40)])
    mlt(
        tmp_path,
        "ImagesPart2/tr_img_05001.gif",
        "0,0,30,0,30,10,0,10,Hindi,क्ष\u200dत्रिय",
        gif.read_bytes(),
    )
    built = build(tmp_path, "mlt2019")
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 4, "record": 3}
    one, two, three = built.samples
    assert [(o.box, o.label, o.ignore) for o in one.objects] == [
        ((78.0, 55.0, 419.0, 109.0), "Latin text", True),
        ((1.0, 1.0, 9.0, 9.0), "text", False),
    ]
    assert text_of(one.turns[0]) == "Please provide the ocr results of [1] in the image."
    assert text_of(one.turns[1]) == "x"
    assert [(o.box, o.label) for o in two.objects] == [((10.0, 10.0, 70.0, 70.0), "Arabic text")]
    assert text_of(two.turns[1]) == "شارع, ١٢"  # in logical order, as stored
    assert two.image_uri == "mlt2019/ImagesPart1/tr_img_00002.png"
    assert (three.image_id, three.image_uri, three.width) == (
        "tr_img_05001",
        "mlt2019/ImagesPart2/tr_img_05001.gif",
        80,
    )
    assert text_of(three.turns[1]) == "क्ष\u200dत्रिय"


def test_slanted_neighbours_lose_only_their_own_questions(tmp_path: Path) -> None:
    lines = [
        "0,20,80,0,100,30,20,50,Latin,up",
        "20,20,100,0,120,30,40,50,Latin,hill",
        "300,0,350,0,350,20,300,20,Latin,far",
    ]
    mlt(tmp_path, "ImagesPart1/tr_img_00001.jpg", "\n".join(lines))
    (sample,) = build(tmp_path, "mlt2019").samples
    assert text_of(sample.turns[1]) == "far"
    assert [o.ignore for o in sample.objects] == [False, False, False]


def test_a_photo_that_lies_on_its_side(tmp_path: Path) -> None:
    icdar(tmp_path, 1, "150,10,190,10,190,20,150,20,wide\n", rotated(blank(200, 100)))
    (sample,) = build(tmp_path, "icdar2015").samples
    assert (sample.width, sample.height) == (200, 100)
    assert sample.objects[0].box == (150.0, 10.0, 190.0, 20.0)


@pytest.mark.parametrize(
    ("line", "reason", "unit"),
    [
        ("1,1,9,1,9,9,1,9", "malformed", "box"),
        ("1,1,9,1,9,9,1,x,word", "malformed", "box"),
        ("1,1,9,1,9,9,1,1_0,word", "malformed", "box"),
        ("1,1,9,1,9,9,1,nan,word", "malformed", "box"),
        ("1,1,9,1,9,9,1,9,Latin,word", "malformed", "box"),
        ("700,1,709,1,709,9,700,9,word", "outside_box", "box"),
        ("5,5,5,5,5,5,5,5,word", "empty_box", "box"),
        ("99999999,1,9,1,9,9,1,9,word", "not_finite_box", "box"),
        ("1,1,9,1,9,9,1,9,", "empty_text", "record"),
        ("1,1,9,1,9,9,1,9,<region3>", "unsafe_text", "record"),
        ("1,1,9,1,9,9,1,9,\u2067word", "unsafe_text", "record"),
        (
            "1,1,9,1,9,9,1,9,wo\u2028rd",
            "unsafe_text",
            "record",
        ),  # a line separator ends no line of the file
        ("1,1,9,1,9,9,1,9,wo\rrd", "unsafe_text", "record"),  # nor does a carriage return alone
        ("1,1,9,1,9,9,1,9," + "x" * 1001, "text_too_long", "record"),
    ],
)
def test_a_bad_line_is_lost_alone(tmp_path: Path, line: str, reason: str, unit: str) -> None:
    icdar(tmp_path, 1, f"100,100,150,100,150,120,100,120,good\n{line}\n")
    built = build(tmp_path, "icdar2015")
    assert [(r.reason, r.unit, r.record_id) for r in built.rejects] == [
        (reason, unit, "gt_img_1/2")
    ]
    assert [text_of(sample.turns[1]) for sample in built.samples] == ["good"]


def test_bytes_that_are_not_utf8_are_lost_alone(tmp_path: Path) -> None:
    icdar(tmp_path, 1, b"100,100,150,100,150,120,100,120,good\n1,1,9,1,9,9,1,9,caf\xe9\n")
    built = build(tmp_path, "icdar2015")
    assert built.reasons == {"malformed": 1}
    assert len(built.samples) == 1


@pytest.mark.parametrize("script", ["latin", "Klingon", "", "###"])
def test_an_unknown_script_is_rejected(tmp_path: Path, script: str) -> None:
    mlt(
        tmp_path,
        "ImagesPart1/tr_img_00001.jpg",
        f"1,1,9,1,9,9,1,9,{script},x\n30,1,39,1,39,9,30,9,Latin,y\n",
    )
    built = build(tmp_path, "mlt2019")
    assert built.reasons == {"malformed": 1}
    assert [text_of(sample.turns[1]) for sample in built.samples] == ["y"]


def test_images_that_are_missing_broken_or_there_twice(tmp_path: Path) -> None:
    mlt(tmp_path, "ImagesPart1/tr_img_00001.jpg", "1,1,9,1,9,9,1,9,Latin,a\n")
    mlt(tmp_path, "ImagesPart2/tr_img_00001.png", "1,1,9,1,9,9,1,9,Latin,a\n", png(blank()))
    mlt(tmp_path, "ImagesPart2/tr_img_00002.jpg", "1,1,9,1,9,9,1,9,Latin,b\n", b"no picture")
    write(
        tmp_path / "mlt2019/train_gt_t13/tr_img_00003.txt",
        "1,1,9,1,9,9,1,9,Latin,c\n1,1,9,1,9,9,1,9,Latin,d\n",
    )
    write(tmp_path / "mlt2019/train_gt_t13/tr_img_00004.txt", b"x" * (4 * 2**20 + 1))
    built = build(tmp_path, "mlt2019")
    assert sorted((r.reason, r.unit) for r in built.rejects) == [
        ("duplicate_id", "image"),
        ("image_rejected", "box"),
        ("image_rejected", "box"),
        ("image_rejected", "box"),
        ("malformed", "image"),
        ("missing_image", "image"),
        ("undecodable_image", "image"),
    ]
    assert [sample.image_uri for sample in built.samples] == [
        "mlt2019/ImagesPart1/tr_img_00001.jpg"
    ]


def test_files_of_another_form_are_told_apart(tmp_path: Path) -> None:
    line = "1,1,30,1,30,9,1,9,"
    icdar(tmp_path, 1, "".join(f"{line}Latin,word{n}\n" for n in range(120)))
    with pytest.raises(
        SettingError, match=r"(?s)dataset icdar2015: none of the first 100 .*MLT2019.*layout is"
    ):
        build(tmp_path, "icdar2015")
    mlt(tmp_path, "ImagesPart1/tr_img_00001.jpg", "".join(f"{line}word{n}\n" for n in range(120)))
    with pytest.raises(SettingError, match="9 fields, not 10"):
        build(tmp_path, "mlt2019")
    icdar(tmp_path, 1, "".join(f"0.{n},0.1,0.9,0.1,0.9,0.9,0.1,0.9,word\n" for n in range(1, 300)))
    with pytest.raises(SettingError, match="normalised"):
        build(tmp_path, "icdar2015")
    icdar(
        tmp_path, 1, "0.1,0.1,0.9,0.1,0.9,0.9,0.1,0.9,word\n" * 20
    )  # few boxes are judged at the end
    with pytest.raises(SettingError, match="normalised"):
        build(tmp_path, "icdar2015")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"ch4_training_localization_transcription_gt/gt_img_\*\.txt not found"
    ):
        build(tmp_path, "icdar2015")
    mlt(tmp_path, "ImagesPart1/tr_img_00001.jpg", "")
    (tmp_path / "mlt2019/ImagesPart2").rmdir()
    with pytest.raises(SettingError, match="mlt2019/ImagesPart2 not found"):
        build(tmp_path, "mlt2019")


@pytest.mark.skipif(not TOY.is_dir(), reason="the ICDAR2015 photos are not here")
def test_ten_real_photos(tmp_path: Path) -> None:
    ignored = 0
    for entry in json.loads((TOY / "textdet_test.json").read_text())["data_list"]:
        name = Path(entry["img_path"]).name
        lines = []
        for instance in entry["instances"]:
            ignored += instance["ignore"]
            corners = ",".join(str(int(value)) for value in instance["polygon"])
            lines.append(f"{corners},{'###' if instance['ignore'] else 'text'}")
        write(
            tmp_path / ICDAR_TRUTH / f"gt_{Path(name).stem}.txt",
            ("\ufeff" + "\r\n".join(lines)).encode(),
        )
        (tmp_path / "icdar2015/ch4_training_images").mkdir(parents=True, exist_ok=True)
        shutil.copy(next(TOY.rglob(name)), tmp_path / "icdar2015/ch4_training_images" / name)
    built = build(tmp_path, "icdar2015")
    assert built.rejects == []
    assert ignored == 61
    assert built.ledger.used == {"image": 10, "box": 82, "record": 21}
    assert {(sample.width, sample.height) for sample in built.samples} == {(1280, 720)}
    first = next(sample for sample in built.samples if sample.image_id == "img_1")
    assert any(o.box == (377.0, 117.0, 465.0, 130.0) for o in first.objects)
