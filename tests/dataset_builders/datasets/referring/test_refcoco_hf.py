import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import refcoco_hf
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from tests.dataset_builders.conftest import collect, text_of

SPECS = {spec.name: spec for spec in refcoco_hf.DATASETS}
Write = Callable[..., DataFolders]
SIZES = {340: (200, 100), 341: (64, 48), 342: (120, 90)}


def refer(ref: int, image_id: int, split: str, bbox: Any, *raw: str, **more: Any) -> dict[str, Any]:
    """A row of jxu124's, whose box is two corners."""
    width, height = SIZES[image_id]
    return {
        "sent_ids": [ref * 10 + i for i in range(len(raw))],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref}.jpg",
        "ann_id": ref,
        "ref_id": ref,
        "image_id": image_id,
        "split": split,
        "sentences": [
            {"raw": text, "sent": text.lower(), "sent_id": ref * 10 + i, "tokens": text.split()}
            for i, text in enumerate(raw)
        ],
        "category_id": 1,
        "raw_anns": "{}",
        "raw_image_info": json.dumps({"width": width, "height": height, "id": image_id}),
        "raw_sentences": "[]",
        "image_path": f"coco/train2014/COCO_train2014_{image_id:012d}.jpg",
        "bbox": bbox,
        "captions": [],
        "global_image_id": f"coco.{image_id}",
        "anns_id": str(ref),
    } | more


def refer_rows() -> list[dict[str, Any]]:
    return [
        refer(1, 340, "train", [100.0, 20.0, 130.0, 60.5], "Right man", "man  on right"),
        refer(2, 341, "train", [0.0, 0.0, 64.0, 20.0], "sky"),
        refer(3, 340, "train", [10.0, 20.0, 40.0, 60.0], "left man"),
        refer(4, 342, "val", [60.0, 60.0, 100.0, 90.0], "a dog"),
    ]


def answer(number: Any, image_id: int, bbox: Any, *said: Any) -> dict[str, Any]:
    """A row of lmms-lab's, without size and split."""
    return {
        "question_id": number,
        "image": {"bytes": b"", "path": "x.jpg"},
        "question": "Please caption the area.",
        "answer": list(said),
        "segmentation": [0.0],
        "bbox": bbox,
        "iscrowd": 0,
        "file_name": f"COCO_train2014_{image_id:012d}_{number}.jpg",
    }


def answer_rows() -> list[dict[str, Any]]:
    """Boxes as left, top, width, height: as two corners the first would leave its image."""
    return [
        answer("1", 340, [100.0, 20.0, 30.0, 40.5], "right man", "man on right"),
        answer("2", 341, [0.0, 0.0, 64.0, 20.0], "sky"),
        answer("3", 340, [10.0, 20.0, 30.0, 40.0], "left man"),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        rows: Any, name: str = "train-00000-of-00001.parquet", folder: str = "refcoco_hf"
    ) -> DataFolders:
        images = tmp_path / "coco/train2017"
        images.mkdir(parents=True, exist_ok=True)
        for number, size in SIZES.items():
            Image.new("RGB", size).save(images / f"{number:012d}.jpg")
        (tmp_path / folder / "data").mkdir(parents=True, exist_ok=True)
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / folder / "data" / name, row_group_size=2)
        return DataFolders(str(tmp_path))

    return write


def build(folders: DataFolders, name: str = "refcoco_hf") -> Any:
    return collect(SPECS[name].samples(folders, BuildOptions()))


def test_the_datasets_of_this_module() -> None:
    assert set(SPECS) == {
        *(
            f"{n}_hf{split}"
            for n in ("refcoco", "refcocop")
            for split in ("", "_val", "_testA", "_testB")
        ),
        *(f"refcocog_hf{split}" for split in ("", "_val", "_test")),
    }
    assert all(spec.stages == () for spec in SPECS.values())


