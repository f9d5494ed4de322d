"""MDVP-Data of Draw-and-Understand: conversations about boxes drawn into an image.

Files are arrays of ``{image, conversations, bbox: [[x, y, w, h], ...] | points}``. Each
conversation becomes one sample (region_qa). A text names the K-th box "Region K" or "<Mark K>",
counted from 1. A conversation whose user names no box is about all of them: they are put in front
of its first question. ``image`` is a path on the authors' machine; its end, from the folder of a
public dataset on, is looked for here; a relative path is looked for below mdvp/images.

Only ``stage_2_fine-tuning/MDVP-Data`` is read: the other folders of stage 2 pack VCR, Osprey, GRIT
and ShareGPT4V anew, and stage 1 holds sets of the kind that benchmarks are made of.

Source: https://github.com/AFeng-x/Draw-and-Understand (accessory/data/conversation/dataset.py,
transforms.py).
"""

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction import vcr
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import (
    COCO_TRAIN,
    FLICKR30K,
    GQA,
    VISUAL_GENOME,
    coco_id,
    coco_uri,
    folder_source,
    source_of,
)
from dataset_builders.images import check_uri
from dataset_builders.readers.conversations import check_usable, read_turns, stream_records
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Sample, Turn
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.mentions import mention_parts, named_rows

