"""VAW: attributes of boxed objects on Visual Genome images, each known to hold, not to, or unknown.

Files (https://github.com/adobe-research/vaw_dataset, README.md): ``train_part1.json`` and
``train_part2.json``, one list of instances each (`image_id`, `instance_bbox` as left, top, width,
height, `object_name`, `positive_attributes`, `negative_attributes`); ``attribute_types.json``, type
-> list of attributes; and the two image folders of Visual Genome. They become detection of phrases
("red car"), questions for an attribute of a region, and rejections.

Objects of a name are not all boxed, and most attributes of a box are unknown. So "red car" is asked
for only where every box of a car on the image is labelled for "red", one way or the other; and
called absent only where every one is labelled not to have it. Names with the same last word count
as the same thing: a "sports car" must be labelled too.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import VISUAL_GENOME
from dataset_builders.names import normalised
from dataset_builders.readers.grouped_records import GroupedRecords, grouped_records, id_number
from dataset_builders.readers.json_files import read_members, stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Part, Reject, Sample, Turn
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.absence import LabelStatistics, absent_fields
from dataset_builders.tasks.detection import MAX_ABSENT_NAMES, numbered, within_budget
from dataset_builders.tasks.prompts import JOINER, conversation, grounded_answer, question
from dataset_builders.validation import check_label

ADJECTIVES = frozenset(
    {"color", "material", "pattern", "texture", "shape", "size", "thickness", "width"}
) | {
    *("length", "height", "weight", "hardness", "opaqeness", "cleanliness", "newness", "state"),
    *("machine state", "pose", "activity"),
}
"""Types whose attributes go in front of a noun; spelled as the file spells them. ours

Left out are those of people (race, gender, maturity, hair, skin, clothes), and those that say where
something is.
"""
ASKED = {
    "color": "attribute_color",
    "material": "attribute_material",
    "pattern": "attribute_pattern",
    "shape": "attribute_shape",
    "size": "attribute_size",
    "state": "attribute_state",
    "activity": "attribute_activity",
    "pose": "attribute_pose",
}
"""Types that a question about one region asks for -> its wording. ours"""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One boxed object with what is known of its attributes."""

    number: str
    """Instance id of the file."""
    thing: Object
    """Box and name of the object."""
    positive: tuple[str, ...]
    """Attributes that it is labelled to have."""
    negative: tuple[str, ...]
    """Attributes that it is labelled not to have."""


