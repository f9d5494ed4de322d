"""The drawn world on disk, in the official formats: COCO detection, REFER expressions, TallyQA.

`write_world` writes below its folder

    train/000000000001.jpg ...                images (JPEG, fixed quality)
    val/000001000001.jpg ...                  ids of both splits are unique together, as in COCO
    annotations/instances_{train,val}.json    COCO form, crowd regions with uncompressed run lengths
    refs/instances.json, refs/refs(drawn).p   REFER form: expressions that single out one shape
    tally/{train,val}.json                    TallyQA form: counting questions, some answered by 0
    drawn.json                                the settings, written last: present means complete

The same settings give the same bytes. A folder that holds the same settings already is left alone.
"""

import io
import json
import pickle  # written, never read: REFER's format is a pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builders.drawn_world.drawing import (
    CATEGORIES,
    COLOURS,
    SHAPES,
    DrawnObject,
    Scene,
    draw_scene,
)
from dataset_builders.errors import SettingError

__all__ = [
    "CATEGORIES",
    "DrawnObject",
    "Scene",
    "WorldSettings",
    "draw_scene",
    "encode_jpeg",
    "expressions",
    "write_world",
]

FORMAT_VERSION = 1
"""Raised when the same settings give other files."""
JPEG_QUALITY = 92
FIRST_ID = {"train": 1, "val": 1_000_001}
"""First image id of a split. They lie apart, so that the size of one split does not rename the
other's images."""
SPLITS = tuple(FIRST_ID)
CATEGORY_IDS = {name: i + 1 + (i > 5) for i, name in enumerate(CATEGORIES)}
"""Name -> COCO id, with a gap as COCO's have: a reader that takes ids for positions goes wrong
here, not later."""
NOUNS = (*CATEGORIES, *SHAPES, *(f"{colour} shape" for colour in COLOURS))
"""What expressions and questions name: "red circle", "circle", "red shape"."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """What decides every byte of a drawn world."""

    train: int = 1200
    """Number of training scenes."""
    val: int = 200
    """Number of validation scenes."""
    seed: int = 0
    """Seed of all scenes; a scene's own seed is (seed, image id)."""

    def __post_init__(self) -> None:
        for name in SPLITS:
            if not 0 <= getattr(self, name) < 1_000_000:
                raise SettingError(f"{name}={getattr(self, name)}: want 0 to 999999 scenes")
        if self.seed < 0:
            raise SettingError(f"seed={self.seed}: want a number that is not negative")


