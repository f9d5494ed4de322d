"""LVIS, PACO, VAW and Visual Genome over drawn scenes: labels known of some images only."""

import json
import random
from pathlib import Path
from typing import Any

from dataset_builders.drawn_world.drawing import CATEGORIES, COLOURS, SHAPES, Scene

from .scenes import Format, cmyk, jpeg, rotated, scene, truncated, write

NAMES = (
    *(name.replace(" ", "_") for name in CATEGORIES),
    "drum_(container)",
    "drum_(musical_instrument)",
)
_PART = {"circle": "rim", "square": "lid", "triangle": "base"}
_THINGS = {"circle": "ball", "square": "box", "triangle": "trash_can"}
_SHADED = ("blue", "brown", "green", "grey", "orange", "pink", "purple", "red")
ATTRIBUTES = [
    "black",
    *(f"{shade}{colour}" for colour in _SHADED for shade in ("light_", "", "dark_")),
    *("white", "light_yellow", "yellow", "dark_yellow", "other(color)"),
    *("plain", "striped", "dotted", "checkered", "woven", "studded", "perforated", "floral"),
    *("other(pattern_marking)", "logo", "text"),
    *(
        "stone",
        "wood",
        "rattan",
        "fabric",
        "crochet",
        "wool",
        "leather",
        "velvet",
        "metal",
        "paper",
        "plastic",
    ),
    *("glass", "ceramic", "other(material)"),
    *("opaque", "translucent", "transparent", "other(transparency)"),
]
"""PACO's, in the order of their ids."""
TYPES = {
    "color": list(range(30)),
    "pattern_marking": list(range(30, 41)),
    "material": list(range(41, 55)),
    "transparency": list(range(55, 59)),
}


def _xywh(box: tuple[float, ...]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]


def _dump(path: Path, content: Any) -> None:
    write(path, json.dumps(content))


def _picture(path: Path, drawn: Scene, number: int, *, broken: bool = True) -> None:
    """Plain files, but of ten one is CMYK, one lies on its side and, where `broken`, one is cut."""
    kinds = {2: cmyk, 3: rotated} | ({1: truncated} if broken else {})
    write(path, kinds.get(number % 10, jpeg)(drawn.image))


def write_lvis_train(root: Path, seed: int) -> None:
    """Names of v1, which has no file_name; picture 207 is listed and not there."""
    _lvis(root, seed, "train", [("train2017", number) for number in range(200, 210)])


def write_lvis_val(root: Path, seed: int) -> None:
    """Pictures of both folders; one record has a name of v0.5 and no url."""
    places = [*(("val2017", number) for number in range(212, 218)), ("train2017", 218)]
    _lvis(root, seed, "val", places)


def _lvis(root: Path, seed: int, split: str, places: list[tuple[str, int]]) -> None:
    rng = random.Random(seed)
    images, boxes = [], []
    for folder, number in places:
        drawn = scene(seed, number, empty=number % 8 == 6)
        shown = {item.label.replace(" ", "_") for item in drawn.objects}
        negative = rng.sample([n for n, name in enumerate(NAMES, 1) if name not in shown], 5)
        image = {
            "id": number,
            "width": drawn.image.width,
            "height": drawn.image.height,
            "license": 3,
            "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg",
            "flickr_url": "http://farm9.staticflickr.com/x.jpg",
            "date_captured": "2013-11-19 20:30:17",
            "neg_category_ids": negative,
            "not_exhaustive_category_ids": [],
        }
        if number == 212:
            del image["coco_url"]
            image["file_name"] = f"COCO_val2014_{number:012d}.jpg"
        images.append(image)
        for item, outline in zip(drawn.objects, drawn.segmentations, strict=True):
            category = NAMES.index(item.label.replace(" ", "_")) + 1
            if category in image["not_exhaustive_category_ids"] or rng.random() < 0.1:
                continue  # not boxed, and nothing says so, or what says so is the list
            if rng.random() < 0.15:
                image["not_exhaustive_category_ids"].append(category)
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": _xywh(item.box),
                    "area": 1.0,
                    "segmentation": outline,
                }
            )
        if number != 207:
            _picture(root / f"coco/{folder}/{number:012d}.jpg", drawn, number, broken=False)
    for folder in ("train2017", "val2017"):
        (root / "coco" / folder).mkdir(parents=True, exist_ok=True)
    boxes[0]["bbox"] = [*boxes[0]["bbox"][:2], 0.2, 9.0]
    images[0]["neg_category_ids"].append(boxes[1]["category_id"])  # said to be absent, and boxed
    categories = [
        {
            "id": number,
            "name": name,
            "synset": f"{name}.n.01",
            "synonyms": [name, name.replace("circle", "disc")] if "_c" in name else [name],
            "def": "drawn",
            "frequency": "f",
            "image_count": 1,
            "instance_count": 1,
        }
        for number, name in enumerate(NAMES, 1)
    ]
    content = {
        "info": {},
        "annotations": boxes,
        "images": images,
        "licenses": [],
        "categories": categories,
    }
    _dump(root / f"lvis/lvis_v1_{split}.json", content)


