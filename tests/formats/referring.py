"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, C-REC and FineCops-Ref, in every form they come in."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.drawn_world.drawing import CATEGORIES, Scene

from . import scenes
from .scenes import Format

FIRST_ID = 300
NUM_PICTURES = 8
CATEGORY_IDS = {name: 3 * position + 1 for position, name in enumerate(CATEGORIES)}
"""With gaps, as COCO's."""
SPLITS = ("train", "train", "train", "train", "val", "testA", "testB", "train")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True)
class Picture:
    number: int
    scene: Scene
    split: str

    @property
    def size(self) -> dict[str, int]:
        return {"width": self.scene.image.width, "height": self.scene.image.height}

    @property
    def name2014(self) -> str:
        return f"COCO_train2014_{self.number:012d}.jpg"

    def xywh(self, row: int) -> list[float]:
        x1, y1, x2, y2 = self.scene.objects[row].box
        return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]

    def annotation(self, row: int) -> int:
        return self.number * 100 + row

    def said(self, row: int) -> str:
        return f"{self.scene.objects[row].label}, the {ORDINALS[row]}"


def pictures(seed: int, first: int = FIRST_ID) -> list[Picture]:
    """Scenes with at least three objects each."""
    found = []
    for position in range(NUM_PICTURES):
        tries = (scenes.scene(seed, first + position + 10_000 * number) for number in range(100))
        scene = next(scene for scene in tries if len(scene.objects) >= 3)
        found.append(Picture(first + position, scene, SPLITS[position]))
    return found


def write_coco(root: Path, seed: int) -> list[Picture]:
    """Write the pictures into coco/train2017: one truncated, one lying on its side, one CMYK."""
    kinds: dict[int, Callable[..., bytes]] = {
        2: scenes.truncated,
        3: scenes.rotated,
        4: scenes.cmyk,
    }
    found = pictures(seed)
    for position, picture in enumerate(found):
        data = kinds.get(position, scenes.jpeg)(picture.scene.image)
        scenes.write(root / f"coco/train2017/{picture.number:012d}.jpg", data)
    return found


def instances(found: list[Picture]) -> dict[str, Any]:
    """COCO form over all pictures, with a crowd on the first and an empty box on the second."""
    boxes = [
        {
            "id": picture.annotation(row),
            "image_id": picture.number,
            "category_id": CATEGORY_IDS[item.label],
            "bbox": picture.xywh(row),
            "area": 1.0,
            "segmentation": [],
            "iscrowd": 0,
        }
        for picture in found
        for row, item in enumerate(picture.scene.objects)
    ]
    crowd = {
        "id": found[0].annotation(90),
        "image_id": found[0].number,
        "bbox": [5, 5, 60, 60],
        "iscrowd": 1,
    }
    empty = {
        "id": found[1].annotation(91),
        "image_id": found[1].number,
        "bbox": [5, 5, 0, 9],
        "iscrowd": 0,
    }
    return {
        "info": {},
        "images": [{"id": p.number, "file_name": p.name2014, **p.size} for p in found],
        "annotations": [*boxes, crowd | {"category_id": 1}, empty | {"category_id": 1}],
        "categories": categories(),
    }


def categories() -> list[dict[str, Any]]:
    return [
        {"id": number, "name": name, "supercategory": "shape"}
        for name, number in CATEGORY_IDS.items()
    ]


