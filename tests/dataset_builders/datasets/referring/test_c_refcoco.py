import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import c_refcoco
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import collect, text_of

SPECS = {spec.name: spec for spec in c_refcoco.DATASETS}
Write = Callable[..., DataFolders]


def row(iid: Any, query: Any, bbox: Any, cf_id: Any = 0, **more: Any) -> dict[str, Any]:
    return {
        "iid": iid,
        "bbox": bbox,
        "refs": ["red bus"],
        "query": query,
        "neg": "green bus",
        "cf_id": cf_id,
        "atts": ["red"],
        "att_pos": 0,
        "att_id": 1,
    } | more


def rows() -> list[dict[str, Any]]:
    return [
        row(330, "red bus", [10, 20, 30, 40]),
        row(330, ["green", "bus"], [0, 0, 0, 0], 1),
        row(331, ["the", "left", "man"], [0.5, 1, 20, 30], refs="the left man"),
        row(330, "bus on the  right", [100, 20, 50, 40.5]),
        row(332, "blue bus", [0, 0, 0, 0], 1),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(records: Any, file: str = "c_refcoco.json") -> DataFolders:
        images = tmp_path / "coco/train2017"
        images.mkdir(parents=True, exist_ok=True)
        for number, size in ((330, (200, 100)), (331, (64, 48)), (332, (50, 50))):
            Image.new("RGB", size).save(images / f"{number:012d}.jpg")
        (tmp_path / "crec").mkdir(exist_ok=True)
        made = (
            records
            if isinstance(records, str)
            else json.dumps({"val": [{"iid": 9}], "train": records})
        )
        (tmp_path / "crec" / file).write_text(made)
        return DataFolders(str(tmp_path))

    return write


def build(
    folders: DataFolders, name: str = "c_refcoco", options: BuildOptions | None = None
) -> Any:
    return collect(SPECS[name].samples(folders, options or BuildOptions()))


def test_the_datasets_of_this_module() -> None:
    assert {name: (spec.files, spec.stages) for name, spec in SPECS.items()} == {
        "c_refcoco": (("crec/c_refcoco.json",), (2,)),
        "c_refcocop": (("crec/c_refcoco+.json",), (2,)),
        "c_refcocog": (("crec/c_refcocog.json",), (2,)),
    }


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("c_refcoco", "c_refcoco.json"),
        ("c_refcocop", "c_refcoco+.json"),
        ("c_refcocog", "c_refcocog.json"),
    ],
)
def test_golden_samples(write: Write, name: str, file: str) -> None:
    built = build(write(rows(), file), name)
    assert built.rejects == []
    assert built.ledger.used == {"record": 5}
    assert built.tasks == {"referring": 3, "region_caption": 3, "rejection": 2}
    samples = {sample.sample_id.partition("/")[2]: sample for sample in built.samples}
    red = samples["330/referring/train-0"]
    assert red.objects == (
        Object(box=(10.0, 20.0, 40.0, 60.0), label="object"),
        Object(box=(100.0, 20.0, 150.0, 60.5), label="object"),
    )
    assert red.image_uri == "coco/train2017/000000000330.jpg"
    assert (red.image_source, red.width, red.height) == ("coco_train2017", 200, 100)
    assert text_of(red.turns[1]) == "red bus[0]"
    assert text_of(samples["330/referring/train-3"].turns[1]) == "bus on the right[1]"
    green = samples["330/rejection/train-1"]
    assert text_of(green.turns[0]) == (
        "Please detect green bus in this image. Answer the question with object indexes."
    )
    assert text_of(green.turns[1]) == "None"
    assert (green.absent_labels, green.absent_regime) == (("green bus",), "constructed")
    assert green.objects == red.objects
    man = samples["331/region_caption/train-2"]
    assert man.objects == (Object(box=(0.5, 1.0, 20.5, 31.0), label="object"),)
    assert text_of(man.turns[0]) == "Provide a brief description for [0]."
    assert text_of(man.turns[1]) == "the left man"
    assert samples["332/rejection/train-4"].objects == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [10, 20, 30, 40]}, "contradiction"),
        ({"query": "Red  bus"}, "contradiction"),  # of its own refs
        ({"query": ["red", "bus"], "refs": "red bus"}, "contradiction"),
        ({"query": "bus on the right"}, "contradiction"),  # said of another object
        ({"cf_id": 2}, "malformed"),
        ({"cf_id": None}, "malformed"),
        ({"cf_id": 0}, "outside_box"),  # zeros are no box of what is there
        ({"query": []}, "malformed"),
        ({"query": ["green", 4]}, "malformed"),
        ({"query": "the <ground>"}, "unsafe_text"),
        ({"query": " "}, "empty_text"),
        ({"query": "x" * 2000}, "text_too_long"),
        ({"bbox": [0, 0, 0]}, "malformed"),
        ({"bbox": "0,0,0,0"}, "malformed"),
        ({"cf_id": 0, "bbox": [300, 0, 5, 5]}, "outside_box"),
        ({"cf_id": 0, "bbox": [20, 20, -5, 5]}, "inverted_box"),
        ({"cf_id": 0, "bbox": [float("nan"), 20, 5, 5]}, "not_finite_box"),
        ({"iid": 333}, "missing_image"),
        ({"iid": "../330"}, "malformed"),
        ({"iid": -1}, "unknown_image"),
        ({"iid": 10**13}, "unknown_image"),
    ],
)
def test_bad_rows_are_rejected_with_their_reason(write: Write, change: dict, reason: str) -> None:
    records = rows()
    records[1] |= change
    built = build(write(records))
    assert built.reasons == {reason: 1}
    assert built.tasks["rejection"] == 1
    assert built.ledger.read == {"record": 5}


