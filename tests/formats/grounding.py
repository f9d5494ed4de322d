"""GoldG, Flickr30k Entities, GRIT, Rexverse-2M and HumanRef-CoT over drawn scenes."""

import base64
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataset_builders.drawn_world.drawing import Scene

from .scenes import Format, cmyk, grey16, jpeg, palette, png, rotated, scene, truncated, write

COCO_FIRST, VG_FIRST, FLICKR_FIRST = 400, 2410400, 36979400
Boxes = list[tuple[float, float, float, float]]


def said(
    *pieces: str | tuple[str, Sequence[int]],
) -> tuple[str, list[tuple[int, int, Sequence[int]]]]:
    """A caption of pieces and (phrase, objects): its text; begin, end, objects of each phrase."""
    text, spans = "", []
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        else:
            spans.append((len(text), len(text) + len(piece[0]), piece[1]))
            text += piece[0]
    return text, spans


def xywh(box: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def full(seed: int, number: int, least: int = 3) -> Scene:
    """A scene with enough objects."""
    return next(
        drawn
        for k in range(1000)
        if len((drawn := scene(seed, number * 1000 + k)).objects) >= least
    )


class GoldG:
    """Collects captions in MDETR's form."""

    def __init__(self, *, text_sizes: bool = False) -> None:
        self.images: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []
        self.text_sizes = text_sizes

    def add(
        self,
        drawn: Scene,
        caption: str,
        spans: Sequence[tuple[int, int, Sequence[int]]],
        *,
        crowd: Sequence[int] = (),
        **fields: Any,
    ) -> None:
        number = len(self.images)
        width, height = drawn.image.size
        sizes = (
            {"width": str(width), "height": str(height)}
            if self.text_sizes
            else {"width": width, "height": height}
        )
        self.images.append(
            {
                "id": number,
                "caption": caption,
                "tokens_negative": [[0, len(caption)]],
                **sizes,
                **fields,
            }
        )
        for start, end, rows in spans:
            for row in rows:
                box = xywh(drawn.objects[row].box)
                self.box(number, box, [[start, end]], crowd=row in crowd)

    def box(
        self, image: int, box: list[float], tokens: list[list[int]], *, crowd: bool = False
    ) -> None:
        self.boxes.append(
            {
                "id": len(self.boxes) + 1,
                "image_id": image,
                "category_id": 1,
                "area": round(box[2] * box[3], 2),
                "iscrowd": int(crowd),
                "bbox": box,
                "tokens_positive": tokens,
            }
        )

    def write(self, path: Path, categories: list[dict[str, Any]]) -> None:
        content = {"info": [], "licenses": [], "images": self.images, "annotations": self.boxes}
        write(path, json.dumps({**content, "categories": categories}))


def _mixed_captions(file: GoldG, drawn: Scene, number: int, fields: dict[str, Any]) -> None:
    first, second, third = (item.label for item in drawn.objects[:3])
    text, spans = said(
        "😀 " if number % 2 else "",
        (f"the {first}", [0]),
        " stands here. ",
        (f"the {second}", [1]),
        "  next to ",
        ("it", [0]),
        ". ",
        (f"the {third} at the border", [2]),
        ". the thing. ",
    )
    file.add(drawn, text, spans, **fields)
    end = text.index("border") + len("border")
    start = end - len(f"{third} at the border")
    file.box(
        len(file.images) - 1, xywh(drawn.objects[2].box), [[start, start + len(third)]]
    )  # nested
    if number % 3 == 0:  # two spans one blank apart are one phrase, two far apart are two
        text, _ = said(f"some {first} beside {second}")
        file.add(drawn, text, [], **fields)
        image = len(file.images) - 1
        file.box(image, xywh(drawn.objects[0].box), [[0, 4], [5, 5 + len(first)]])
        tail = len(text) - len(second)
        file.box(
            image, xywh(drawn.objects[1].box), [[tail, len(text)], [5 + len(first) + 1, tail - 1]]
        )


def write_mixed(root: Path, seed: int) -> None:
    """Mixed GoldG twice: over GQA's images alone, and with images of COCO train2014 among them."""
    forms: dict[int, Callable[[Image.Image], bytes]] = {1: rotated, 2: cmyk, 4: truncated}
    alone, with_coco = GoldG(), GoldG()
    for number in range(8):
        drawn = full(seed, COCO_FIRST + number)
        name = f"{VG_FIRST + number}.jpg"
        write(root / "gqa/images" / name, forms.get(number, jpeg)(drawn.image))
        fields = {
            "file_name": name,
            "original_id": VG_FIRST + number,
            "data_source": "vg",
            "dataset_name": "mixed",
        }
        _mixed_captions(alone, drawn, number, fields)
        if number < 5:
            _mixed_captions(with_coco, drawn, number, fields)
    drawn = full(seed, COCO_FIRST)
    text, spans = said(("the crowd", [0]), " and ", (f"the {drawn.objects[1].label}", [1]))
    fields = {"file_name": f"{VG_FIRST}.jpg", "data_source": "vg", "dataset_name": "mixed"}
    alone.add(drawn, text, spans, crowd=[0], **fields)
    alone.box(len(alone.images) - 1, [5, 5, -3, 4], [[4, 9]])  # a side below zero
    for number in range(5):
        drawn = full(seed, COCO_FIRST + 50 + number)
        image_id = COCO_FIRST + number
        write(root / f"coco/train2017/{image_id:012d}.jpg", jpeg(drawn.image))
        fields = {
            "file_name": f"COCO_train2014_{image_id:012d}.jpg",
            "original_id": image_id,
            "data_source": "coco",
            "dataset_name": "mixed",
        }
        _mixed_captions(with_coco, drawn, number, fields)
    alone.write(root / "mdetr_annotations/final_mixed_train_no_coco.json", [])
    with_coco.write(root / "mdetr_annotations/final_mixed_train.json", [])


def write_flickr(root: Path, seed: int) -> None:
    """Flickr30k in MDETR's form (sizes as text) and as published, over the same pictures."""
    goldg = GoldG(text_sizes=True)
    entities = root / "flickr30k_entities"
    names = []
    for number in range(7):
        drawn = full(seed, FLICKR_FIRST + number)
        name = str(FLICKR_FIRST + number)
        names.append(name)
        if number != 6:  # one picture is not there
            write(
                root / f"flickr30k/flickr30k-images/{name}.jpg",
                (cmyk if number == 2 else jpeg)(drawn.image),
            )
        labels = [item.label for item in drawn.objects]
        chains = [number * 100 + row + 1 for row in range(len(labels))]
        one, two, three = (f"[/EN#{chain}/other" for chain in chains[:3])
        toys, ground = f"[/EN#{chains[1]}/other/toys", f"[/EN#{number}99/scene"
        lines = [
            f"{one} A {labels[0]}] is near {toys} a {labels[1]}] .",
            f"{one} The {labels[0]} of this picture] in [/EN#0/notvisual the middle] .",
            f"A naïve view of {three} one {labels[2]}] , on {ground} a ground] .",
            f"{one} A {labels[0]}] and {two} a {labels[1]}] .",
            f"{two} A {labels[1]} with a shade] .",
        ]
        write(entities / f"Sentences/{name}.txt", "\n".join(lines) + "\n")
        write(entities / f"Annotations/{name}.xml", _xml(drawn, name, chains, f"{number}99"))
        text, spans = said((f"A {labels[0]}", [0]), " is near ", (f"a {labels[1]}", [1]), " .")
        fields = {
            "file_name": f"{name}.jpg",
            "original_img_id": int(name),
            "dataset_name": "flickr",
        }
        for sentence in range(2):
            goldg.add(drawn, text, spans, sentence_id=sentence, tokens_positive_eval=[], **fields)
    write(entities / "train.txt", "\n".join(names) + "\n")
    write(entities / "UNRELATED_CAPTIONS", f"# format: <imageID> <sentence number>\n{names[1]} 5\n")
    categories = [{"supercategory": "object", "id": 1, "name": "object"}]
    goldg.write(root / "mdetr_annotations/final_flickr_separateGT_train.json", categories)


def _xml(drawn: Scene, name: str, chains: Sequence[int], scene_chain: str) -> str:
    width, height = drawn.image.size
    found = "".join(
        f"<object><name>{chain}</name><bndbox>"
        f"<xmin>{max(1, int(x1))}</xmin><ymin>{max(1, int(y1))}</ymin>"
        f"<xmax>{int(x2)}</xmax><ymax>{int(y2)}</ymax></bndbox></object>"
        for chain, ((x1, y1, x2, y2), *_) in zip(chains, drawn.objects, strict=True)
    )
    found += f"<object><name>{scene_chain}</name><scene>1</scene><nobndbox>0</nobndbox></object>"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{found}</annotation>"


def grit_record(drawn: Scene, number: int) -> dict[str, Any]:
    """A record of GRIT: noun chunks inside expressions, spans as floats, a box of low score."""
    width, height = drawn.image.size
    first, second = drawn.objects[0], drawn.objects[1]
    text, spans = said(
        "Café 😀: " if number % 2 else "",
        (f"a {first.label}", [0]),
        " in the shade and ",
        (f"a {second.label}", [1]),
    )

    def row(start: int, end: int, item: int, score: float) -> list[float]:
        x1, y1, x2, y2 = drawn.objects[item].box
        return [float(start), float(end), x1 / width, y1 / height, x2 / width, y2 / height, score]

    (start, end, _), (other, last, _) = spans
    return {
        "id": 1795296605900 + number,
        "url": f"https://example.org/{number}.jpg",
        "caption": text,
        "width": 9 * width,  # of the picture before it was made smaller
        "height": 9 * height,
        "clip_similarity_vitb32": 0.28,
        "clip_similarity_vitl14": 0.25,
        "noun_chunks": [row(start, end, 0, 0.9), row(other, last, 1, 0.7 if number else 0.5)],
        "ref_exps": [row(start, end + len(" in the shade"), 0, 0.9)],
    }


def write_grit(root: Path, seed: int) -> None:
    """Two shards of img2dataset, and a table beside a folder of pictures."""
    forms: dict[int, Callable[[Image.Image], bytes]] = {1: rotated, 3: cmyk, 5: truncated}
    for shard in range(2):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(6):
                drawn = full(seed, 700 + shard * 6 + number)
                key = f"{shard:05d}{number:04d}"
                record = {
                    **grit_record(drawn, number),
                    "key": key,
                    "status": "success",
                    "exif": "{}",
                }
                picture = forms.get(number, jpeg)(drawn.image) if shard == 0 else jpeg(drawn.image)
                members = {
                    "jpg": picture,
                    "txt": record["caption"].encode(),
                    "json": json.dumps(record).encode(),
                }
                for suffix, data in members.items():
                    if not (
                        shard and number == 5 and suffix == "json"
                    ):  # one record without its JSON
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        write(root / f"grit/{shard:05d}.tar", buffer.getvalue())
    rows = []
    for number in range(8):
        drawn = full(seed, 720 + number)
        key = f"00000{number:04d}"
        rows.append({**grit_record(drawn, number), "key": key, "status": "success"})
        if number == 6:
            rows[-1]["status"] = "failed_to_download"
        elif number != 7:  # one picture was lost later
            write(
                root / f"grit/images/00000/{key}.jpg", (cmyk if number == 2 else jpeg)(drawn.image)
            )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=3)
    write(root / "grit/metadata/00000.parquet", buffer.getvalue())


