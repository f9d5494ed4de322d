import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection import lvis
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import COCO_TRAIN
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.tasks import detection
from tests import SHARED
from tests.dataset_builders.conftest import collect, text_of

TRAIN, VAL = lvis.DATASETS
REAL = SHARED / "data" / "lvis" / "lvis_val_100.json"
Write = Callable[..., DataFolders]


def _image(
    number: int, negative: Any, partial: Any, folder: str = "train2017", **more: Any
) -> dict[str, Any]:
    return {
        "id": number,
        "width": 100,
        "height": 80,
        "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg",
        "neg_category_ids": negative,
        "not_exhaustive_category_ids": partial,
    } | more


def _box(number: int, image: int, category: int, bbox: list[float]) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": 1.0}


def _categories() -> list[dict[str, Any]]:
    names = {
        1: ("cat", ["cat", "kitty"]),
        2: ("dog", ["dog"]),
        3: ("fish_(food)", ["fish_(food)"]),
        4: ("fish", ["fish"]),
        5: ("car_(automobile)", ["car_(automobile)", "auto"]),
        6: ("kitty", ["kitty"]),
        7: ("cellular_telephone", ["mobile_phone", "cellular_telephone"]),
    }
    return [
        {"id": number, "name": name, "synonyms": also} for number, (name, also) in names.items()
    ]


def _records() -> dict[str, Any]:
    """Two cats, and dogs not all boxed; nothing boxed at all; one car, and nothing verified."""
    return {
        "categories": _categories(),
        "annotations": [
            _box(11, 9, 1, [10, 10, 20, 20]),
            _box(12, 9, 2, [50, 10, 30.5, 20]),
            _box(13, 9, 1, [-4, 40, 24, 20]),
            _box(14, 30, 5, [0, 0, 100, 80]),
        ],
        "images": [_image(9, [3, 5, 6], [2]), _image(25, [7], []), _image(30, [], [])],
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(records: Any, split: str = "train") -> DataFolders:
        for folder in ("coco/train2017", "coco/val2017", "lvis"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"lvis/lvis_v1_{split}.json").write_text(json.dumps(records))
        return DataFolders(str(tmp_path))

    return put


def test_three_images_by_hand(write: Write) -> None:
    built = collect(TRAIN.samples(write(_records()), BuildOptions()))
    assert built.rejects == []
    said = {sample.sample_id: tuple(map(text_of, sample.turns)) for sample in built.samples}
    detect = "Please detect {} in this image. Answer the question with object indexes."
    count = (
        "How many {} are there in this image? Count each instance of the target object. Locate "
        "them with object indexes and then answer the question with the number of objects."
    )
    assert said["lvis_train/9/detection/0"] == (detect.format("cat"), "cat[0,2]")
    assert said["lvis_train/9/counting/0"] == (count.format("cat"), "cat[0,2]\nThere are 2.")
    assert said["lvis_train/9/visual_prompt/0"][1] == "cat[0,2]"
    assert said["lvis_train/25/rejection/0"] == (detect.format("mobile phone"), "None")
    assert said["lvis_train/30/detection/0"] == (detect.format("car"), "car[0]")
    assert said["lvis_train/30/region_name/0"] == ("Provide a brief description for [0].", "car")
    # dogs are not all boxed: no question has "all dogs" for an answer
    assert sorted(said) == sorted(
        [
            *(f"lvis_train/9/{task}" for task in ("detection/0", "counting/0", "visual_prompt/0")),
            *(
                "lvis_train/9/region_name/0",
                "lvis_train/9/region_name/1",
                "lvis_train/25/rejection/0",
            ),
            *(f"lvis_train/30/{task}/0" for task in ("detection", "counting", "region_name")),
        ]
    )
    first = built.samples[0]
    assert [(item.box, item.label, item.ignore) for item in first.objects] == [
        ((10.0, 10.0, 30.0, 30.0), "cat", False),
        ((50.0, 10.0, 80.5, 30.0), "dog", False),
        ((0.0, 40.0, 20.0, 60.0), "cat", False),
    ]
    assert (first.image_source, first.image_id, first.image_uri, first.window) == (
        "coco_train2017",
        "9",
        "coco/train2017/000000000009.jpg",
        None,
    )
    absent = {
        sample.image_id: (sample.absent_labels, sample.absent_regime) for sample in built.samples
    }
    # "kitty" is a synonym of "cat", which is there, so it is not asked for although it was verified
    assert absent == {
        "9": (("fish (food)", "car"), "federated"),
        "25": (("mobile phone",), "federated"),
        "30": ((), "federated"),
    }
    assert built.ledger.used == {"box": 4, "category": 7, "image": 3, "record": 5}


def test_names_are_first_synonyms_and_keep_a_parenthesis_where_two_would_be_one(
    write: Write,
) -> None:
    records = _records()
    records["annotations"] += [_box(20 + n, 25, n, [n, n, 20, 20]) for n in range(3, 8)]
    records["images"][1] = _image(25, [], [])
    built = collect(TRAIN.samples(write(records), BuildOptions()))
    labels = next([item.label for item in s.objects] for s in built.samples if s.image_id == "25")
    assert labels == ["fish (food)", "fish", "car", "kitty", "mobile phone"]


@pytest.mark.parametrize("partial", [[1, 2], [1, 2, 2]])
def test_what_is_not_exhaustive_is_named_but_never_asked_for_as_a_whole(
    write: Write, partial: list[int]
) -> None:
    records = _records()
    records["images"] = [_image(9, [3], partial)]
    records["annotations"] = records["annotations"][:3]
    built = collect(TRAIN.samples(write(records), BuildOptions(region_names=9)))
    assert set(built.tasks) == {"region_name"}
    assert sorted(text_of(sample.turns[1]) for sample in built.samples) == ["cat", "cat", "dog"]


def test_validation_points_into_both_folders_and_old_names_are_known(write: Write) -> None:
    old = {"coco_url": None, "file_name": "COCO_val2014_000000000025.jpg"}
    images = [_image(9, [], []), _image(25, [7], [], **old), _image(30, [], [], folder="val2017")]
    built = collect(VAL.samples(write(_records() | {"images": images}, "val"), BuildOptions()))
    assert built.rejects == []
    assert {(s.image_source, s.image_id, s.image_uri) for s in built.samples} == {
        ("coco_train2017", "9", "coco/train2017/000000000009.jpg"),
        ("coco_val2017", "25", "coco/val2017/000000000025.jpg"),
        ("coco_val2017", "30", "coco/val2017/000000000030.jpg"),
    }
    assert (VAL.stages, TRAIN.stages) == ((), (2,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"coco_url": "http://images.cocodataset.org/val2017/000000000009.jpg"}, "benchmark_image"),
        ({"coco_url": "http://images.cocodataset.org/train2017/000000000010.jpg"}, "contradiction"),
        ({"coco_url": "http://x/elsewhere/000000000009.jpg"}, "malformed"),
        ({"coco_url": ""}, "malformed"),
        ({"coco_url": 5}, "malformed"),
        ({"coco_url": None}, "malformed"),
        ({"coco_url": None, "file_name": "../train2017/000000000009.jpg"}, "unsafe_path"),
        ({"neg_category_ids": None}, "malformed"),
        ({"not_exhaustive_category_ids": ["cat"]}, "malformed"),
    ],
)
def test_an_image_that_cannot_be_placed_or_whose_lists_cannot_be_read_is_left_out(
    write: Write, change: dict[str, Any], reason: str
) -> None:
    records = _records()
    records["images"][0] |= change
    built = collect(TRAIN.samples(write(records), BuildOptions()))
    (reject,) = [reject for reject in built.rejects if reject.unit == "image"]
    assert reject.reason == reason
    assert {sample.image_id for sample in built.samples} == {"25", "30"}


