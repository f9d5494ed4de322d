"""MLT2019, ICDAR2015, CurvedSynText150k, WildReceipt: drawn scenes with a word on every shape."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.formats.scenes import (
    Format,
    cmyk,
    grey16,
    jpeg,
    palette,
    png,
    rotated,
    scene,
    truncated,
    write,
)

Box = tuple[float, float, float, float]
_WORDS = ("EXIT", "Genaxis Theatre", "10, Downing St", 'the "Crown"', "£5", "Push")
_SCRIPTS = (
    ("Arabic", "شارع الملك, ١٢"),
    ("Chinese", "出口"),
    ("Japanese", "駅 入口"),
    ("Korean", "서울"),
    ("Bangla", "ঢাকা"),
    ("Hindi", "क्ष\u200dत्रिय"),  # a zero-width joiner belongs to the word
    ("Latin", "Café, Bar"),
    ("Symbols", "→"),
    ("Mixed", "KTV 歌"),
)


def _page(seed: int, number: int) -> tuple[Image.Image, list[Box]]:
    """A scene with words painted on, and the boxes of its shapes, moved apart."""
    drawn = scene(seed, number)
    image = drawn.image.copy()
    boxes: list[Box] = []
    for item in drawn.objects:
        x1, y1, x2, y2 = (float(round(value)) for value in item.box)
        ImageDraw.Draw(image).text((x1 + 2, (y1 + y2) / 2 - 5), _WORDS[0], fill=(255, 255, 255))
        boxes.append((x1, y1, max(x2, x1 + 8), max(y2, y1 + 8)))
    return image, boxes


def _quad(box: Box, *, slant: float = 0.0) -> list[int]:
    """Corners clockwise from the top left; slanted inside the box."""
    x1, y1, x2, y2 = box
    dx, dy = slant * (x2 - x1), slant * (y2 - y1)
    corners = (x1 + dx, y1, x2, y1 + dy, x2 - dx, y2, x1, y2 - dy)
    return [int(value) for value in corners]


def _line(*fields: Any) -> str:
    return ",".join(str(field) for field in fields)


def _gif(image: Image.Image) -> bytes:
    """Two frames with a palette."""
    buffer = io.BytesIO()
    second = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(buffer, "GIF", save_all=True, append_images=[second], duration=100)
    return buffer.getvalue()


def write_mlt2019(root: Path, seed: int) -> None:
    encoders: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
        ("ImagesPart1/tr_img_00001.jpg", jpeg),
        ("ImagesPart1/tr_img_00002.png", palette),
        ("ImagesPart1/tr_img_00003.gif", _gif),
        ("ImagesPart1/tr_img_00004.jpg", cmyk),
        ("ImagesPart2/tr_img_05001.jpg", rotated),
        ("ImagesPart2/tr_img_05002.png", grey16),
        ("ImagesPart2/tr_img_05003.jpg", truncated),
    )
    word = 0
    for number, (name, encode) in enumerate(encoders):
        image, boxes = _page(seed, 1000 + number)
        write(root / "mlt2019" / name, encode(image))
        lines = []
        for box in boxes:
            lines.append(
                _line(*_quad(box, slant=0.2 * (number % 2)), *_SCRIPTS[word % len(_SCRIPTS)])
            )
            word += 1
        lines.append(_line(*_quad((1, 1, 12, 9)), "None", "###"))
        if number == 0:
            lines.append("5,5,30,5,30,15,5,15,###")  # the form of ICDAR2015: no script
            said = "\u202eمرحبا"  # noqa: RUF001
            lines.append(_line(*_quad((20, 1, 40, 9)), "Arabic", said))
        mark, end = ("\ufeff", "\r\n") if number % 2 else ("", "\n")
        text = mark + end.join(lines) + end
        write(root / "mlt2019/train_gt_t13" / f"{Path(name).stem}.txt", text.encode())
    write(
        root / "mlt2019/train_gt_t13/tr_img_09999.txt", "1,1,9,1,9,9,1,9,Latin,lost\n"
    )  # no such picture


def write_icdar2015(root: Path, seed: int) -> None:
    truth = root / "icdar2015/ch4_training_localization_transcription_gt"
    for number in range(1, 7):
        image, boxes = _page(seed, 1100 + number)
        encode = truncated if number == 6 else jpeg
        write(root / f"icdar2015/ch4_training_images/img_{number}.jpg", encode(image))
        lines = [_line(*_quad(box), _WORDS[(row + number) % 6]) for row, box in enumerate(boxes)]
        lines += [_line(*_quad((2 + 20 * row, 2, 18 + 20 * row, 10)), "###") for row in range(3)]
        if number == 2:
            lines.append("5,5,5,5,5,5,5,5,dot")  # no area
        write(truth / f"gt_img_{number}.txt", ("\ufeff" + "\r\n".join(lines) + "\r\n").encode())


def _bezier(box: Box) -> list[float]:
    """Two arcs that touch top and bottom of the box; the middle control points lie beyond it."""
    x1, y1, x2, y2 = box
    rise = (y2 - y1) / 3
    third, two = x1 + (x2 - x1) / 3, x2 - (x2 - x1) / 3
    top, bottom = y1 + rise, y2
    upper = (x1, top, third, top - 4 * rise / 3, two, top - 4 * rise / 3, x2, top)
    return [
        *upper,
        x2,
        bottom,
        two,
        bottom - 4 * rise / 3,
        third,
        bottom - 4 * rise / 3,
        x1,
        bottom,
    ]


def _codes(text: str, length: int) -> list[int]:
    return [ord(character) - 32 for character in text] + [96] * (length - len(text))


def write_syntext(root: Path, seed: int, *, version: int) -> None:
    length = 25 if version == 1 else 100
    images, annotations = [], []
    for number in range(7):
        image, boxes = _page(seed, 1200 + 10 * version + number)
        name = f"{number:07d}.jpg"
        encode = {1: cmyk, 2: png, 3: truncated}.get(number, jpeg)
        write(root / f"syntext{version}/images/{name}", encode(image))
        images.append(
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
        )
        for box in boxes:
            text = ("Genaxis", "the", "~{}|", "A b")[len(annotations) % 4]
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "bezier_pts": _bezier(box),
                    "rec": _codes(text, length),
                }
            )
    annotations[0]["rec"] = [39, 95, *[96] * (length - 2)]  # a character that the alphabet lacks
    annotations[1]["bezier_pts"] = annotations[1]["bezier_pts"][:8]  # one curve only
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "text"}],
    }
    write(root / f"syntext{version}/annotations/train.json", json.dumps(content))


def write_wildreceipt(root: Path, seed: int) -> None:
    lines = []
    for number in range(6):
        image, boxes = _page(seed, 1300 + number)
        name = f"image_files/Image_{number}/{seed}/receipt{number}.jpeg"
        encode = {1: rotated, 2: cmyk, 3: truncated}.get(number, jpeg)
        write(root / "wildreceipt" / name, encode(image))
        annotations = []
        for row, box in enumerate(boxes):
            x1, y1, x2, y2 = box
            corners = [x1, y2, x2, y2, x2, y1, x1, y1]  # from the bottom left, as in the real file
            annotations.append(
                {"box": corners, "text": ("$5.00", "TOTAL", "1OIY")[row % 3], "label": row % 26}
            )
        annotations.append(
            {"box": [1.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0], "text": "", "label": 0}
        )
        if number == 4:
            annotations.append({"box": [20.0, 9.0, 30.0, 9.0], "text": "half", "label": 25})
        lines.append(
            {
                "file_name": name,
                "height": image.height,
                "width": image.width,
                "annotations": annotations,
            }
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write(root / "wildreceipt/train.txt", text)


def _write(root: Path, seed: int) -> None:
    write_mlt2019(root, seed)
    write_icdar2015(root, seed)
    write_syntext(root, seed, version=1)
    write_syntext(root, seed, version=2)
    write_wildreceipt(root, seed)


FORMATS = (
    Format(
        datasets=("mlt2019", "icdar2015", "curved_syntext1", "curved_syntext2", "wildreceipt"),
        write=_write,
        records={
            "mlt2019/train_gt_t13/*.txt": "text",
            "icdar2015/ch4_training_localization_transcription_gt/*.txt": "text",
            "syntext1/annotations/train.json": "json",
            "syntext2/annotations/train.json": "json",
            "wildreceipt/train.txt": "jsonl",
        },
    ),
)