def image_tsv(pictures: Sequence[bytes], *, wrapped: Sequence[int] = ()) -> tuple[bytes, list[int]]:
    """An image TSV and the byte of each line. wrapped: lines whose base64 stands in b'...'."""
    content, offsets = b"", []
    for number, picture in enumerate(pictures):
        cell = base64.b64encode(picture)
        offsets.append(len(content))
        content += b"%d\t%s\n" % (number, b"b'" + cell + b"'" if number in wrapped else cell)
    return content, offsets


def annotation_tsv(rows: Sequence[tuple[int, Any]]) -> tuple[bytes, str]:
    """An annotation TSV of (byte of the picture, JSON), and its index."""
    content, index = b"", ""
    for offset, record in rows:
        index += f"{len(content)}\n"
        content += f"{offset}\t{json.dumps(record, ensure_ascii=False)}\n".encode()
    return content, index


def write_rexverse(root: Path, seed: int) -> None:
    """An image TSV cut into three parts in the middle of lines; annotations in another order."""
    scenes = [full(seed, 740 + number) for number in range(8)]
    forms: dict[int, Callable[[Image.Image], bytes]] = {
        1: rotated,
        2: cmyk,
        3: grey16,
        4: palette,
        5: truncated,
    }
    pictures = [forms.get(number, png)(drawn.image) for number, drawn in enumerate(scenes)]
    content, offsets = image_tsv(pictures, wrapped=(2, 6))
    cuts = [0, offsets[2] + 700, offsets[6], len(content)]
    for part, (start, end) in enumerate(pairwise(cuts)):
        write(root / f"rexverse/0_500000_image_part_{part}.tsv", content[start:end])
    write(
        root / "rexverse/0_500000_image.tsv.lineidx", "".join(f"{offset}\n" for offset in offsets)
    )
    order = list(range(8))
    random.Random(seed).shuffle(order)
    told = {
        "one_sentence.annotation": "A {} is drawn here.",
        "referring.annotations": "the {} of box {}",
    }
    for name, wording in told.items():
        rows: list[tuple[int, Any]] = []
        for number in order:
            boxes = [
                {
                    "bbox": [round(value, 1) for value in item.box],
                    "phrase": wording.format(item.label, row),
                }
                for row, item in enumerate(scenes[number].objects)
            ]
            rows.append((offsets[number], {"boxes": boxes}))
        rows[-1][1]["boxes"].append({"bbox": [1, 2, float("nan"), 4], "phrase": "nothing"})
        lines, index = annotation_tsv(rows)
        write(root / f"rexverse/0_500000_{name}.tsv", lines)
        write(root / f"rexverse/0_500000_{name}.tsv.lineidx", index)


