import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection import paco
from dataset_builders.errors import SettingError
from tests.dataset_builders.conftest import collect, text_of

LVIS, EGO4D = paco.DATASETS
Write = Callable[..., DataFolders]
TYPES = {
    "color": [0, 1, 2, 3],
    "pattern_marking": [4, 5, 6],
    "material": [7, 8],
    "transparency": [9, 10],
}
ATTRIBUTES = (
    "black",
    "light_blue",
    "red",
    "other(color)",
    "plain",
    "striped",
    "logo",
    "wood",
    "other(material)",
    "opaque",
    "transparent",
)
ALL_BACKGROUND = [3, 8]


def _box(
    number: int, image: int, category: int, owner: int, ids: list[int], **more: Any
) -> dict[str, Any]:
    unknown = {f"unknown_{kind}": 0 for kind in TYPES}
    place = {"id": number, "image_id": image, "category_id": category, "bbox": [number, 10, 20, 30]}
    return place | unknown | {"attribute_ids": ids, "dom_color_ids": [], "obj_ann_id": owner} | more


def _records(*, joint: bool = True) -> dict[str, Any]:
    """A mug with its handle and body; an orange of unknown colour beside scissors; a drum without
    attributes."""
    handle, body, blade = (901, 902, 903) if joint else (1, 2, 3)
    pairs = {901: "mug:handle", 902: "mug:inner_body", 903: "scissors:blade"} if joint else {}
    things = {41: "mug", 42: "orange", 43: "scissors", 44: "drum_(musical_instrument)"}
    annotations = [
        _box(1, 9, 41, 1, [0, 1, 2, 5, 7, 10], dom_color_ids=[2]),
        _box(2, 9, handle, 1, [0, 4, 7, 9]),
        _box(3, 9, body, 1, ALL_BACKGROUND),
        _box(4, 25, 42, 4, [2, 6], unknown_color=1),
        _box(5, 25, 43, 5, [0]),
        _box(6, 25, blade, 5, [2, 10]),
        _box(7, 30, 44, 7, [1, 4]),
    ]
    for field in [
        name for name in annotations[-1] if name.startswith(("unknown", "attribute", "dom"))
    ]:
        del annotations[-1][field]
    return {
        "images": [
            {"id": number, "file_name": f"train2017/{number:012d}.jpg", "width": 100, "height": 80}
            for number in (9, 25, 30)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in (things | pairs).items()],
        "part_categories": [
            {"id": number, "name": name}
            for number, name in ((1, "handle"), (2, "inner_body"), (3, "blade"))
        ],
        "attributes": [{"id": number, "name": name} for number, name in enumerate(ATTRIBUTES)],
        "attr_type_to_attr_idxs": TYPES,
    }


EXPECTED = {
    ("9", 0): "a transparent red, black and light blue striped wood mug",
    ("9", 1): "the black wood handle of a mug",
    ("9", 2): "the inner body of a mug",
    ("25", 0): "an orange with a logo",
    ("25", 1): "a black pair of scissors",
    ("25", 2): "the transparent red blade of a pair of scissors",
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(records: Any, name: str = "paco_lvis") -> DataFolders:
        for folder in ("coco/train2017", "paco", "paco_ego4d/images"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"paco/{name}_v1_train.json").write_text(json.dumps(records))
        return DataFolders(str(tmp_path))

    return put


def _captions(built: Any) -> dict[tuple[str, int], str]:
    return {
        (sample.image_id, sample.turns[0].parts[1].objects[0]): text_of(sample.turns[1])
        for sample in built.samples
        if sample.task == "region_caption"
    }


@pytest.mark.parametrize("joint", [True, False])
def test_three_images_by_hand_whatever_the_form_of_part_categories(
    write: Write, joint: bool
) -> None:
    built = collect(LVIS.samples(write(_records(joint=joint)), BuildOptions(region_names=9)))
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 7, "record": 7, "category": 10 if joint else 7}
    assert _captions(built) == EXPECTED
    names = {
        (sample.image_id, *sample.turns[0].parts[1].objects): text_of(sample.turns[1])
        for sample in built.samples
        if sample.task == "region_name"
    }
    assert names == {
        ("9", 0): "mug",
        ("9", 1): "handle of a mug",
        ("9", 2): "inner body of a mug",
        ("25", 0): "orange",
        ("25", 1): "scissors",
        ("25", 2): "blade of a pair of scissors",
        ("30", 0): "drum",
    }
    first = next(sample for sample in built.samples if sample.image_id == "9")
    assert [(item.box, item.label) for item in first.objects] == [
        ((1.0, 10.0, 21.0, 40.0), "mug"),
        ((2.0, 10.0, 22.0, 40.0), "handle of a mug"),
        ((3.0, 10.0, 23.0, 40.0), "inner body of a mug"),
    ]
    asked = {text_of(sample.turns[0]) for sample in built.samples if sample.image_id == "30"}
    assert asked == {"Provide a brief description for [0]."}
    assert (first.image_source, first.image_uri) == (
        "coco_train2017",
        "coco/train2017/000000000009.jpg",
    )
    assert (first.absent_labels, first.absent_regime) == (None, None)


