import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import refcoco
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from tests.dataset_builders.conftest import collect, text_of

SPECS = {spec.name: spec for spec in refcoco.DATASETS}
Write = Callable[..., DataFolders]


def instances() -> dict[str, Any]:
    return {
        "images": [
            {
                "id": 310,
                "file_name": "COCO_train2014_000000000310.jpg",
                "width": 200,
                "height": 100,
            },
            {"id": 311, "file_name": "COCO_train2014_000000000311.jpg", "width": 120, "height": 90},
            {"id": 312, "file_name": "COCO_train2014_000000000312.jpg", "width": 64, "height": 64},
        ],
        "annotations": [
            {"id": 50, "image_id": 310, "category_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0},
            {
                "id": 51,
                "image_id": 310,
                "category_id": 1,
                "bbox": [100, 20, 30, 40.5],
                "iscrowd": 0,
            },
            {"id": 52, "image_id": 311, "category_id": 7, "bbox": [0, 0, 60, 90], "iscrowd": 0},
            {"id": 53, "image_id": 311, "category_id": 1, "bbox": [50, 0, 70, 90], "iscrowd": 1},
            {"id": 54, "image_id": 312, "category_id": 7, "bbox": [4, 4, 8, 8], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "train"}],
    }


def ref(number: int, image_id: int, ann_id: Any, split: str, *raw: str) -> dict[str, Any]:
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "category_id": 1,
        "image_id": image_id,
        # a number of the sentence behind that of the image
        "file_name": f"COCO_train2014_{image_id:012d}_{number}.jpg",
        "split": split,
        "sent_ids": [number * 10 + i for i in range(len(raw))],
        "sentences": [
            {
                "sent_id": number * 10 + i,
                "raw": text,
                "sent": text.lower(),
                "tokens": text.lower().split(),
            }
            for i, text in enumerate(raw)
        ],
    }


def listed() -> list[dict[str, Any]]:
    return [
        ref(1, 310, 51, "train", "Right man", "man  on right"),
        ref(2, 310, 50, "train", "left man"),
        ref(3, 312, 54, "train", "tiny train"),
        ref(4, 311, 52, "val", "the train"),
        ref(5, 311, 52, "testA", "a long train"),
        ref(6, 311, 52, "testB", "train there"),
        ref(7, 311, 52, "test", "train anywhere"),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(folder: str, file: str, refs: Any, coco: Any = None) -> DataFolders:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        (tmp_path / "coco/train2017").mkdir(parents=True, exist_ok=True)
        (root / "instances.json").write_text(json.dumps(coco or instances()))
        data = (
            json.dumps(refs).encode() if file.endswith(".json") else pickle.dumps(refs, protocol=0)
        )
        (root / file).write_bytes(data)
        return DataFolders(str(tmp_path))

    return write


def test_the_datasets_of_this_module() -> None:
    assert {name: spec.stages for name, spec in SPECS.items() if spec.stages} == {
        "refcoco": (2,),
        "refcocop": (2,),
        "refcocog": (2,),
        "grefcoco": (2,),
    }
    assert set(SPECS) - {"refcoco", "refcocop", "refcocog", "grefcoco"} == {
        *(
            f"{name}_{split}"
            for name in ("refcoco", "refcocop")
            for split in ("val", "testA", "testB")
        ),
        "refcocog_val",
        "refcocog_test",
    }
    assert all(spec.images[0].name == "coco_train2017" for spec in SPECS.values())
    # the published counts of the usual evaluation sets
    assert SPECS["refcoco_testA"].num_samples == 5657
    assert SPECS["refcocog_test"].num_samples == 9602


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("refcoco", "refcoco", "refs(unc).p"),
        ("refcocop", "refcoco+", "refs(unc).p"),
        ("refcocog", "refcocog", "refs(umd).p"),
    ],
)
def test_a_train_split(write: Write, name: str, folder: str, file: str) -> None:
    built = collect(SPECS[name].samples(write(folder, file, listed()), BuildOptions()))
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 5, "category": 2, "record": 4}
    assert built.tasks == {"referring": 4, "region_caption": 4}
    samples = {sample.sample_id.partition("/")[2]: sample for sample in built.samples}
    assert list(samples) == [
        f"{image}/{task}/{number}"
        for image, number in ((310, 10), (310, 11), (310, 20), (312, 30))
        for task in ("referring", "region_caption")
    ]
    first = samples["310/referring/10"]
    assert (first.image_source, first.image_id) == ("coco_train2017", "310")
    assert first.image_uri == "coco/train2017/000000000310.jpg"
    assert (first.width, first.height, first.window) == (200, 100, None)
    assert first.objects == (
        Object(box=(10.0, 20.0, 40.0, 60.0), label="person"),
        Object(box=(100.0, 20.0, 130.0, 60.5), label="person"),
    )
    assert text_of(first.turns[0]) == (
        "Please detect Right man in this image. Answer the question with object indexes."
    )
    assert text_of(first.turns[1]) == "Right man[1]"
    assert text_of(samples["310/referring/11"].turns[1]) == "man on right[1]"
    assert text_of(samples["310/referring/20"].turns[1]) == "left man[0]"
    caption = samples["310/region_caption/11"]
    assert text_of(caption.turns[0]) == "Provide a brief description for [1]."
    assert text_of(caption.turns[1]) == "man on right"
    tiny = samples["312/region_caption/30"]
    assert text_of(tiny.turns[1]) == "tiny train"
    assert tiny.objects == (Object(box=(4.0, 4.0, 12.0, 12.0), label="train"),)
    assert all(sample.absent_labels is None for sample in built.samples)


