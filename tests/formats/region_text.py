"""Osprey, ShareGPT4V, Visual-CoT, VCR and MDVP in small, in their official layouts.

COCO ids 500 to 599, Visual Genome's 2410500 to 2410599.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataset_builders.drawn_world.drawing import CATEGORIES, Scene

from .scenes import Format, cmyk, grey16, jpeg, palette, png, rotated, scene, truncated, write

COCO = range(500, 508)
BOX_REQUEST = (
    "Please provide the bounding box coordinate of the region that can help you answer the "
    "question better."
)


def _dump(path: Path, content: Any) -> None:
    write(path, json.dumps(content))


def _talk(*values: Any) -> list[dict[str, Any]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def _xywh(box: tuple[float, ...]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]


def _coco_name(number: int) -> str:
    return f"coco/train2017/{number:012d}.jpg"


def _coco_pictures(root: Path, seed: int) -> dict[int, Scene]:
    """Plain files, but one in CMYK, one stored on its side, one cut off; the last is not there."""
    kinds = {501: cmyk, 502: rotated, 503: truncated}
    drawn = {number: scene(seed, number) for number in COCO}
    for number, picture in list(drawn.items())[:-1]:
        write(root / _coco_name(number), kinds.get(number, jpeg)(picture.image))
    return drawn


def _masks(drawn: Scene) -> list[Any]:
    """Segmentations by turns as polygons, as packed and as plain run lengths."""
    height, width = drawn.image.height, drawn.image.width
    stored: list[Any] = []
    for number, polygons in enumerate(drawn.segmentations):
        packed = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        flat = coco_mask.decode(packed).flatten(order="F")
        edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
        plain = ([0] if flat[0] else []) + np.diff(edges).tolist()
        forms = (
            polygons,
            {"size": [height, width], "counts": packed["counts"].decode()},
            {"size": [height, width], "counts": plain},
        )
        stored.append(forms[number % 3])
    return stored


def write_osprey(root: Path, seed: int) -> None:
    drawn = _coco_pictures(root, seed)
    files: dict[str, list[Any]] = {
        name: []
        for name in (
            "short_form",
            "conversation",
            "detail_description",
            "part_level",
            "lvis_positive_negative",
        )
    }
    for number, picture in drawn.items():
        labels = [item.label for item in picture.objects]
        base = {
            "id": number,
            "file_name": f"COCO_train2014_{number:012d}.jpg"
            if number % 2
            else f"{number:012d}.jpg",
            "height": picture.image.height,
            "width": picture.image.width,
            "annotation": [{"segmentation": mask} for mask in _masks(picture)],
        }
        boxed = base | {"annotation": [{"bbox": _xywh(item.box)} for item in picture.objects]}
        named = [(f"<region{row}>", label) for row, label in enumerate(labels, 1)]
        short = [
            text for tag, label in named for text in (f"What is {tag}?", label.capitalize() + ".")
        ]
        parts = [text for tag, label in named for text in (f"Colour of {tag}?", label.split()[0])]
        checks = [
            text
            for row, (tag, label) in enumerate(named)
            for text in (
                f"Is the object in {tag} a {label if row % 2 else 'dog'}?",
                "Yes, it is." if row % 2 else "No, it is not.",
            )
        ]
        told = [
            f"{tag}: A {label} on a mottled ground.\nIts edge is sharp." for tag, label in named
        ]
        files["short_form"].append(base | {"conversations": _talk(*short)})
        files["part_level"].append(boxed | {"conversations": _talk(*parts)})
        files["lvis_positive_negative"].append(base | {"conversations": _talk(*checks)})
        files["detail_description"].append(base | {"description": told})
        talk = _talk(
            "Where is <region1>?", f"The {labels[0]} in <region1> is drawn.", "Sure?", "Yes."
        )
        files["conversation"].append(base | {"conversations": talk})
    short_form, conversation = files["short_form"], files["conversation"]
    short_form[0]["annotation"] = [
        *short_form[0]["annotation"],
        {"segmentation": []},
    ]  # no polygon at all
    conversation[1]["conversations"][1]["value"] = (
        "The thing in region1 is drawn."  # a name without its tag
    )
    conversation[2]["conversations"][0]["value"] = "Where is <Region1]?"
    files["detail_description"][3]["description"][0] = "<regin 1>: A shape."
    files["part_level"][4]["conversations"][0]["value"] = "Colour of <region99>?"
    for name, records in files.items():
        _dump(root / f"osprey/osprey_{name}.json", records)


def write_sharegpt4v(root: Path, seed: int) -> None:
    drawn = _coco_pictures(root, seed)
    instances: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)],
    }
    records = []
    for number, picture in drawn.items():
        size = {"width": picture.image.width, "height": picture.image.height}
        name = _coco_name(number)
        instances["images"].append({"id": number, "file_name": f"{number:012d}.jpg"} | size)
        for row, item in enumerate(picture.objects):
            instances["annotations"].append(
                {
                    "id": number * 100 + row,
                    "image_id": number,
                    "category_id": CATEGORIES.index(item.label) + 1,
                    "bbox": _xywh(item.box),
                    "iscrowd": 0,
                }
            )
        seen = ", a ".join(item.label for item in picture.objects)
        asked = ("<image>\nDescribe it.", "What do you see?\n<image>")[number % 2]
        records.append(
            {"id": str(number), "image": name, "conversations": _talk(asked, f"I see a {seen}.")}
        )
    _dump(root / "coco/annotations/instances_train2017.json", instances)
    others = {
        "sam/images/sa_545504.jpg": jpeg,
        "llava/llava_pretrain/images/00453/004539375.jpg": png,
        "web-celebrity/images/someone_1.jpg": jpeg,
        "web-landmark/images/tower.png": palette,
        "wikiart/images/a_b_still-life.jpg": cmyk,
        "share_textvqa/images/0fc.jpg": rotated,
    }
    for number, (name, encode) in enumerate(others.items()):
        write(root / name, encode(scene(seed, 510 + number).image))
        talk = _talk("<image>\nDescribe it.", f"A drawing.\n\nIt is number {number}.")
        records.append({"id": Path(name).stem, "image": name, "conversations": talk})
    tagged = _talk("<image>\nDescribe it.", "A text that reads <|im_end|>.")
    records.append({"id": "0", "image": _coco_name(500), "conversations": tagged})
    _dump(root / "sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json", records)


_COT_PICTURES = {
    "cub": ("001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg", jpeg),
    "docvqa": ("xjpn0081_4.png", grey16),
    "dude": ("a49e6c043ac0a89b4b8f5573a20ccc5c_1.jpg", truncated),
    "infographicsvqa": ("37313.png", palette),
    "textcap": ("de16e970e8c0adbe.jpg", rotated),
    "visual7w": ("v7w_2359399.jpg", cmyk),
    "vsr": ("000000528832.jpg", jpeg),
}
_COT_FOLDERS = {"textcap": "textvqa", "visual7w": "v7w"}


def _padded(box: list[float], width: int, height: int) -> str:
    """Shares of the image padded to a square, as the authors' tool writes them."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x1, y1, x2, y2 = box
    shares = [(x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side]
    return "[" + ", ".join(f"{share:.3f}" for share in shares) + "]"


def write_visual_cot(root: Path, seed: int) -> None:
    mixed: list[Any] = []
    for position, (name, (picture, encode)) in enumerate(_COT_PICTURES.items()):
        drawn = scene(seed, 520 + position)
        width, height = drawn.image.size
        folder = _COT_FOLDERS.get(name, name)
        write(root / f"visual_cot/cot/{folder}/{picture}", encode(drawn.image))
        lines = []
        for item in drawn.objects:
            box = [value + 1e-13 for value in item.box]  # float noise, as in the files
            facts = {"width": width, "height": height, "dataset": name, "split": "train"}
            asked = {
                "question": f"Which colour has the {item.label.split()[1]}?",
                "answer": item.label.split()[0],
            }
            lines.append(asked | {"image": picture, "bboxs": [box]} | facts)
            mixed.append(
                _cot_conversation(f"cot/{folder}/{picture}", name, asked, box, (width, height))
            )
        if name == "dude":
            lines.append(lines[0] | {"bboxs": [[586, 4435, 1083, 4517]]})  # of another page
            lines.append(lines[0] | {"bboxs": [[10, 10, width + 50, height + 50]]})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(root / f"visual_cot/viscot_dataset/{name}_cot_train.jsonl", text)
    mixed.append(json.loads(json.dumps(mixed[0]).replace("_0009_34", "_none")))  # no such picture
    mixed.append(mixed[0] | {"split": "val"})
    for number, record in enumerate(mixed):
        record["question_id"] = number
    _dump(root / "visual_cot/viscot_363k.json", mixed)


def _cot_conversation(
    path: str, name: str, asked: dict[str, str], box: list[float], size: tuple[int, int]
) -> dict[str, Any]:
    whole = [int(value) for value in box]
    told = _padded(box, *size)
    return {
        "dataset": "v7w" if name == "visual7w" else name,
        "split": "train",
        "image": [path, f"{path}###{whole}"],
        "conversations": _talk(
            f"<image>\n{asked['question']} {BOX_REQUEST}", told, "<image>", asked["answer"]
        ),
    }


def write_vcr(root: Path, seed: int) -> None:
    lines: list[Any] = []
    for position in range(6):
        drawn = scene(seed, 540 + position)
        movie = f"lsmdc_{3000 + position // 2}_FILM"
        clip = f"{movie}/{movie}_00.23.5{position}.935-00.24.00.783@{position}"
        encode = {1: cmyk, 2: truncated, 3: rotated}.get(position, jpeg)
        write(root / f"vcr/vcr1images/{clip}.jpg", encode(drawn.image))
        names = [item.label for item in drawn.objects]
        boxes = [[*item.box, 0.5 + row / 100] for row, item in enumerate(drawn.objects)]
        if position == 4:
            names.append("person")
            boxes.append([400.0, 10.0, 420.0, 30.0, 0.3])  # beside the picture
        _dump(
            root / f"vcr/vcr1images/{clip}.json",
            {
                "boxes": boxes,
                "segms": [[] for _ in names],
                "names": names,
                "width": drawn.image.width,
                "height": drawn.image.height,
            },
        )
        last = len(drawn.objects) - 1
        questions = [
            (
                ["Is", [0], "near", [last], "?"] if last else ["Is", [0], "alone", "?"],
                f"Is 1 near {last + 1}?",
            ),
            (
                ["Do", "n't", "you", "see", "the", "t", "-", "square", "of", [last], "?"],
                "Don't you see?",
            ),
            (["What", "is", "everyone", "doing", "?"], "What is everyone doing?"),
        ]
        for question, original in questions:
            number = len(lines)
            wrong = [
                ["No", "."],
                ["It", "'s", "a", "trick", "."],
                ["Both", [0], "and", "none", "."],
            ]
            because = [list(range(min(3, last + 1))), "stand", "still", ",", "you", "see", "."]
            label = number % 4
            line = {
                "movie": movie,
                "objects": names,
                "interesting_scores": [0],
                "answer_likelihood": "possible",
                "img_fn": f"{clip}.jpg",
                "metadata_fn": f"{clip}.json",
                "question": question,
                "answer_choices": [*wrong[:label], ["Yes", ",", [0], "is", "."], *wrong[label:]],
                "answer_label": label,
                "rationale_choices": [*wrong[: 3 - label], because, *wrong[3 - label :]],
                "rationale_label": 3 - label,
                "question_orig": original,
                "img_id": f"train-{position}",
                "question_number": number % 3,
                "annot_id": f"train-{number}",
            }
            lines.append(line)
    lines[7]["question"] = ["Who", "is", [99], "?"]
    lines[8] |= {  # nobody is pointed at: a question about the whole picture
        "question": ["Is", "it", "late", "?"],
        "answer_choices": [["Yes", "."], ["No", "."], ["Maybe", "."], ["Always", "."]],
        "rationale_choices": [["It", "is", "dark", "."], *[["I", "do", "n't", "know", "."]] * 3],
        "rationale_label": 0,
    }
    write(root / "vcr/train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def write_mdvp(root: Path, seed: int) -> None:
    drawn = _coco_pictures(root, seed)
    elsewhere = "/mnt/petrelfs/someone/data"
    places: dict[str, Scene] = {}
    for number in (500, 501, 502, 504):
        places[f"{elsewhere}/coco/train2017/{number:012d}.jpg"] = drawn[number]
    places[f"{elsewhere}/COCO/train2014/COCO_train2014_000000000505.jpg"] = drawn[505]
    for number in (2410500, 2410501):  # the second lies in the other of the two folders
        picture = scene(seed, number)
        write(root / f"vg/VG_100K{'_2' * (number % 2)}/{number}.jpg", jpeg(picture.image))
        places[f"{elsewhere}/vg/VG_100K/{number}.jpg"] = picture
    for number, (name, encode) in enumerate(
        {"android/0.png": palette, "multipanel/1.png": png}.items()
    ):
        picture = scene(seed, 560 + number)
        write(root / f"mdvp/images/{name}", encode(picture.image))
        places[name] = picture
    questions, names = [], []
    for number, (path, picture) in enumerate(places.items()):
        boxes = [_xywh(item.box) for item in picture.objects]
        mark = "<Mark 1>" if number % 2 else "Region 1"
        label = picture.objects[0].label
        talk = _talk(
            f"<image>\nWhat is {mark}?", f"{mark} is a {label}.", "How many marks?", len(boxes)
        )
        questions.append({"image": path, "bbox": boxes, "conversations": talk})
        listed = "\n".join(
            f"Region {row}: {item.label}" for row, item in enumerate(picture.objects, 1)
        )
        talk = _talk("Please identify the labels of each marked region in the image.", listed)
        names.append({"image": path, "bbox": boxes, "conversations": talk})
    points = [item.box[:2] for item in picture.objects]
    talk = _talk("What is <Mark 1>?", "A shape.")
    questions.append({"image": "android/0.png", "points": points, "conversations": talk})
    names.append(names[0] | {"image": f"{elsewhere}/private/7.jpg"})
    _dump(root / "mdvp/stage_2_fine-tuning/MDVP-Data/natural_QA_box.json", questions)
    _dump(root / "mdvp/stage_2_fine-tuning/MDVP-Data/natural_recognition_box.json", names)


FORMATS = (
    Format(
        datasets=("osprey",),
        write=write_osprey,
        records={"osprey/*.json": "json"},
    ),
    Format(
        datasets=("sharegpt4v", "sharegpt4v_full_box", "sharegpt4v_grounded"),
        write=write_sharegpt4v,
        records={"sharegpt4v/*.json": "json", "coco/annotations/instances_train2017.json": "json"},
    ),
    Format(
        datasets=("visual_cot", "visual_cot_mixed"),
        write=write_visual_cot,
        records={
            "visual_cot/viscot_dataset/*.jsonl": "jsonl",
            "visual_cot/viscot_363k.json": "json",
        },
    ),
    Format(
        datasets=("vcr",),
        write=write_vcr,
        records={"vcr/train.jsonl": "jsonl", "vcr/vcr1images/*/*.json": "json"},
    ),
    Format(
        datasets=("mdvp",),
        write=write_mdvp,
        records={"mdvp/stage_2_fine-tuning/MDVP-Data/*.json": "json"},
    ),
)