def build(
    folders: DataFolders, options: BuildOptions, *, dataset: str, files: tuple[str, ...], types: str
) -> Iterator[Item]:
    """Yield questions for objects with an attribute and for attributes of a region.

    Rejects come in between, the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        files: Lists of instances, below the data root.
        types: attribute_types.json, below the data root.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    kinds = read_types(folders.path(types))
    guard = BoxGuard("xywh", source=Path(files[0]).name)
    with grouped_records() as rows:
        yield from _read(folders, files, rows, counter)
        for image_id in rows.images("instances"):
            yield from _image(
                folders,
                image_id,
                rows.of("instances", image_id),
                kinds,
                guard,
                options,
                dataset,
                counter,
            )
    guard.check()
    yield counter.ledger()


def _read(
    folders: DataFolders, files: tuple[str, ...], rows: GroupedRecords, counter: RecordCounter
) -> Iterator[Reject]:
    position = 0
    for file in files:
        before = position
        for row in stream_array(folders.path(file), None):
            position += 1
            try:
                rows.add("instances", id_number(get(row, "image_id")), position, row)
            except BadRecord as error:
                yield counter.reject(f"instances/{position}", error, "box")
        if position == before:
            raise SettingError(
                f"{Path(file).name} holds no instances: VAW's files are one JSON list each"
            )
    rows.index()


def _image(
    folders: DataFolders,
    image_id: int,
    rows: list[tuple[int, Any]],
    kinds: Mapping[str, str],
    guard: BoxGuard,
    options: BuildOptions,
    dataset: str,
    counter: RecordCounter,
) -> Iterator[Item]:
    try:
        ref = open_image(folders, image_id)
    except BadRecord as error:
        yield counter.reject(f"image {image_id}", error, "image")
        for position, _ in rows:
            # the boxes count as read, so that the ledger adds up to the rows of the file
            lost = BadRecord("image_rejected", f"image {image_id}")
            yield counter.reject(f"instances/{position}", lost, "box")
        return
    found: dict[str, Instance] = {}
    doubted: set[str] = set()
    for position, row in rows:
        try:
            instance = read_instance(row, ref, guard)
            if instance.number in found:
                raise BadRecord("duplicate_id", f"instance {instance.number}")
            found[instance.number] = instance
            counter.use("box")
        except BadRecord as error:
            # a box that is lost leaves its name in doubt; without a name, every name ("")
            doubted.add(row["object_name"] if isinstance(row.get("object_name"), str) else "")
            yield counter.reject(f"instances/{position}", error, "box")
    facts = ImageFacts(
        ref=ref,
        objects=tuple(instance.thing for instance in found.values()),
        ids=tuple(found),
        uncertain=frozenset(doubted),
    )

    def make() -> Iterator[Sample]:
        for view in facts.windows(options.max_objects):
            yield from attribute_samples(view, found, kinds, options, dataset)

    yield from counter.record(f"image {image_id}", make, "image")


def open_image(folders: DataFolders, image_id: int) -> ImageRef:
    """Refer to a Visual Genome image, which lies in one of two folders.

    Raises:
        BadRecord: missing_image when it is in neither, and as `ImageSource.open` does.
    """
    for folder in VISUAL_GENOME.image_paths:
        uri = f"{folder}/{image_id}.jpg"
        if folders.path(uri).exists():
            return VISUAL_GENOME.open(folders, uri)
    raise BadRecord(
        "missing_image", f"{image_id}.jpg is in none of {', '.join(VISUAL_GENOME.image_paths)}"
    )


def read_instance(row: Any, ref: ImageRef, guard: BoxGuard) -> Instance:
    """Return one instance of the file.

    Args:
        row: One entry of the list.
        ref: Its image.
        guard: Looks at the box as stored, before it is clipped.

    Raises:
        BadRecord: malformed, contradiction, or what `clean_box` and `check_label` find.
    """
    stored = four_numbers(get(row, "instance_bbox"), what="instance_bbox")
    guard.look(stored, ref.width, ref.height)
    name = _label(get(row, "object_name"), "object_name")
    positive, negative = (
        _labels(row, field) for field in ("positive_attributes", "negative_attributes")
    )
    if both := sorted(set(positive) & set(negative)):
        raise BadRecord("contradiction", f"attributes {both[:5]} are both positive and negative")
    box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
    number = check_label(str(get(row, "instance_id")), what="instance_id")
    return Instance(
        number=number, thing=Object(box=box, label=name), positive=positive, negative=negative
    )


def _labels(row: Any, field: str) -> tuple[str, ...]:
    listed = get(row, field)
    if not isinstance(listed, list):
        raise BadRecord("malformed", f"{field} is {type(listed).__name__}, not a list")
    return tuple(dict.fromkeys(_label(value, field) for value in listed))


def _label(value: Any, what: str) -> str:
    return check_label(" ".join(value.split()) if isinstance(value, str) else value, what=what)


def read_types(path: Path) -> dict[str, str]:
    """Return attribute -> its type, from attribute_types.json: type -> list of attributes.

    Raises:
        SettingError: The file is of another form.
    """
    wanted = ADJECTIVES | ASKED.keys()
    tables = read_members(path, wanted)
    if "color" not in tables or not all(isinstance(listed, list) for listed in tables.values()):
        raise SettingError(f"{path.name}: want type -> list of attributes, with a type 'color'")
    kinds: dict[str, str] = {}
    for kind, listed in tables.items():
        for attribute in listed:
            kinds.setdefault(str(attribute), kind)
    return kinds


def attribute_phrases(
    facts: ImageFacts, instances: Mapping[str, Instance], kinds: Mapping[str, str]
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Return the phrases of an image that are true of boxes, and those that are true of none.

    A phrase such as "red car" is one or the other only where every box of such a thing, by the last
    word of its name, is labelled for the attribute, and none was rejected or cut away.

    Args:
        facts: The boxes of an image or window; `ids` are instance numbers.
        instances: Instance number -> instance.
        kinds: Attribute -> its type.

    Returns:
        Phrase -> rows of `facts.objects` that it is true of; and the phrases that are true of no
        box.
    """
    names = [normalised(item.label) for item in facts.objects]
    closed = {_head(normalised(name)) for name in facts.uncertain}
    closed |= {_head(name) for name, item in zip(names, facts.objects, strict=True) if item.ignore}
    present: dict[str, tuple[int, ...]] = {}
    absent: list[str] = []
    for name in dict.fromkeys(names):
        if _head(name) in closed or "" in closed:
            continue
        alike = [row for row, other in enumerate(names) if _head(other) == _head(name)]
        labels = [instances[facts.ids[row]] for row in alike]
        said = facts.objects[names.index(name)].label
        attributes = dict.fromkeys(a for i in labels for a in (*i.positive, *i.negative))
        for attribute in attributes:
            if kinds.get(attribute) not in ADJECTIVES or any(
                attribute not in i.positive and attribute not in i.negative for i in labels
            ):
                continue
            rows = tuple(
                row for row, i in zip(alike, labels, strict=True) if attribute in i.positive
            )
            if not rows:
                absent.append(f"{attribute} {said}")
            # red on a "sports car" alone says nothing of "red car": such a phrase is left out
            elif all(names[row] == name for row in rows):
                present[f"{attribute} {said}"] = rows
    return present, tuple(dict.fromkeys(absent))


