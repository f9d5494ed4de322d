"""Visual Genome: descriptions of regions, with the objects of the image beside them.

Files: ``image_data.json`` (sizes and urls), ``region_descriptions.json`` (phrases and boxes of
regions), ``objects.json`` (boxes and names), one JSON list each, and two image folders. Regions
become questions for their description (region_caption).

Objects are what annotators mentioned, under any name: nothing is complete, so nothing is called
absent and nothing is counted here. Its files spell keys in two ways: `id` or `image_id`, `id` or
`region_id`, `w`, `h` or `width`, `height`; both are read.

Visual Genome: https://homes.cs.washington.edu/~ranjay/visualgenome/api.html; readers of the files:
https://github.com/ranjaykrishna/visual_genome_python_driver (visual_genome/utils.py,
visual_genome/local.py)
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts, unique
from dataset_builders.image_sources import VISUAL_GENOME
from dataset_builders.readers.grouped_records import GroupedRecords, grouped_records, id_number
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_label

MIN_KEPT_SHARE = 0.1
"""Share of a box: one of which less lies inside the image is given up (sheet of the dataset)."""
IMAGES, REGIONS, OBJECTS = "vg/image_data.json", "vg/region_descriptions.json", "vg/objects.json"


def build(folders: DataFolders, options: BuildOptions, *, dataset: str) -> Iterator[Item]:
    """Yield up to `region_texts` questions an image for the description of a region.

    Rejects come in between, the ledger last. Unit "box" is an object, unit "record" a region.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    guards = {file: BoxGuard("xywh", source=Path(file).name) for file in (REGIONS, OBJECTS)}
    with grouped_records() as rows:
        for file in (IMAGES, REGIONS, OBJECTS):
            yield from _read(folders, file, rows, counter)
        rows.index()
        for image_id in rows.images(IMAGES):
            yield from _image(image_id, rows, guards, options, dataset, counter)
        yield from _orphans(rows, counter)
    for guard in guards.values():
        guard.check()
    yield counter.ledger()


def _read(
    folders: DataFolders, file: str, rows: GroupedRecords, counter: RecordCounter
) -> Iterator[Reject]:
    """Sort the records of one file by image.

    A record of a whole image that cannot be read is one reject: how many boxes it held is unknown.
    """
    position = -1
    for position, record in enumerate(stream_array(folders.path(file), None)):
        try:
            rows.add(file, id_number(_either(record, "image_id", "id")), position, record)
        except BadRecord as error:
            yield counter.reject(f"{Path(file).stem}/{position}", error, "image")
    if position < 0:
        raise SettingError(
            f"{Path(file).name} holds no records: Visual Genome's files are one JSON list each"
        )


def _image(
    image_id: int,
    rows: GroupedRecords,
    guards: dict[str, BoxGuard],
    options: BuildOptions,
    dataset: str,
    counter: RecordCounter,
) -> Iterator[Item]:
    (_, first), *others = rows.of(IMAGES, image_id)
    for position, _ in others:
        yield counter.reject(
            f"image_data/{position}", BadRecord("duplicate_id", f"image {image_id}"), "image"
        )
    try:
        ref = image_of(first, image_id)
    except BadRecord as error:
        yield counter.reject(f"image {image_id}", error, "image")
        yield from _lost(image_id, rows, BadRecord("image_rejected", f"image {image_id}"), counter)
        return
    objects: dict[Any, Object] = {}
    for name, record in _listed(rows, OBJECTS, "objects", image_id):
        try:
            number, thing = read_object(record, ref, guards[OBJECTS])
            if number in objects:
                raise BadRecord("duplicate_id", f"object {number}")
            objects[number] = thing
            counter.use("box")
        except BadRecord as error:
            yield counter.reject(name, error, "box")
    regions: dict[Any, Object] = {}
    for name, record in _listed(rows, REGIONS, "regions", image_id):
        try:
            number, region = read_region(record, ref, guards[REGIONS])
            if number in regions:
                raise BadRecord("duplicate_id", f"region {number}")
            regions[number] = region
            counter.use()
        except BadRecord as error:
            yield counter.reject(name, error)
    facts = ImageFacts(ref=ref, objects=tuple(objects.values()), ids=tuple(objects))
    yield from counter.record(
        f"image {image_id}", lambda: region_samples(facts, regions, options, dataset), "image"
    )


def region_samples(
    facts: ImageFacts, regions: dict[Any, Object], options: BuildOptions, dataset: str
) -> list[Sample]:
    """Return one sample for each of up to `region_texts` regions with different texts.

    Of regions with the same text the first is meant.

    The region stands behind the objects of the image, with its text for a label.

    Args:
        facts: The objects of the image.
        regions: Region id -> region, its description as label.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
    """
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id))
    numbers = list(regions)
    told = [numbers[at] for at in unique([regions[number].label for number in numbers])]
    samples = []
    for number in rng.sample(told, min(options.region_texts, len(told))):
        region = regions[number]
        shown = replace(facts, objects=(*facts.objects, region), ids=(*facts.ids, number))
        row = len(facts.objects)
        asked = question(
            "region_caption", (row,), seed=rng.getrandbits(32), paraphrases=options.paraphrases
        )
        turns = conversation(asked, (Part(region.label),))
        samples.append(
            shown.sample(dataset=dataset, task="region_caption", number=number, turns=turns)
        )
    return samples