@pytest.mark.parametrize(
    ("name", "file", "said"),
    [
        ("refcoco_val", "refcoco/refs(unc).p", "the train"),
        ("refcoco_testA", "refcoco/refs(unc).p", "a long train"),
        ("refcocop_testB", "refcoco+/refs(unc).p", "train there"),
        ("refcocog_test", "refcocog/refs(umd).p", "train anywhere"),
    ],
)
def test_splits_for_evaluation_ask_for_their_expressions_alone(
    write: Write, name: str, file: str, said: str
) -> None:
    built = collect(SPECS[name].samples(write(*file.split("/"), listed()), BuildOptions()))
    (sample,) = built.samples
    assert sample.task == "referring"
    assert text_of(sample.turns[1]) == f"{said}[0]"
    # the crowd on the image is told apart, not left out
    assert [item.ignore for item in sample.objects] == [False, True]


def test_region_texts_bound_the_captions_of_an_image(write: Write) -> None:
    folders = write("refcoco", "refs(unc).p", listed())
    tasks = []
    for most in (0, 1, 2, 8):
        built = collect(SPECS["refcoco"].samples(folders, BuildOptions(region_texts=most)))
        tasks.append((built.tasks["referring"], built.tasks["region_caption"]))
    assert tasks == [(4, 0), (4, 2), (4, 3), (4, 4)]
    one = BuildOptions(region_texts=1, seed=5)
    chosen = [
        [s.sample_id for s in collect(SPECS["refcoco"].samples(folders, one)).samples]
        for _ in range(2)
    ]
    assert chosen[0] == chosen[1]
    by_seed = {
        tuple(
            s.sample_id
            for s in SPECS["refcoco"].samples(folders, BuildOptions(region_texts=1, seed=seed))
            if getattr(s, "task", "") == "region_caption"
        )
        for seed in range(12)
    }
    assert len(by_seed) == 3  # any of the three expressions of image 310