def _head(name: str) -> str:
    return name.split(" ")[-1]


def attribute_samples(
    facts: ImageFacts,
    instances: Mapping[str, Instance],
    kinds: Mapping[str, str],
    options: BuildOptions,
    dataset: str,
) -> list[Sample]:
    """Return the questions of one image or window.

    Detection of `single_names` phrases, and of several at once; up to `region_texts` attributes of
    regions; a rejection where phrases are known to be absent but none is known to be present.

    Args:
        facts: The boxes of an image or window; `ids` are instance numbers.
        instances: Instance number -> instance.
        kinds: Attribute -> its type.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
    """
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id, *(facts.window or ())))
    present, nowhere = attribute_phrases(facts, instances, kinds)
    labels = {item.label for item in facts.objects} | facts.uncertain
    absent = absent_fields(nowhere, labels | present.keys(), LabelStatistics(), regime="attribute")
    conversations: list[tuple[str, tuple[Turn, ...]]] = []

    def ask(
        task: str, wording: str, argument: str | tuple[int, ...], answer: tuple[Part, ...]
    ) -> None:
        asked = question(
            wording, argument, seed=rng.getrandbits(32), paraphrases=options.paraphrases
        )
        conversations.append((task, conversation(asked, answer)))

    phrases = [phrase for phrase, rows in present.items() if len(rows) <= options.max_objects]
    rng.shuffle(phrases)
    for phrase in phrases[: options.single_names]:
        ask("detection", "detection", phrase, grounded_answer([(phrase, present[phrase])]))
    if len(phrases) > 1:
        several = within_budget(phrases, present, options.max_objects)
        found = [(phrase, present[phrase]) for phrase in several]
        ask("detection", "detection", JOINER.join(several), grounded_answer(found))
    if not conversations and absent["absent_labels"]:
        most = min(MAX_ABSENT_NAMES, len(absent["absent_labels"]))
        asked = rng.sample(absent["absent_labels"], rng.randint(1, most))
        ask("rejection", "detection", JOINER.join(asked), grounded_answer([]))
    known = _known_attributes(facts, instances, kinds)
    for row, kind in rng.sample(list(known), min(options.region_texts, len(known))):
        ask("region_qa", ASKED[kind], (row,), (Part(" and ".join(known[row, kind])),))
    return numbered(facts, dataset, conversations, absent)


def _known_attributes(
    facts: ImageFacts, instances: Mapping[str, Instance], kinds: Mapping[str, str]
) -> dict[tuple[int, str], list[str]]:
    """Return (row, type) -> the attributes of that type that the object has."""
    known: dict[tuple[int, str], list[str]] = {}
    for row, number in enumerate(facts.ids):
        for attribute in instances[number].positive if not facts.objects[row].ignore else ():
            if (kind := kinds.get(attribute)) in ASKED:
                known.setdefault((row, str(kind)), []).append(attribute)
    return known


_FILES = ("vaw/data/train_part1.json", "vaw/data/train_part2.json")
_TYPES = "vaw/data/attribute_types.json"


def _build_vaw(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    return build(folders, options, dataset="vaw", files=_FILES, types=_TYPES)


DATASETS = (
    DatasetSpec(
        name="vaw",
        images=(VISUAL_GENOME,),
        build=_build_vaw,
        files=(*_FILES, _TYPES),
        tasks=("detection", "region_qa", "rejection"),
        stages=(2,),
        licence="Adobe Research Licence, non-commercial; images (Visual Genome) CC BY 4.0",
        source="https://github.com/adobe-research/vaw_dataset",
        layout="\n".join(
            (
                f"{_FILES[0]}   official training instances, first part",
                f"{_FILES[1]}   second part",
                f"{_TYPES}   type -> attributes",
                "vg/VG_100K/, vg/VG_100K_2/   images of Visual Genome",
            )
        ),
        num_samples=250_000,
    ),
)
