"""CrowdHuman: every person of an image (https://www.crowdhuman.org/download.html).

Files: ``annotation_train.odgt`` and a folder of images. The first has one JSON object a line, as
shown by mmdetection's tests/data/crowdhuman_dataset/test_annotation_train.odgt: `ID` and `gtboxes`,
each with a `tag`, three boxes as left, top, width, height, and `extra`. Each image becomes a
question where the persons are, and how many where that is certain. Traps:

- The visible box, vbox, is used: the full one, fbox, is a guess behind what hides it, and may leave
  the image.
- Regions with the tag mask (crowds, reflections, pictures of people) and persons with
  `extra.ignore` are ignore regions.
- Sizes stand only in the images.
- IDs hold a comma.
"""

from collections.abc import Generator, Iterator
from typing import Any

from dataset_builders.box_checks import (
    BoxGuard,
    clean_box,
    four_numbers,
    get,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import folder_source, stem
from dataset_builders.images import check_uri
from dataset_builders.names import plural
from dataset_builders.readers.json_lines import opened, stream_lines
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.detection import image_samples, numbered
from dataset_builders.tasks.prompts import conversation, counted_answer, question

FILE = "crowdhuman/annotation_train.odgt"
IMAGE_FOLDER = "crowdhuman/Images"
LABELS = {"person": "person", "mask": "mask"}
"""`tag` of a box -> label."""
IMAGES = folder_source("crowdhuman", IMAGE_FOLDER, num_buckets=32, id_of=stem)


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of every line, the rejects, and the ledger last.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    guard = BoxGuard("xywh", source=FILE)
    seen: set[str] = set()
    for name, value in stream_lines(folders.path(FILE)):
        boxes: list[Any] = []
        try:
            image_id, boxes = read_record(opened(value))
            if image_id in seen:
                raise BadRecord("duplicate_id", f"image {image_id!r}")
            seen.add(image_id)
            ref = IMAGES.open(folders, f"{IMAGE_FOLDER}/{image_id}.jpg")
        except BadRecord as error:
            yield counter.reject(name, error, "image")
            for row in range(len(boxes)):
                # the boxes count as read, so that the ledger adds up to those of the file
                lost = BadRecord("image_rejected", name)
                yield counter.reject(f"{name}/gtboxes/{row}", lost, "box")
            continue
        facts = yield from _facts(ref, boxes, counter, guard)

        def samples_of(facts: ImageFacts = facts) -> Iterator[Sample]:
            for view in facts.windows(options.max_objects):
                yield from _samples(view, options)

        yield from counter.record(name, samples_of, "image")
    guard.check()
    if not counter.num_read:
        raise SettingError(f"{FILE} holds no lines: want one JSON object a line")
    yield counter.ledger()


def read_record(record: Any) -> tuple[str, list[Any]]:
    """Return ID and gtboxes of a line.

    Raises:
        BadRecord: malformed or unsafe_path.
    """
    image_id, boxes = get(record, "ID"), get(record, "gtboxes")
    if not isinstance(image_id, str) or not isinstance(boxes, list):
        raise BadRecord(
            "malformed", f"ID is {type(image_id).__name__}, gtboxes {type(boxes).__name__}"
        )
    if "/" in image_id:
        raise BadRecord("unsafe_path", f"ID {image_id[:120]!r} is no name of an image file")
    check_uri(image_id)
    return image_id, boxes


def _facts(
    ref: ImageRef, boxes: list[Any], counter: RecordCounter, guard: BoxGuard
) -> Generator[Reject, None, ImageFacts]:
    """Yield the rejects of an image's boxes; return its facts."""
    objects, ids, uncertain = [], [], set()
    for row, record in enumerate(boxes):
        label = "person"
        try:
            label, ignore = _kind(record)
            stored = four_numbers(get(record, "vbox"), what="vbox")
            guard.look(stored, ref.width, ref.height)
            box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
        except BadRecord as error:
            uncertain.add(label)
            yield counter.reject(f"{ref.image_id}/gtboxes/{row}", error, "box")
            continue
        objects.append(Object(box=box, label=label, ignore=ignore))
        ids.append(row)
    counter.use("box", len(objects))
    return ImageFacts(
        ref=ref, objects=tuple(objects), ids=tuple(ids), uncertain=frozenset(uncertain)
    )


def _kind(record: Any) -> tuple[str, bool]:
    """Return the label of a box, and whether it is an ignore region."""
    tag, extra = get(record, "tag"), record.get("extra", {})
    if not isinstance(tag, str) or tag not in LABELS or not isinstance(extra, dict):
        raise BadRecord("malformed", f"tag is {str(tag)[:80]!r}, extra is {type(extra).__name__}")
    ignore = whole_number(extra.get("ignore", 0), what="ignore")
    if ignore not in (0, 1):
        raise BadRecord("malformed", f"ignore is {ignore}")
    return LABELS[tag], ignore == 1 or tag == "mask"


def _samples(view: ImageFacts, options: BuildOptions) -> list[Sample]:
    """Return the samples of an image or window: where the persons are, and how many if certain."""
    samples = image_samples(view, options, "crowdhuman", {}, tasks=("detection",))
    rows = view.present().get("person", ())
    if rows and countable(view) and options.counting:
        seed = seed_of(options.seed, "crowdhuman count", view.ref.image_id, *(view.window or ()))
        name = plural("person")
        asked = question("counting", name, seed=seed, paraphrases=options.paraphrases)
        turns = conversation(asked, counted_answer(len(rows), (name, rows)))
        samples += numbered(view, "crowdhuman", [("counting", turns)], {})
    return samples


def countable(view: ImageFacts) -> bool:
    """Return whether the persons of an image or window can be counted.

    They can when nobody is ignored or in doubt, and no mask could hide a person. A mask could where
    it is not smaller than the smallest person, by area.
    """
    if view.uncertain or "person" in view.crowded():
        return False
    persons, masks = (
        [_area(o) for o in view.objects if o.label == label] for label in ("person", "mask")
    )
    return not masks or max(masks) < min(persons, default=0.0)


def _area(item: Object) -> float:
    x1, y1, x2, y2 = item.box
    return (x2 - x1) * (y2 - y1)


DATASETS = (
    DatasetSpec(
        name="crowdhuman",
        images=(IMAGES,),
        build=build,
        files=(FILE,),
        tasks=("detection", "counting"),
        stages=(2,),
        licence="non-commercial research",
        source="https://www.crowdhuman.org/download.html",
        layout=f"{FILE}   one JSON object an image\n{IMAGE_FOLDER}/   its images, ID.jpg",
        num_samples=25_000,
    ),
)