def encode_jpeg(scene: Scene) -> bytes:
    """Return the image of a scene as JPEG bytes."""
    buffer = io.BytesIO()
    scene.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_world(
    folder: str | Path,
    settings: WorldSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write the drawn world below a folder; return False when it is there already.

    Args:
        folder: The folder; made where it is not there.
        settings: What the world is made of.
        progress: Called with the number of scenes written and of scenes to write.

    Raises:
        SettingError: The folder holds a world of other settings, or cannot be written to.
    """
    folder = Path(folder)
    manifest = folder / "drawn.json"
    wanted = {"format_version": FORMAT_VERSION, **asdict(settings)}
    if manifest.exists():
        found = _settings_there(manifest)
        if found == wanted:
            return False
        raise SettingError(
            f"{folder} holds a drawn world of {found}, not {wanted}: "
            "delete it or name another folder"
        )
    try:
        for name in (*SPLITS, "annotations", "refs", "tally"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder}: cannot make {error.filename}: {error.strerror}") from error
    refs: list[dict[str, Any]] = []
    joint = _coco_header()  # of both splits: REFER has one file of instances beside its refs
    for split in SPLITS:
        coco, tally = _coco_header(), []
        for image_id, scene in _scenes(settings, split):
            (folder / split / _file_name(image_id)).write_bytes(encode_jpeg(scene))
            _append_coco(coco, image_id, scene)
            refs += _refer_rows(image_id, split, scene, first_id=len(refs))
            tally += _tally_rows(settings, image_id, split, scene)
            if progress is not None:
                done = image_id - FIRST_ID[split] + 1 + (settings.train if split == "val" else 0)
                progress(done, settings.train + settings.val)
        _write_json(folder / "annotations" / f"instances_{split}.json", coco)
        _write_json(folder / "tally" / f"{split}.json", tally)
        joint["images"] += coco["images"]
        joint["annotations"] += coco["annotations"]
    _write_json(folder / "refs" / "instances.json", joint)
    (folder / "refs" / "refs(drawn).p").write_bytes(pickle.dumps(refs, protocol=2))
    _write_json(manifest, wanted)
    return True


def _settings_there(manifest: Path) -> Any:
    """Return the settings of a world that is there already."""
    try:
        return json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(
            f"{manifest} holds no settings of a drawn world: delete it or name another folder"
        ) from error


def expressions(objects: tuple[DrawnObject, ...]) -> Iterator[tuple[int, str]]:
    """Yield (row of objects, expression) for what holds for that object alone, by a clear margin.

    Labels with a crowd region are left out: what the region holds is not known one by one.
    """
    crowded = {item.label for item in objects if item.crowd}
    rows = [i for i, item in enumerate(objects) if item.label not in crowded]
    boxes = np.array([objects[i].box for i in rows]).reshape(-1, 4)
    centres, areas = (boxes[:, :2] + boxes[:, 2:]) / 2, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for noun in NOUNS:
        if any(_is_a(label, noun) for label in crowded):
            continue
        group = np.array(
            [k for k, i in enumerate(rows) if _is_a(objects[i].label, noun)], dtype=int
        )
        if len(group) == 1:
            yield rows[group[0]], f"the {noun}"
        if len(group) < 2:
            continue
        for word, values, margin in (
            ("leftmost", -centres[group, 0], 6.0),
            ("rightmost", centres[group, 0], 6.0),
            ("topmost", -centres[group, 1], 6.0),
            ("bottommost", centres[group, 1], 6.0),
            ("largest", np.log(areas[group]), 0.3),
            ("smallest", -np.log(areas[group]), 0.3),
        ):
            second, first = np.argsort(values, kind="stable")[-2:]
            if values[first] - values[second] >= margin:
                yield rows[group[first]], f"the {word} {noun}"


def _is_a(label: str, noun: str) -> bool:
    """Return whether a noun names objects of a label."""
    colour, shape = label.split()
    return noun in {label, shape, f"{colour} shape"}


def _scenes(settings: WorldSettings, split: str) -> Iterator[tuple[int, Scene]]:
    """Yield (image id, scene) for every scene of a split."""
    for image_id in range(FIRST_ID[split], FIRST_ID[split] + getattr(settings, split)):
        yield image_id, draw_scene((settings.seed, image_id))


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def _coco_header() -> dict[str, Any]:
    """Return a COCO file without images and annotations."""
    return {
        "info": {"description": "drawn world", "version": str(FORMAT_VERSION)},
        "licenses": [
            {"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
        ],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": name.split()[1]}
            for name, number in CATEGORY_IDS.items()
        ],
    }


def _append_coco(coco: dict[str, Any], image_id: int, scene: Scene) -> None:
    """Add a scene to the content of a COCO file."""
    width, height = scene.image.size
    coco["images"].append(
        {
            "id": image_id,
            "file_name": _file_name(image_id),
            "width": width,
            "height": height,
            "license": 1,
        }
    )
    for row, (item, segmentation) in enumerate(
        zip(scene.objects, scene.segmentations, strict=True)
    ):
        x1, y1, x2, y2 = item.box
        coco["annotations"].append(
            {
                "id": annotation_id(image_id, row),
                "image_id": image_id,
                "category_id": CATEGORY_IDS[item.label],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": int(item.crowd),
                "segmentation": segmentation,
            }
        )


def annotation_id(image_id: int, row: int) -> int:
    """Return the annotation id of the row-th object of an image."""
    return image_id * 100 + row


def _refer_rows(image_id: int, split: str, scene: Scene, *, first_id: int) -> list[dict[str, Any]]:
    """Return refs of up to two objects that can be singled out, with up to two expressions each."""
    sentences: dict[int, list[str]] = {}
    for row, text in expressions(scene.objects):
        sentences.setdefault(row, []).append(text)
    refs: list[dict[str, Any]] = []
    rows = np.random.default_rng((image_id, 2)).permutation(sorted(sentences))[:2]
    for row in sorted(rows.tolist()):
        texts = sentences[row]
        ref_id = first_id + len(refs)
        rng = np.random.default_rng((image_id, row))
        chosen = [texts[i] for i in sorted(rng.permutation(len(texts))[:2])]
        ids = [ref_id * 10 + i for i in range(len(chosen))]
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": annotation_id(image_id, row),
                "category_id": CATEGORY_IDS[scene.objects[row].label],
                "image_id": image_id,
                # REFER's file names carry the annotation id after the image's
                "file_name": f"{image_id:012d}_{annotation_id(image_id, row)}.jpg",
                "split": split,
                "sent_ids": ids,
                "sentences": [
                    {"sent_id": i, "raw": text, "sent": text, "tokens": text.split()}
                    for i, text in zip(ids, chosen, strict=True)
                ],
            }
        )
    return refs


def _tally_rows(
    settings: WorldSettings, image_id: int, split: str, scene: Scene
) -> list[dict[str, Any]]:
    """Return two counting questions a scene: a category on it where possible, and any noun."""
    rng = np.random.default_rng((settings.seed, image_id, 1))
    crowded = [item.label for item in scene.objects if item.crowd]
    nouns = [noun for noun in NOUNS if not any(_is_a(label, noun) for label in crowded)]
    present = sorted({item.label for item in scene.objects} & set(nouns))
    first = str(rng.choice(present or nouns))
    second = str(rng.choice([noun for noun in nouns if noun != first]))
    rows = []
    for offset, noun in enumerate((first, second)):
        answer = sum(_is_a(item.label, noun) for item in scene.objects)
        rows.append(
            {
                "answer": answer,
                "data_source": "drawn",
                "image": f"{split}/{_file_name(image_id)}",
                "image_id": image_id,
                "issimple": True,
                "question": f"How many {noun}s are there?",
                "question_id": image_id * 10 + offset,
            }
        )
    return rows


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":"), sort_keys=True))