NAME, FILES = "mdvp", "mdvp/stage_2_fine-tuning/MDVP-Data/*.json"
OWN_IMAGES = folder_source("mdvp", "mdvp/images", num_buckets=64)
SOURCES = (COCO_TRAIN, VISUAL_GENOME, GQA, FLICKR30K, vcr.IMAGES, OWN_IMAGES)
COCO_FOLDERS = frozenset({"train2014", "train2017", "val2014", "val2017"})
"""Folders of COCO in a path: an image of any year is looked for in train2017, by its id."""
FOLDERS = {
    # the authors merge Visual Genome's two folders, so the one that a path names says nothing
    "VG_100K": ("vg/VG_100K", "vg/VG_100K_2"),
    "VG_100K_2": ("vg/VG_100K_2", "vg/VG_100K"),
    "flickr30k-images": ("flickr30k/flickr30k-images",),
    "flickr30k_images": ("flickr30k/flickr30k-images",),
    "vcr1images": (vcr.FOLDER,),
    "gqa": ("gqa", "gqa/images"),
}
"""Folder in a path of the authors -> where its images lie here, the first that has the image."""
MARKED = "marked region"
"""Label of every box: the files name none."""
_MENTION = re.compile(
    r"<\s*(?:region|mark)\s*(\d{1,4})\s*>|\b(?:region|mark)\s+(\d{1,4})\b", re.IGNORECASE
)
# "Regions 1 and 2", "Region 1-3", "Region1" mean boxes too, but which?
_RESIDUE = re.compile(r"\b(?:regions|marks)\s*\d|\b(?:region|mark)\d", re.IGNORECASE)
_GOES_ON = re.compile(r"\s*(?:,|and|or|to|&|-)\s*\d+\b(?!\.\d)", re.IGNORECASE)


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield a sample for each conversation, the rejects, and the ledger last.

    Raises:
        SettingError: A file is not of its form.
    """
    counter = RecordCounter()
    for file in folders.matches(FILES):
        # a counter a file: one of which nothing is usable must not hide behind the others
        own, guard = RecordCounter(), BoxGuard("xywh", source=file)
        for position, (name, record) in enumerate(stream_records(folders.path(file))):
            number = f"{PurePosixPath(file).stem}.{position}"
            yield from _conversation(name, number, record, folders, options, own, guard)
        guard.check()
        check_usable(own, file, wanted="image, conversations and bbox")
        counter.add(own)
    yield counter.ledger()


def _conversation(
    name: str,
    number: str,
    record: Any,
    folders: DataFolders,
    options: BuildOptions,
    counter: RecordCounter,
    guard: BoxGuard,
) -> Iterator[Item]:
    try:
        stored = _boxes(record)
        told = read_turns(_cast(record))
        ref = _open(get(record, "image"), folders)
    except BadRecord as error:
        yield counter.reject(name, error)
        return
    objects, ids = [], []
    for position, values in enumerate(stored):
        try:
            box = four_numbers(values, what="bbox")
            guard.look(box, ref.width, ref.height)
            corners = clean_box(xywh_to_xyxy(box), ref.width, ref.height)
            objects.append(Object(box=corners, label=MARKED))
            ids.append(position)
        except BadRecord as error:
            yield counter.reject(f"{name}/bbox/{position}", error, "box")
    counter.use("box", len(objects))
    facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(ids))

    def make() -> Iterator[Sample]:
        turns = _turns(told, facts, len(stored))
        named = named_rows(*(turn.parts for turn in turns))
        if len(named) > options.max_objects:
            raise BadRecord(
                "too_many_regions", f"{len(named)} regions, budget {options.max_objects}"
            )
        yield facts.sample(dataset=NAME, task="region_qa", number=number, turns=turns)

    yield from counter.record(name, make)


def _boxes(record: Any) -> list[Any]:
    if isinstance(record, dict) and record.get("points"):
        raise BadRecord("unsupported", "points in place of boxes")
    stored = get(record, "bbox")
    if not isinstance(stored, list) or not stored:
        raise BadRecord("malformed", f"bbox is {str(stored)[:80]!r}, not a list of boxes")
    return stored


def _cast(record: Any) -> Any:
    """Return the conversations with numbers as text, as the authors' loader makes them.

    Anything else stays as it is, to be judged by `read_turns`.
    """
    messages = get(record, "conversations")
    if not isinstance(messages, list):
        return record
    return {"conversations": [_cast_message(message) for message in messages]}


def _cast_message(message: Any) -> Any:
    value = message.get("value") if isinstance(message, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return message
    if isinstance(value, float) and not math.isfinite(value):
        return message
    return {**message, "value": str(value)}


def _turns(told: list[tuple[str, str]], facts: ImageFacts, num_boxes: int) -> tuple[Turn, ...]:
    def row_of(found: re.Match[str]) -> int:
        number = int(found[1] or found[2])
        if not 1 <= number <= num_boxes:
            raise BadRecord("unknown_object", f"region {number} of {num_boxes}")
        if number - 1 not in facts.ids:
            raise BadRecord("unknown_object", f"region {number} has no usable box")
        if (rest := _GOES_ON.match(found.string, found.end())) and not found[1]:
            raise BadRecord("unsupported", f"regions in a list: {found.group() + rest.group()!a}")
        return facts.ids.index(number - 1)

    turns = [Turn(role, mention_parts(text, _MENTION, row_of)) for role, text in told]
    for turn in turns:
        for part in turn.parts:
            if part.text is not None and (found := _RESIDUE.search(part.text)):
                raise BadRecord("unsupported", f"regions in a list: {found.group()!a}")
    if not named_rows(*(turn.parts for turn in turns if turn.role == "user")):
        if len(facts.objects) < num_boxes:
            raise BadRecord("unknown_object", "is about all boxes, and one of them is not usable")
        first, *rest = turns[0].parts
        shown = (Part(objects=tuple(range(num_boxes))), Part(f" {first.text}"))
        turns[0] = Turn("user", (*shown, *rest))
    return tuple(turns)


def _open(stored: Any, folders: DataFolders) -> ImageRef:
    """Find an image by a path of the authors.

    Raises:
        BadRecord: malformed, or as `ImageSource.open` does.
    """
    if not isinstance(stored, str):
        raise BadRecord("malformed", f"image is {type(stored).__name__}, not a path")
    places = _places(stored)
    for place in places[:-1]:
        try:
            return source_of(place, SOURCES).open(folders, place)
        except BadRecord as error:
            if error.reason not in ("missing_image", "unknown_image"):
                raise
    return source_of(places[-1], SOURCES).open(folders, places[-1])


def _places(stored: str) -> list[str]:
    """Return the uris at which an image may lie, from its path on the authors' machine."""
    parts = PurePosixPath(check_uri(stored.removeprefix("/"))).parts
    # from the end: a folder of a public dataset may lie below one with the same name
    for position in reversed(range(len(parts) - 1)):
        rest = "/".join(parts[position + 1 :])
        if parts[position] in COCO_FOLDERS:
            return [coco_uri(coco_id(rest))]
        if parts[position] in FOLDERS:
            return [f"{folder}/{rest}" for folder in FOLDERS[parts[position]]]
    if stored.startswith("/"):
        raise BadRecord(
            "unknown_image", f"{ascii(stored)[:160]} lies in no image folder known here"
        )
    return [f"mdvp/images/{stored}"]


DATASETS = (
    DatasetSpec(
        name=NAME,
        images=(),
        optional_images=SOURCES,
        build=build,
        files=(FILES,),
        tasks=("region_qa",),
        stages=(2,),
        licence="CC BY-NC 4.0; images under the licences of their datasets",
        source="https://huggingface.co/datasets/Afeng-x/Draw-and-Understand",
        layout=(
            f"{FILES}   conversations about boxes\n"
            "coco/train2017/               images of COCO, whatever year the path says\n"
            "vg/VG_100K/, vg/VG_100K_2/    images of Visual Genome\n"
            "gqa/images/, flickr30k/flickr30k-images/, vcr/vcr1images/\n"
            "mdvp/images/                  all others, by the path in the file, made relative"
        ),
    ),
)
