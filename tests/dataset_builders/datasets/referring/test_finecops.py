import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import finecops
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from tests.dataset_builders.conftest import collect, text_of

(SPEC,) = finecops.DATASETS
Write = Callable[..., DataFolders]
TRAIN = "expression_all_train_set_coco_format.json"
TEXT = {
    "negative_type": "attribute",
    "negative_level": 1,
    "negative_cate": "text",
    "positive_id": "0",
}
IMAGE = TEXT | {"negative_cate": "image"}


def image(number: Any, name: str, caption: str) -> dict[str, Any]:
    return {"id": number, "file_name": name, "caption": caption, "width": 200, "height": 100}


def box(image_id: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": 5,
        "image_id": image_id,
        "bbox": bbox,
        "category_id": 1,
        "iscrowd": 0,
        "level": 1,
    } | more


def content() -> dict[str, Any]:
    """A true expression, one with a changed word, one over an edited image, another true one.

    The changed one has the true box.
    """
    return {
        "images": [
            image(0, "2410350.jpg", "The brown horse near the fence."),
            image("0_1", "2410350.jpg", "The white horse near the fence."),
            image("0_2", "350_edited.png", "The brown horse near the fence."),
            image(1, "2410350.jpg", "The fence."),
            image(2, "2410351.jpg", "The dog."),
        ],
        "annotations": [
            box(0, [10, 20, 30, 40]),
            box("0_1", [10, 20, 30, 40], **TEXT),
            box("0_2", [10, 20, 30, 40], **IMAGE),
            box(1, [100, 20, 50.5, 40]),
            box(2, [0, 0, 200, 100]),
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(made: Any, name: str = TRAIN) -> DataFolders:
        (tmp_path / "gqa/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "finecops/negative_images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "finecops" / name).write_text(json.dumps(made))
        return DataFolders(str(tmp_path))

    return write


def build(folders: DataFolders) -> Any:
    return collect(SPEC.samples(folders, BuildOptions()))


def test_golden_samples(write: Write) -> None:
    assert (SPEC.name, SPEC.stages) == ("finecops_ref", (2,))
    built = build(write(content()))
    assert built.rejects == []
    assert built.ledger.used == {"category": 1, "box": 5, "record": 5}
    assert built.tasks == {"referring": 3, "region_caption": 3, "rejection": 2}
    samples = {sample.sample_id.partition("/")[2]: sample for sample in built.samples}
    horse = samples["2410350/referring/0"]
    assert (horse.image_source, horse.image_uri) == ("gqa", "gqa/images/2410350.jpg")
    assert (horse.width, horse.height) == (200, 100)
    assert horse.objects == (
        Object(box=(10.0, 20.0, 40.0, 60.0), label="object"),
        Object(box=(100.0, 20.0, 150.5, 60.0), label="object"),
    )
    assert text_of(horse.turns[0]) == (
        "Please detect The brown horse near the fence. in this image. "
        "Answer the question with object indexes."
    )
    assert text_of(horse.turns[1]) == "The brown horse near the fence.[0]"
    assert text_of(samples["2410350/referring/1"].turns[1]) == "The fence.[1]"
    caption = samples["2410350/region_caption/1"]
    assert text_of(caption.turns[0]) == "Provide a brief description for [1]."
    assert text_of(caption.turns[1]) == "The fence."
    white = samples["2410350/rejection/0_1"]
    assert (white.image_source, white.image_uri) == ("gqa", "gqa/images/2410350.jpg")
    assert white.objects == horse.objects
    assert text_of(white.turns[1]) == "None"
    assert white.absent_labels == ("The white horse near the fence.",)
    assert white.absent_regime == "constructed"
    # the same words as on the true image, and nothing boxed: its record holds the true image's box
    edited = samples["negative_images/350_edited/rejection/0_2"]
    assert edited.image_source == "finecops_negative_images"
    assert edited.image_uri == "finecops/negative_images/350_edited.png"
    assert edited.objects == ()
    assert edited.absent_labels == ("The brown horse near the fence.",)
    dog = samples["2410351/referring/2"]
    assert dog.objects == (Object(box=(0.0, 0.0, 200.0, 100.0), label="object"),)


def test_only_train_files_are_read(write: Write, tmp_path: Path) -> None:
    folders = write(content(), "test_expression_pos_coco_format.json")
    with pytest.raises(
        SettingError, match=r"(?s)finecops/\*train\*coco_format\.json not found.*negative_images"
    ):
        build(folders)
    write(content())
    write([], "expression_pos_final_val_set_coco_format.json")
    assert len(build(folders).samples) == 8


def test_several_train_files_make_one_dataset(write: Write) -> None:
    negatives = content()
    negatives["images"], negatives["annotations"] = (
        negatives["images"][1:3],
        negatives["annotations"][1:3],
    )
    positives = content()
    positives["images"] = [positives["images"][0], *positives["images"][3:]]
    positives["annotations"] = [positives["annotations"][0], *positives["annotations"][3:]]
    write(negatives, "neg_train_coco_format.json")
    built = build(write(positives, "pos_train_coco_format.json"))
    assert built.rejects == []
    assert len(built.samples) == 8
    folders = write(content())
    again = build(folders)  # the third file repeats both
    assert again.reasons == {"duplicate_id": 5, "unknown_image": 5}
    assert {s.sample_id for s in again.samples} == {s.sample_id for s in built.samples}


@pytest.mark.parametrize(
    ("change", "units"),
    [
        ({"negative_cate": "sound"}, {("box", "contradiction"), ("record", "unknown_object")}),
        ({"negative_cate": None}, {("box", "contradiction"), ("record", "unknown_object")}),
        ({"negative_type": None}, {("box", "contradiction"), ("record", "unknown_object")}),
    ],
)
def test_a_doubtful_negative_rejects(write: Write, change: dict, units: set) -> None:
    made = content()
    made["annotations"][1] |= change
    built = build(write(made))
    assert {(r.unit, r.reason) for r in built.rejects} == units
    assert "finecops_ref/2410350/rejection/0_1" not in {s.sample_id for s in built.samples}


def test_a_changed_text_that_is_true_of_another_object_is_rejected(write: Write) -> None:
    made = content()
    made["images"][1]["caption"] = "the fence."
    built = build(write(made))
    assert built.reasons == {"contradiction": 1}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\\b.jpg", "", 4, None, "x/../y.jpg"]
)
def test_an_unsafe_path_is_rejected(write: Write, name: Any) -> None:
    made = content()
    made["images"][4]["file_name"] = name
    built = build(write(made))
    assert {(r.unit, r.reason) for r in built.rejects} == {
        ("record", "unsafe_path"),
        ("box", "unknown_image"),
    }
    assert len(built.samples) == 6