@pytest.mark.parametrize("file", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco_names_several_objects_or_none(write: Write, file: str) -> None:
    rows = [
        ref(1, 310, [51, 50], "train", "both men"),
        ref(2, 310, [50], "train", "left man"),
        ref(3, 312, [-1], "train", "the red train"),
        ref(4, 312, 54, "train", "train"),
        ref(5, 311, [53], "train", "the crowd"),
        ref(6, 311, [52, -1], "train", "half of it"),
        ref(7, 312, -1, "train", "two trains"),
        ref(8, 312, [-1], "val", "not of this split"),
    ]
    built = collect(SPECS["grefcoco"].samples(write("grefcoco", file, rows), BuildOptions()))
    assert built.tasks == {"referring": 3, "region_caption": 2, "rejection": 2}
    assert built.reasons == {"contradiction": 1, "unknown_object": 1}
    samples = {sample.sample_id: sample for sample in built.samples}
    both = samples["grefcoco/310/referring/10"]
    assert text_of(both.turns[1]) == "both men[1,0]"
    assert both.absent_labels is None
    none = samples["grefcoco/312/rejection/30"]
    assert text_of(none.turns[0]) == (
        "Please detect the red train in this image. Answer the question with object indexes."
    )
    assert text_of(none.turns[1]) == "None"
    assert (none.absent_labels, none.absent_regime) == (("the red train",), "constructed")
    assert none.objects == (Object(box=(4.0, 4.0, 12.0, 12.0), label="train"),)
    assert samples["grefcoco/312/rejection/70"].absent_labels == ("two trains",)
    # several objects have no caption in common
    assert "grefcoco/310/region_caption/10" not in samples


def test_an_image_whose_name_and_number_differ_is_rejected(write: Write) -> None:
    coco = instances()
    coco["images"][0]["file_name"] = "COCO_train2014_000000000999.jpg"
    coco["images"][1]["file_name"] = "../../etc/passwd"
    built = collect(
        SPECS["refcoco"].samples(write("refcoco", "refs(unc).p", listed(), coco), BuildOptions())
    )
    assert [(r.unit, r.reason) for r in built.rejects if r.unit == "image"] == [
        ("image", "contradiction"),
        ("image", "malformed"),
    ]
    assert {sample.image_id for sample in built.samples} == {"312"}
    assert built.reasons["unknown_image"] == 3  # the sentences on 310
    assert built.reasons["image_rejected"] == 4  # its boxes, and those of 311


def test_a_path_in_a_name_leads_nowhere(write: Write) -> None:
    coco = instances()
    coco["images"][0]["file_name"] = "../../secret/COCO_train2014_000000000310.jpg"
    built = collect(
        SPECS["refcoco"].samples(write("refcoco", "refs(unc).p", listed(), coco), BuildOptions())
    )
    assert {sample.image_uri for sample in built.samples} == {
        "coco/train2017/000000000310.jpg",
        "coco/train2017/000000000312.jpg",
    }


def test_wrong_files_are_named(write: Write, tmp_path: Path) -> None:
    folders = write("refcoco", "refs(unc).p", listed())
    with pytest.raises(SettingError, match=r"grefcoco/instances\.json not found"):
        next(SPECS["grefcoco"].samples(folders, BuildOptions()))
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"split": "train"}))
    with pytest.raises(
        SettingError, match=r"(?s)dataset refcoco: refs\(unc\)\.p holds a dict.*pickled list"
    ):
        list(SPECS["refcoco"].samples(folders, BuildOptions()))
    with pytest.raises(SettingError, match="holds no refs of split 'train'"):
        list(
            SPECS["refcoco"].samples(write("refcoco", "refs(unc).p", listed()[3:]), BuildOptions())
        )
    # boxes as two corners
    coco = instances()
    coco["annotations"] = [
        {
            "id": i,
            "image_id": 310,
            "category_id": 1,
            "bbox": [60 + i, 40, 120 + i, 90],
            "iscrowd": 0,
        }
        for i in range(60)
    ]
    with pytest.raises(SettingError, match=r"instances\.json: boxes are declared xywh"):
        list(
            SPECS["refcoco"].samples(
                write("refcoco", "refs(unc).p", listed(), coco), BuildOptions()
            )
        )