def refs(found: list[Picture], splits: dict[str, str]) -> Iterator[dict[str, Any]]:
    """REFER's list: three refs a picture with two sentences each, and a ref to the empty box."""
    targets = [(picture, row, picture.annotation(row)) for picture in found for row in range(3)]
    targets.append((found[1], 0, found[1].annotation(91)))
    for number, (picture, row, target) in enumerate(targets):
        raw = [picture.said(row), f"  The {picture.said(row)} "][: 1 if target % 100 == 91 else 2]
        if (picture, row) == (found[0], 1):
            raw.append("a </ground> tag")
        yield {
            "ref_id": number,
            "ann_id": target,
            "category_id": 1,
            "image_id": picture.number,
            "file_name": picture.name2014.replace(".jpg", f"_{row}.jpg"),
            "split": splits.get(picture.split, picture.split),
            "sent_ids": [number * 10 + i for i in range(len(raw))],
            "sentences": [
                {
                    "raw": text,
                    "sent": text.strip().lower(),
                    "sent_id": number * 10 + i,
                    "tokens": text.split(),
                }
                for i, text in enumerate(raw)
            ],
        }


def write_refer(root: Path, seed: int, *, folder: str, file: str, splits: dict[str, str]) -> None:
    found = write_coco(root, seed)
    scenes.write(root / folder / "instances.json", json.dumps(instances(found)))
    # Python 2 wrote protocol 0 or 2
    scenes.write(
        root / folder / file, pickle.dumps(list(refs(found, splits)), protocol=seed % 2 * 2)
    )


