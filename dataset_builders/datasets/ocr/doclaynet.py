"""DocLayNet: the layout of document pages (https://github.com/DS4SD/DocLayNet, README.md).

Files: COCO's instances JSON over pages drawn as squares of 1025 pixels, the pages (PNG), and, where
they are there, the text cells of the PDFs (`doclaynet_cells`). Eleven classes, every element of a
page boxed. Asked for are the type of an element, the elements of a type, and, with text cells, the
text of an element. Traps:

- Boxes may start a little outside their page.
- Pages that were annotated more than once carry a `precedence`, of which 0 counts.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.ocr.doclaynet_cells import (
    Box,
    Page,
    Size,
    find_form,
    read_page,
    texts,
)
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import stem
from dataset_builders.readers.coco_files import CocoFile, CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm, coco_source
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Part, Reject, Sample, Turn
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.detection import image_samples, numbered
from dataset_builders.tasks.prompts import conversation, question
from dataset_builders.validation import check_text

FILE, IMAGE_FOLDER, CELLS = "doclaynet/COCO/train.json", "doclaynet/PNG", "doclaynet/JSON"
"""The annotation file, the image folder, and the folder of text cells, below the data root."""
CLASSES = (
    "Caption",
    "Footnote",
    "Formula",
    "List-item",
    "Page-footer",
    "Page-header",
    "Picture",
    "Section-header",
    "Table",
    "Text",
    "Title",
)
"""Classes in the order of their ids, from 1."""
READABLE = frozenset(CLASSES) - {"Formula", "Picture", "Table"}
"""Classes whose elements are running text."""
LOOKED_AT_PAGES = 50
"""Pages whose text cells decide what their numbers are. ours"""


def _name(category: Mapping[str, Any]) -> str:
    number, name = whole_number(get(category, "id"), what="category id"), get(category, "name")
    if not 1 <= number <= len(CLASSES) or name != CLASSES[number - 1]:
        raise BadRecord("unknown_category", f"category {number} is {str(name)[:80]!r}")
    return CLASSES[number - 1]


def _uri(image: Mapping[str, Any]) -> str:
    if precedence := whole_number(image.get("precedence", 0), what="precedence"):
        page = f"page {image.get('page_no')} of {str(image.get('doc_name'))[:80]!a}"
        raise BadRecord("duplicate_id", f"{page} annotated again, precedence {precedence}")
    return get(image, "file_name")


FORM = CocoForm(name_of=_name, uri_of=_uri, box_fields=("precedence",))
IMAGES = coco_source("doclaynet_train", file=FILE, folder=IMAGE_FOLDER, num_buckets=128, form=FORM)


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of every page, the rejects, and the ledger last.

    Raises:
        SettingError: A file is not of its form, or the text cells fit the elements in no known
            form.
    """
    counter = RecordCounter()
    with open_coco(folders, file=FILE, folder=IMAGE_FOLDER, source=IMAGES, form=FORM) as coco:
        form = _cell_form(folders, coco)
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
                continue
            record = f"image {item.facts.ref.image_id}"
            # a page that was rejected must not come back with its text
            made = list(counter.record(record, partial(_page_samples, item, options), "image"))
            yield from made
            if form is not None and not any(isinstance(one, Reject) for one in made):
                yield from _readings(folders, item.facts, form, options, counter)
    yield counter.ledger()


def _page_samples(image: CocoImage, options: BuildOptions) -> Iterator[Sample]:
    """Yield the questions about types of elements.

    Raises:
        BadRecord: contradiction, when an element is of another annotation of its page.
    """
    for fields in image.box_fields:
        if fields.get("precedence", 0) != 0:
            raise BadRecord(
                "contradiction", f"an element has precedence {str(fields['precedence'])[:40]}"
            )
    for view in image.facts.windows(options.max_objects):
        seed = seed_of(options.seed, "doclaynet types", view.ref.image_id, *(view.window or ()))
        asked: list[tuple[str, tuple[Turn, ...]]] = []
        for row in _spread(view, random.Random(seed))[: options.region_names]:
            parts = question(
                "layout_type", (row,), seed=seed + row, paraphrases=options.paraphrases
            )
            asked.append(("region_qa", conversation(parts, (Part(view.objects[row].label),))))
        yield from numbered(view, "doclaynet", asked, {})
        yield from image_samples(view, options, "doclaynet", {}, tasks=("detection",))


