import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.instruction import visual_genome
from dataset_builders.errors import SettingError
from tests.dataset_builders.conftest import collect, text_of

(VG,) = visual_genome.DATASETS
Write = Callable[..., DataFolders]


def _image(number: int, folder: str = "VG_100K", **more: Any) -> dict[str, Any]:
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg"
    return {
        "image_id": number,
        "url": url,
        "width": 800,
        "height": 600,
        "coco_id": None,
        "flickr_id": None,
    } | more


def _object(number: int, x: float, y: float, w: float, h: float, *names: str) -> dict[str, Any]:
    return {
        "object_id": number,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "names": list(names),
        "synsets": [],
    }


def _region(
    number: int, phrase: Any, x: float, y: float, width: float, height: float
) -> dict[str, Any]:
    return {
        "region_id": number,
        "image_id": 1,
        "phrase": phrase,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
    }


def _files() -> dict[str, Any]:
    """The clock of the real region 1382; an image of the second folder with short keys; one without
    objects."""
    return {
        "image_data": [_image(1), _image(2, "VG_100K_2"), _image(3)],
        "region_descriptions": [
            {"image_id": 3, "regions": [_region(7, "a road", 0, 0, 800, 600)]},
            {
                "id": 1,
                "regions": [
                    _region(1382, "the clock is green in colour ", 421, 57, 82, 139),
                    _region(1383, "The clock is green  in colour", 420, 57, 82, 139),
                ],
            },
            {
                "id": 2,
                "regions": [{"id": 9, "phrase": "a cat", "x": -10, "y": 5, "w": 30, "h": 40}],
            },
        ],
        "objects": [
            {
                "image_id": 1,
                "objects": [
                    _object(11, 421, 57, 82, 139, "clock", "watch"),
                    _object(12, 5, 6, 7, 8, "man"),
                ],
            },
            {"image_id": 2, "objects": [_object(13, 700, 500, 200, 50, "wall")]},
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(files: dict[str, Any]) -> DataFolders:
        for folder in ("vg/VG_100K", "vg/VG_100K_2"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (tmp_path / f"vg/{name}.json").write_text(json.dumps(content))
        return DataFolders(str(tmp_path))

    return put


def test_three_images_by_hand(write: Write) -> None:
    built = collect(VG.samples(write(_files()), BuildOptions()))
    assert built.rejects == []
    assert built.ledger.used == {"image": 3, "box": 3, "record": 4}
    clock, cat, road = built.samples
    assert clock.sample_id == "visual_genome/1/region_caption/1382"
    assert tuple(map(text_of, clock.turns)) == (
        "Provide a brief description for [2].",
        "the clock is green in colour",
    )
    assert [(item.box, item.label) for item in clock.objects] == [
        ((421.0, 57.0, 503.0, 196.0), "clock"),
        ((5.0, 6.0, 12.0, 14.0), "man"),
        ((421.0, 57.0, 503.0, 196.0), "the clock is green in colour"),
    ]
    assert (clock.image_source, clock.image_id, clock.image_uri) == (
        "visual_genome",
        "1",
        "vg/VG_100K/1.jpg",
    )
    assert (clock.width, clock.height, clock.absent_labels, clock.absent_regime) == (
        800,
        600,
        None,
        None,
    )
    assert tuple(map(text_of, cat.turns)) == ("Provide a brief description for [1].", "a cat")
    assert [(item.box, item.label) for item in cat.objects] == [
        ((700.0, 500.0, 800.0, 550.0), "wall"),
        ((0.0, 5.0, 20.0, 45.0), "a cat"),
    ]
    assert cat.image_uri == "vg/VG_100K_2/2.jpg"
    assert (road.sample_id, text_of(road.turns[1])) == (
        "visual_genome/3/region_caption/7",
        "a road",
    )
    assert {sample.task for sample in built.samples} == {"region_caption"} == set(VG.tasks)


def test_a_cap_an_image_that_depends_on_the_seed_alone(write: Write) -> None:
    files = _files()
    files["region_descriptions"][0]["regions"] = [
        _region(n, f"thing {n}", n, n, 50, 50) for n in range(40)
    ]
    folders = write(files)

    def chosen(seed: int) -> list[str]:
        built = collect(VG.samples(folders, BuildOptions(region_texts=5, seed=seed)))
        return [sample.sample_id for sample in built.samples if sample.image_id == "3"]

    assert len(chosen(0)) == 5
    assert chosen(0) == chosen(0) != chosen(1)
    built = collect(VG.samples(folders, BuildOptions(region_texts=0)))
    assert built.samples == []
    assert built.ledger.used["record"] == 43


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phrase": "  "}, "empty_text"),
        ({"phrase": None}, "malformed"),
        ({"phrase": "a <region1> sign"}, "unsafe_text"),
        ({"phrase": "x" * 5000}, "text_too_long"),
        ({"x": -95, "width": 100}, "outside_box"),  # a twentieth of it is inside
        ({"x": 900}, "outside_box"),
        ({"width": 0}, "empty_box"),
        ({"width": -5}, "inverted_box"),
        ({"y": float("inf")}, "not_finite_box"),
        ({"y": "57"}, "malformed"),
        ({"region_id": 1383}, "duplicate_id"),
        ({"region_id": None}, "malformed"),
    ],
)
def test_a_bad_region_is_one_reject(write: Write, change: dict[str, Any], reason: str) -> None:
    files = _files()
    files["region_descriptions"][1]["regions"][0] |= change
    built = collect(VG.samples(write(files), BuildOptions()))
    (reject,) = built.rejects
    assert (reject.reason, reject.unit) == (reason, "record")
    assert {sample.image_id for sample in built.samples} == {
        "1",
        "2",
        "3",
    }  # the twin of the text is left


@pytest.mark.parametrize(
    "change", [{"names": []}, {"names": "clock"}, {"w": 0}, {"object_id": "a"}]
)
def test_a_bad_object_is_one_reject(write: Write, change: dict[str, Any]) -> None:
    files = _files()
    files["objects"][0]["objects"][0] |= change
    built = collect(VG.samples(write(files), BuildOptions()))
    (reject,) = built.rejects
    assert (reject.unit, reject.record_id) == ("box", "objects/0/objects/0")
    assert [item.label for item in built.samples[0].objects] == [
        "man",
        "the clock is green in colour",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "https://x/VG_100K/4.jpg"}, "contradiction"),
        ({"url": "https://x/etc/1.jpg"}, "malformed"),
        ({"url": ""}, "malformed"),
        ({"url": None}, "malformed"),
        ({"width": 0}, "bad_size"),
        ({"height": "tall"}, "malformed"),
    ],
)
def test_a_bad_image_takes_what_is_on_it_along(
    write: Write, change: dict[str, Any], reason: str
) -> None:
    files = _files()
    files["image_data"][0] |= change
    built = collect(VG.samples(write(files), BuildOptions()))
    assert built.reasons == {reason: 1, "image_rejected": 4}
    assert {sample.image_id for sample in built.samples} == {"2", "3"}


