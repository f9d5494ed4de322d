"""Visual-CoT: questions with the box of the region that helps to answer them.

Two forms of the same data, over the same image folders:

- ``viscot_dataset/*_cot_train.jsonl``: a line a question, boxes in pixels (xyxy).
- ``viscot_363k.json``: conversations, where the crop stands behind "###" in pixels, and in the text
  as shares of the image padded to a square: the pixels are used, and the text must agree with them.

Each question becomes one sample (reasoning). Half of them answer in steps, as in the paper's figure
11; half think first, as the release's template asks. Their objects are the boxes of their own
question; other questions about the image have others.

Source: https://github.com/deepcs233/Visual-CoT (tools/convert_data_to_llava_format.py).
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import folder_source
from dataset_builders.images import check_uri
from dataset_builders.readers.coco_images import MAX_IMAGE_SIDE
from dataset_builders.readers.conversations import (
    IMAGE_MARKER,
    check_usable,
    read_turns,
    stream_records,
)
from dataset_builders.readers.json_lines import opened, stream_lines
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.prompts import (
    conversation,
    question,
    steps_answer,
    thought_answer,
)
from dataset_builders.validation import check_text

LINES, MIXED = "visual_cot", "visual_cot_mixed"
LINE_FILES = "visual_cot/viscot_dataset/*_cot_train.jsonl"
MIXED_FILE = "visual_cot/viscot_363k.json"
IMAGES = folder_source("visual_cot", "visual_cot/cot", num_buckets=128)
EVIDENCE = "evidence"
"""Label of every box: the files name none."""
BOX_REQUEST = (
    "Please provide the bounding box coordinate of the region that can help you answer "
    "the question better."
)
"""Ends every question of the conversations; our own wording asks for regions instead."""
_FOLDERS: dict[str, tuple[str, ...]] = {
    "textcap": ("textvqa",),
    "visual7w": ("visual7w", "v7w"),
    "v7w": ("v7w", "visual7w"),
}
"""Folders below cot/ where a set's images may lie, when not under its own name."""
_TAG = re.compile(r"<\s*/?\s*(?:think|answer)\s*>", re.IGNORECASE)
# the text rounds to 3 digits, the pixels drop their fraction: holds for all 10,917 rows of
# viscot_benchmark
_SLACK_SHARE, _SLACK_PX = 0.0006, 1.1

Box = tuple[float, float, float, float]
"""xyxy: in pixels, or as shares of the padded square where told in the text."""