def write_paco_lvis(root: Path, seed: int) -> None:
    """Categories of parts are "object:part"."""
    places = {number: f"train2017/{number:012d}.jpg" for number in range(220, 230)}
    _paco(root, seed, "paco_lvis", "coco", places, joint=True)


def write_paco_ego4d(root: Path, seed: int) -> None:
    """Categories of parts are those of part_categories; frames lie in folders of their videos."""
    places = {number: f"video{number % 2}/frame_{number:06d}.jpeg" for number in range(1, 9)}
    _paco(root, seed, "paco_ego4d", "paco_ego4d/images", places, joint=False)


def _paco(
    root: Path, seed: int, dataset: str, folder: str, places: dict[int, str], *, joint: bool
) -> None:
    rng = random.Random(seed)
    things = {shape: number for number, shape in enumerate(SHAPES, 41)}
    parts = {shape: (900 if joint else 1) + number for number, shape in enumerate(SHAPES)}
    images, boxes = [], []
    for number, name in places.items():
        drawn = scene(seed, 1000 + number)
        _picture(root / folder / name, drawn, number)
        images.append(
            {
                "id": number,
                "file_name": name,
                "width": drawn.image.width,
                "height": drawn.image.height,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
                "license": 3,
            }
        )
        for item in drawn.objects:
            colour, shape = item.label.split(" ")
            owner = len(boxes) + 1
            boxes.append(_paco_box(owner, number, things[shape], item.box, owner, colour, rng))
            x1, y1, x2, y2 = item.box
            part = (x1, y1, (x1 + x2) / 2, (y1 + y2) / 2)
            boxes.append(_paco_box(owner + 1, number, parts[shape], part, owner, colour, rng))
    boxes[1]["obj_ann_id"] = 99_999  # a part of an object that is not there
    del boxes[2]["attribute_ids"]
    pairs = [
        {"supercategory": "PART", "id": parts[s], "name": f"{_THINGS[s]}:{_PART[s]}"}
        for s in SHAPES
    ]
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [
            *({"supercategory": "OBJECT", "id": things[s], "name": _THINGS[s]} for s in SHAPES),
            *(pairs if joint else []),
        ],
        "part_categories": [
            {"supercategory": "PART", "id": number, "name": _PART[s]}
            for number, s in enumerate(SHAPES, 1)
        ],
        "attributes": [
            {"supercategory": "ATTR", "id": number, "name": name}
            for number, name in enumerate(ATTRIBUTES)
        ],
        "attr_type_to_attr_idxs": TYPES,
    }
    _dump(root / f"paco/{dataset}_v1_train.json", content)


def _paco_box(
    number: int,
    image: int,
    category: int,
    box: tuple[float, ...],
    owner: int,
    colour: str,
    rng: random.Random,
) -> dict[str, Any]:
    material = rng.choice(("wood", "plastic", "other(material)"))
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": _xywh(box),
        "area": 1.0,
        "segmentation": {"size": [1, 1], "counts": "01"},
        "attribute_ids": sorted(
            ATTRIBUTES.index(name) for name in (colour, "plain", material, "opaque")
        ),
        "dom_color_ids": [ATTRIBUTES.index(colour)],
        "obj_ann_id": owner,
        "unknown_color": int(rng.random() < 0.2),
        "unknown_pattern_marking": 0,
        "unknown_material": 0,
        "unknown_transparency": 0,
    }


