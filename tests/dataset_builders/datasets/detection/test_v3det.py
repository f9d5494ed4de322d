import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.detection.v3det import (
    COUSINS,
    DATASETS,
    FILE,
    FREQUENT,
    MAX_ASKED_PRESENT,
    TOGETHER,
    TREE,
    UNIFORM,
)
from dataset_builders.datasets.detection.v3det import Candidates as V3DetCandidates
from dataset_builders.datasets.detection.v3det_tree import read_tree
from dataset_builders.errors import SettingError
from dataset_builders.records import ImageRef, Object
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.detection import FORMATS

(SPEC,) = DATASETS

# category id, name, node, father's node
PLACES = [
    (1, "margherita_pizza", "n11", "n10"),
    (2, "pizza", "n10", "n01"),
    (3, "food", "n01", "n00"),
    (4, "fruit", "n12", "n01"),
    (5, "apple", "n13", "n12"),
    (6, "pear", "n14", "n12"),
    (7, "organism", "n02", "n00"),
    (8, "bird", "n20", "n02"),
    (9, "crane", "n21", "n20"),  # the bird
    (10, "sea_gull", "n22", "n20"),
    (11, "plant", "n23", "n02"),
    (12, "pitcher", "n24", "n23"),  # the plant
    (13, "artifact", "n03", "n00"),
    (14, "vehicle", "n30", "n03"),
    (15, "crane", "n31", "n30"),  # the machine
    (16, "taxi", "n32", "n30"),
    (17, "jug", "n33", "n03"),
    (18, "entity", "n00", None),
]


def tree_file() -> dict[str, Any]:
    fathers = {node: [father] for _, _, node, father in PLACES if father}
    children: dict[str, list[str]] = {}
    for child, (father,) in fathers.items():
        children.setdefault(father, []).append(child)
    return {
        "categoryid2treeid": {str(number): node for number, _, node, _ in PLACES},
        "id2name": {node: name for _, name, node, _ in PLACES},
        "id2synonym_list": {"n33": ["jug", "pitcher"], "n32": ["taxi", "cab"]},
        "child2father": fathers,
        "father2child": children,
    }


def records() -> dict[str, Any]:
    """One image each of a margherita pizza, of cranes, of a jug and of food."""
    boxes = [
        (1, 1, [10, 10, 40, 30]),
        (2, 15, [5, 5, 20, 20]),
        (2, 9, [50, 5, 60, 20]),
        (3, 17, [0, 0, 9, 9]),
    ]
    boxes.append((4, 3, [20, 20, 10, 10]))
    return {
        "images": [
            {
                "id": number,
                "file_name": f"images/n1/{number}_29405651261_c.jpg",
                "width": 100,
                "height": 80,
            }
            for number in (1, 2, 3, 4)
        ],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
            for image, category, box in boxes
        ],
        "categories": [
            {
                "id": number,
                "name": f"{name} " if number == 10 else name,
                "name_zh": "",
                "novel": True,
            }
            for number, name, _, _ in PLACES
        ],
    }


def build(root: Path, content: Any, tree: Any, **options: Any) -> SimpleNamespace:
    (root / "v3det/annotations").mkdir(parents=True, exist_ok=True)
    (root / "v3det/images").mkdir(exist_ok=True)
    (root / FILE).write_text(json.dumps(content))
    (root / TREE).write_text(json.dumps(tree))
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions(**options)))


def absent_from(built: SimpleNamespace, image_id: str) -> tuple[str, ...] | None:
    (found,) = {s.absent_labels for s in built.samples if s.image_id == image_id}
    assert found is None or {s.absent_regime for s in built.samples if s.image_id == image_id} == {
        "tree"
    }
    return found


def test_golden_samples(tmp_path: Path) -> None:
    built = build(tmp_path, records(), tree_file())
    assert built.rejects == []
    assert built.ledger.used == {"image": 4, "box": 5, "category": 18}
    pizza = [s for s in built.samples if s.image_id == "1"]
    assert pizza[0].objects == (Object(box=(10.0, 10.0, 50.0, 40.0), label="margherita pizza"),)
    assert pizza[0].image_uri == "v3det/images/n1/1_29405651261_c.jpg"
    assert [(s.sample_id, text_of(s.turns[0])[:40], text_of(s.turns[1])) for s in pizza] == [
        ("v3det/1/detection/0", "Please detect margherita pizza in this i", "margherita pizza[0]"),
        (
            "v3det/1/counting/0",
            "How many margherita pizza are there in t",
            "margherita pizza[0]\nThere are 1.",
        ),
        ("v3det/1/region_name/0", "Provide a brief description for [0].", "margherita pizza"),
    ]
    # two categories of one name are one label, counted together
    cranes = {s.task: text_of(s.turns[1]) for s in built.samples if s.image_id == "2"}
    assert cranes == {
        "detection": "crane[0,1]",
        "counting": "crane[0,1]\nThere are 2.",
        "region_name": "crane",
        "visual_prompt": "crane[0,1]",
    }
    cut = next(s for s in built.samples if s.image_id == "2").objects[1]
    assert cut.box == (50.0, 5.0, 100.0, 25.0)