def build_lines(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield a sample for each line of the JSONL files, the rejects, and the ledger last.

    Raises:
        SettingError: A file is not of its form.
    """
    counter = RecordCounter()
    for file in folders.matches(LINE_FILES):
        own, guard = RecordCounter(), BoxGuard("xyxy", source=file)
        for name, value in stream_lines(folders.path(file)):
            yield from _line(name, value, folders, options, own, guard)
        guard.check()
        check_usable(
            own, file, wanted="question, answer, image, width, height, bboxs, dataset and split"
        )
        counter.add(own)
    yield counter.ledger()


def build_mixed(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield a sample for each conversation of viscot_363k.json, the rejects, and the ledger last.

    Raises:
        SettingError: The file is not of its form.
    """
    counter, guard = RecordCounter(), BoxGuard("xyxy", source=MIXED_FILE)
    for name, record in stream_records(folders.path(MIXED_FILE)):
        yield from _mixed(name, record, folders, options, counter, guard)
    guard.check()
    check_usable(
        counter, MIXED_FILE, wanted="dataset, split, image and conversations of four messages"
    )
    yield counter.ledger()


def _line(
    name: str,
    value: Any,
    folders: DataFolders,
    options: BuildOptions,
    counter: RecordCounter,
    guard: BoxGuard,
) -> Iterator[Item]:
    try:
        record = opened(value)
        _check_split(record)
        uri = _uri(f"cot/{_text(record, 'dataset')}/{_text(record, 'image')}", folders)
        width, height = (whole_number(get(record, side), what=side) for side in ("width", "height"))
        if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
            raise BadRecord("bad_size", f"{width}x{height}")
        ref = IMAGES.ref(IMAGES.id_of(uri), uri, width, height)
        asked, answer = _text(record, "question"), _text(record, "answer")
        boxes = get(record, "bboxs")
        if not isinstance(boxes, list):
            raise BadRecord("malformed", f"bboxs is {type(boxes).__name__}, not a list")
    except BadRecord as error:
        yield counter.reject(name, error)
        return
    yield from _answered(name, ref, boxes, (asked, answer), LINES, options, counter, guard)


def _mixed(
    name: str,
    record: Any,
    folders: DataFolders,
    options: BuildOptions,
    counter: RecordCounter,
    guard: BoxGuard,
) -> Iterator[Item]:
    try:
        _check_split(record)
        path, box = _crop(record)
        (asked, answer), told = _told(record)
        ref = IMAGES.open(folders, _uri(path, folders))
        _check_told(told, box, ref.width, ref.height)
    except BadRecord as error:
        yield counter.reject(name, error)
        return
    yield from _answered(name, ref, [list(box)], (asked, answer), MIXED, options, counter, guard)


def _answered(
    name: str,
    ref: ImageRef,
    boxes: list[Any],
    said: tuple[str, str],
    dataset: str,
    options: BuildOptions,
    counter: RecordCounter,
    guard: BoxGuard,
) -> Iterator[Item]:
    """Yield the rejects of a question's boxes, then its sample or its own reject."""
    objects: list[Object] = []
    for position, stored in enumerate(boxes):
        try:
            corners = four_numbers(stored, what="box")
            guard.look(corners, ref.width, ref.height)
            objects.append(Object(box=clean_box(corners, ref.width, ref.height), label=EVIDENCE))
        except BadRecord as error:
            yield counter.reject(f"{name}/bboxs/{position}", error, "box")
    counter.use("box", len(objects))
    facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(range(len(objects))))
    number = name.replace("/", ".")
    yield from counter.record(name, lambda: [_sample(facts, said, dataset, number, options)])


def _sample(
    facts: ImageFacts, said: tuple[str, str], dataset: str, number: str, options: BuildOptions
) -> Sample:
    asked, answer = (
        check_text(text, what=what) for text, what in zip(said, ("question", "answer"), strict=True)
    )
    if found := _TAG.search(asked) or _TAG.search(answer):
        raise BadRecord("unsafe_text", f"holds {found.group()!a}")
    if not facts.objects:
        raise BadRecord("unknown_object", "no usable box")
    rows = tuple(range(len(facts.objects)))
    if len(rows) > options.max_objects:
        raise BadRecord("too_many_regions", f"{len(rows)} boxes, budget {options.max_objects}")
    seed = seed_of(options.seed, dataset, number)
    steps = seed // 2**32 % 2 == 0  # other bits than those that choose the wording
    wording = "reasoning_steps" if steps else "reasoning"
    asked_parts = question(wording, asked, seed=seed, paraphrases=options.paraphrases)
    answered = steps_answer(rows, answer)
    if not steps:
        answered = thought_answer((*answered[:2], Part(".")), (Part(answer),))
    turns = conversation(asked_parts, answered)
    return facts.sample(dataset=dataset, task="reasoning", number=number, turns=turns)


def _check_split(record: Any) -> None:
    if (split := get(record, "split")) != "train":
        raise BadRecord("benchmark_image", f"split is {str(split)[:40]!a}, not 'train'")


def _text(record: Any, field: str) -> str:
    value = get(record, field)
    if not isinstance(value, str):
        raise BadRecord("malformed", f"{field} is {type(value).__name__}, not text")
    return " ".join(value.split())


def _uri(path: str, folders: DataFolders) -> str:
    """Return the uri of an image by its path cot/SET/NAME, in the set's folder that is there."""
    check_uri(path)
    top, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if top != "cot" or not file:
        raise BadRecord("unknown_image", f"{path[:160]!a} is not cot/SET/NAME")
    places = _FOLDERS.get(name, (name,))
    if len(places) > 1:
        places = tuple(p for p in places if folders.path(f"visual_cot/cot/{p}").is_dir()) or places
    return f"visual_cot/cot/{places[0]}/{file}"


