import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction.sharegpt4v import DATASETS, FILE
from dataset_builders.errors import SettingError
from dataset_builders.records import Object, Part
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

PLAIN, FULL_BOX, GROUNDED = DATASETS
FIVE, SIX = ("coco/train2017/000000000005.jpg", "coco/train2017/000000000006.jpg")
BRIEF = (
    "Briefly describe this image and detect all mentioned objects. "
    "Answer with grounded object indexes."
)
NAMES = {1: "person", 18: "dog", 58: "hot dog", 67: "dining table", 17: "cat", 90: "dog bed"}


def record(image: Any, *values: Any) -> dict[str, Any]:
    told = [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]
    return {"id": "0", "image": image, "conversations": told}


def put(root: Path, *records: Any, boxes: Any = ()) -> DataFolders:
    for name in (FIVE, SIX, "sam/images/sa_1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(root / name)
    (root / "sharegpt4v").mkdir(exist_ok=True)
    (root / FILE).write_text(json.dumps(records))
    instances = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": 100, "height": 80}
            for number in (5, 6)
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
            for n, (image, category, box, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
    }
    (root / "coco/annotations").mkdir(exist_ok=True)
    (root / "coco/annotations/instances_train2017.json").write_text(json.dumps(instances))
    return DataFolders(str(root))


def built(
    spec: Any, root: Path, *records: Any, boxes: Any = (), options: BuildOptions | None = None
) -> Any:
    return collect(spec.samples(put(root, *records, boxes=boxes), options or BuildOptions()))


def said(sample: Any) -> list[str]:
    return [text_of(turn) for turn in sample.turns]


CAPTIONS = [
    record(FIVE, "<image>\nWhat do you see?", "A dog.\n\nIt sits."),
    record("sam/images/sa_1.jpg", "Describe it.\n<image>", "A tree."),
    record(SIX, "<image>\nDescribe it.", "Nothing much."),
]


def test_captions_as_they_are(tmp_path: Path) -> None:
    found = built(PLAIN, tmp_path, *CAPTIONS)
    assert found.rejects == []
    assert found.ledger.used == {"record": 3}
    assert [(s.sample_id, s.task, s.image_source, s.image_id) for s in found.samples] == [
        ("sharegpt4v/5/caption/0", "caption", "coco_train2017", "5"),
        ("sharegpt4v/sa_1/caption/1", "caption", "sam", "sa_1"),
        ("sharegpt4v/6/caption/2", "caption", "coco_train2017", "6"),
    ]
    assert [said(sample) for sample in found.samples] == [
        ["What do you see?", "A dog.\n\nIt sits."],
        ["Describe it.", "A tree."],
        ["Describe it.", "Nothing much."],
    ]
    assert found.samples[0].image_uri == FIVE
    assert (found.samples[0].width, found.samples[0].height) == (100, 80)
    assert found.samples[0].objects == ()


def test_the_whole_image_as_a_region(tmp_path: Path) -> None:
    found = built(FULL_BOX, tmp_path, *CAPTIONS)
    assert [sample.sample_id for sample in found.samples] == [
        "sharegpt4v_full_box/5/region_caption/0",
        "sharegpt4v_full_box/sa_1/region_caption/1",
        "sharegpt4v_full_box/6/region_caption/2",
    ]
    assert [said(sample)[1] for sample in found.samples] == [
        "A dog.\n\nIt sits.",
        "A tree.",
        "Nothing much.",
    ]
    for sample in found.samples:
        assert said(sample)[0] == "Provide a detailed description for [0]."
        assert sample.objects == (Object(box=(0.0, 0.0, 100.0, 80.0), label="image"),)


BOXES = [
    (5, 18, [10, 10, 20, 20], 0),
    (5, 1, [0, 0, 30, 30], 0),
    (5, 1, [40, 0, 30, 30], 0),
    (5, 67, [0, 40, 90, 30], 0),
    (5, 17, [50, 50, 20, 20], 0),
    (6, 18, [10, 10, 20, 20], 0),
    (6, 18, [10, 10, 60, 60], 1),
    (6, 17, [50, 50, 20, 20], 0),
    (6, 17, [200, 50, 20, 20], 0),
]


def test_unique_categories_are_grounded(tmp_path: Path) -> None:
    text = (
        "A hot dog near a dog bed, a person, cat-like. Dogs? The Dog is on the dining table. Dog!"
    )
    found = built(
        GROUNDED, tmp_path, record(FIVE, "<image>\nDescribe it.", text), CAPTIONS[1], boxes=BOXES
    )
    # the record about another collection is not of this dataset
    assert found.ledger.used == {"image": 2, "box": 8, "category": 6, "record": 1}
    (sample,) = found.samples
    assert (sample.sample_id, sample.task) == ("sharegpt4v_grounded/5/grounding/0", "grounding")
    # two persons, so neither; no hot dog or dog bed, and those are no dogs; "cat-like" is no cat;
    # only the first "dog"
    assert said(sample) == [
        BRIEF,
        (
            "A hot dog near a dog bed, a person, cat-like. Dogs? "
            "The Dog[0] is on the dining table[3]. Dog!"
        ),
    ]
    assert [item.label for item in sample.objects] == [
        "dog",
        "person",
        "person",
        "dining table",
        "cat",
    ]
    assert sample.turns[1].parts[1] == Part("Dog", (0,))


def test_doubtful_categories_stay_text(tmp_path: Path) -> None:
    # of the dogs one is a crowd, of the cats one box was rejected: how many there are is not known
    found = built(
        GROUNDED, tmp_path, record(SIX, "<image>\nDescribe it.", "A dog and a cat."), boxes=BOXES
    )
    assert [(r.unit, r.reason) for r in found.rejects] == [("box", "outside_box")]
    (sample,) = found.samples
    assert sample.task == "caption"
    assert said(sample) == ["Describe it.", "A dog and a cat."]


def test_names_side_by_side_and_at_the_ends(tmp_path: Path) -> None:
    texts = ("Dog cat", "dog", "the dog\ncat, dining table")
    found = built(
        GROUNDED, tmp_path, *[record(FIVE, "<image>\n?", text) for text in texts], boxes=BOXES
    )
    assert [said(sample)[1] for sample in found.samples] == [
        "Dog[0] cat",
        "dog[0]",
        "the dog[0]\ncat, dining table[3]",
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "malformed"),
        ({"id": "0"}, "malformed"),
        (record(None, "a", "b"), "malformed"),
        (record(7, "a", "b"), "malformed"),
        (record([FIVE, SIX], "a", "b"), "several_images"),
        (record(FIVE, "<image>\n<image>a", "b"), "several_images"),
        (record(FIVE, "a", 3), "malformed"),
        (record(FIVE, "a"), "malformed"),
        (record(FIVE, "<image>", "b"), "empty_text"),
        (record(FIVE, "a", "see <region1>"), "unsafe_text"),
        (record(FIVE, "a", "b\u202e"), "unsafe_text"),
        (record(FIVE, "a", "x" * 20_001), "text_too_long"),
    ],
)
@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_bad_records(tmp_path: Path, spec: Any, bad: Any, reason: str) -> None:
    found = built(spec, tmp_path, bad, CAPTIONS[0])
    assert [(r.unit, r.reason, r.record_id.partition("/")[2]) for r in found.rejects] == [
        ("record", reason, "0")
    ]
    assert len(found.samples) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../x.jpg", "unsafe_path"),
        ("/etc/passwd", "unsafe_path"),
        ("moon/1.jpg", "unknown_image"),
        ("wikiart/images/1.jpg", "missing_image"),
        ("coco/train2017/000000000007.jpg", "missing_image"),
        ("coco/train2017/cat.jpg", "malformed"),
    ],
)
def test_bad_paths(tmp_path: Path, path: str, reason: str) -> None:
    put(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "coco/train2017/cat.jpg")
    found = built(PLAIN, tmp_path, record(path, "a", "b"), CAPTIONS[0])
    assert found.reasons == {reason: 1}


