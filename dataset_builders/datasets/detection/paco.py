"""PACO: objects, their parts, and attributes of both, on COCO images (LVIS) and Ego4D frames.

Files (https://github.com/facebookresearch/paco, docs/PACO_DATASET.md): one JSON in COCO's form with
further tables (`part_categories`, `attributes`, `attr_type_to_attr_idxs`), and COCO's train2017 or
the frames of Ego4D. What is known of an annotation becomes a description, "the black plastic handle
of a mug", which is asked for (region_caption), as is the bare name (region_name).

- A part is an annotation like an object; its `obj_ann_id` names the object that it is of.
- Its category is "object:part" in `categories` (the form that training needs) or the bare part in
  `part_categories` (the documented one): both are read.
- Attributes of a type are stated only where that type was annotated (`unknown_color` is 0, and so
  on), and never the background ones, "other(color)".
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.detection.lvis import image_of
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import COCO_TRAIN
from dataset_builders.names import prompt_names
from dataset_builders.readers.coco_files import CocoFile, CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm, coco_source
from dataset_builders.readers.json_files import read_members
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Part, Reject, Sample, Turn
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.detection import numbered
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_label

TYPES = ("color", "pattern_marking", "material", "transparency")
"""Types of attributes, in the order of `unknown_*`."""
SPOKEN = ("transparency", "color", "pattern_marking", "material")
"""Types of attributes, in the order in which a description names them. ours"""
UNSAID = frozenset({"plain", "opaque"})
"""Attributes that hold for most things and that a description leaves out. ours"""
CARRIED = frozenset({"logo", "text"})
"""Markings that a thing has, where others say how it is: "a mug with a logo". ours"""
PAIRS = frozenset({"scissors", "pliers"})
"""Objects whose name takes no article. ours"""
_BOX_FIELDS = (
    "category_id",
    "obj_ann_id",
    "attribute_ids",
    "dom_color_ids",
    *(f"unknown_{kind}" for kind in TYPES),
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tables of one file: its categories and attributes as a text says them."""

    objects: Mapping[int, str]
    """Category id -> name of an object as a text says it."""
    parts: Mapping[int, tuple[str, str]]
    """Category id -> (object, part); the object is empty where the category does not say it."""
    attributes: Mapping[int, tuple[str, str]]
    """Attribute id -> (type, name as a text says it); background attributes are left out."""
    background: frozenset[int]
    """Ids of the attributes that are left out."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of one annotation, in words."""

    label: str
    """Name of the object, or "handle of a mug"."""
    text: str | None
    """Description of the object; None where nothing but its name is known."""


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    folder: str,
    source: ImageSource,
    uri_of: Callable[[Mapping[str, Any]], str],
) -> Iterator[Item]:
    """Yield questions for descriptions and names of regions of one PACO file.

    Rejects come in between, the ledger last. Unit "record" is what one annotation says beside its
    box.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: The annotation file, below the data root.
        folder: Folder that the uris of `uri_of` are below.
        source: Image source that the images belong to.
        uri_of: Returns the uri of an image from its record.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    tables = read_members(
        folders.path(file), ("part_categories", "attributes", "attr_type_to_attr_idxs")
    )
    form = CocoForm(uri_of=uri_of, box_fields=_BOX_FIELDS)
    with open_coco(folders, file=file, folder=folder, source=source, form=form) as coco:
        vocabulary = read_vocabulary(coco, tables, Path(file).name)
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
                continue
            known: dict[Any, Described] = {}
            for position, number in enumerate(item.facts.ids):
                try:
                    known[number] = describe(item, position, vocabulary)
                    counter.use()
                except BadRecord as error:
                    yield counter.reject(f"annotation {number}", error)
            objects = tuple(
                replace(thing, label=known[number].label) if number in known else thing
                for number, thing in zip(item.facts.ids, item.facts.objects, strict=True)
            )
            facts = replace(item.facts, objects=objects)

            def make(
                facts: ImageFacts = facts, known: Mapping[Any, Described] = known
            ) -> Iterator[Sample]:
                for view in facts.windows(options.max_objects):
                    yield from region_samples(view, known, options, dataset)

            yield from counter.record(f"image {facts.ref.image_id}", make, "image")
    yield counter.ledger()


def region_samples(
    facts: ImageFacts, known: Mapping[Any, Described], options: BuildOptions, dataset: str
) -> list[Sample]:
    """Return up to `region_texts` questions for descriptions and `region_names` for names.

    Args:
        facts: The boxes of an image or window.
        known: Annotation id -> what it says; annotations that are not there are not asked about.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
    """
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id, *(facts.window or ())))
    rows = [
        row
        for row, number in enumerate(facts.ids)
        if number in known and not facts.objects[row].ignore
    ]
    told = [(row, text) for row in rows if (text := known[facts.ids[row]].text) is not None]
    conversations: list[tuple[str, tuple[Turn, ...]]] = []
    for task, pairs, most in (
        ("region_caption", told, options.region_texts),
        ("region_name", [(row, facts.objects[row].label) for row in rows], options.region_names),
    ):
        for row, text in rng.sample(pairs, min(most, len(pairs))):
            asked = question(
                task, (row,), seed=rng.getrandbits(32), paraphrases=options.paraphrases
            )
            conversations.append((task, conversation(asked, (Part(text),))))
    return numbered(facts, dataset, conversations, {})


def describe(image: CocoImage, position: int, vocabulary: Vocabulary) -> Described:
    """Return what one annotation of an image says.

    Args:
        image: The image with the fields of its annotations.
        position: Row of the annotation.
        vocabulary: The tables of the file.

    Raises:
        BadRecord: malformed, unknown_category, unknown_object (the object of a part), or
            contradiction.
    """
    number, fields = image.facts.ids[position], image.box_fields[position]
    category = whole_number(get(fields, "category_id"), what="category_id")
    owner = whole_number(fields.get("obj_ann_id", number), what="obj_ann_id")
    words, carried = attribute_words(fields, vocabulary)
    if owner == number:
        if category not in vocabulary.objects:
            raise BadRecord("contradiction", f"an object with the part category {category}")
        name = vocabulary.objects[category]
        said = with_article(name, words) + carried
        return Described(label=name, text=said if words or carried else None)
    if owner not in image.facts.ids:
        raise BadRecord(
            "unknown_object", f"a part of annotation {owner}, which has no box on the image"
        )
    of = whole_number(
        image.box_fields[image.facts.ids.index(owner)].get("category_id"), what="category_id"
    )
    if category not in vocabulary.parts or of not in vocabulary.objects:
        raise BadRecord(
            "unknown_category", f"part category {category} of an object of category {of}"
        )
    whole, part = vocabulary.parts[category]
    if whole not in ("", vocabulary.objects[of]):
        raise BadRecord(
            "contradiction", f"the {part} of {whole!r}, but on {vocabulary.objects[of]!r}"
        )
    label = f"{part} of {with_article(vocabulary.objects[of])}"
    return Described(label=label, text=" ".join(("the", *words, label)) + carried)


def attribute_words(fields: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[list[str], str]:
    """Return the words for the annotated attributes, in front of the noun and behind it.

    Raises:
        BadRecord: malformed, for ids that are not in the table and flags that are not 0 or 1.
    """
    if "attribute_ids" not in fields:
        return [], ""
    found: dict[str, list[str]] = {kind: [] for kind in TYPES}
    ids = [_attribute(value, vocabulary) for value in _list_of(fields, "attribute_ids")]
    first = {_attribute(value, vocabulary) for value in _list_of(fields, "dom_color_ids")}
    for number in sorted(ids, key=lambda number: number not in first):
        if number not in vocabulary.background:
            kind, name = vocabulary.attributes[number]
            found[kind] += [name] if name not in found[kind] else []
    for kind in TYPES:
        flag = whole_number(fields.get(f"unknown_{kind}", 1), what=f"unknown_{kind}")
        if flag not in (0, 1):
            raise BadRecord("malformed", f"unknown_{kind} is {flag}")
        if flag:
            found[kind] = []
    front = [
        _listing([name for name in found[kind] if name not in UNSAID | CARRIED]) for kind in SPOKEN
    ]
    carried = [
        with_article(name) if name == "logo" else name
        for name in found["pattern_marking"]
        if name in CARRIED
    ]
    return [words for words in front if words], f" with {_listing(carried)}" if carried else ""


def with_article(noun: str, words: tuple[str, ...] | list[str] = ()) -> str:
    """Return "a mug", "an orange mug", "a pair of scissors"."""
    said = " ".join((*words, f"pair of {noun}" if noun in PAIRS else noun))
    return f"{'an' if said[0].lower() in 'aeiou' else 'a'} {said}"


def _listing(names: list[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)


def _list_of(fields: Mapping[str, Any], name: str) -> list[Any]:
    listed = fields.get(name, [])
    if not isinstance(listed, list):
        raise BadRecord("malformed", f"{name} is {type(listed).__name__}, not a list")
    return listed


def _attribute(value: Any, vocabulary: Vocabulary) -> int:
    number = whole_number(value, what="attribute id")
    if number not in vocabulary.attributes and number not in vocabulary.background:
        raise BadRecord("malformed", f"attribute {number} is not in the table of attributes")
    return number


def read_vocabulary(coco: CocoFile, tables: Mapping[str, Any], file: str) -> Vocabulary:
    """Read the tables of a file, and let its boxes have categories of either table of categories.

    Changes `coco.categories` in place.

    Args:
        coco: The opened file.
        tables: part_categories, attributes and attr_type_to_attr_idxs as stored.
        file: Name of the file, for messages.

    Raises:
        SettingError: A table is missing or not as documented.
    """
    try:
        bare = _names(tables["part_categories"])
        spoken = _names(tables["attributes"])
        listed = tables["attr_type_to_attr_idxs"]
        types = {whole_number(n, what=kind): kind for kind in TYPES for n in listed[kind]}
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"{file}: part_categories, attributes or attr_type_to_attr_idxs is missing "
            f"or not as PACO documents it: {type(error).__name__}: {error}"
        ) from error
    if untyped := sorted(set(spoken) - set(types)):
        raise SettingError(f"{file}: attributes {untyped[:5]} have none of the types {TYPES}")
    whole = {number: name for number, name in coco.categories.items() if ":" not in name}
    shown = prompt_names(whole.values())
    pairs = {number: name.split(":", 1) for number, name in coco.categories.items() if ":" in name}
    parts = {number: ("", name) for number, name in bare.items()}
    parts |= {number: (shown.get(of, of), _said(part)) for number, (of, part) in pairs.items()}
    coco.categories = bare | {
        number: shown.get(name, name) for number, name in coco.categories.items()
    }
    background = frozenset(number for number, name in spoken.items() if name.startswith("other"))
    return Vocabulary(
        objects={number: shown[name] for number, name in whole.items()},
        parts=parts,
        attributes={n: (types[n], name) for n, name in spoken.items() if n not in background},
        background=background,
    )


def _names(table: list[dict[str, Any]]) -> dict[int, str]:
    return {
        whole_number(get(record, "id"), what="id"): _said(check_label(get(record, "name")))
        for record in table
    }


def _said(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


EGO4D_FRAMES = coco_source(
    "paco_ego4d", file="paco/paco_ego4d_v1_train.json", folder="paco_ego4d/images", num_buckets=32
)
"""Frames of Ego4D that PACO annotates."""


def _paco(
    name: str, file: str, images: ImageSource, layout: str, *, num_samples: int, **reader: Any
) -> DatasetSpec:
    def read(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(folders, options, dataset=name, file=file, source=images, **reader)

    return DatasetSpec(
        name=name,
        images=(images,),
        build=read,
        files=(file,),
        tasks=("region_caption", "region_name"),
        stages=(2,),
        licence="annotations CC BY-NC 4.0; images: COCO's Flickr licences, or the Ego4D agreement",
        source="https://github.com/facebookresearch/paco",
        layout=f"{file}   official annotations of objects and parts\n{layout}",
        granularity="fine",
        num_samples=num_samples,
    )


DATASETS = (
    _paco(
        "paco_lvis",
        "paco/paco_lvis_v1_train.json",
        COCO_TRAIN,
        "coco/train2017/   images of COCO 2017",
        num_samples=400_000,
        folder="coco",
        uri_of=partial(image_of, image_folders=("train2017",)),
    ),
    _paco(
        "paco_ego4d",
        "paco/paco_ego4d_v1_train.json",
        EGO4D_FRAMES,
        "paco_ego4d/images/   the frames, by file_name",
        num_samples=120_000,
        folder="paco_ego4d/images",
        uri_of=lambda image: get(image, "file_name"),
    ),
)
