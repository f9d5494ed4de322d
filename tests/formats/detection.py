"""Objects365, V3Det, VisDrone, CrowdHuman and DocLayNet in small, in their official layouts.

Written over drawn scenes by the documented schemas, with their traps: the sizes and counts are
ours, the habits are theirs.
"""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dataset_builders.drawn_world.drawing import CATEGORIES

from .scenes import Format, cmyk, grey16, jpeg, palette, png, rotated, scene, truncated, write

Boxed = list[tuple[tuple[float, float, float, float], str]]
"""(xyxy box, drawn label) of a picture."""

V2_NAMES = (
    "Person",
    "Ballon",
    "Moniter/TV",
    "Cabinet/shelf",
    "Orange/Tangerine",
    "Bakset",
    "Dinning Table",
    "Table Tennis ",
    "Mushroon",
    "Campel",
    "Buttefly",
    "French",
    # never drawn
    "Car",
    "SUV",
    "Van",
    "Sneakers",
    "Leather Shoes",
    "Formula 1 ",
    "Coffee Table",
    "Cutting/chopping Board",
    "Tennis",
)
V1_NAMES = (
    "person",
    "sneakers",
    "chair",
    "hat",
    "lamp",
    "bottle",
    "cabinet/shelf",
    "bread/bun",
    "bread",
    "hotair balloon",
    "tissue ",
    "french horn",
    # never drawn
    "trash bin/can",
    "canned",
    "leather shoes",
)


def _boxed(seed: int, number: int, *, empty: bool = False) -> tuple[Image.Image, Boxed]:
    drawn = scene(seed, number, empty=empty)
    return drawn.image, [(item.box, item.label) for item in drawn.objects]


