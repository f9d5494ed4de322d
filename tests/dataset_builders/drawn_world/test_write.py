import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.ndimage import label as label_pieces

from dataset_builders.drawn_world.drawing import (
    CATEGORIES,
    COLOURS,
    MAX_COVER,
    MAX_IOU,
    DrawnObject,
    Scene,
    draw_scene,
)
from dataset_builders.drawn_world.write import (
    WorldSettings,
    encode_jpeg,
    expressions,
    write_world,
)
from dataset_builders.errors import SettingError
from dataset_builders.images import decode_image
from dataset_builders.tasks.referring import load_refs

SCENES = [draw_scene((9, seed)) for seed in range(150)]


def pairs(scene: Scene) -> list[tuple[DrawnObject, DrawnObject]]:
    return [(a, b) for i, a in enumerate(scene.objects) for b in scene.objects[:i]]


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def cover(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Share of the smaller box that the other overlaps."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(high, 0) / min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))


def test_a_scene_depends_on_its_seed_alone() -> None:
    again = draw_scene((9, 4))
    assert again.image.tobytes() == SCENES[4].image.tobytes()
    assert again.objects == SCENES[4].objects
    assert encode_jpeg(again) == encode_jpeg(SCENES[4])
    assert draw_scene((9, 5)).image.tobytes() != SCENES[4].image.tobytes()


def test_the_world_is_as_described() -> None:
    sizes = [scene.image.size for scene in SCENES]
    assert set(sizes) == {(128, 128), (160, 128), (128, 160)}
    assert 0.6 < sizes.count((128, 128)) / len(sizes) < 0.9
    shapes = [[item for item in scene.objects if not item.crowd] for scene in SCENES]
    assert {len(items) for items in shapes} == set(range(9))
    assert 0.01 < np.mean([not scene.objects for scene in SCENES]) < 0.15
    assert 0.01 < np.mean([any(item.crowd for item in scene.objects) for scene in SCENES]) < 0.15
    assert {item.label for scene in SCENES for item in scene.objects} == set(CATEGORIES)
    sides = [max(b[2] - b[0], b[3] - b[1]) / 2 / 128 for items in shapes for b, _, _ in items]
    assert min(sides) > 0.04
    assert max(sides) < 0.27


def test_boxes_are_inside_and_keep_apart() -> None:
    for scene in SCENES:
        width, height = scene.image.size
        for box, _, crowd in scene.objects:
            assert 0 <= box[0] < box[2] <= width
            assert 0 <= box[1] < box[3] <= height
            assert crowd or min(box[2] - box[0], box[3] - box[1]) > 2
        assert all(iou(a.box, b.box) <= MAX_IOU for a, b in pairs(scene))
        assert all(iou(a.box, b.box) == 0 for a, b in pairs(scene) if a.crowd or b.crowd)
        assert all(cover(a.box, b.box) <= MAX_COVER for a, b in pairs(scene))


def test_boxes_are_tight_around_the_paint() -> None:
    """A lone shape is found again by its colour: its pixels fill the box, blunt tips aside."""
    checked = 0
    for seed in range(250):
        scene = draw_scene((11, seed))
        if len(scene.objects) != 1 or scene.objects[0].crowd:
            continue
        box, label, _ = scene.objects[0]
        pixels = np.asarray(scene.image).astype(float)
        colour = np.array(COLOURS[label.split()[0]], float)
        unit = (colour - colour.mean()) / np.linalg.norm(colour - colour.mean())
        chroma = pixels - pixels.mean(2, keepdims=True)
        coloured = (chroma @ unit > 45) & (
            np.linalg.norm(chroma, axis=2) < 1.25 * np.abs(chroma @ unit)
        )
        pieces, _ = label_pieces(coloured)
        ys, xs = np.nonzero(
            pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        )  # the largest piece
        found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.subtract(found, box)).max() < 2.2, (seed, label, box, found)
        checked += 1
    assert checked >= 10


