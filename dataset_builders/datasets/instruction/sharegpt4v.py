"""ShareGPT4V: long captions of whole images, written by GPT-4V, in LLaVA's form.

Files: one JSON list of conversations of two messages, the image folders of the collections that it
captions, and COCO's boxes for the grounded one. The paper lists it under region captions although
it has no boxes, so it is built three ways:

| dataset             | task             | samples                                                 |
| ------------------- | ---------------- | ------------------------------------------------------- |
| sharegpt4v          | `caption`        | the conversation as it is                               |
| sharegpt4v_full_box | `region_caption` | the whole image as a region, the caption describes it   |
| sharegpt4v_grounded | `grounding`      | images of COCO: the first mention of a category with    |
|                     |                  | one box on the image is grounded; else `caption`        |

Source: https://github.com/ShareGPT4Omni/ShareGPT4V (docs/Data.md).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts, whole_image
from dataset_builders.image_sources import (
    COCO_TRAIN,
    LLAVA_PRETRAIN,
    SAM,
    SHARE_TEXTVQA,
    WEB_CELEBRITY,
    WEB_LANDMARK,
    WIKIART,
    coco_id,
    source_of,
)
from dataset_builders.readers.coco_files import CocoFile, open_coco
from dataset_builders.readers.conversations import (
    check_usable,
    read_image,
    read_turns,
    stream_records,
    text_turns,
)
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Part, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_text

FILE = "sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json"
INSTANCES, COCO_FOLDER = "coco/annotations/instances_train2017.json", "coco/train2017"
SOURCES = (COCO_TRAIN, SAM, LLAVA_PRETRAIN, WEB_CELEBRITY, WEB_LANDMARK, WIKIART, SHARE_TEXTVQA)
"""Collections that its images come from."""
WHOLE = "image"
"""Label of the object that is the whole image."""
_WANTED = "id, image and conversations"

Make = Callable[[ImageFacts, list[tuple[str, str]], BuildOptions, str, str], Sample]
"""Makes a sample of (facts, messages, options, dataset, number)."""


def build(
    folders: DataFolders, options: BuildOptions, *, dataset: str, make: Make
) -> Iterator[Item]:
    """Yield a sample for each record, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        make: `caption` or `described`.

    Raises:
        SettingError: The file is not of its form.
    """
    counter = RecordCounter()
    for position, (name, record) in enumerate(stream_records(folders.path(FILE))):

        def samples(record: Any = record, number: str = str(position)) -> Iterator[Sample]:
            told = read_turns(record)
            uri = _uri(record)
            facts = ImageFacts(ref=source_of(uri, SOURCES).open(folders, uri))
            yield make(facts, told, options, dataset, number)

        yield from counter.record(name, samples)
    check_usable(counter, FILE, wanted=_WANTED)
    yield counter.ledger()


def build_grounded(folders: DataFolders, options: BuildOptions, *, dataset: str) -> Iterator[Item]:
    """Yield a sample for each record about an image of COCO, the rejects, and the ledger last.

    Records about other images are not of this dataset and not counted.

    Raises:
        SettingError: A file is not of its form.
    """
    counter = RecordCounter()
    with open_coco(folders, file=INSTANCES, folder=COCO_FOLDER, source=COCO_TRAIN) as coco:
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
            else:
                counter.use("image")
        # a counter of its own: `check_usable` looks at the captions, not at COCO's boxes
        names, own = _names_pattern(coco), RecordCounter()
        for position, (name, record) in enumerate(stream_records(folders.path(FILE))):
            if not _is_coco(record):
                continue

            def samples(record: Any = record, number: str = str(position)) -> Iterator[Sample]:
                told = read_turns(record)
                facts = coco.image(int(coco_id(_uri(record)))).facts
                yield grounded(facts, told, options, dataset, number, names)

            yield from own.record(name, samples)
    check_usable(own, FILE, wanted=f"{_WANTED}, some of them about {COCO_FOLDER}")
    counter.add(own)
    yield counter.ledger()


def caption(
    facts: ImageFacts, told: list[tuple[str, str]], _: BuildOptions, dataset: str, number: str
) -> Sample:
    """Return the conversation as it is."""
    return facts.sample(dataset=dataset, task="caption", number=number, turns=text_turns(told))


def described(
    facts: ImageFacts, told: list[tuple[str, str]], options: BuildOptions, dataset: str, number: str
) -> Sample:
    """Return the caption as the description of a region that is the whole image."""
    facts = replace(facts, objects=(whole_image(facts.ref, WHOLE),), ids=(0,))
    seed = seed_of(options.seed, dataset, number)
    asked = question("region_detail", (0,), seed=seed, paraphrases=options.paraphrases)
    turns = conversation(asked, (Part(_caption(told)),))
    return facts.sample(dataset=dataset, task="region_caption", number=number, turns=turns)


def grounded(
    facts: ImageFacts,
    told: list[tuple[str, str]],
    options: BuildOptions,
    dataset: str,
    number: str,
    names: re.Pattern[str],
) -> Sample:
    """Return the caption with the categories grounded that have one box on the image.

    Only the first mention of a category is grounded.

    Args:
        facts: The boxes of the image.
        told: The messages of the record, as (role, text).
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        number: Tells the samples of the dataset apart.
        names: Matches any category's name, the longest first, so that a hot dog is no dog.
    """
    text = _caption(told)
    present = facts.present()
    alone = {
        name.casefold(): rows[0]
        for name, rows in present.items()
        if len(rows) == 1 and name not in facts.crowded()
    }
    parts: list[Part] = []
    end = 0
    for found in names.finditer(text):
        name, between = found.group().casefold(), text[end : found.start()]
        # blanks alone cannot stand between two phrases
        if name in alone and (between.strip() or not parts):
            parts += [Part(between), Part(found.group(), (alone.pop(name),))]
            end = found.end()
    if not parts:
        return caption(facts, told, options, dataset, number)
    parts = [part for part in (*parts, Part(text[end:])) if part.text]
    seed = seed_of(options.seed, dataset, number)
    asked = question("grounding", "", seed=seed, paraphrases=options.paraphrases)
    return facts.sample(
        dataset=dataset, task="grounding", number=number, turns=conversation(asked, tuple(parts))
    )


def _caption(told: list[tuple[str, str]]) -> str:
    if len(told) != 2:
        raise BadRecord("unsupported", f"{len(told)} messages, not a caption")
    return check_text(told[1][1], what="caption")


def _uri(record: Any) -> str:
    uri = read_image(record)
    if uri is None:
        raise BadRecord("malformed", "no field 'image'")
    return uri


def _is_coco(record: Any) -> bool:
    """Return whether a record is about an image of COCO, or too broken to say anything of it."""
    path = record.get("image") if isinstance(record, dict) else None
    return not isinstance(path, str) or path.startswith(f"{COCO_FOLDER}/")


def _names_pattern(coco: CocoFile) -> re.Pattern[str]:
    names = sorted(coco.names, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", re.IGNORECASE)


_FACTS: dict[str, Any] = {
    "licence": "CC BY-NC 4.0; images under the licences of their collections",
    "source": "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
}
_LAYOUT = f"{FILE}   captions\n"
_ANY_IMAGES = (
    "coco/train2017/, sam/images/, llava/llava_pretrain/images/, web-celebrity/images/,\n"
    "web-landmark/images/, wikiart/images/, share_textvqa/images/\n"
    "    images, by the path in the file; captions of a collection that is not there are rejects"
)


def _from_all(name: str, make: Make, *, task: str, stages: tuple[int, ...] = ()) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        images=(),
        optional_images=SOURCES,
        build=partial(build, dataset=name, make=make),
        files=(FILE,),
        tasks=(task,),
        stages=stages,
        layout=_LAYOUT + _ANY_IMAGES,
        num_samples=102_000,
        **_FACTS,
    )


DATASETS = (
    _from_all("sharegpt4v", caption, task="caption", stages=(2,)),
    _from_all("sharegpt4v_full_box", described, task="region_caption"),
    DatasetSpec(
        name="sharegpt4v_grounded",
        images=(COCO_TRAIN,),
        build=partial(build_grounded, dataset="sharegpt4v_grounded"),
        files=(FILE, INSTANCES),
        tasks=("grounding", "caption"),
        layout=f"{_LAYOUT}{INSTANCES}   COCO's boxes\n{COCO_FOLDER}/   its images",
        num_samples=50_000,
        **_FACTS,
    ),
)