def crowded(seed: int, number: int, side: int) -> tuple[Image.Image, Boxed]:
    """A picture of side x side scenes in squares of 160 pixels."""
    image = Image.new("RGB", (160 * side, 160 * side), (90, 110, 90))
    boxed: Boxed = []
    for cell in range(side * side):
        x, y = 160 * (cell % side), 160 * (cell // side)
        part, objects = _boxed(seed, 1000 * (number + 1) + cell)
        image.paste(part, (x, y))
        boxed += [((a + x, b + y, c + x, d + y), label) for (a, b, c, d), label in objects]
    return image, boxed


def _xywh(box: tuple[float, ...]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(x1, 3), round(y1, 3), round(x2 - x1, 3), round(y2 - y1, 3)]


def _whole(box: tuple[float, ...]) -> list[int]:
    x1, y1, x2, y2 = (round(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _encoded(number: int, image: Image.Image) -> bytes:
    """Every image a plain JPEG but for one turned by EXIF, one in CMYK, one that breaks off."""
    return {2: rotated, 3: cmyk, 4: truncated}.get(number, jpeg)(image)


def _coco(
    pictures: list[tuple[str, Image.Image, Boxed]], names: tuple[str, ...], first_id: int
) -> Any:
    """COCO's JSON of (file_name, picture, boxes); the drawn labels take the first twelve names."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, image, boxed) in enumerate(pictures):
        width, height = image.size
        images.append(
            {"id": first_id + number, "file_name": name, "width": width, "height": height}
        )
        for box, label in boxed:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first_id + number,
                    "category_id": CATEGORIES.index(label) + 1,
                    "bbox": _xywh(box),
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_objects365(root: Path, seed: int) -> None:
    pictures = []
    for number in range(12):
        image, boxed = _boxed(seed, number, empty=number == 5)
        version, patch = (1, number % 2) if number < 6 else (2, 16 + number % 2)
        file = f"patch{patch}/objects365_v{version}_{700 + number:08d}.jpg"
        if number == 11:  # listed, never published
            file, boxed = "patch16/objects365_v2_00908726.jpg", boxed[:1]
        else:
            write(root / "objects365/train" / file, _encoded(number, image))
        pictures.append((f"images/v{version}/{file}", image, boxed))
    content = _coco(pictures, V2_NAMES, 420_917)
    for row in content["annotations"]:
        row |= {"isfake": 0, "isreflected": 0}
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][3]["bbox"][2] = 0.0
    write(root / "objects365/annotations/zhiyuan_objv2_train.json", json.dumps(content))

    pictures = []
    for number in range(5):
        image, boxed = _boxed(seed, 20 + number, empty=number == 4)
        version, patch = (1, 3) if number < 2 else (2, 20)
        file = f"patch{patch}/objects365_v{version}_{900 + number:08d}.jpg"
        write(root / "objects365/val" / file, jpeg(image))
        pictures.append((f"images/v{version}/{file}", image, boxed))
    content = _coco(pictures, V2_NAMES, 26)
    write(root / "objects365/annotations/zhiyuan_objv2_val.json", json.dumps(content))


def write_objects365_v1(root: Path, seed: int) -> None:
    pictures = []
    for number in range(6):
        image, boxed = _boxed(seed, 40 + number, empty=number == 5)
        file = f"obj365_train_{number:012d}.jpg"
        write(root / "objects365_v1/train" / file, _encoded(number, image))
        pictures.append((file, image, boxed))
    content = _coco(pictures, V1_NAMES, 1)
    content["categories"].reverse()  # other files list them in other orders
    write(root / "objects365_v1/objects365_train.json", json.dumps(content))


# child -> father; the first twelve are drawn
V3DET_TREE = {
    "margherita_pizza": "pizza",
    "pizza": "food",
    "crane (bird)": "bird",
    "crane (machine)": "vehicle",
    "sea_gull": "bird",
    "taxi": "vehicle",
    "wagon": "vehicle",
    "apple": "fruit",
    "oak": "plant",
    "lady's slipper": "plant",
    "bell": "artifact",
    "jug": "artifact",
    # never drawn
    "entity": "",
    "food": "entity",
    "fruit": "food",
    "pear": "fruit",
    "organism": "entity",
    "bird": "organism",
    "plant": "organism",
    "artifact": "entity",
    "vehicle": "artifact",
    "pitcher": "artifact",
}


def write_v3det(root: Path, seed: int) -> None:
    names = tuple(V3DET_TREE)
    node = {name: f"n{7_745_000 + number:08d}" for number, name in enumerate(names)}
    pictures = []
    for number in range(8):
        image, boxed = _boxed(seed, 60 + number, empty=number == 5)
        file = f"images/{node[names[number]]}/21_{number}_29405651261_c.jpg"
        write(root / "v3det" / file, _encoded(number, image))
        pictures.append((file, image, boxed))
    content = _coco(pictures, (*names, "bell"), 1)  # a second category "bell"
    for row in content["annotations"]:
        del row["id"]
    for row in content["categories"]:
        row |= {"name_zh": "", "cat_info": [], "cat_info_gpt": [], "novel": row["id"] % 2 == 0}
    ids = [node[name] for name in names] + ["n99999999"]
    fathers = {node[name]: [node[father]] for name, father in V3DET_TREE.items() if father}
    fathers["n99999999"] = [node["plant"]]
    children: dict[str, list[str]] = {}
    for child, (father,) in fathers.items():
        children.setdefault(father, []).append(child)
    tree = {
        "categoryid2treeid": {str(number): found for number, found in enumerate(ids, 1)},
        "id2name": {**{node[name]: name for name in names}, "n99999999": "bell"},
        "id2synonym_list": {node["jug"]: ["jug", "pitcher"], node["taxi"]: ["taxi", "cab"]},
        "child2father": fathers,
        "father2child": children,
    }
    write(root / "v3det/annotations/v3det_2023_v1_train.json", json.dumps(content))
    write(root / "v3det/annotations/v3det_2023_v1_category_tree.json", json.dumps(tree))


def write_visdrone(root: Path, seed: int) -> None:
    folder = root / "visdrone/VisDrone2019-DET-train"
    for number in range(8):
        image, boxed = (
            crowded(seed, number, 6)
            if number == 0
            else _boxed(seed, 80 + number, empty=number == 5)
        )
        lines = []
        for row, (box, label) in enumerate(boxed):
            kind = CATEGORIES.index(label) % 10 + 1
            left, top, width, height = _whole(box)
            comma = "," if (number + row) % 3 == 0 else ""
            lines.append(f"{left},{top},{width},{height},1,{kind},0,{row % 3}{comma}")
        if number == 2:
            lines.append(f"0,0,{image.width // 2},{image.height // 2},0,0,0,0")
        if number == 3:
            lines += ["5,5,3,3,0,0,0,0", "20,20,20,20,1,11,0,0", "30,30,0,9,1,4,0,0"]
        name = f"0000{number:03d}_00000_d_0000001"
        write(
            folder / f"annotations/{name}.txt",
            "\n".join(lines[:1] if number == 7 else lines) + "\n",
        )
        if number != 7:  # its picture is missing
            write(
                folder / f"images/{name}.jpg",
                jpeg(image) if number == 0 else _encoded(number, image),
            )


def write_crowdhuman(root: Path, seed: int) -> None:
    lines = []
    for number in range(8):
        image, boxed = crowded(seed, 10 + number, 6) if number == 0 else _boxed(seed, 100 + number)
        boxes: list[dict[str, Any]] = []
        for row, (box, _) in enumerate(boxed):
            visible = _whole(box)
            x, y, width, height = visible
            boxes.append(
                {
                    "tag": "person",
                    "hbox": [x, y, width // 2, height // 3],
                    "head_attr": {} if row % 2 else {"ignore": 0, "occ": 1, "unsure": 0},
                    "fbox": [x - 9, y, width + 20, height + 60],  # leaves the picture at times
                    "vbox": visible,
                    "extra": {
                        "box_id": row,
                        "occ": 1,
                        **({"ignore": 1} if (number, row) == (1, 0) else {}),
                    },
                }
            )
        if number in (2, 5):
            mask = [0, 0, 60, 60] if number == 2 else [0, 0, 4, 4]
            extra = {"box_id": len(boxes), "ignore": 1}
            boxes.append(
                {
                    "tag": "mask",
                    "hbox": mask,
                    "head_attr": {},
                    "fbox": mask,
                    "vbox": mask,
                    "extra": extra,
                }
            )
        name = f"27328{number},c9db000d5146c{number:03d}"
        missing = number == 7
        lines.append(json.dumps({"ID": name, "gtboxes": boxes[:1] if missing else boxes}))
        if not missing:
            picture = jpeg(image) if number == 0 else _encoded(number, image)
            write(root / f"crowdhuman/Images/{name}.jpg", picture)
    write(root / "crowdhuman/annotation_train.odgt", "\n".join(lines) + "\n")


LAYOUT = (
    *("Caption", "Footnote", "Formula", "List-item", "Page-footer", "Page-header"),
    *("Picture", "Section-header", "Table", "Text", "Title"),
)
PAGE_WORDS = (
    "rate",
    "of",
    "growth",
    "fell",
    "in",
    "most",
    "regions",
    "while",
    "costs",
    "rose",
    "last",
    "year",
)
PAGE, SQUARE = (612, 792), 1025


def _document(rng: random.Random) -> tuple[Image.Image, Boxed, list[dict[str, Any]]]:
    """A page: picture, boxes with class names, text cells in the page's own units."""
    image = Image.new("RGB", (SQUARE, SQUARE), "white")
    draw = ImageDraw.Draw(image)
    boxed: Boxed = []
    cells = []
    y = 40
    for kind in ["Page-header", "Title", *rng.choices(LAYOUT, k=5), "Page-footer"]:
        lines = (
            1
            if kind in ("Title", "Page-header", "Page-footer", "Section-header")
            else rng.randint(2, 4)
        )
        top = y
        for _ in range(lines):
            words = " ".join(rng.choices(PAGE_WORDS, k=8))
            draw.text((102, y + 3), words, fill="black")
            box = (100, y + 2, 100 + 7 * len(words), y + 18)
            across, down = PAGE[0] / SQUARE, PAGE[1] / SQUARE
            stored = [box[0] * across, box[1] * down, (box[2] - box[0]) * across, 16 * down]
            cells.append({"bbox": stored, "text": words, "font": {"name": "/Serif", "size": 9}})
            y += 22
        boxed.append(((90.5, top - 0.25, 930.0, y + 0.5), kind))
        y += 40
    boxed.append(((434.9, -0.49, 500.0, 20.0), "Picture"))
    return image, boxed, cells


def write_doclaynet(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(8):
        image, boxed, cells = _document(rng)
        name = f"{number:02d}{seed % 2**32:08x}{'5ee' * 18}"
        again = int(number == 7)
        images.append(
            {
                "id": number + 1,
                "file_name": f"{name}.png",
                "width": SQUARE,
                "height": SQUARE,
                "doc_category": "financial_reports",
                "collection": "ann_reports_00_04_fancy",
                "doc_name": "NASDAQ_FFIN_2002.pdf",
                "page_no": min(number, 6),
                "precedence": again,
            }
        )
        for box, kind in boxed[:2] if again else boxed:
            x, y, width, height = _xywh(box)
            corners = [x, y, x, y + height, x + width, y + height, x + width, y]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number + 1,
                    "category_id": LAYOUT.index(kind) + 1,
                    "bbox": [x, y, width, height],
                    "segmentation": [corners],
                    "area": width * height,
                    "iscrowd": 0,
                    "precedence": again,
                }
            )
        encode = {1: palette, 2: grey16}.get(number, png)
        write(root / f"doclaynet/PNG/{name}.png", encode(image))
        if number != 3:  # its text is not there
            metadata = {"original_width": PAGE[0], "original_height": PAGE[1], "page_no": number}
            content = {
                "metadata": {**metadata, "coco_width": SQUARE, "coco_height": SQUARE},
                "cells": cells,
            }
            write(root / f"doclaynet/JSON/{name}.json", json.dumps(content))
    categories = [{"id": number, "name": name} for number, name in enumerate(LAYOUT, 1)]
    content = {"categories": categories, "images": images, "annotations": annotations}
    write(root / "doclaynet/COCO/train.json", json.dumps(content))


FORMATS = (
    Format(
        datasets=("objects365", "objects365_val"),
        write=write_objects365,
        records={"objects365/annotations/*.json": "json"},
    ),
    Format(
        datasets=("objects365_v1",),
        write=write_objects365_v1,
        records={"objects365_v1/*.json": "json"},
    ),
    Format(datasets=("v3det",), write=write_v3det, records={"v3det/annotations/*.json": "json"}),
    Format(
        datasets=("visdrone",),
        write=write_visdrone,
        records={"visdrone/VisDrone2019-DET-train/annotations/*.txt": "text"},
    ),
    Format(
        datasets=("crowdhuman",), write=write_crowdhuman, records={"crowdhuman/*.odgt": "jsonl"}
    ),
    Format(
        datasets=("doclaynet",),
        write=write_doclaynet,
        records={"doclaynet/COCO/*.json": "json", "doclaynet/JSON/*.json": "json"},
    ),
)