def test_only_other_parts_of_the_tree_are_absent(tmp_path: Path) -> None:
    built = build(tmp_path, records(), tree_file())
    # not pizza, food and entity above it; its siblings would be the other pizzas
    assert absent_from(built, "1") == (
        *("apple", "artifact", "bird", "crane", "fruit", "jug", "organism"),
        *("pear", "pitcher", "plant", "sea gull", "taxi", "vehicle"),
    )
    # both the bird's and the machine's places count
    assert absent_from(built, "2") == (
        *("apple", "food", "fruit", "jug", "margherita pizza", "pear", "pitcher", "pizza", "plant"),
    )
    # all artifacts are siblings or below one; the pitcher, a plant in the tree, is a synonym of
    # the jug
    assert absent_from(built, "3") == (
        *(
            "apple",
            "bird",
            "food",
            "fruit",
            "margherita pizza",
            "organism",
            "pear",
            "pizza",
            "plant",
            "sea gull",
        ),
    )
    # right under the root: its own subtree and its siblings, not what lies below those
    assert absent_from(built, "4") == (
        *("bird", "crane", "jug", "pitcher", "plant", "sea gull", "taxi", "vehicle"),
    )
    for sample in built.samples:
        assert sum(sample.absent_weights or ()) == pytest.approx(1)


def test_near_names_are_likelier(tmp_path: Path) -> None:
    built = build(tmp_path, records(), tree_file())
    sample = next(s for s in built.samples if s.image_id == "1")
    weights = dict(zip(sample.absent_labels or (), sample.absent_weights or (), strict=True))
    assert weights["apple"] > weights["plant"]  # food like the pizza
    assert weights["crane"] > weights["taxi"]  # on an image of the file


def test_what_has_no_place_in_the_tree_is_never_absent(tmp_path: Path) -> None:
    content = records()
    content["categories"] += [{"id": 19, "name": "gizmo"}, {"id": 20, "name": "widget"}]
    content["annotations"].append(
        {"image_id": 1, "category_id": 19, "bbox": [60, 10, 20, 20], "iscrowd": 0}
    )
    built = build(tmp_path, content, tree_file())
    assert absent_from(built, "1") is None
    assert "widget" not in (absent_from(built, "2") or ())
    assert "gizmo" not in (absent_from(built, "2") or ())


def test_the_wrong_release_of_the_tree(tmp_path: Path) -> None:
    tree = tree_file()
    ids = tree["categoryid2treeid"]
    tree["categoryid2treeid"] = dict(
        zip(ids, [*list(ids.values())[5:], *list(ids.values())[:5]], strict=True)
    )
    with pytest.raises(SettingError, match="only 1 of 18 categories stand in it under their names"):
        build(tmp_path, records(), tree)
    with pytest.raises(SettingError, match="want an object with the mappings"):
        build(tmp_path, records(), {"id2name": {}})
    (tmp_path / TREE).write_text("{")
    with pytest.raises(SettingError, match="not valid JSON"):
        list(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))
    (tmp_path / TREE).write_text("[" * 100_000)  # too deep for the parser
    with pytest.raises(SettingError, match="not valid JSON"):
        list(SPEC.samples(DataFolders(str(tmp_path)), BuildOptions()))


def test_names_that_differ_only_in_parentheses_stay_apart(tmp_path: Path) -> None:
    content, tree = records(), tree_file()
    for number, node, name in (
        (8, "n21", "crane (bird)"),
        (14, "n31", "crane (machine)"),
        (16, "n33", "jug (cup)"),
    ):
        content["categories"][number]["name"] = name
        tree["id2name"][node] = name
    built = build(tmp_path, content, tree)
    labels = {item.label for s in built.samples for item in s.objects}
    assert labels == {"margherita pizza", "crane (machine)", "crane (bird)", "jug", "food"}


