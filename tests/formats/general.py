"""TallyQA, LLaVA's mix665k, The Cauldron and CogVLM-SFT-311K over drawn scenes.

COCO ids 600 to 699, Visual Genome's 2410600 to 2410699.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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

THINGS = ("red circles", "shapes", "dogs")


def _drawn(root: Path, seed: int, name: str, number: int, encode: Any = jpeg) -> None:
    write(root / name, encode(scene(seed, number).image))


def _pictures(root: Path, seed: int) -> None:
    """The folders that the conversations share with other datasets."""
    for number in range(600, 606):
        _drawn(
            root,
            seed,
            f"coco/train2017/{number:012d}.jpg",
            number,
            rotated if number == 603 else jpeg,
        )
    _drawn(root, seed, f"coco/val2017/{650:012d}.jpg", 650)
    for number in (2410600, 2410601):
        _drawn(root, seed, f"vg/VG_100K/{number}.jpg", number, cmyk if number == 2410601 else jpeg)
    for number in (2410602, 2410603):
        _drawn(root, seed, f"vg/VG_100K_2/{number}.jpg", number)
    _drawn(root, seed, "gqa/images/2410610.jpg", 2410610)
    _drawn(root, seed, "ocr_vqa/images/140031996.jpg", 1, png)  # a PNG that was saved as .jpg
    _drawn(root, seed, "textvqa/train_images/0054c91397f2fe05.jpg", 2, truncated)


def write_tallyqa(root: Path, seed: int) -> None:
    _pictures(root, seed)

    def rows(images: list[str], *, simple: bool) -> list[dict[str, Any]]:
        listed = []
        for number, image in enumerate(images):
            row = {
                "answer": number % 4,
                "data_source": "imported_genome" if image.startswith("VG") else "imported_vqa",
                "image": image,
                "image_id": 92410408 + number,  # Visual Genome's ids are shifted: the path counts
                "question": f"How many {THINGS[number % 3]} are in the picture?",
                "question_id": 30_000 + number,
            }
            listed.append(row | ({"issimple": number % 2 == 0} if simple else {}))
        return listed

    train = [f"train2014/COCO_train2014_{number:012d}.jpg" for number in range(600, 606)]
    train += ["VG_100K/2410600.jpg", "VG_100K/2410601.jpg", "VG_100K_2/2410602.jpg"]
    train += ["train2014/COCO_train2014_000000000699.jpg"]  # no such picture
    write(root / "tallyqa/train.json", json.dumps(rows(train, simple=False)))
    test = ["val2014/COCO_val2014_000000000604.jpg", "val2014/COCO_val2014_000000000650.jpg"]
    test += ["VG_100K_2/2410603.jpg", "VG_100K_2/2410602.jpg", "VG_100K/2410600.jpg"]
    write(root / "tallyqa/test.json", json.dumps(rows(test, simple=True)))


def _talk(*values: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def write_llava(root: Path, seed: int) -> None:
    _pictures(root, seed)
    coco = "coco/train2017/000000000600.jpg"
    boxed = (
        "<image>\nPlease provide a short description for this region: [0.42, 0.3, 0.98, 1.0].",
        "a circle",
    )
    records: list[dict[str, Any]] = [
        {
            "id": "000000000600",
            "image": coco,
            "conversations": _talk("<image>\nWhat is it?", "A drawing."),
        },
        {
            "id": "000000000600",
            "image": coco,
            "conversations": _talk("How many?\n<image>", "Two.", "Sure?", "Yes."),
        },
        {
            "id": "000000000601",
            "image": "coco/train2017/000000000601.jpg",
            "conversations": _talk(*boxed),
        },
        {
            "id": "2410610",
            "image": "gqa/images/2410610.jpg",
            "conversations": _talk("<image>\nRed?", "no"),
        },
        {
            "id": "140031996",
            "image": "ocr_vqa/images/140031996.jpg",
            "conversations": _talk("<image>\nTitle?", "Ode"),
        },
        {
            "id": "0054c91397f2fe05",
            "image": "textvqa/train_images/0054c91397f2fe05.jpg",
            "conversations": _talk("<image>\nProvide a one-sentence caption.", "A sign."),
        },
        {
            "id": "2410603",
            "image": "vg/VG_100K_2/2410603.jpg",
            "conversations": _talk("<image>\nBlue?", "yes"),
        },
        {
            "id": "KnWVQHr_0",
            "conversations": _talk("Weights?", "Use [0.1, 0.2, 0.3, 0.4] for a start."),
        },
        {
            "id": "KnWVQHr_1",
            "model": "",
            "conversations": _talk("Sing.", "La.", "Again.", "La la."),
        },
        {"id": 17, "conversations": _talk("1 + 1?", "2")},
    ]
    write(root / "llava/llava_v1_5_mix665k.json", json.dumps(records, ensure_ascii=False))


def write_cauldron(root: Path, seed: int) -> None:
    encoders = (jpeg, png, palette, grey16, cmyk, truncated, jpeg, png)
    for subset, first in (("ai2d", 1400), ("vqav2", 1410)):
        rows = []
        for number, encode in enumerate(encoders):
            picture = {"bytes": encode(scene(seed, first + number).image), "path": None}
            several = number == 7 and subset == "ai2d"
            asked = {
                "user": "Question: Which shape is it?\nChoices:\nA: circle\nB: star",
                "source": subset,
            }
            texts = [asked | {"assistant": "Answer: A"}]
            texts += [{"user": "Sure?", "assistant": "Yes.", "source": subset}] * (number % 3)
            rows.append({"images": [picture] * (2 if several else 1), "texts": texts})
        path = root / f"cauldron/{subset}/train-00000-of-00001-{first:016x}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def write_cogvlm(root: Path, seed: int) -> None:
    folder = root / "cogvlm_sft"
    conversation = [
        {"role": "user", "content": "What can be inferred about the shapes?"},
        {"role": "assistant", "content": "They are drawn."},
    ]
    chinese = [
        {"role": "user", "content": "图中有几个形状"},
        {"role": "assistant", "content": "几个形状。"},
    ]

    def label(name: str, content: Any) -> None:
        write(folder / name, json.dumps(content, ensure_ascii=False))

    for number in range(1, 4):
        for place, first in (
            ("details-minigpt4_3500", 1500),
            ("instruction_multi_conversations", 1510),
        ):
            name = f"llava_{place}_formate"
            encode = {2: truncated, 3: cmyk}.get(number, jpeg)
            _drawn(folder, seed, f"{name}/images/{number:08d}.jpg", first + number, encode)
            if "details" in name:
                caption = {"role": "caption", "content": f"A drawing with shapes, number {number}."}
                label(f"{name}/labels/{number:08d}.json", {"captions": [caption]})
            else:
                label(f"{name}/labels_en/{number:08d}.json", {"conversations": conversation * 2})
                label(f"{name}/labels_zh/{number:08d}.json", {"conversations": chinese * 2})
    name = "llava_instruction_single_conversation_formate"
    _drawn(folder, seed, f"{name}/images/00000001.jpg", 1521)
    label(f"{name}/labels/00000001.json", {"conversations": conversation})
    label(f"{name}/labels/00000002.json", {"conversations": conversation})  # no such picture


def _write(root: Path, seed: int) -> None:
    write_tallyqa(root, seed)
    write_llava(root, seed)
    write_cauldron(root, seed)
    write_cogvlm(root, seed)


FORMATS = (
    Format(
        datasets=("tallyqa", "tallyqa_test", "llava_mix665k", "cauldron", "cogvlm_sft"),
        write=_write,
        records={
            "tallyqa/train.json": "json",
            "tallyqa/test.json": "json",
            "llava/llava_v1_5_mix665k.json": "json",
            "cauldron/*/*.parquet": "parquet",
            "cogvlm_sft/*/labels*/*.json": "json",
        },
    ),
)