def test_ego4d_frames_have_their_own_source_with_the_ids_of_the_file(write: Write) -> None:
    records = _records(joint=False)
    for image in records["images"]:
        image["file_name"] = f"a-video/frame_{image['id']}.jpeg"
    folders = write(records, "paco_ego4d")
    built = collect(EGO4D.samples(folders, BuildOptions()))
    assert _captions(built) == EXPECTED
    refs = {
        (ref.image_source, ref.image_id, ref.image_uri) for ref in EGO4D.images[0].images(folders)
    }
    assert refs == {(s.image_source, s.image_id, s.image_uri) for s in built.samples}
    assert ("paco_ego4d", "9", "paco_ego4d/images/a-video/frame_9.jpeg") in refs


def test_background_attributes_and_unknown_types_are_never_stated(write: Write) -> None:
    for kind, word in (("color", "black"), ("material", "wood"), ("transparency", "opaque")):
        records = _records()
        for box in records["annotations"][:3]:
            box[f"unknown_{kind}"] = 1
        texts = _captions(collect(LVIS.samples(write(records), BuildOptions()))).values()
        assert not any(word in text for text in texts if "mug" in text)
        assert not any("other" in text for text in texts)


def test_the_cap_an_image(write: Write) -> None:
    built = collect(LVIS.samples(write(_records()), BuildOptions(region_texts=1, region_names=0)))
    assert built.tasks == {"region_caption": 2}  # of the drum nothing is known but its name


@pytest.mark.parametrize(
    ("position", "change", "reason"),
    [
        (1, {"obj_ann_id": 77}, "unknown_object"),
        (1, {"obj_ann_id": 4}, "unknown_object"),  # on another image
        (1, {"obj_ann_id": "1"}, "malformed"),
        (1, {"category_id": 903}, "contradiction"),  # the blade of scissors, on a mug
        (1, {"category_id": 41}, "unknown_category"),  # an object of an object
        (1, {"obj_ann_id": 2}, "contradiction"),  # a part of itself
        (1, {"attribute_ids": [99]}, "malformed"),
        (1, {"attribute_ids": None}, "malformed"),
        (1, {"unknown_color": 2}, "malformed"),
    ],
)
def test_an_annotation_that_contradicts_itself_is_not_described(
    write: Write, position: int, change: dict[str, Any], reason: str
) -> None:
    records = _records()
    records["annotations"][position] |= change
    built = collect(LVIS.samples(write(records), BuildOptions(region_names=9)))
    (reject,) = built.rejects
    assert (reject.reason, reject.unit, reject.record_id) == (reason, "record", "annotation 2")
    assert _captions(built) == {key: text for key, text in EXPECTED.items() if key != ("9", 1)}
    assert built.ledger.used["box"] == 7


def test_a_part_of_an_object_without_box_is_not_described(write: Write) -> None:
    records = _records()
    records["annotations"][0]["bbox"] = [1, 10, -5, 30]
    built = collect(LVIS.samples(write(records), BuildOptions()))
    assert built.reasons == {"inverted_box": 1, "unknown_object": 2}


@pytest.mark.parametrize("missing", ["part_categories", "attributes", "attr_type_to_attr_idxs"])
def test_a_file_without_the_tables_is_refused(write: Write, missing: str) -> None:
    records = _records()
    del records[missing]
    with pytest.raises(SettingError, match=f"paco_lvis_v1_train.json: part_categories.*{missing}"):
        list(LVIS.samples(write(records), BuildOptions()))


def test_an_attribute_without_type_is_refused(write: Write) -> None:
    records = _records()
    records["attributes"].append({"id": 99, "name": "shiny"})
    with pytest.raises(SettingError, match=r"attributes \[99\] have none of the types"):
        list(LVIS.samples(write(records), BuildOptions()))


@pytest.mark.parametrize("number", [float("inf"), "seven", None])
def test_a_table_with_another_kind_of_id_is_refused(write: Write, number: Any) -> None:
    records = _records()
    records["attributes"][0]["id"] = number
    with pytest.raises(SettingError, match="not as PACO documents it: BadRecord: malformed"):
        list(LVIS.samples(write(records), BuildOptions()))


def test_an_image_out_of_the_validation_split_is_left_out(write: Write) -> None:
    records = _records()
    records["images"][0]["file_name"] = "val2017/000000000009.jpg"
    built = collect(LVIS.samples(write(records), BuildOptions()))
    assert built.reasons == {"benchmark_image": 1, "image_rejected": 3}