def test_a_node_with_two_fathers(tmp_path: Path) -> None:
    tree = tree_file()
    tree["child2father"]["n13"] = ["n12", "n23"]  # an apple is a plant too
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(tree))
    names = {number: name for number, name, _, _ in PLACES}
    found = read_tree(path, names, names)
    assert found.related("apple") == {
        "apple",
        "pear",
        "fruit",
        "food",
        "plant",
        "pitcher",
        "organism",
        "entity",
    }
    assert found.cousins("apple") == ("bird", "crane", "margherita_pizza", "pizza", "sea_gull")


def test_a_cycle_in_the_tree_ends(tmp_path: Path) -> None:
    tree = tree_file()
    tree["child2father"]["n00"] = ["n13"]  # entity below apple
    built = build(tmp_path, records(), tree)
    absent = set(absent_from(built, "1") or ())
    assert {"artifact", "plant"} <= absent
    assert not {"food", "fruit", "apple", "entity"} & absent, "all of them are above the pizza now"


@pytest.mark.parametrize(
    ("kind", "row", "change", "reason"),
    [
        ("images", 0, {"file_name": "n1/1.jpg"}, "malformed"),
        ("images", 0, {"file_name": "images/../1.jpg"}, "unsafe_path"),
        ("images", 0, {"file_name": None}, "malformed"),
        ("annotations", 0, {"bbox": [10, 10, 0.5, 30]}, "empty_box"),
        ("annotations", 0, {"category_id": 99}, "unknown_category"),
        ("categories", 3, {"name": 7}, "malformed"),
        ("categories", 3, {"name": "<objects>"}, "unsafe_text"),
    ],
)
def test_bad_records(
    tmp_path: Path, kind: str, row: int, change: dict[str, Any], reason: str
) -> None:
    content = records()
    content[kind][row] |= change
    built = build(tmp_path, content, tree_file())
    assert built.reasons[reason] == 1
    assert {s.image_id for s in built.samples} >= {"2", "3", "4"}


def test_an_image_looks_at_few_of_many_names(tmp_path: Path) -> None:
    names = {number: f"thing {number:x}q" for number in range(5000)}
    nodes = {number: f"n{number}" for number in names}
    fathers = {f"n{number}": [f"n{number // 7}"] for number in names if number}
    tree = {
        "categoryid2treeid": {str(number): node for number, node in nodes.items()},
        "id2name": {nodes[number]: name for number, name in names.items()},
        "id2synonym_list": {},
        "child2father": fathers,
    }
    content = records()
    content["categories"] = [{"id": number, "name": name} for number, name in names.items()]
    sizes: list[int] = []

    def counted(self: V3DetCandidates, present: set[str], rng: Any) -> list[str]:
        found = original(self, present, rng)
        sizes.append(len(found))
        return found

    original = V3DetCandidates.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(V3DetCandidates, "of", counted)
        built = build(tmp_path, content, tree)
    assert len(sizes) == 4
    assert 100 < max(sizes) <= FREQUENT + UNIFORM + MAX_ASKED_PRESENT * (TOGETHER + COUSINS)
    assert all(len(s.absent_labels or ()) <= 128 for s in built.samples)


def test_crowded_images_are_cut_into_windows(tmp_path: Path) -> None:
    content = records()
    content["images"][0] |= {"width": 640, "height": 480}
    content["annotations"] = [
        {
            "image_id": 1,
            "category_id": 5,
            "bbox": [30 * (i % 20), 60 * (i // 20), 20, 20],
            "iscrowd": 0,
        }
        for i in range(120)
    ]
    built = build(tmp_path, content, tree_file())
    assert {s.window for s in built.samples if s.image_id == "1"} == {
        (0, 0, 352, 480),
        (288, 0, 640, 480),
    }
    assert all(len(s.objects) <= 100 for s in built.samples)


def test_generated_files_build(tmp_path: Path) -> None:
    (form,) = [form for form in FORMATS if form.datasets == ("v3det",)]
    form.write(tmp_path, 0)
    folders = DataFolders(str(tmp_path))
    built = collect(SPEC.samples(folders, BuildOptions()))
    assert {"detection", "counting", "region_name"} <= set(built.tasks) <= set(SPEC.tasks)
    assert all(built.ledger.used[unit] > 0.8 * read for unit, read in built.ledger.read.items())
    assert built.samples == collect(SPEC.samples(folders, BuildOptions())).samples
    listed = {i.image_id for i in SPEC.images[0].images(folders) if isinstance(i, ImageRef)}
    assert {sample.image_id for sample in built.samples} <= listed