def think(expression: str, chosen: Sequence[int], number: int) -> str:
    """A reasoning as Rex-Thinker's: steps, then a verdict on every person, counted from 1."""
    persons = ", ".join(f"Person {k + 1}" for k in range(number))
    lines = [
        f"OK, the user needs us to detect {expression}. I break it down into steps:",
        "- Step 1: Look at every person.",
        "",
        "# Step 1: Look at every person",
        f"I see {number} people, from left to right [{persons}].",
        "",
        "# Summarize and Re-Check answer",
        (
            "Let's now recheck our answer and put ✅ for the target person, "
            "❌ for others and ⚠️ for doubts"
        ),
    ]
    lines += [
        f"- Person {k + 1}: he {'fits → ✅' if k in chosen else 'differs → ❌'}"
        for k in range(number)
    ]
    return "\n".join(lines)


def write_humanref(root: Path, seed: int) -> None:
    """Both files: expressions that fit somebody, or nobody; one text of each differs in answer."""
    for name, rejects in (("humanref_cot", False), ("humanref_cot_rejection", True)):
        scenes = [full(seed, 760 + 20 * rejects + number) for number in range(8)]
        forms: dict[int, Callable[[Image.Image], bytes]] = {1: rotated, 2: cmyk, 5: truncated}
        pictures = [forms.get(number, jpeg)(drawn.image) for number, drawn in enumerate(scenes)]
        content, offsets = image_tsv(pictures, wrapped=(1,))
        rows = []
        for number, drawn in enumerate(scenes):
            count = len(drawn.objects)
            first = drawn.objects[0].label
            chosen = [] if rejects else [k for k in range(count) if drawn.objects[k].label == first]
            expression = "the person who flies" if rejects else f"the person like a {first}"
            wrong = [1] if chosen != [1] else [0]
            text = think(expression, wrong if number == 7 else chosen, count)
            boxes = [xywh(item.box) for item in drawn.objects]
            rows.append(
                (
                    offsets[number],
                    {"gt_boxes": boxes, "region_map": {expression: chosen}, "think": text},
                )
            )
        lines, index = annotation_tsv(rows[::-1])
        folder = root / "humanref_cot"
        write(folder / f"{name}.images.tsv", content)
        write(folder / f"{name}.images.tsv.lineidx", "".join(f"{offset}\n" for offset in offsets))
        write(folder / f"{name}.annotations.tsv", lines)
        write(folder / f"{name}.annotations.tsv.lineidx", index)


FORMATS = (
    Format(
        datasets=("goldg_mixed", "goldg_mixed_coco"),
        write=write_mixed,
        records={"mdetr_annotations/final_mixed_train*.json": "json"},
    ),
    Format(
        datasets=("goldg_flickr", "flickr30k_entities"),
        write=write_flickr,
        records={
            "mdetr_annotations/final_flickr_separateGT_train.json": "json",
            "flickr30k_entities/Sentences/*.txt": "text",
            "flickr30k_entities/Annotations/*.xml": "text",
            "flickr30k_entities/train.txt": "text",
        },
    ),
    Format(
        datasets=("grit", "grit_metadata"),
        write=write_grit,
        records={"grit/*.tar": "tar", "grit/metadata/*.parquet": "parquet"},
    ),
    Format(
        datasets=("rexverse",),
        write=write_rexverse,
        records={
            "rexverse/0_500000_one_sentence.annotation.tsv": "tsv",
            "rexverse/0_500000_referring.annotations.tsv": "tsv",
        },
    ),
    Format(
        datasets=("humanref_cot", "humanref_cot_rejection"),
        write=write_humanref,
        records={"humanref_cot/*.annotations.tsv": "tsv"},
    ),
)