def test_an_entry_that_says_nothing_is_one_reject_and_licenses_nothing(write: Write) -> None:
    records = _records()
    records["images"][0] = _image(9, [3, 99, "x", 1, 2, 3, 4], [2, 98, 4])
    built = collect(TRAIN.samples(write(records), BuildOptions()))
    found = [(reject.record_id, reject.reason, reject.unit) for reject in built.rejects]
    assert found == [
        ("image 9/not_exhaustive_category_ids/1", "unknown_category", "record"),
        ("image 9/neg_category_ids/1", "unknown_category", "record"),
        ("image 9/neg_category_ids/2", "malformed", "record"),
        ("image 9/neg_category_ids/3", "contradiction", "record"),  # it has boxes
        (
            "image 9/neg_category_ids/4",
            "contradiction",
            "record",
        ),  # it has boxes, and not all of them
        ("image 9/neg_category_ids/5", "duplicate_id", "record"),
        ("image 9/neg_category_ids/6", "contradiction", "record"),  # it is there, without any box
    ]
    assert built.samples[0].absent_labels == ("fish (food)",)


def test_a_category_with_a_lost_box_is_neither_complete_nor_absent(write: Write) -> None:
    records = _records()
    records["annotations"][0]["bbox"] = [10, 10, 0, 20]
    records["annotations"].append(_box(15, 25, 7, [200, 10, 5, 5]))
    built = collect(TRAIN.samples(write(records), BuildOptions()))
    assert built.reasons == {"empty_box": 1, "outside_box": 1}
    assert {sample.image_id for sample in built.samples if sample.task != "region_name"} == {"30"}


