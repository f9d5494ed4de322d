import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.goldg import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

SPECS = {spec.name: spec for spec in DATASETS}
GROUND = (
    "Briefly describe this image and detect all mentioned objects. "
    "Answer with grounded object indexes."
)


def image(
    number: int, caption: Any, file_name: str = "2410400.jpg", **fields: Any
) -> dict[str, Any]:
    return {
        "id": number,
        "file_name": file_name,
        "width": 100,
        "height": 80,
        "caption": caption,
        "data_source": "vg",
        **fields,
    }


def box(
    number: int, image_id: int, bbox: list[float], *spans: list[int], **fields: Any
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": bbox,
        "tokens_positive": list(spans),
        **fields,
    }


def build(
    root: Path,
    images: list[Any],
    boxes: list[Any],
    *,
    name: str = "goldg_mixed",
    options: BuildOptions | None = None,
) -> SimpleNamespace:
    for folder in (
        "gqa/images",
        "coco/train2017",
        "flickr30k/flickr30k-images",
        "mdetr_annotations",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": boxes, "categories": []}
    (root / SPECS[name].files[0]).write_text(json.dumps(content))
    return collect(SPECS[name].samples(DataFolders(str(root)), options or BuildOptions()))


def test_golden_mixed(tmp_path: Path) -> None:
    images = [
        image(0, "a man in a hat. a man."),
        image(5, "the brown dog", "2410401.jpg"),
        image(6, "left shoe of a man ", "2410401.jpg"),
    ]
    boxes = [
        box(1, 0, [10, 10, 20, 30], [0, 14]),
        box(2, 0, [9, 9, 8, 8], [9, 14]),  # "a hat", nested
        box(3, 0, [50, 10, 20, 30.5], [16, 21]),
        box(4, 5, [0, 0, 10, 10], [0, 3], [4, 9], [10, 13]),
        box(5, 6, [1, 2, 3, 4], [0, 9]),
    ]
    built = build(tmp_path, images, boxes)
    assert built.ledger.used == {"box": 5, "image": 3, "category": 0}
    assert [sample.sample_id for sample in built.samples] == [
        "goldg_mixed/2410400/grounding/0",
        "goldg_mixed/2410400/referring/0-0",
        "goldg_mixed/2410401/grounding/5",
        "goldg_mixed/2410401/referring/5-0",
        "goldg_mixed/2410401/grounding/6",
        "goldg_mixed/2410401/referring/6-0",
    ]
    first, referring, dog, _, shoe, _ = built.samples
    assert text_of(first.turns[0]) == GROUND
    assert text_of(first.turns[1]) == "a man in a hat[0]. a man[2]."
    assert first.objects == (
        Object(box=(10.0, 10.0, 30.0, 40.0), label="a man in a hat"),
        Object(box=(9.0, 9.0, 17.0, 17.0), label="a hat"),
        Object(box=(50.0, 10.0, 70.0, 40.5), label="a man"),
    )
    assert (first.image_source, first.image_id, first.image_uri) == (
        "gqa",
        "2410400",
        "gqa/images/2410400.jpg",
    )
    assert (first.width, first.height, first.window, first.absent_labels) == (100, 80, None, None)
    assert text_of(referring.turns[0]) == (
        "Please detect a man in a hat in this image. Answer the question with object indexes."
    )
    assert text_of(referring.turns[1]) == "a man in a hat[0]"
    assert text_of(dog.turns[1]) == "the brown dog[0]"
    assert text_of(shoe.turns[1]) == "left shoe[0] of a man"


def test_coco_images_are_those_of_train2017(tmp_path: Path) -> None:
    name = "COCO_train2014_000000000401.jpg"
    images = [image(3, "a red ball", name, data_source="coco"), image(4, "a red ball")]
    boxes = [box(1, 3, [0, 0, 10, 10], [0, 10]), box(2, 4, [0, 0, 10, 10], [0, 10])]
    coco, _, vg, _ = build(tmp_path, images, boxes, name="goldg_mixed_coco").samples
    assert (coco.image_source, coco.image_id) == ("coco_train2017", "401")
    assert coco.image_uri == "coco/train2017/000000000401.jpg"
    assert (vg.image_source, vg.image_id) == ("gqa", "2410400")
    # the file without COCO must not have them
    built = build(tmp_path, images, boxes)
    assert built.reasons == {"unknown_image": 1}
    assert {sample.image_id for sample in built.samples} == {"2410400"}


def test_sizes_as_text_in_the_flickr_file(tmp_path: Path) -> None:
    images = [image(0, "Two guys .", "1000092795.jpg", width="100", height="80")]
    boxes = [box(1, 0, [0, 0, 10, 10], [0, 8]), box(2, 0, [20, 0, 90, 10], [0, 8])]
    (sample,) = build(
        tmp_path, images, boxes, name="goldg_flickr", options=BuildOptions(single_names=0)
    ).samples
    assert text_of(sample.turns[1]) == "Two guys[0,1] ."
    assert sample.image_uri == "flickr30k/flickr30k-images/1000092795.jpg"
    assert sample.image_id == "1000092795"
    assert sample.objects[1].box == (20.0, 0.0, 100.0, 10.0)


def test_a_rejected_or_crowd_box_leaves_its_phrase_as_text(tmp_path: Path) -> None:
    caption = "two men and a dog and a cat and an owl"
    images = [image(0, caption)]
    dog, cat, owl = (
        [caption.index(word), caption.index(word) + 5] for word in ("a dog", "a cat", "an ow")
    )
    boxes = [
        box(1, 0, [0, 0, 10, 10], [0, 7]),
        box(2, 0, [0, 0, -5, 10], [0, 7]),  # the second man is lost
        box(3, 0, [0, 0, 10, 10], dog, iscrowd=1),
        box(4, 0, [0, 0, "x", 10], cat),
        box(1, 0, [0, 0, 10, 10], owl),  # an id that was there
        box(6, 0, [30, 30, 10, 10], [32, 38]),
    ]
    built = build(tmp_path, images, boxes)
    assert built.reasons == {"inverted_box": 1, "malformed": 1, "duplicate_id": 1}
    assert text_of(built.samples[0].turns[1]) == "two men and a dog and a cat and an owl[2]"
    assert [item.ignore for item in built.samples[0].objects] == [False, True, False]


@pytest.mark.parametrize(
    ("caption", "span", "reason"),
    [
        pytest.param(None, [0, 3], "malformed", id="none"),
        pytest.param(float("nan"), [0, 3], "malformed", id="nan"),
        pytest.param(" ", [0, 1], "empty_text", id="blank"),
        pytest.param("a <region1> man", [0, 1], "unsafe_text", id="tag"),
        pytest.param("a \x00 man", [0, 1], "unsafe_text", id="control"),
        pytest.param("a man", [0, 6], "malformed", id="beyond"),
        pytest.param("a man", [3, 1], "malformed", id="backwards"),
        pytest.param("a man", "0-5", "malformed", id="text"),
        pytest.param("a man" * 2_000_000, [0, 5], "text_too_long", id="long"),
    ],
)
def test_bad_captions_are_rejects(tmp_path: Path, caption: Any, span: Any, reason: str) -> None:
    images = [image(0, caption), image(1, "a red hat")]
    built = build(
        tmp_path, images, [box(1, 0, [0, 0, 9, 9], span), box(2, 1, [0, 0, 9, 9], [0, 9])]
    )
    assert built.reasons == {reason: 1}
    assert [sample.sample_id for sample in built.samples] == [
        "goldg_mixed/2410400/grounding/1",
        "goldg_mixed/2410400/referring/1-0",
    ]


def test_a_caption_without_boxes_is_a_reject(tmp_path: Path) -> None:
    built = build(
        tmp_path, [image(0, "a man"), image(1, "a man")], [box(1, 1, [0, 0, 9, 9], [0, 5])]
    )
    assert built.reasons == {"unknown_object": 1}


def test_wrong_files_raise(tmp_path: Path) -> None:
    folders = DataFolders(str(tmp_path))
    with pytest.raises(SettingError, match=r"final_mixed_train_no_coco.json not found"):
        list(SPECS["goldg_mixed"].samples(folders, BuildOptions()))
    coco = [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9} for n in range(150)]
    with pytest.raises(SettingError, match=r"none of the first 100 records .* no field 'caption'"):
        build(tmp_path, coco, [])
    corners = [box(n, 0, [50 + n, 40, 80 + n / 5, 70], [0, 5]) for n in range(25)]
    with pytest.raises(SettingError, match=r"declared xywh.*fit xyxy"):
        build(tmp_path, [image(0, "a man")], corners)
    with pytest.raises(SettingError, match="no usable images"):
        build(tmp_path, [], [])
