"""Rexverse-2M, the released part: descriptions and referring expressions of regions, in TSV.

Files: TSV of images (key, base64), cut into parts at any byte, with the places where lines start;
and two TSV of annotations, of descriptions (region_caption) and of expressions (referring).

The keys of its JSON and the form of its boxes are documented nowhere. Those of its two sister
datasets are read, {"boxes": [{"bbox", "phrase"}]} (Rex-Omni) and {"gt_boxes", "region_map": {text:
[rows of gt_boxes]}} (HumanRef-CoT); the form is found from the numbers; a file with neither is
refused.

Source: https://huggingface.co/datasets/IDEA-Research/Rexverse-2M
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataset_builders.box_checks import (
    clean_box,
    detect_form,
    four_numbers,
    get,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.tsv_files import (
    AnnotationLine,
    ImageTsv,
    annotation_lines,
    first_boxes,
    tsv_source,
)
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.tasks.referring import expression_sample
from dataset_builders.validation import check_text

ONE_SENTENCE = "rexverse/0_500000_one_sentence.annotation.tsv"
REFERRING = "rexverse/0_500000_referring.annotations.tsv"
_IMAGES = "rexverse/0_500000_image_part_*.tsv"
_LINEIDX = "rexverse/0_500000_image.tsv.lineidx"
REXVERSE = tsv_source("rexverse", images=_IMAGES, lineidx=_LINEIDX, num_buckets=512)


@dataclass(frozen=True)
class RegionTexts:
    """A record in either form: boxes, and texts about some of them."""

    boxes: list[Any]
    """The boxes as stored."""
    texts: list[tuple[Any, list[int]]]
    """Each text with the positions of the boxes that it is about."""


def read_record(record: Any) -> RegionTexts:
    """Return boxes and texts of a record in either form.

    Raises:
        BadRecord: malformed, when it has neither form.
    """
    if isinstance(record, dict) and isinstance(record.get("boxes"), list):
        listed = record["boxes"]
        texts = [(get(item, "phrase"), [position]) for position, item in enumerate(listed)]
        return RegionTexts([get(item, "bbox") for item in listed], texts)
    return read_region_map(record)


def read_region_map(record: Any) -> RegionTexts:
    """Return boxes and texts of a record with gt_boxes and region_map, counted from 0.

    Raises:
        BadRecord: malformed or unknown_object.
    """
    boxes = record.get("gt_boxes") if isinstance(record, dict) else None
    regions = record.get("region_map") if isinstance(record, dict) else None
    if not isinstance(boxes, list) or not isinstance(regions, dict):
        raise BadRecord("malformed", "neither boxes with phrases nor gt_boxes with region_map")
    texts = []
    for text, listed in regions.items():
        if not isinstance(listed, list):
            raise BadRecord("malformed", f"region_map holds {str(listed)[:80]!r}, not a list")
        positions = [whole_number(position, what="position in gt_boxes") for position in listed]
        if wrong := [position for position in positions if not 0 <= position < len(boxes)]:
            raise BadRecord("unknown_object", f"positions {wrong[:5]} of {len(boxes)} gt_boxes")
        texts.append((text, list(dict.fromkeys(positions))))
    return RegionTexts(boxes, texts)


def read_objects(
    ref: ImageRef, boxes: list[Any], form: str, label: str
) -> tuple[ImageFacts, list[tuple[int, BadRecord]]]:
    """Return the facts of an image, and the boxes that cannot be used.

    Args:
        ref: The image.
        boxes: Boxes as stored, pixels.
        form: "xyxy" or "xywh".
        label: Label of every object.

    Returns:
        The facts, whose ids are positions in `boxes`; and (position, error) of each lost box.
    """
    objects: list[Object] = []
    ids: list[int] = []
    lost: list[tuple[int, BadRecord]] = []
    for position, stored in enumerate(boxes):
        try:
            numbers = four_numbers(stored, what="box")
            corners = numbers if form == "xyxy" else xywh_to_xyxy(numbers)
            objects.append(Object(box=clean_box(corners, ref.width, ref.height), label=label))
            ids.append(position)
        except BadRecord as error:
            lost.append((position, error))
    return ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(ids)), lost


def build(folders: DataFolders, options: BuildOptions, *, dataset: str) -> Iterator[Item]:
    """Yield the samples of both annotation files, the rejects, and the ledger last.

    Raises:
        SettingError: A file is of neither form, or its boxes are neither xyxy nor xywh.
    """
    counter = RecordCounter()
    images = ImageTsv.of(folders, _IMAGES, _LINEIDX)
    open_image = partial(images.open, folders, REXVERSE)
    for file, make in ((ONE_SENTENCE, _descriptions), (REFERRING, _expressions)):
        values, sizes = first_boxes(
            folders, file, boxes_of=lambda record: read_record(record).boxes, open_image=open_image
        )
        if not len(values):
            raise SettingError(
                f"{file}: its first lines hold no boxes in a known form, want "
                '{"boxes": [{"bbox", "phrase"}]} or {"gt_boxes", "region_map"} '
                "over images that can be read"
            )
        form = detect_form(values, sizes, forms=("xyxy", "xywh"), source=file)
        for record, line in annotation_lines(folders, file):
            yield from _record(
                record, line, form, open_image, partial(make, options, dataset), counter
            )
    yield counter.ledger()


def _record(
    record: str,
    line: AnnotationLine | BadRecord,
    form: str,
    open_image: Callable[[int], ImageRef],
    make: Callable[[int, ImageFacts, list[tuple[Any, list[int]]]], list[Sample]],
    counter: RecordCounter,
) -> Iterator[Item]:
    try:
        if isinstance(line, BadRecord):
            raise line
        found = read_record(line.record)
        ref = open_image(line.offset)
    except BadRecord as error:
        yield counter.reject(record, error)
        return
    facts, lost = read_objects(ref, found.boxes, form, "object")
    counter.use("box", len(facts.objects))
    for position, lack in lost:
        yield counter.reject(f"{record}/boxes/{position}", lack, "box")
    yield from counter.record(record, partial(make, line.number, facts, found.texts))


def _descriptions(
    options: BuildOptions,
    dataset: str,
    number: int,
    facts: ImageFacts,
    texts: list[tuple[Any, list[int]]],
) -> list[Sample]:
    """Return captions of regions for texts of which all boxes are there.

    At most `region_texts` a window are drawn.
    """
    samples = []
    for view in facts.windows(options.max_objects):
        rng = random.Random(
            seed_of(options.seed, dataset, facts.ref.image_id, number, *(view.window or ()))
        )
        told = [
            (position, rows)
            for position, (_, ids) in enumerate(texts)
            if (rows := _rows(view, ids))
        ]
        for position, rows in sorted(rng.sample(told, min(options.region_texts, len(told)))):
            said = " ".join(check_text(texts[position][0], what="description").split())
            asked = question(
                "region_caption", rows, seed=rng.getrandbits(32), paraphrases=options.paraphrases
            )
            turns = conversation(asked, (Part(said),))
            samples.append(
                view.sample(
                    dataset=dataset,
                    task="region_caption",
                    number=f"{number}-{position}",
                    turns=turns,
                )
            )
    return samples


def _expressions(
    options: BuildOptions,
    dataset: str,
    number: int,
    facts: ImageFacts,
    texts: list[tuple[Any, list[int]]],
) -> list[Sample]:
    """Return an expression for each different text: it names all boxes that have the text."""
    meant: dict[str, list[int]] = {}
    for text, ids in texts:
        said = " ".join(check_text(text, what="expression").split())
        listed = meant.setdefault(said, [])
        listed += [position for position in ids if position not in listed]
    samples = []
    for view in facts.windows(options.max_objects):
        rng = random.Random(
            seed_of(options.seed, dataset, facts.ref.image_id, number, *(view.window or ()))
        )
        told = [
            (p, said, rows)
            for p, (said, ids) in enumerate(meant.items())
            if (rows := _rows(view, ids))
        ]
        samples += [
            expression_sample(
                view, said, rows, options, dataset=dataset, number=f"{number}-{position}"
            )
            for position, said, rows in sorted(
                rng.sample(told, min(options.region_texts, len(told)))
            )
        ]
    return samples


def _rows(view: ImageFacts, ids: list[int]) -> tuple[int, ...]:
    """Return the rows of some boxes in a window; none if one is not there, or cut too much."""
    rows = {number: row for row, number in enumerate(view.ids) if not view.objects[row].ignore}
    return (
        tuple(sorted(rows[number] for number in ids))
        if all(number in rows for number in ids)
        else ()
    )


DATASETS = (
    DatasetSpec(
        name="rexverse",
        images=(REXVERSE,),
        build=partial(build, dataset="rexverse"),
        files=(ONE_SENTENCE, REFERRING),
        containers=(_IMAGES,),
        tasks=("region_caption", "referring"),
        stages=(1, 2),
        licence="IDEA License 1.0 and OpenAI's terms: non-commercial",
        source="https://huggingface.co/datasets/IDEA-Research/Rexverse-2M",
        layout=(
            "rexverse/0_500000_image_part_0.tsv ... _part_4.tsv   "
            "images: key, base64; cut at any byte\n"
            "rexverse/0_500000_image.tsv.lineidx   "
            "where the line of each image starts in all parts together\n"
            "rexverse/0_500000_one_sentence.annotation.tsv   "
            "byte of the image, JSON: descriptions of regions\n"
            "rexverse/0_500000_referring.annotations.tsv   "
            "byte of the image, JSON: referring expressions"
        ),
        num_samples=1_000_000,  # 500,000 lines in each file, at least one text a line
    ),
)