@pytest.mark.parametrize("name", ["refcoco_hf", "refcocop_hf", "refcocog_hf"])
def test_golden_samples_of_refer_rows(write: Write, name: str) -> None:
    built = build(write(refer_rows(), folder=name), name)
    assert built.rejects == []
    assert built.ledger.used == {"record": 4}
    samples = {sample.sample_id.partition("/")[2]: sample for sample in built.samples}
    assert sorted(samples) == sorted(
        f"{image}/{task}/{number}"
        for image, number in ((340, 10), (340, 11), (340, 30), (341, 20))
        for task in ("referring", "region_caption")
    )
    right = samples["340/referring/10"]
    assert right.objects == (
        Object(box=(100.0, 20.0, 130.0, 60.5), label="object"),
        Object(box=(10.0, 20.0, 40.0, 60.0), label="object"),
    )
    assert (right.image_source, right.image_id) == ("coco_train2017", "340")
    assert right.image_uri == "coco/train2017/000000000340.jpg"
    assert (right.width, right.height) == (200, 100)
    assert text_of(right.turns[0]) == (
        "Please detect Right man in this image. Answer the question with object indexes."
    )
    assert text_of(right.turns[1]) == "Right man[0]"
    assert text_of(samples["340/referring/11"].turns[1]) == "man on right[0]"
    left = samples["340/region_caption/30"]
    assert text_of(left.turns[0]) == "Provide a brief description for [1]."
    assert text_of(left.turns[1]) == "left man"
    sky = samples["341/referring/20"]
    assert sky.objects == (Object(box=(0.0, 0.0, 64.0, 20.0), label="object"),)
    assert text_of(sky.turns[1]) == "sky[0]"


def test_the_split_of_refer_rows_is_their_own(write: Write) -> None:
    built = build(write(refer_rows(), "whatever.parquet"), "refcoco_hf_val")
    (sample,) = built.samples
    assert sample.sample_id == "refcoco_hf_val/342/referring/40"
    assert text_of(sample.turns[1]) == "a dog[0]"


def test_golden_samples_of_answer_rows(write: Write) -> None:
    built = build(write(answer_rows(), "val-00000-of-00002.parquet"), "refcoco_hf_val")
    assert built.rejects == []
    assert built.ledger.used == {"record": 4}
    assert [sample.sample_id for sample in built.samples] == [
        "refcoco_hf_val/340/referring/1-0",
        "refcoco_hf_val/340/referring/1-1",
        "refcoco_hf_val/340/referring/3-0",
        "refcoco_hf_val/341/referring/2-0",
    ]
    first, second, third, sky = built.samples
    assert first.objects == (
        Object(box=(100.0, 20.0, 130.0, 60.5), label="object"),
        Object(box=(10.0, 20.0, 40.0, 60.0), label="object"),
    )
    assert (first.image_uri, first.width, first.height) == (
        "coco/train2017/000000000340.jpg",
        200,
        100,
    )
    assert text_of(first.turns[1]) == "right man[0]"
    assert text_of(second.turns[1]) == "man on right[0]"
    assert text_of(third.turns[1]) == "left man[1]"
    assert (text_of(sky.turns[1]), sky.width, sky.height) == ("sky[0]", 64, 48)


def test_the_form_of_the_boxes_of_answer_rows_is_told_from_them(write: Write) -> None:
    corners = answer_rows()
    corners[0]["bbox"] = [100.0, 20.0, 130.0, 60.5]
    corners[2]["bbox"] = [10.0, 20.0, 40.0, 60.0]
    as_corners = build(write(corners, "val-0.parquet"), "refcoco_hf_val").samples
    assert as_corners == build(write(answer_rows(), "val-0.parquet"), "refcoco_hf_val").samples
    # whole in the image either way, or normalised: refused, never guessed
    for bbox in ([10.0, 10.0, 30.0, 40.0], [0.1, 0.1, 0.3, 0.4]):
        with pytest.raises(
            SettingError, match=r"val-0\.parquet: of 1 boxes.*cannot tell xyxy from xywh"
        ):
            build(write([answer("1", 340, bbox, "a man")], "val-0.parquet"), "refcoco_hf_val")
    shares = [[0.5 + i / 100, 0.6, 0.2, 0.3] for i in range(25)]
    normalised = [answer(str(i), 340, bbox, "x") for i, bbox in enumerate(shares)]
    with pytest.raises(
        SettingError, match=r"val-0\.parquet: boxes are declared xywh.*fit normalised"
    ):
        build(write(normalised, "val-0.parquet"), "refcoco_hf_val")
    with pytest.raises(SettingError, match="none of the first 1 boxes fits its image"):
        build(
            write([answer("1", 340, [900.0, 900.0, 950.0, 950.0], "x")], "val-0.parquet"),
            "refcoco_hf_val",
        )