def test_a_changed_expression_that_is_its_own_true_one_is_rejected(write: Write) -> None:
    for refs in (["a bus", "Blue bus"], "blue  bus"):
        records = rows()
        records[4] |= {"refs": refs}
        assert build(write(records)).reasons == {"contradiction": 1}


def test_a_broken_image_rejects_its_rows(write: Write, tmp_path: Path) -> None:
    folders = write(rows())
    (tmp_path / "coco/train2017/000000000330.jpg").write_bytes(b"no picture")
    built = build(folders)
    assert built.reasons == {"undecodable_image": 3}
    assert {sample.image_id for sample in built.samples} == {"331", "332"}


def test_an_image_on_its_side_is_measured_as_it_is_shown(write: Write, tmp_path: Path) -> None:
    folders = write(rows())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(
        tmp_path / "coco/train2017/000000000331.jpg", exif=exif.tobytes()
    )
    sizes = {(s.image_id, s.width, s.height) for s in build(folders).samples}
    assert ("331", 64, 48) in sizes


def test_wrong_files_are_named(write: Write) -> None:
    with pytest.raises(
        SettingError, match=r"(?s)crec/c_refcocog\.json not found.*split -> records"
    ):
        build(write(rows()), "c_refcocog")
    for made in ("{}", "[]", '{"test": []}', '{"train": {}}'):
        with pytest.raises(
            SettingError, match=r"c_refcoco\.json holds no records of split 'train'"
        ):
            build(write(made))
    with pytest.raises(SettingError, match=r"c_refcoco\.json is not valid JSON"):
        build(write('{"train": [{"iid": 3'))
    with pytest.raises(SettingError, match=r"none of the first 100 records.*no field 'iid'"):
        build(write([{"image_id": 3}] * 150))
    corners = [row(330, f"bus {i}", [60 + i, 40, 130 + i, 90]) for i in range(60)]
    with pytest.raises(SettingError, match=r"c_refcoco\.json: boxes are declared xywh"):
        build(write(corners))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_rows_are_used_or_rejected(data: Any, write: Write) -> None:
    records: list[Any] = rows()
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-3, 10**20)
        | st.floats()
        | st.text(max_size=9)
        | st.lists(st.integers(-5, 300) | st.text(max_size=3), max_size=4)
    )
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, 4))
        if isinstance(records[index], dict) and data.draw(st.integers(0, 4)):
            records[index][data.draw(st.sampled_from(sorted(records[index])))] = data.draw(junk)
        else:
            records[index] = data.draw(junk)
    for sample in build(write(records)).samples:
        validate(sample)