def test_grounding_needs_the_image_in_coco(tmp_path: Path) -> None:
    found = built(
        GROUNDED, tmp_path, record("coco/train2017/000000000007.jpg", "a", "b"), CAPTIONS[0]
    )
    assert found.reasons == {"unknown_image": 1}


def test_more_than_a_caption(tmp_path: Path) -> None:
    talk = record(FIVE, "<image>\na", "b", "c", "d")
    assert said(built(PLAIN, tmp_path, talk).samples[0]) == ["a", "b", "c", "d"]
    for spec in (FULL_BOX, GROUNDED):
        assert built(spec, tmp_path, talk, CAPTIONS[0]).reasons == {"unsupported": 1}


@pytest.mark.parametrize("spec", DATASETS, ids=lambda spec: spec.name)
def test_a_file_of_another_form(tmp_path: Path, spec: Any) -> None:
    for records, message in (
        ((), "holds no array"),
        (({"a": 1},), "none of its 1 records could be used"),
    ):
        with pytest.raises(SettingError, match=rf"cap100k\.json.*{message}"):
            built(spec, tmp_path, *records)
    (tmp_path / FILE).unlink()
    with pytest.raises(SettingError, match=r"cap100k\.json not found"):
        list(spec.samples(DataFolders(str(tmp_path)), BuildOptions()))


def test_paraphrases(tmp_path: Path) -> None:
    options = BuildOptions(paraphrases=True)
    found = built(FULL_BOX, tmp_path, *[CAPTIONS[0]] * 20, options=options)
    assert len({said(sample)[0] for sample in found.samples}) > 2