def image_of(record: Any, image_id: int) -> ImageRef:
    """Return the image of a record of image_data.json; its folder is in the url.

    Raises:
        BadRecord: malformed, bad_size, or contradiction when the url is of another image.
    """
    url = get(record, "url")
    if not isinstance(url, str):
        raise BadRecord("malformed", f"url is {type(url).__name__}, not text")
    folder, name = ("", "", *PurePosixPath(url).parts)[-2:]
    if f"vg/{folder}" not in VISUAL_GENOME.image_paths:
        raise BadRecord(
            "malformed", f"url {url[:120]!r} is below none of {VISUAL_GENOME.image_paths}"
        )
    if name != f"{image_id}.jpg":
        raise BadRecord("contradiction", f"image {image_id} has the url {url[:120]!r}")
    width, height = (id_number(get(record, side), what=side) for side in ("width", "height"))
    if not (1 <= width <= 100_000 and 1 <= height <= 100_000):
        raise BadRecord("bad_size", f"image {image_id} is {width}x{height}")
    return VISUAL_GENOME.ref(str(image_id), f"vg/{folder}/{name}", width, height)


def read_object(record: Any, ref: ImageRef, guard: BoxGuard) -> tuple[int, Object]:
    """Return id and object of a record of objects.json; its first name is its label.

    Raises:
        BadRecord: malformed, or what is wrong with its box or name.
    """
    names = get(record, "names")
    if not isinstance(names, list) or not names:
        raise BadRecord("malformed", f"names is {str(names)[:80]!r}, not a list of names")
    box = _box(record, ref, guard)
    return id_number(_either(record, "object_id", "id"), what="object_id"), Object(
        box=box, label=_folded(names[0], "name")
    )


def read_region(record: Any, ref: ImageRef, guard: BoxGuard) -> tuple[int, Object]:
    """Return id and region of a record; its phrase is its label.

    Raises:
        BadRecord: malformed, or what is wrong with its box or phrase.
    """
    phrase = _folded(get(record, "phrase"), "phrase")
    box = _box(record, ref, guard)
    return id_number(_either(record, "region_id", "id"), what="region_id"), Object(
        box=box, label=phrase
    )


def _folded(text: Any, what: str) -> str:
    return check_label(" ".join(text.split()) if isinstance(text, str) else text, what=what)


def _box(record: Any, ref: ImageRef, guard: BoxGuard) -> tuple[float, float, float, float]:
    sides = (_either(record, "width", "w"), _either(record, "height", "h"))
    stored = four_numbers((get(record, "x"), get(record, "y"), *sides), what="x, y, width, height")
    guard.look(stored, ref.width, ref.height)
    box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
    kept = (box[2] - box[0]) * (box[3] - box[1]) / (stored[2] * stored[3])
    if kept < MIN_KEPT_SHARE:
        raise BadRecord(
            "outside_box", f"{kept:.0%} of box {stored} lies in {ref.width}x{ref.height}"
        )
    return box


def _either(record: Any, name: str, other: str) -> Any:
    return get(record, name if isinstance(record, dict) and name in record else other)


def _listed(rows: GroupedRecords, file: str, key: str, image_id: int) -> Iterator[tuple[str, Any]]:
    """Yield (name of the record, record) of the list that a file has for an image."""
    for position, record in rows.of(file, image_id):
        listed = record.get(key)
        place = f"{Path(file).stem}/{position}/{key}"
        if isinstance(listed, list):
            yield from ((f"{place}/{number}", item) for number, item in enumerate(listed))
        else:
            yield place, listed


def _lost(
    image_id: int, rows: GroupedRecords, error: BadRecord, counter: RecordCounter
) -> Iterator[Reject]:
    for file, key, unit in ((OBJECTS, "objects", "box"), (REGIONS, "regions", "record")):
        for name, _ in _listed(rows, file, key, image_id):
            yield counter.reject(name, error, unit)


def _orphans(rows: GroupedRecords, counter: RecordCounter) -> Iterator[Reject]:
    """Yield the objects and regions of images that image_data.json does not list."""
    for image_id in sorted({*rows.images(OBJECTS), *rows.images(REGIONS)} - {*rows.images(IMAGES)}):
        yield from _lost(image_id, rows, BadRecord("unknown_image", f"image {image_id}"), counter)


def _build_visual_genome(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    return build(folders, options, dataset="visual_genome")


DATASETS = (
    DatasetSpec(
        name="visual_genome",
        images=(VISUAL_GENOME,),
        build=_build_visual_genome,
        files=(REGIONS, OBJECTS, IMAGES),
        tasks=("region_caption",),
        stages=(2,),
        licence="CC BY 4.0",
        source="https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
        layout="\n".join(
            (
                f"{REGIONS}   phrases and boxes of regions, version 1.4",
                f"{OBJECTS}   boxes and names of objects",
                f"{IMAGES}   sizes and urls",
                "vg/VG_100K/, vg/VG_100K_2/   images, images.zip and images2.zip",
            )
        ),
        num_samples=860_000,
    ),
)