def write_grefcoco(root: Path, seed: int) -> None:
    """Scalar targets, lists of them, -1 for none, and a crowd as the target of one."""
    found = write_coco(root, seed)
    listed = [ref for ref in refs(found, {}) if ref["ann_id"] % 100 != 91]
    for position, ref in enumerate(listed):
        picture, target = found[position // 3], ref["ann_id"]
        if position % 3 == 1:
            ref |= {"ann_id": [picture.annotation(0), target], "category_id": [1, 1]}
            ref["sentences"] = [
                one | {"raw": f"both of {one['raw'].strip()}"} for one in ref["sentences"]
            ]
        if position % 3 == 2:
            ref |= {"ann_id": [-1], "category_id": [-1], "file_name": picture.name2014}
            ref["sentences"] = [
                one | {"raw": f"a purple {one['raw'].strip()}"} for one in ref["sentences"]
            ]
    crowd = {"raw": "the crowd", "sent": "the crowd", "sent_id": 9999, "tokens": []}
    listed.append(
        listed[0] | {"ref_id": 999, "ann_id": [found[0].annotation(90)], "sentences": [crowd]}
    )
    scenes.write(root / "grefcoco/instances.json", json.dumps(instances(found)))
    scenes.write(root / "grefcoco/grefs(unc).json", json.dumps(listed))


def write_mdetr(root: Path, seed: int, *, name: str, empty: bool = False) -> None:
    """One image entry a sentence; a box that lies outside; for gRefCOCO the mark of no target."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(picture: Picture, said: str, *boxes: dict[str, Any]) -> None:
        entry = {"id": len(images), "original_id": picture.number, "file_name": picture.name2014}
        more = {"caption": said, "dataset_name": name, "tokens_negative": [], **picture.size}
        for box in boxes:
            number = {
                "id": len(annotations),
                "image_id": len(images),
                "tokens_positive": [[0, len(said)]],
            }
            annotations.append(number | {"area": 1.0, "iscrowd": 0} | box)
        images.append(entry | more)

    found = write_coco(root, seed)
    for picture in found:
        boxes = [
            {
                "bbox": picture.xywh(row),
                "category_id": CATEGORY_IDS[picture.scene.objects[row].label],
                "original_id": picture.annotation(row),
            }
            for row in range(3)
        ]
        for row, box in enumerate(boxes):
            add(picture, picture.said(row), box)
        if empty:
            add(picture, f"both of {picture.said(0)}", *boxes[:2])
            nothing = {
                "bbox": [0, 0, 0, 0],
                "iscrowd": -1,
                "area": -1,
                "category_id": -1,
                "original_id": -1,
            }
            add(picture, f"a purple {picture.said(0)}", nothing | {"empty": True})
    outside = {"bbox": [900.0, 900.0, 9.0, 9.0], "category_id": 1, "original_id": 1}
    add(found[0], "far away", outside)
    add(found[0], " ", outside | {"bbox": found[0].xywh(0)})
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    path = root / f"mdetr_annotations/finetune_{name}_train.json"
    scenes.write(path, json.dumps(content | {"categories": categories()}))


def write_hub(root: Path, seed: int, *, folder: str, splits: dict[str, str]) -> None:
    """Split train as jxu124's parquet, the others as lmms-lab's, whose boxes are xywh."""
    found = write_coco(root, seed)
    by_number = {picture.number: picture for picture in found}
    rows, answers = [], {}  # type: ignore[var-annotated]
    for ref in refs(found, splits):
        picture, row = by_number[ref["image_id"]], ref["ann_id"] % 100
        x, y, width, height = picture.xywh(row) if row < 90 else [5.0, 5.0, 0.0, 9.0]
        info = {"file_name": picture.name2014, "id": picture.number, **picture.size}
        rows.append(
            ref
            | {"bbox": [x, y, x + width, y + height], "raw_image_info": json.dumps(info)}
            | {
                "raw_anns": "{}",
                "raw_sentences": "[]",
                "image_path": f"coco/train2014/{picture.name2014}",
            }
            | {
                "captions": [],
                "global_image_id": f"coco.{picture.number}",
                "anns_id": str(ref["ann_id"]),
            }
        )
        answers.setdefault(ref["split"], []).append(
            {
                "question_id": str(ref["ref_id"]),
                "image": {"bytes": scenes.jpeg(picture.scene.image), "path": picture.name2014},
                "question": "Please carefully observe the area circled in the image",
                "answer": [one["sent"] for one in ref["sentences"]],
                "segmentation": [0.0],
                "bbox": [x, y, width, height],
                "iscrowd": 0,
                "file_name": ref["file_name"],
            }
        )
    data = root / folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    train = [row for row in rows if row["split"] == "train"]
    pq.write_table(
        pa.Table.from_pylist(train), data / "train-00000-of-00001-5f3a.parquet", row_group_size=7
    )
    for split in sorted(set(answers) - {"train"}):
        pq.write_table(
            pa.Table.from_pylist(answers[split]), data / f"{split}-00000-of-00001.parquet"
        )


def write_crec(root: Path, seed: int, *, file: str) -> None:
    """As many changed expressions as true ones, texts and lists of tokens; a missing image."""
    found = write_coco(root, seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for picture in found:
        listed = rows["train" if picture.split == "train" else "val"]
        for row in range(3):
            said, changed = picture.said(row), f"purple {picture.said(row)}"
            common = {
                "iid": picture.number,
                "refs": [said],
                "atts": ["purple"],
                "att_pos": 0,
                "att_id": 2,
            }
            true = common | {"bbox": picture.xywh(row), "query": said, "neg": changed, "cf_id": 0}
            false = common | {
                "bbox": [0, 0, 0, 0],
                "query": changed.split(),
                "neg": said,
                "cf_id": 1,
            }
            listed += [true, false | ({"refs": said} if row else {})]
    rows["train"].append(rows["train"][0] | {"iid": 399})
    rows["train"].append(rows["train"][1] | {"bbox": found[0].xywh(0)})
    scenes.write(root / "crec" / file, json.dumps(rows))


def write_finecops(root: Path, seed: int) -> None:
    """Positive rows, changed texts with the box of the true one, edited images; a test set."""
    found = pictures(seed, 2_410_000 + FIRST_ID)
    kinds = (scenes.png, scenes.palette, scenes.grey16, scenes.rotated, scenes.truncated)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def add(
        number: int | str, picture: Picture, name: str, said: str, box: list[float], **more: Any
    ) -> None:
        images.append({"id": number, "file_name": name, "caption": said, **picture.size})
        annotation = {
            "id": len(annotations),
            "image_id": number,
            "bbox": box,
            "category_id": 1,
            "iscrowd": 0,
        }
        annotations.append(annotation | {"area": 1.0, "level": 1, "tuple_type": "2_hop"} | more)

    for position, picture in enumerate(found):
        name = f"{picture.number}.jpg"
        scenes.write(root / "gqa/images" / name, scenes.jpeg(picture.scene.image))
        for row in range(3):
            number, box = len(images), picture.xywh(row)
            add(number, picture, name, f"The {picture.said(row)}.", box)
            negative = {"negative_type": "attribute", "negative_level": 1, "positive_id": number}
            said = f"The purple {picture.said(row)}."
            add(f"{number}_0", picture, name, said, box, **negative, negative_cate="text")
        edited = f"neg_{picture.number}.png"
        data = kinds[position % len(kinds)](scenes.scene(seed, picture.number, empty=True).image)
        scenes.write(root / "finecops/negative_images" / edited, data)
        add(
            f"{number}_1",
            picture,
            edited,
            f"The {picture.said(2)}.",
            box,
            **negative,
            negative_cate="image",
        )
    add("bad", found[0], f"{found[0].number}.jpg", "the lost one", [-50.0, -50.0, 9.0, 9.0])
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    for name in ("expression_all_train_set", "test_expression_pos"):
        scenes.write(root / f"finecops/{name}_coco_format.json", json.dumps(content))


_EVALUATION = ("val", "testA", "testB")
_ONE_TEST = {"testA": "test", "testB": "test"}


def _names(name: str, *splits: str) -> tuple[str, ...]:
    return (name, *(f"{name}_{split}" for split in splits))


def _refer(name: str, folder: str, file: str, splits: dict[str, str]) -> Format:
    evaluation = ("val", "test") if splits else _EVALUATION
    return Format(
        datasets=_names(name, *evaluation),
        write=partial(write_refer, folder=folder, file=file, splits=splits),
        records={f"{folder}/{file}": "pickle", f"{folder}/instances.json": "json"},
    )


def _hub(name: str, splits: dict[str, str]) -> Format:
    return Format(
        datasets=_names(name, *(("val", "test") if splits else _EVALUATION)),
        write=partial(write_hub, folder=name, splits=splits),
        records={f"{name}/data/*.parquet": "parquet"},
    )


def _mdetr(name: str, file: str, *, empty: bool = False) -> Format:
    return Format(
        datasets=(name,),
        write=partial(write_mdetr, name=file, empty=empty),
        records={f"mdetr_annotations/finetune_{file}_train.json": "json"},
    )


def _crec(name: str, file: str) -> Format:
    return Format(
        datasets=(name,), write=partial(write_crec, file=file), records={f"crec/{file}": "json"}
    )


FORMATS = (
    _refer("refcoco", "refcoco", "refs(unc).p", {}),
    _refer("refcocop", "refcoco+", "refs(unc).p", {}),
    _refer("refcocog", "refcocog", "refs(umd).p", _ONE_TEST),
    Format(
        datasets=("grefcoco",),
        write=write_grefcoco,
        records={"grefcoco/grefs(unc).json": "json", "grefcoco/instances.json": "json"},
    ),
    _mdetr("refcoco_mdetr", "refcoco"),
    _mdetr("refcocop_mdetr", "refcoco+"),
    _mdetr("refcocog_mdetr", "refcocog"),
    _mdetr("grefcoco_mdetr", "grefcoco", empty=True),
    _hub("refcoco_hf", {}),
    _hub("refcocop_hf", {}),
    _hub("refcocog_hf", _ONE_TEST),
    _crec("c_refcoco", "c_refcoco.json"),
    _crec("c_refcocop", "c_refcoco+.json"),
    _crec("c_refcocog", "c_refcocog.json"),
    Format(
        datasets=("finecops_ref",),
        write=write_finecops,
        records={"finecops/*train*coco_format.json": "json"},
    ),
)