def _spread(view: ImageFacts, rng: random.Random) -> list[int]:
    """Return the rows of all elements in a drawn order, each class once before any comes again.

    Half of all elements are Text: a plain draw would ask for little else.
    """
    rows = [row for row, item in enumerate(view.objects) if not item.ignore]
    rng.shuffle(rows)
    earlier: Counter[str] = Counter()
    rank = {}
    for row in rows:
        rank[row] = earlier[view.objects[row].label]
        earlier[view.objects[row].label] += 1
    return sorted(rows, key=rank.__getitem__)


def _readings(
    folders: DataFolders,
    facts: ImageFacts,
    form: str,
    options: BuildOptions,
    counter: RecordCounter,
) -> Iterator[Sample | Reject]:
    """Yield the questions for the text of elements, at most `options.region_texts` a page."""
    name = _cells_of(facts)
    try:
        page = read_page(folders, name)
    except BadRecord as error:
        yield counter.reject(name, error)
        return
    if page is None or not facts.objects:
        return
    read = texts(page, form, _size(facts), _boxes(facts))
    rows = [
        row
        for row in read
        if facts.objects[row].label in READABLE and not facts.objects[row].ignore
    ]
    rng = random.Random(seed_of(options.seed, "doclaynet texts", facts.ref.image_id))
    for row in sorted(rng.sample(rows, min(options.region_texts, len(rows)))):

        def make(row: int = row) -> Iterator[Sample]:
            text = check_text(read[row], what="text of an element")
            parts = question(
                "ocr", (row,), seed=rng.getrandbits(32), paraphrases=options.paraphrases
            )
            turns = conversation(parts, (Part(text),))
            yield facts.sample(dataset="doclaynet", task="ocr", number=facts.ids[row], turns=turns)

        yield from counter.record(f"{name}#{facts.ids[row]}", make)


def _cell_form(folders: DataFolders, coco: CocoFile) -> str | None:
    """Return what the numbers of the text cells are; None where there are no cells."""
    if not folders.matches(CELLS):
        return None

    def pages() -> Iterator[tuple[Page, Size, Sequence[Box]]]:
        for (number,) in coco.database.execute(
            "SELECT id FROM images ORDER BY position"
        ).fetchall():
            facts = coco.image(number).facts
            try:
                page = read_page(folders, _cells_of(facts))
            except BadRecord:  # yielded as a reject when its page is read
                continue
            if page is not None and page.cells:
                yield page, _size(facts), _boxes(facts)

    return find_form(islice(pages(), LOOKED_AT_PAGES), source=CELLS)


def _cells_of(facts: ImageFacts) -> str:
    return f"{CELLS}/{stem(facts.ref.image_uri)}.json"


def _size(facts: ImageFacts) -> Size:
    return float(facts.ref.width), float(facts.ref.height)


def _boxes(facts: ImageFacts) -> list[Box]:
    return [item.box for item in facts.objects]


DATASETS = (
    DatasetSpec(
        name="doclaynet",
        images=(IMAGES,),
        build=build,
        files=(FILE,),
        optional_files=(f"{CELLS}/*.json",),
        tasks=("region_qa", "detection", "ocr"),
        stages=(2,),
        licence="CDLA-Permissive-1.0",
        source="https://github.com/DS4SD/DocLayNet",
        layout=(
            f"{FILE}   COCO instances JSON\n{IMAGE_FOLDER}/   its page images, HASH.png\n"
            f"{CELLS}/   optional: text cells of the pages, HASH.json (DocLayNet_extra)"
        ),
        match_iou=0.7,
        num_samples=340_000,
    ),
)