def test_a_file_of_another_split_is_not_read(write: Write) -> None:
    folders = write(answer_rows(), "validation-00000.parquet")
    write([answer("9", 340, [900.0, 900.0, 1.0, 1.0], "x")], "testA-00000.parquet")
    assert len(build(folders, "refcoco_hf_val").samples) == 4
    with pytest.raises(
        SettingError, match=r"(?s)no rows of split 'train' in testA.*validation.*its files are"
    ):
        build(folders)


@pytest.mark.parametrize(
    ("change", "reason", "lost"),
    [
        ({"split": None}, "malformed", 1),
        ({"file_name": "a.jpg"}, "malformed", 1),
        ({"file_name": None}, "malformed", 1),
        ({"image_id": 341}, "contradiction", 1),
        ({"raw_image_info": "{"}, "malformed", 1),
        ({"raw_image_info": None}, "malformed", 1),
        ({"raw_image_info": '{"width": 0, "height": 5}'}, "bad_size", 1),
        ({"raw_image_info": '{"width": 300, "height": 100}'}, "contradiction", 2),
        ({"bbox": [1.0, 2.0]}, "malformed", 1),
        ({"bbox": None}, "malformed", 1),
        ({"bbox": [30.0, 20.0, 10.0, 60.0]}, "inverted_box", 2),
        ({"bbox": [300.0, 20.0, 310.0, 60.0]}, "outside_box", 2),
        ({"bbox": [float("nan"), 20.0, 10.0, 60.0]}, "not_finite_box", 2),
        ({"sentences": []}, "malformed", 1),
        ({"sentences": None}, "malformed", 1),
    ],
)
def test_bad_refer_rows_are_rejected_with_their_reason(
    write: Write, change: dict, reason: str, lost: int
) -> None:
    rows = refer_rows()
    rows[2] |= refer(3, 340, "train", rows[2]["bbox"], "left man", "man left") | change
    built = build(write(rows))
    assert built.reasons == {reason: lost}
    assert built.tasks == {"referring": 3, "region_caption": 3}


def test_bad_sentences_are_rejected_one_by_one(write: Write) -> None:
    rows = refer_rows()
    rows[0]["sentences"][0]["raw"] = "the <objects>"
    rows[1]["sentences"][0]["raw"] = None
    rows[2]["sentences"][0]["sent_id"] = 11
    built = build(write(rows))
    assert built.reasons == {"unsafe_text": 1, "malformed": 1, "duplicate_id": 1}
    assert {sample.sample_id for sample in built.samples} == {
        "refcoco_hf/340/referring/11",
        "refcoco_hf/340/region_caption/11",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_name": "COCO_train2014_000000000349_3.jpg"}, "missing_image"),
        ({"file_name": None}, "malformed"),
        ({"bbox": [1.0]}, "malformed"),
        ({"bbox": [0.0, 0.0, 0.0, 0.0]}, "outside_box"),
        ({"answer": []}, "malformed"),
        ({"answer": None}, "malformed"),
        ({"answer": [None]}, "malformed"),
        ({"answer": ["\x1bman"]}, "unsafe_text"),
        ({"question_id": None}, "malformed"),
        ({"question_id": "1"}, "duplicate_id"),
    ],
)
def test_bad_answer_rows_are_rejected_with_their_reason(
    write: Write, change: dict, reason: str
) -> None:
    rows = answer_rows()
    rows[2] |= change
    built = build(write(rows, "val-0.parquet"), "refcoco_hf_val")
    assert built.reasons == {reason: 1}
    assert len(built.samples) == 3


def test_wrong_files_are_named(write: Write, tmp_path: Path) -> None:
    folders = write([{"text": "x", "bbox": [1.0]}])
    with pytest.raises(
        SettingError, match=r"train-00000-of-00001\.parquet has columns bbox, text; want split"
    ):
        build(folders)
    with pytest.raises(
        SettingError, match=r"(?s)refcocop_hf/data/\*\.parquet not found.*jxu124/refcocoplus"
    ):
        build(folders, "refcocop_hf")
    (tmp_path / "refcoco_hf/data/train-00000-of-00001.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(
        SettingError, match=r"train-00000-of-00001\.parquet cannot be read as parquet"
    ):
        build(folders)
    sizes = [[60.0 + i, 40.0, 60.0, 50.0] for i in range(60)]  # width and height
    with pytest.raises(SettingError, match="boxes are declared xyxy"):
        build(write([refer(i, 340, "train", bbox, f"man {i}") for i, bbox in enumerate(sizes)]))