def _crop(record: Any) -> tuple[str, Box]:
    """Return path and box of ["cot/gqa/1.jpg", "cot/gqa/1.jpg###[217, 343, 242, 393]"], pixels."""
    images = get(record, "image")
    if (
        not isinstance(images, list)
        or len(images) != 2
        or not all(isinstance(p, str) for p in images)
    ):
        raise BadRecord("malformed", "image is not a path and the path of a crop")
    path, mark, crop = images[1].partition("###")
    if not mark:
        raise BadRecord("malformed", f"no ### in {images[1][:160]!a}")
    if path != images[0]:
        raise BadRecord("several_images", f"a crop of {path[:160]!a} for {images[0][:160]!a}")
    return path, _numbers(crop, "crop")


def _told(record: Any) -> tuple[tuple[str, str], Box]:
    """Return (question without the request for a box, answer), and the box as the text has it."""
    messages = get(record, "conversations")
    if not isinstance(messages, list) or len(messages) != 4:
        raise BadRecord("malformed", "conversations are not four messages")
    if get(messages[2], "from") != "human" or get(messages[2], "value") != IMAGE_MARKER:
        raise BadRecord("malformed", f"third message is not the crop's {IMAGE_MARKER}")
    told = get(messages[1], "value")
    if get(messages[1], "from") != "gpt" or not isinstance(told, str):
        raise BadRecord("malformed", "second message is no text of the assistant")
    (_, asked), (_, answer) = read_turns({"conversations": [messages[0], messages[3]]})
    if not asked.endswith(BOX_REQUEST):
        raise BadRecord(
            "malformed", f"the question does not end with the request for a box: {asked[-80:]!a}"
        )
    return (asked.removesuffix(BOX_REQUEST).strip(), answer), _numbers(told, "box in the text")


def _numbers(text: str, what: str) -> Box:
    try:
        value = json.loads(text[:200])
    except (ValueError, RecursionError) as error:
        raise BadRecord("malformed", f"{what} {text[:80]!a} is not JSON") from error
    return four_numbers(value, what=what)


def _check_told(told: Box, box: Box, width: int, height: int) -> None:
    """Hold the box in pixels to the shares of the padded square.

    Raises:
        BadRecord: contradiction, when they differ by more than rounding.
    """
    side = max(width, height)
    pads = ((side - width) // 2, (side - height) // 2) * 2
    errors = [
        abs(share * side - pixel - pad) for share, pixel, pad in zip(told, box, pads, strict=True)
    ]
    agree = all(error <= _SLACK_SHARE * side + _SLACK_PX for error in errors)  # never true of NaN
    if not agree and all(map(math.isfinite, box)):
        raise BadRecord("contradiction", f"text says {told}, crop {box} of {width}x{height}")


_FACTS: dict[str, Any] = {
    "images": (IMAGES,),
    "tasks": ("reasoning",),
    "licence": "code Apache-2.0; data under the licences of its thirteen sources",
    "source": "https://huggingface.co/datasets/deepcs233/Visual-CoT",
}
_LAYOUT = (
    "visual_cot/cot/SET/   images: cub, docvqa, dude, flickr30k, gqa, infographicsvqa,\n"
    "                      openimages, sroie, textvqa (also those of textcap), visual7w or v7w, vsr"
)

DATASETS = (
    DatasetSpec(
        name=LINES,
        build=build_lines,
        files=(LINE_FILES,),
        stages=(2,),
        layout=f"{LINE_FILES}   a question a line\n{_LAYOUT}",
        num_samples=438_000,
        **_FACTS,
    ),
    DatasetSpec(
        name=MIXED,
        build=build_mixed,
        files=(MIXED_FILE,),
        layout=f"{MIXED_FILE}   the same as conversations\n{_LAYOUT}",
        num_samples=363_000,
        **_FACTS,
    ),
)