def test_a_crowded_image_is_cut_into_windows_with_the_absences_of_the_image(write: Write) -> None:
    records = _records()
    records["images"] = [_image(9, [3], [], width=400, height=300)]
    records["annotations"] = [
        _box(x, 9, 1 + x % 20 // 10, [x, 10, 20, 20]) for x in (0, 110, 260, 350)
    ]
    options = BuildOptions(max_objects=2, absent_counts=0.0)
    built = collect(TRAIN.samples(write(records), options))
    assert {sample.window for sample in built.samples} == {(0, 0, 220, 300), (180, 0, 400, 300)}
    assert {len(sample.objects) for sample in built.samples} == {2}
    counts = [text_of(sample.turns[1]) for sample in built.samples if sample.task == "counting"]
    assert len(counts) == 4
    assert all(count.endswith("There are 1.") for count in counts)
    assert {sample.absent_labels for sample in built.samples} == {("fish (food)",)}


def test_another_file_is_named_at_once(write: Write) -> None:
    plain = _records()
    for image in plain["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    with pytest.raises(
        SettingError, match=r"lvis_v1_train.json: no image has neg_category_ids"
    ) as error:
        list(TRAIN.samples(write(plain), BuildOptions()))
    assert "coco/train2017/" in str(error.value)
    corners = _records()
    corners["annotations"] = [_box(n, 9, 1, [60, 40, 90 + n % 9, 70]) for n in range(50)]
    with pytest.raises(SettingError, match="boxes are declared xywh"):
        list(TRAIN.samples(write(corners), BuildOptions()))
    with pytest.raises(SettingError, match=r"lvis/lvis_v1_val.json not found"):
        list(VAL.samples(write(_records()), BuildOptions()))


def _federated_world(seed: int) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """Forty images with a hidden truth of which the file tells a part, as LVIS does."""
    rng = random.Random(seed)
    names = [f"thing {letter}" for letter in "abcdefghijklmnop"]
    images, boxes, truth = [], [], {}
    for number in range(1, 41):
        there = set(rng.sample(range(16), 5))
        truth[str(number)] = {names[c] for c in there}
        told = set(
            rng.sample(sorted(there), 3)
        )  # two categories are there, and nobody looked for them
        verified = rng.sample(sorted(set(range(16)) - there), 4)
        images.append(
            _image(number, [c + 1 for c in verified], [c + 1 for c in rng.sample(sorted(told), 1)])
        )
        boxes += [_box(1000 * number + c, number, c + 1, [5 * c, 10, 20, 20]) for c in sorted(told)]
    categories = [{"id": n, "name": name, "synonyms": [name]} for n, name in enumerate(names, 1)]
    return {"images": images, "annotations": boxes, "categories": categories}, truth


def _wrongly_absent(samples: list[Any], truth: dict[str, set[str]]) -> tuple[int, int]:
    """Of how many labels called absent how many are there."""
    absent = {sample.image_id: set(sample.absent_labels) for sample in samples}
    wrong = sum(len(labels & truth[number]) for number, labels in absent.items())
    return sum(map(len, absent.values())), wrong


def test_what_is_called_absent_is_absent_in_the_hidden_truth(write: Write) -> None:
    records, truth = _federated_world(3)
    folders = write(records)
    built = collect(TRAIN.samples(folders, BuildOptions()))
    called, wrong = _wrongly_absent(built.samples, truth)
    assert (called, wrong) == (40 * 4, 0)
    # the control: the same file read as if everything unlabelled were absent, as in COCO
    form = CocoForm(uri_of=partial(lvis.image_of, image_folders=("train2017",)))
    control = detection.build(
        folders,
        BuildOptions(),
        dataset="control",
        file="lvis/lvis_v1_train.json",
        folder="coco",
        source=COCO_TRAIN,
        form=form,
    )
    called, wrong = _wrongly_absent(collect(control).samples, truth)
    assert (called, wrong) == (40 * 13, 40 * 2)


@pytest.mark.skipif(not REAL.exists(), reason="the real sample of LVIS is not on this machine")
def test_the_real_sample_of_lvis(tmp_path: Path) -> None:
    for folder in ("coco/train2017", "coco/val2017", "lvis"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(REAL, tmp_path / "lvis/lvis_v1_val.json")
    built = collect(VAL.samples(DataFolders(str(tmp_path)), BuildOptions(region_names=0)))
    assert built.rejects == []
    # 942 verified absences and 16 categories that are not exhaustive
    assert built.ledger.used == {"image": 100, "box": 977, "category": 1230, "record": 942 + 16}
    raw = json.loads(REAL.read_text())
    official = {category["id"]: category["name"] for category in raw["categories"]}
    assert len(set(official.values())) == 1230
    partial = {image["id"]: image["not_exhaustive_category_ids"] for image in raw["images"]}
    shown = {
        number: {b["category_id"] for b in raw["annotations"] if b["image_id"] == number}
        for number in partial
    }
    assert sum(map(len, partial.values())) == 16
    for sample in built.samples:
        assert sample.image_source == "coco_val2017"
        labels = {item.label for item in sample.objects}
        assert labels.isdisjoint(sample.absent_labels or ())
        assert len(labels) == len(shown[int(sample.image_id)]), "names stay different"
        asked = {part.text for part in sample.turns[1].parts if part.objects}
        assert len(asked) <= len(labels) - len(partial[int(sample.image_id)])
    pure = [sample for sample in built.samples if sample.task == "rejection"]
    # seven images have no box; four of them have no verified absence either
    assert sorted(sample.image_id for sample in pure) == ["222559", "318908", "524742"]
    assert all(text_of(sample.turns[1]) == "None" and sample.objects == () for sample in pure)