def write_vaw(root: Path, seed: int) -> None:
    """Instances of an image in both files, not side by side; colours unlabelled; an id as text."""
    rng = random.Random(seed)
    rows = []
    for number in range(2_410_200, 2_410_208):
        drawn = scene(seed, number)
        _picture(root / f"vg/VG_100K{'_2' if number % 2 else ''}/{number}.jpg", drawn, number)
        for item in drawn.objects:
            colour, shape = item.label.split(" ")
            others = [name for name in COLOURS if name != colour]
            known = (
                number == 2_410_205 or rng.random() < 0.7
            )  # one picture has negative labels alone
            rows.append(
                {
                    "image_id": number,
                    "instance_id": f"{number}{len(rows):03d}",
                    "instance_bbox": _xywh(item.box),
                    "instance_polygon": None,
                    "object_name": shape,
                    "positive_attributes": [] if number == 2_410_205 else [colour, "flat"],
                    "negative_attributes": others if known else [],
                }
            )
    rng.shuffle(rows)
    rows[0]["image_id"] = str(rows[0]["image_id"])
    rows[1] |= {"positive_attributes": ["red"], "negative_attributes": ["red"]}
    _dump(root / "vaw/data/train_part1.json", rows[: len(rows) // 2])
    _dump(root / "vaw/data/train_part2.json", rows[len(rows) // 2 :])
    _dump(root / "vaw/data/attribute_types.json", {"color": list(COLOURS), "other": ["flat"]})
    for folder in ("VG_100K", "VG_100K_2"):
        (root / "vg" / folder).mkdir(parents=True, exist_ok=True)


def write_visual_genome(root: Path, seed: int) -> None:
    """Two spellings of keys; boxes over the border; odd and repeated texts; images in disorder."""
    images, regions, objects = [], [], []
    for number in range(2_410_210, 2_410_218):
        drawn = scene(seed, number)
        folder = "VG_100K_2" if number % 2 else "VG_100K"
        _picture(root / f"vg/{folder}/{number}.jpg", drawn, number)
        images.append(
            {
                "image_id": number,
                "url": f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg",
                "width": drawn.image.width,
                "height": drawn.image.height,
                "coco_id": None,
                "flickr_id": None,
            }
        )
        listed, told = [], []
        for at, item in enumerate(drawn.objects):
            x, y, w, h = _xywh(item.box)
            unique = number * 100 + at
            listed.append(
                {
                    "object_id": unique,
                    "x": x,
                    "y": y,
                    "w": w,
                    "h": h,
                    "names": [item.label],
                    "synsets": [],
                }
            )
            long = {
                "region_id": unique,
                "image_id": number,
                "x": x - 1,
                "y": y,
                "width": w,
                "height": h,
            }
            short = {"id": unique, "image": number, "x": x, "y": y, "w": w, "h": h}
            told.append((short if at % 2 else long) | {"phrase": f"the {item.label}  is here "})
        told.append(told[0] | {"region_id": number * 100 + 90, "phrase": told[0]["phrase"].upper()})
        objects.append({"image_id": number, "image_url": images[-1]["url"], "objects": listed})
        regions.append({("id" if number % 2 else "image_id"): number, "regions": told})
    regions[0]["regions"][0] |= {"x": -95, "width": 100}
    regions[1]["regions"][0]["phrase"] = " "
    objects[2]["objects"][0]["names"] = []
    _dump(root / "vg/image_data.json", images)
    _dump(root / "vg/region_descriptions.json", regions[::-1])
    _dump(root / "vg/objects.json", objects)


FORMATS = (
    Format(
        datasets=("lvis_train",),
        write=write_lvis_train,
        records={"lvis/lvis_v1_train.json": "json"},
    ),
    Format(datasets=("lvis_val",), write=write_lvis_val, records={"lvis/lvis_v1_val.json": "json"}),
    Format(
        datasets=("paco_lvis",),
        write=write_paco_lvis,
        records={"paco/paco_lvis_v1_train.json": "json"},
    ),
    Format(
        datasets=("paco_ego4d",),
        write=write_paco_ego4d,
        records={"paco/paco_ego4d_v1_train.json": "json"},
    ),
    Format(
        datasets=("vaw",),
        write=write_vaw,
        records={"vaw/data/train_part*.json": "json", "vaw/data/attribute_types.json": "json"},
    ),
    Format(datasets=("visual_genome",), write=write_visual_genome, records={"vg/*.json": "json"}),
)
