"""Images of benchmarks: every list from its official form, twins, and what goes wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import DATASETS, IMAGE_SOURCES, DataFolders
from dataset_builders.benchmark_leakage import PAPER_LISTS, benchmark_lists, excluded_images
from dataset_builders.errors import SettingError

COCO_LIST = {"images": [{"id": 139}, {"id": 285}], "annotations": [], "categories": []}
REFS = [
    {"image_id": 11, "split": "train"},
    {"image_id": 12, "split": "val"},
    {"image_id": 13, "split": "testA"},
    {"image_id": 14, "split": "test"},
]
C_REC = {
    split: [{"iid": number}] for number, split in enumerate(("train", "val", "testA", "testB"), 20)
}
TALLY = [{"image": "VG_100K_2/2410408.jpg"}, {"image": "val2014/COCO_val2014_000000000042.jpg"}]
CONTENTS: dict[str, tuple[dict[str, Any], set[tuple[str, str]]]] = {
    "coco_val": (
        {"coco/annotations/instances_val2017.json": COCO_LIST},
        {("coco", "139"), ("coco", "285")},
    ),
    "lvis_val": ({"lvis/lvis_v1_val.json": COCO_LIST}, {("coco", "139"), ("coco", "285")}),
    "paco_test": ({"paco/paco_lvis_v1_test.json": COCO_LIST}, {("coco", "139"), ("coco", "285")}),
    "lvis_regions": (
        {"benchmarks/lvis_val_1k_category.json": [{"file_name": "000000000072.jpg"}]},
        {("coco", "72")},
    ),
    "paco_regions": (
        {"benchmarks/paco_val_1k_category.json": [{"file_name": "000000000073.jpg"}]},
        {("coco", "73")},
    ),
    "coco_text": (
        {"benchmarks/COCOText_box.json": [{"image_name": "COCO_train2014_000000000074.jpg"}]},
        {("coco", "74")},
    ),
    **{
        name: ({file: REFS}, {("coco", "12"), ("coco", "13"), ("coco", "14")})
        for name, file in {
            "refcoco": "refcoco/refs(unc).p",
            "refcocop": "refcoco+/refs(unc).p",
            "refcocog": "refcocog/refs(umd).p",
            "grefcoco": "grefcoco/grefs(unc).json",
        }.items()
    },
    "c_refcoco": (
        {f"crec/c_refcoco{suffix}.json": C_REC for suffix in ("", "+", "g")},
        {("coco", "21"), ("coco", "22"), ("coco", "23")},
    ),
    "tallyqa_test": ({"tallyqa/test.json": TALLY}, {("vg", "2410408"), ("coco", "42")}),
    "gqa_testdev": (
        {
            "gqa/testdev_balanced_questions.json": {
                "q1": {"imageId": "n161313"},
                "q2": {"imageId": "2370799"},
            }
        },
        {("vg", "n161313"), ("vg", "2370799")},
    ),
    "vaw_test": (
        {"vaw/data/test.json": [{"image_id": "2320000"}, {"image_id": 2320001}]},
        {("vg", "2320000"), ("vg", "2320001")},
    ),
    "flickr30k_eval": (
        {"flickr30k/val.txt": "1000092795\n10002456\n", "flickr30k/test.txt": "1007129816"},
        {("flickr30k", name) for name in ("1000092795", "10002456", "1007129816")},
    ),
    "finecops_test": (
        {"finecops/finecops_test_coco_format.json": {"images": [{"file_name": "2370800.jpg"}]}},
        {("vg", "2370800")},
    ),
    "drawn_val": (
        {"drawn/annotations/instances_val.json": COCO_LIST},
        {("drawn", "139"), ("drawn", "285")},
    ),
}


def write(root: Path, files: dict[str, Any]) -> DataFolders:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".p"):
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DataFolders(str(root))


def test_every_list_is_tried_here() -> None:
    assert set(CONTENTS) == {item.name for item in PAPER_LISTS}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_list_is_read_from_its_official_files(name: str, tmp_path: Path) -> None:
    files, expected = CONTENTS[name]
    folders = write(tmp_path, files)
    assert benchmark_lists(folders)[name].missing(folders) == ""
    found = excluded_images(folders, [name])
    assert found == dict.fromkeys(expected, name)
    assert {space for space, _ in found} <= set(benchmark_lists(folders)[name].spaces)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_missing_or_foreign_file_is_named(name: str, tmp_path: Path) -> None:
    folders = DataFolders(str(tmp_path))
    with pytest.raises(SettingError, match=f"exclude: {name} needs .*: there is no {tmp_path}"):
        excluded_images(folders, [name])
    if name != "flickr30k_eval":  # any word is an id there
        write(tmp_path, {file: [["something", "else"]] for file in CONTENTS[name][0]})
        try:
            assert excluded_images(folders, [name]) == {}, "nothing may be read out of it"
        except SettingError as error:
            assert any(word in str(error) for word in ("exclude", "JSON", "pickle"))  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("gqa_testdev", "gqa/testdev_balanced_questions.json", "not JSON"),
        ("gqa_testdev", "gqa/testdev_balanced_questions.json", "[" * 100_000),
        ("refcoco", "refcoco/refs(unc).p", [{"split": "val", "image_id": "seven"}]),
        ("refcoco", "refcoco/refs(unc).p", [{"split": "val", "image_id": float("inf")}]),
        ("c_refcoco", "crec/c_refcoco.json", {"val": [{"iid": float("inf")}]}),
        ("tallyqa_test", "tallyqa/test.json", [{"image": "val2014/7.jpg"}]),
    ],
)
def test_whatever_is_wrong_with_a_list_its_file_is_named(
    name: str, file: str, content: Any, tmp_path: Path
) -> None:
    folders = write(tmp_path, {**CONTENTS[name][0], file: content})
    with pytest.raises(SettingError, match=rf"exclude: {name}: .*not of its official form"):
        excluded_images(folders, [name])


def test_twins_of_coco_and_visual_genome_go_both_ways(tmp_path: Path) -> None:
    folders = write(
        tmp_path,
        {
            **CONTENTS["coco_val"][0],
            **CONTENTS["vaw_test"][0],
            "vg/image_data.json": [
                {"image_id": 2000139, "coco_id": 139},
                {"id": 2320000, "coco_id": 555},
                {"image_id": 7, "coco_id": None},
                {"image_id": 8, "coco_id": 999},
            ],
        },
    )
    found = excluded_images(folders, ["coco_val", "vaw_test"])
    assert found["vg", "2000139"] == "coco_val"
    assert found["coco", "555"] == "vaw_test"
    assert ("vg", "8") not in found
    assert ("coco", "999") not in found


def test_the_first_list_that_has_an_image_counts_it(tmp_path: Path) -> None:
    folders = write(tmp_path, {**CONTENTS["coco_val"][0], **CONTENTS["lvis_val"][0]})
    assert set(excluded_images(folders, ["lvis_val", "coco_val"]).values()) == {"lvis_val"}


def test_a_list_of_one_s_own(tmp_path: Path) -> None:
    folders = write(tmp_path, {"benchmarks/mine.txt": "coco 7\n\nobjects365_train 12\n"})
    assert excluded_images(folders, ["mine"]) == {
        ("coco", "7"): "mine",
        ("objects365_train", "12"): "mine",
    }
    write(tmp_path, {"benchmarks/mine.txt": "coco/7\n"})
    with pytest.raises(SettingError, match="line 1 is 'coco/7'; write KEY_SPACE IMAGE_ID"):
        excluded_images(folders, ["mine"])
    with pytest.raises(SettingError, match="unknown benchmark list 'yours'; known: coco_val"):
        excluded_images(folders, ["yours"])


def test_datasets_over_the_same_pictures_share_their_key_space() -> None:
    def spaces(name: str) -> set[str]:
        spec = DATASETS[name]
        return {source.key_space for source in (*spec.images, *spec.optional_images)}

    for name in (
        "coco_train",
        "lvis_train",
        "refcoco",
        "grefcoco",
        "c_refcoco",
        "paco_lvis",
        "osprey",
    ):
        assert spaces(name) == {"coco"}, name
    for name in ("visual_genome", "vaw", "goldg_mixed"):
        assert spaces(name) == {"vg"}, name
    assert {IMAGE_SOURCES[name].key_space for name in ("coco_train2017", "coco_val2017")} == {
        "coco"
    }
