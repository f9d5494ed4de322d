"""LVIS: boxes of 1,203 categories with federated labels, on images of COCO 2017.

Federated: only some categories are known on an image, and each in one of three ways.

| state           | where it stands                                 | what is asked               |
| --------------- | ----------------------------------------------- | --------------------------- |
| boxed           | boxes, and not in `not_exhaustive_category_ids` | where all of it is, a count |
| not exhaustive  | boxes, and in `not_exhaustive_category_ids`     | never the whole, no count   |
| verified absent | `neg_category_ids`                              | rejections                  |

Nothing but the verified ones may be called absent. Of every other category the file says nothing,
boxed or not: people are on most images without a person box.

Files (https://www.lvisdataset.org/dataset, https://github.com/lvis-dataset/lvis-api,
data/README.md): ``lvis_v1_SPLIT.json`` in COCO's form with those two lists on each image record,
and the image folders of COCO 2017. The validation file points into COCO's training folder too. Each
image becomes the questions of `tasks.detection`, worded with the first synonym of a category.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import COCO_TRAIN, COCO_VAL, coco_id, source_of
from dataset_builders.images import check_uri
from dataset_builders.names import prompt_name, prompt_names
from dataset_builders.readers.coco_files import CocoFile, CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks import detection
from dataset_builders.tasks.absence import LabelStatistics, absent_fields
from dataset_builders.validation import check_label

NEGATIVE, PARTIAL = "neg_category_ids", "not_exhaustive_category_ids"
"""Fields of an image record: ids verified to be absent, and ids whose boxes are not all there."""


@dataclass(frozen=True, kw_only=True)
class FederatedLabels:
    """What the two lists of one image say."""

    absent: tuple[str, ...]
    """Labels that people verified to be absent, in the order of the list."""
    partial: frozenset[str]
    """Labels of which some objects have no box."""
    wrong: tuple[tuple[str, BadRecord], ...]
    """Entries that say nothing, as (name of the entry, error)."""
    num_used: int
    """Entries of both lists that say something."""

    @classmethod
    def of(cls, image: CocoImage, categories: Mapping[int, str]) -> "FederatedLabels":
        """Read the lists of an image.

        Args:
            image: The image with its record.
            categories: Category id -> label.

        Raises:
            BadRecord: malformed, when a list is missing or no list, or when an entry of the list of
                what is not exhaustive cannot be read: any category could be on it.
        """
        shown = {item.label for item in image.facts.objects}
        partial: set[str] = set()
        wrong: list[tuple[str, BadRecord]] = []
        entries = _listed(image.fields, PARTIAL)
        for position, number in enumerate([whole_number(entry, what=PARTIAL) for entry in entries]):
            if number in categories:
                partial.add(categories[number])
            else:
                wrong.append(
                    (f"{PARTIAL}/{position}", BadRecord("unknown_category", f"category {number}"))
                )
        absent: dict[str, None] = {}
        negatives = _listed(image.fields, NEGATIVE)
        for position, entry in enumerate(negatives):
            try:
                number = whole_number(entry, what=NEGATIVE)
                if number not in categories:
                    raise BadRecord("unknown_category", f"category {number}")
                if (label := categories[number]) in shown or label in partial:
                    raise BadRecord("contradiction", f"{label!r} is both absent and present")
                if label in absent:
                    raise BadRecord("duplicate_id", f"category {number}")
                absent[label] = None
            except BadRecord as error:
                wrong.append((f"{NEGATIVE}/{position}", error))
        num_used = len(entries) + len(negatives) - len(wrong)
        return cls(
            absent=tuple(absent), partial=frozenset(partial), wrong=tuple(wrong), num_used=num_used
        )


def _listed(fields: Mapping[str, Any], name: str) -> list[Any]:
    listed = get(fields, name)
    if not isinstance(listed, list):
        raise BadRecord("malformed", f"{name} is {type(listed).__name__}, not a list")
    return listed


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    image_folders: tuple[str, ...],
) -> Iterator[Item]:
    """Yield the questions of `detection.image_samples` about one LVIS file.

    Rejects come in between, the ledger last. Unit "record" is one entry of the two lists of an
    image.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: The annotation file, below the data root.
        image_folders: Folders of COCO 2017 that the file may point into; the first is taken where
            the file does not say.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    form = CocoForm(
        uri_of=partial(image_of, image_folders=image_folders), image_fields=(NEGATIVE, PARTIAL)
    )
    with open_coco(folders, file=file, folder="coco", source=COCO_TRAIN, form=form) as coco:
        check_federated(coco, file)
        synonyms = name_categories(coco)
        statistics = LabelStatistics.of(coco.label_sets())

        def samples_of(facts: ImageFacts, known: FederatedLabels) -> Iterator[Sample]:
            for view in facts.windows(options.max_objects):
                absent = absent_fields(
                    view.absent(known.absent),
                    {item.label for item in facts.objects} | facts.uncertain,
                    statistics,
                    regime="federated",
                    related=lambda label: synonyms.get(label, ()),
                )
                yield from detection.image_samples(
                    view,
                    options,
                    dataset,
                    absent,
                    complete=lambda label: label not in known.partial,
                )

        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
                continue
            record = f"image {item.facts.ref.image_id}"
            try:
                known = FederatedLabels.of(item, coco.categories)
            except BadRecord as error:
                yield counter.reject(record, error, "image")
                continue
            for entry, fault in known.wrong:
                yield counter.reject(f"{record}/{entry}", fault)
            counter.use("record", known.num_used)

            def make(item: CocoImage = item, known: FederatedLabels = known) -> Iterator[Sample]:
                return samples_of(placed(item.facts), known)

            yield from counter.record(record, make, "image")
    yield counter.ledger()