def test_images_twice_and_records_of_no_image(write: Write) -> None:
    files = _files()
    files["image_data"][2] = _image(1)
    files["objects"].append({"image_id": 99, "objects": None})
    built = collect(VG.samples(write(files), BuildOptions()))
    assert built.reasons == {"duplicate_id": 1, "unknown_image": 2}
    files["objects"][2] = "text"
    built = collect(VG.samples(write(files), BuildOptions()))
    assert built.reasons == {"duplicate_id": 1, "unknown_image": 1, "malformed": 1}


def test_other_files_are_refused(write: Write) -> None:
    with pytest.raises(SettingError, match=r"region_descriptions.json holds no records"):
        list(VG.samples(write(_files() | {"region_descriptions": {"images": []}}), BuildOptions()))
    corners = [_region(n, f"thing {n}", 500, 400, 700, 550 + n % 9) for n in range(50)]
    files = _files() | {"region_descriptions": [{"id": 1, "regions": corners}]}
    with pytest.raises(SettingError, match=r"region_descriptions.json: boxes are declared xywh"):
        list(VG.samples(write(files), BuildOptions()))
    with pytest.raises(SettingError, match=r"none of the first 100 records"):
        list(VG.samples(write(_files() | {"image_data": list(range(200))}), BuildOptions()))
