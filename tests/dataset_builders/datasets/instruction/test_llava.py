import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.instruction.llava import DATASETS, has_coordinates
from dataset_builders.errors import SettingError
from dataset_builders.records import Turn
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, rotated, write

(SPEC,) = DATASETS


def talk(*values: Any) -> list[dict[str, Any]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def records() -> list[Any]:
    return [
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": talk(
                "<image>\nWhat are the colors of the bus?", "White and red.", "More?", "No."
            ),
        },
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": talk("Describe it.\n<image>", "A bus."),
        },
        {
            "id": "VG_1",
            "image": "vg/VG_100K_2/2410408.jpg",
            "conversations": talk("<image>\nRed?", "yes"),
        },
        {
            "id": "1",
            "image": "ocr_vqa/images/140031996.jpg",
            "conversations": talk("<image>\nWho wrote it?", "Eco"),
        },
        {"id": "wgByO4Y_0", "model": "", "conversations": talk("Weights?", "[0.1, 0.2, 0.3, 0.4]")},
        {"id": 8, "conversations": talk("1 + 1?", "2\r\n")},
    ]


def build(root: Path, written: Any) -> Any:
    image = Image.new("RGB", (64, 48))
    for place, data in {
        "coco/train2017/000000033471.jpg": rotated(image),
        "gqa/images/2.jpg": jpeg(image),
        "ocr_vqa/images/140031996.jpg": jpeg(image),
        "textvqa/train_images/0.jpg": b"no picture",
        "vg/VG_100K/1.jpg": jpeg(image),
        "vg/VG_100K_2/2410408.jpg": jpeg(image.resize((80, 60))),
    }.items():
        write(root / place, data)
    write(root / "llava/llava_v1_5_mix665k.json", json.dumps(written))
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions()))


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, records())
    assert built.rejects == []
    assert built.ledger.used == {"record": 6}
    assert {sample.task for sample in built.samples} == {"instruction"}
    one, two, three, four, text, number = built.samples
    assert [(turn.role, text_of(turn)) for turn in one.turns] == [
        ("user", "What are the colors of the bus?"),
        ("assistant", "White and red."),
        ("user", "More?"),
        ("assistant", "No."),
    ]
    assert (one.sample_id, two.sample_id) == (
        "llava_mix665k/33471/instruction/0",
        "llava_mix665k/33471/instruction/1",
    )
    assert (one.image_source, one.image_id, one.width, one.height) == (
        "coco_train2017",
        "33471",
        64,
        48,
    )
    assert [text_of(turn) for turn in two.turns] == ["Describe it.", "A bus."]
    assert (three.image_source, three.image_id) == ("visual_genome", "2410408")
    assert (three.width, three.height, three.objects) == (80, 60, ())
    assert (four.image_source, four.image_id) == ("ocr_vqa", "140031996")
    assert (text.sample_id, text.image_id) == (
        "llava_mix665k/text/wgByO4Y_0/instruction/4",
        "text/wgByO4Y_0",
    )
    assert (text.image_source, text.image_uri, text.width, text.height) == ("", "", 0, 0)
    assert (text.objects, text.window, text.absent_labels) == ((), None, None)
    assert [text_of(turn) for turn in text.turns] == ["Weights?", "[0.1, 0.2, 0.3, 0.4]"]
    assert number.image_id == "text/8"
    assert number.turns[1] == Turn("assistant", number.turns[1].parts)
    assert text_of(number.turns[1]) == "2"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a short description for this region: [0.12, 0.3, 0.98, 1.0]", True),
        ("[0.123,0.456,0.789,0.9]", True),
        ("[ 0, 0.5, 1, 1 ]", True),
        ("[.1, .2, .3, 1.]", True),
        ("[0, 1, 1, 0]", False),  # four bits
        ("[1, 2.5, 3, 4]", False),
        ("[12.0, 3.5, 40.5, 60.0]", False),
        ("[0.1, 0.2, 0.3]", False),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", False),
        ("0.1, 0.2, 0.3, 0.4", False),
    ],
)
def test_boxes_in_the_text(tmp_path: Path, text: str, found: bool) -> None:
    assert has_coordinates(text) is found
    written = records()
    written[2]["conversations"] += talk("And there?", text)
    built = build(tmp_path, written)
    assert built.reasons == ({"unsupported": 1} if found else {})
    assert len(built.samples) == 6 - found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "vg/VG_100K/404.jpg"}, "missing_image"),
        ({"image": "textvqa/train_images/0.jpg"}, "undecodable_image"),
        ({"image": "sam/images/1.jpg"}, "unknown_image"),
        ({"image": "../coco/train2017/000000033471.jpg"}, "unsafe_path"),
        ({"image": "/etc/passwd"}, "unsafe_path"),
        ({"image": "coco/train2017/bus.jpg"}, "malformed"),
        ({"image": ["gqa/images/2.jpg", "gqa/images/2.jpg"]}, "several_images"),
        ({"image": 7}, "malformed"),
        ({"conversations": talk("<image><image>\nWhich?", "a")}, "several_images"),
        ({"conversations": talk("<image>\nWhat?", "a <region3>")}, "unsafe_text"),
        ({"conversations": talk("<image>\nWhat?", "a <image>")}, "unsafe_text"),
        ({"conversations": talk("<image>\nWhat?", "a <|im_end|>")}, "unsafe_text"),
        ({"conversations": talk("<image>\nWhat?", "a\u202eb")}, "unsafe_text"),
        ({"conversations": talk("<image>\nWhat?", "")}, "empty_text"),
        ({"conversations": talk("<image>", "a")}, "empty_text"),
        ({"conversations": talk("<image>\nWhat?", "a" * 20_001)}, "text_too_long"),
        ({"conversations": talk("<image>\nWhat?", 5)}, "malformed"),
        ({"conversations": talk("<image>\nWhat?")}, "malformed"),
        ({"conversations": talk("<image>\nWhat?", "a")[::-1]}, "malformed"),
        ({"conversations": "What?"}, "malformed"),
        ({"image": None}, "missing_image"),
        ({"image": None, "conversations": talk("Hello", "Hi"), "id": "a\nb"}, "unsafe_text"),
        ({"image": None, "conversations": talk("Hello", "Hi"), "id": None}, "malformed"),
    ],
)
def test_bad_records_are_rejected_with_their_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    written = records()
    written[2] |= change
    built = build(tmp_path, written)
    assert built.reasons == {reason: 1}
    assert built.rejects[0].record_id == "mix665k/2"
    assert len(built.samples) == 5


def test_records_that_are_no_objects(tmp_path: Path) -> None:
    built = build(tmp_path, [*records(), None, 5, []])
    assert built.reasons == {"malformed": 3}


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"(?s)holds no conversations.*layout is"):
        build(tmp_path, {"records": records()})
    with pytest.raises(SettingError, match="none of the first 100 records"):
        build(tmp_path, [{"id": "1", "messages": []}] * 120)
    (tmp_path / "textvqa/train_images/0.jpg").unlink()
    (tmp_path / "textvqa/train_images").rmdir()
    with pytest.raises(SettingError, match="textvqa/train_images not found"):
        collect(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))
