"""LLaVA's mix665k: conversations about images of several datasets, and some about none.

Files: one JSON list of conversations, and the image folders of COCO, GQA, OCR-VQA, TextVQA and
Visual Genome, by the path in each record. Each becomes one sample (instruction).

Records of its RefCOCO and Visual Genome parts say boxes as normalised coordinates in their text.
They are rejected: they would teach the model to print numbers where it has region tokens, and those
regions come from the datasets themselves.

Source: https://github.com/haotian-liu/LLaVA (README, docs/Finetune_Custom_Data.md).
"""

import re
from collections.abc import Iterator
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import (
    COCO_TRAIN,
    GQA,
    OCR_VQA,
    TEXTVQA,
    VISUAL_GENOME,
    source_of,
)
from dataset_builders.readers.conversations import IMAGE_MARKER, read_image, read_turns, text_turns
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Sample, Turn
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.validation import check_label

FILE = "llava/llava_v1_5_mix665k.json"
IMAGES = (COCO_TRAIN, GQA, OCR_VQA, TEXTVQA, VISUAL_GENOME)
_SHARE = r"(?:0?\.\d+|[01](?:\.\d*)?)"
_COORDINATES = re.compile(rf"\[\s*{_SHARE}\s*(?:,\s*{_SHARE}\s*){{3}}\]", re.ASCII)


def build(
    folders: DataFolders, _options: BuildOptions, *, dataset: str = "llava_mix665k"
) -> Iterator[Item]:
    """Yield one sample a conversation, the rejects, and the ledger last.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    for position, record in enumerate(stream_array(folders.path(FILE), None)):

        def make(record: Any = record, position: int = position) -> list[Sample]:
            return [_sample(folders, record, position, dataset)]

        yield from counter.record(f"mix665k/{position}", make)
    if not counter.num_read:
        raise SettingError(f"{FILE} holds no conversations: it is one JSON list")
    yield counter.ledger()


def has_coordinates(text: str) -> bool:
    """Return whether a text holds a box as four shares of the image: [0.12, 0.3, 0.98, 1.0]."""
    return any("." in found.group() for found in _COORDINATES.finditer(text))
    # [1, 0, 0, 1] is as likely something else: one number must have a point


def _sample(folders: DataFolders, record: Any, position: int, dataset: str) -> Sample:
    """Return the sample of a record; ids repeat, so its place in the file numbers it."""
    path = read_image(record)
    messages = read_turns(record)
    turns = text_turns(messages)
    if path is None:
        return _text_sample(record, position, turns, dataset)
    if found := next((text for _, text in messages if has_coordinates(text)), None):
        raise BadRecord("unsupported", f"a box as numbers in the text: {found[:120]!r}")
    ref = source_of(path, IMAGES).open(folders, path)
    return ImageFacts(ref=ref).sample(
        dataset=dataset, task="instruction", number=position, turns=turns
    )


def _text_sample(record: Any, position: int, turns: tuple[Turn, ...], dataset: str) -> Sample:
    first = get(record["conversations"][0], "value")
    if IMAGE_MARKER in first:
        raise BadRecord("missing_image", "it shows an image and names none")
    number = get(record, "id")
    image_id = f"text/{check_label(str(number) if isinstance(number, int) else number, what='id')}"
    return Sample(
        sample_id=f"{dataset}/{image_id}/instruction/{position}",
        dataset=dataset,
        task="instruction",
        image_source="",
        image_id=image_id,
        image_uri="",
        width=0,
        height=0,
        objects=(),
        turns=turns,
    )


DATASETS = (
    DatasetSpec(
        name="llava_mix665k",
        images=IMAGES,
        build=build,
        files=(FILE,),
        tasks=("instruction",),
        stages=(2,),
        licence="mixed: that of each dataset in it, and OpenAI's terms",
        source="https://github.com/haotian-liu/LLaVA#visual-instruction-tuning",
        layout=(
            f"{FILE}   list of conversations\n"
            "coco/train2017/, gqa/images/, ocr_vqa/images/ (all as .jpg), textvqa/train_images/,\n"
            "vg/VG_100K/, vg/VG_100K_2/   images, by the paths of the conversations"
        ),
        num_samples=530_000,
    ),
)