def image_of(image: Mapping[str, Any], *, image_folders: tuple[str, ...]) -> str:
    """Return where the image of an image record lies below ``coco/``: "val2017/000000266409.jpg".

    v1 has only `coco_url`, whose last two parts say it; the names of v0.5 (COCO_val2014_...) are of
    the years before the split of 2017, so the url is asked first.

    Args:
        image: The image record.
        image_folders: Folders that the file may point into, as for `build`.

    Raises:
        BadRecord: malformed, unsafe_path, contradiction, or benchmark_image for an image of another
            split.
    """
    url = image.get("coco_url")
    place = get(image, "file_name") if url is None else url
    if not isinstance(place, str):
        raise BadRecord("malformed", f"coco_url or file_name is {type(place).__name__}, not text")
    if url is None:
        check_uri(place)
    folder, name = ("", image_folders[0], *PurePosixPath(place).parts)[-2:]
    number = coco_id(name)
    if int(number) != whole_number(get(image, "id"), what="image id"):
        raise BadRecord(
            "contradiction", f"image {str(image['id'])[:40]} has the file {name[:80]!r}"
        )
    if folder not in image_folders:
        reason = "benchmark_image" if folder in ("train2017", "val2017") else "malformed"
        raise BadRecord(reason, f"{folder[:80]}/{name[:80]} is not of {' or '.join(image_folders)}")
    return f"{folder}/{int(number):012d}.jpg"


def placed(facts: ImageFacts) -> ImageFacts:
    """Return the facts with the image source below whose folder the image lies."""
    source = source_of(facts.ref.image_uri, (COCO_TRAIN, COCO_VAL))
    return replace(facts, ref=replace(facts.ref, image_source=source.name))


def check_federated(coco: CocoFile, file: str) -> None:
    """Raise SettingError when no image of the file says which categories were verified on it."""
    query = "SELECT 1 FROM images WHERE more LIKE ? LIMIT 1"
    if coco.database.execute(query, (f'%"{NEGATIVE}"%',)).fetchone() is None:
        raise SettingError(
            f"{PurePosixPath(file).name}: no image has {NEGATIVE}: not a file with federated "
            "labels, as LVIS and PACO are"
        )


def name_categories(coco: CocoFile) -> dict[str, tuple[str, ...]]:
    """Name the file's categories as questions do, by their first synonym.

    Changes `coco.categories` in place.

    Returns:
        Label -> its other synonyms.
    """
    listed = {number: _synonyms(coco.records[number]) for number in coco.categories}
    first = {name: listed[number][0] for number, name in coco.categories.items() if listed[number]}
    shown = prompt_names(coco.categories.values(), first)
    coco.categories = {number: shown[name] for number, name in coco.categories.items()}
    return {
        label: tuple(name for name in map(prompt_name, listed[number]) if name != label)
        for number, label in coco.categories.items()
    }


def _synonyms(category: Mapping[str, Any]) -> list[str]:
    """Return the names of a category that are fit for a question; none where the file has none."""
    listed = category.get("synonyms")
    return [name for name in listed if _is_label(name)] if isinstance(listed, list) else []


def _is_label(name: Any) -> bool:
    try:
        check_label(name)
    except BadRecord:
        return False
    return True


def _lvis(
    split: str, images: tuple[ImageSource, ...], image_folders: tuple[str, ...], **facts: Any
) -> DatasetSpec:
    name, file = f"lvis_{split}", f"lvis/lvis_v1_{split}.json"

    def read(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(folders, options, dataset=name, file=file, image_folders=image_folders)

    return DatasetSpec(
        name=name,
        images=images,
        build=read,
        files=(file,),
        tasks=detection.ALL_TASKS,
        licence="annotations CC BY 4.0; images (COCO) under their own Flickr licences",
        source="https://www.lvisdataset.org/dataset",
        layout="\n".join(
            (
                f"{file}   official annotations with {NEGATIVE} and {PARTIAL}",
                *(f"coco/{folder}/   images of COCO 2017" for folder in image_folders),
            )
        ),
        **facts,
    )


DATASETS = (
    _lvis("train", (COCO_TRAIN,), ("train2017",), stages=(2,), num_samples=700_000),
    # validation takes images from COCO's training split too, so it needs both folders
    _lvis("val", (COCO_VAL, COCO_TRAIN), ("val2017", "train2017"), num_samples=130_000),
)