def test_expressions_single_one_shape_out() -> None:
    objects = (
        DrawnObject((0, 0, 20, 20), "red circle", False),
        DrawnObject((50, 3, 60, 13), "red circle", False),
        DrawnObject((90, 60, 100, 70), "blue square", False),
        DrawnObject((20, 90, 40, 110), "green square", True),
    )
    found = set(expressions(objects))
    assert {
        (0, "the largest red circle"),
        (1, "the smallest red circle"),
        (0, "the leftmost circle"),
        (1, "the rightmost red shape"),
        (2, "the blue square"),
        (2, "the blue shape"),
    } <= found
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts)
    assert not any("topmost" in text for text in texts)  # 2 px apart only
    assert not any(
        "green" in text or (text.endswith(" square") and "blue" not in text) for text in texts
    )  # a crowd


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert write_world(folder, WorldSettings(train=30, val=12, seed=2))
    return folder


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_settings_same_bytes_and_val_does_not_depend_on_train(
    world: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    write_world(
        tmp_path / "b",
        WorldSettings(train=30, val=12, seed=2),
        progress=lambda d, t: seen.append((d, t)),
    )
    assert digest(tmp_path / "b") == digest(world)
    assert seen == [(i, 42) for i in range(1, 43)]
    write_world(tmp_path / "c", WorldSettings(train=1, val=12, seed=2))
    small = digest(tmp_path / "c")
    assert {k: v for k, v in small.items() if k.startswith("val/")} == {
        k: v for k, v in digest(world).items() if k.startswith("val/")
    }


def test_a_finished_folder_is_left_alone_and_other_settings_are_refused(world: Path) -> None:
    before = digest(world)
    assert not write_world(world, WorldSettings(train=30, val=12, seed=2))
    with pytest.raises(SettingError, match="delete it or name another folder"):
        write_world(world, WorldSettings(train=31, val=12, seed=2))
    assert digest(world) == before


def test_an_interrupted_folder_is_finished(world: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000000001.jpg").write_bytes(b"half")
    assert write_world(tmp_path, WorldSettings(train=30, val=12, seed=2))
    assert digest(tmp_path) == digest(world)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "drawn.json").write_bytes(content)
    with pytest.raises(SettingError, match=r"drawn\.json holds no settings of a drawn world"):
        write_world(tmp_path, WorldSettings(train=1, val=1))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingError, match=r"file: cannot make .*file"):
        write_world(tmp_path / "file", WorldSettings(train=1, val=1))


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SettingError, match="train=-1"):
        WorldSettings(train=-1)
    with pytest.raises(SettingError, match="seed=-1"):
        WorldSettings(seed=-1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_the_annotations(
    world: Path, split: str, capsys: pytest.CaptureFixture
) -> None:
    coco = COCO(str(world / "annotations" / f"instances_{split}.json"))
    assert sorted(category["name"] for category in coco.cats.values()) == sorted(CATEGORIES)
    assert sorted(coco.cats) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
    for image in coco.imgs.values():
        picture = decode_image((world / split / image["file_name"]).read_bytes())
        assert picture.size == (image["width"], image["height"])
    for annotation in coco.anns.values():
        x, y, w, h = annotation["bbox"]
        ys, xs = np.nonzero(coco.annToMask(annotation))
        if annotation["iscrowd"]:
            assert x - 1 <= xs.min()
            assert y - 1 <= ys.min()
            assert xs.max() <= x + w + 1
            assert ys.max() <= y + h + 1
        elif min(x, y) > 0:
            assert (
                np.abs(
                    np.array([xs.min() - x, ys.min() - y, xs.max() - x - w, ys.max() - y - h])
                ).max()
                < 2.1
            )


def test_refs_and_questions_are_true(world: Path) -> None:
    joint = json.loads((world / "refs" / "instances.json").read_text())
    boxes = {a["id"]: a for a in joint["annotations"]}
    names = {c["id"]: c["name"] for c in joint["categories"]}
    refs = load_refs(world / "refs" / "refs(drawn).p")
    assert {ref["split"] for ref in refs} == {"train", "val"}
    for ref in refs:
        annotation = boxes[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (
            ref["image_id"],
            ref["category_id"],
        )
        for sentence in ref["sentences"]:
            *_, last = sentence["raw"].split()
            assert last in {*names[ref["category_id"]].split(), "shape"}
    for split in ("train", "val"):
        for row in json.loads((world / "tally" / f"{split}.json").read_text()):
            labels = [
                names[a["category_id"]]
                for a in joint["annotations"]
                if a["image_id"] == row["image_id"]
            ]
            words = (
                row["question"]
                .removeprefix("How many ")
                .removesuffix("s are there?")
                .replace(" shape", "")
                .split()
            )
            assert row["answer"] == sum(set(words) <= set(label.split()) for label in labels)
            assert (world / row["image"]).exists()
