"""Flickr30k Entities as published: sentences with bracketed phrases, and the boxes in XML.

Files: ``train.txt`` (names of the images), ``Sentences/NAME.txt`` (five captions),
``Annotations/NAME.xml`` (boxes), optional ``UNRELATED_CAPTIONS``, and Flickr30k's images. They
become captions with grounded phrases (grounding), and phrases that name one chain in all captions
(referring).

A sentence is a line such as ``[/EN#12/people Two young guys] with [/EN#13/bodyparts shaggy hair]
.``: the number is a chain, which the five captions of an image share, and chain 0 is not visual.
The XML gives the boxes of each chain; a chain that is a scene, or has no box, stays text.
Coordinates are used as they stand (MDETR does the same).

Source: https://github.com/BryanPlummer/flickr30k_entities (README.md)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from xml.etree import ElementTree

from dataset_builders.box_checks import BoxGuard, clean_box
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import FLICKR30K
from dataset_builders.images import check_uri, safe_join
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Object, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.grounding import (
    Mention,
    Span,
    expression_samples,
    expressions,
    find_phrases,
    grounding_sample,
    labelled,
)
from dataset_builders.validation import check_text

ROOT = "flickr30k_entities"
MAX_FILE_BYTES = 1 << 20
"""Largest annotation file of an image: real ones have some KB."""
MAX_SIDE_PX = 100_000
"""Longest side that a record may state; beyond it the number is wrong."""
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\w+)*\s([^\[\]]*)\]")


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of the images that train.txt lists, the rejects, and the ledger last.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    guard = BoxGuard("xyxy", source=f"{ROOT}/Annotations")
    unrelated = _unrelated(folders)
    seen: set[str] = set()
    with folders.path(f"{ROOT}/train.txt").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if name := line.strip():
                if name in seen:
                    yield counter.reject(
                        ascii(name), BadRecord("duplicate_id", "train.txt lists it again"), "image"
                    )
                    continue
                seen.add(name)
                yield from _image(folders, options, name, unrelated, counter, guard)
    guard.check()
    if not seen:
        raise SettingError("train.txt lists no image: it holds the name of one a line")
    yield counter.ledger()


@dataclass(frozen=True, kw_only=True)
class _Boxes:
    """What the XML of an image says."""

    facts: ImageFacts
    """The boxes of the image, cleaned."""
    chains: dict[str, tuple[int, ...]]
    """Rows of the boxes of each chain."""
    rejects: tuple[tuple[str, BadRecord], ...]
    """Boxes that cannot be used: their place in the file, and why."""
    doubtful: frozenset[str]
    """Chains of which a box was rejected."""


def _image(
    folders: DataFolders,
    options: BuildOptions,
    name: str,
    unrelated: frozenset[tuple[str, int]],
    counter: RecordCounter,
    guard: BoxGuard,
) -> Iterator[Item]:
    try:
        boxes = _boxes(_read(folders, f"Annotations/{name}.xml"), name, guard)
        sentences = (
            _read(folders, f"Sentences/{name}.txt").decode("utf-8", "surrogateescape").splitlines()
        )
    except BadRecord as error:
        yield counter.reject(ascii(name)[:200], error, "image")
        return
    counter.use("box", len(boxes.facts.objects))
    for record, lack in boxes.rejects:
        yield counter.reject(record, lack, "box")
    captions: list[tuple[int, str, list[Mention]]] = []
    for number, line in enumerate(text for text in sentences if text.strip()):
        try:
            if (name, number + 1) in unrelated:
                raise BadRecord(
                    "contradiction", "UNRELATED_CAPTIONS: it does not describe the image"
                )
            caption, spans = read_sentence(line)
        except BadRecord as error:
            yield counter.reject(f"{name}/{number}", error)
        else:
            captions.append((number, caption, _mentions(spans, boxes)))
    facts = boxes.facts
    for _, caption, mentions in reversed(captions):  # the first name that an object is given stays
        facts = labelled(facts, caption, mentions)
    for number, caption, mentions in captions[: options.region_texts]:
        make = partial(_caption, facts, number, caption, mentions, options)
        yield from counter.record(f"{name}/{number}", make)
    counter.use("record", len(captions[options.region_texts :]))
    yield from counter.record(name, partial(_referring, facts, captions, options), "image")


def _caption(
    facts: ImageFacts, number: int, caption: str, mentions: list[Mention], options: BuildOptions
) -> list[Sample]:
    phrases = find_phrases(caption, mentions)
    return [grounding_sample(facts, caption, phrases, options, dataset=ROOT, number=number)]


def _referring(
    facts: ImageFacts, captions: list[tuple[int, str, list[Mention]]], options: BuildOptions
) -> list[Sample]:
    """Return the expressions of the image: phrases that name one chain in all captions."""
    if facts.num_boxed > options.max_objects:
        raise BadRecord("too_many_regions", f"{facts.num_boxed} boxes, limit {options.max_objects}")
    named = [
        (phrase.text(caption), phrase.rows)
        for _, caption, mentions in captions
        for phrase in find_phrases(caption, mentions)
    ]
    found = expressions([caption for _, caption, _ in captions], named, options.single_names)
    return expression_samples(facts, found, options, dataset=ROOT, number=facts.ref.image_id)


def _mentions(spans: list[tuple[Span, str]], boxes: _Boxes) -> list[Mention]:
    """Return one mention a box of each named chain; one with a rejected box cannot be grounded."""
    mentions = []
    for span, chain in spans:
        rows = (None,) if chain in boxes.doubtful else boxes.chains.get(chain, ())
        mentions += [Mention((span,), row) for row in rows]
    return mentions


def read_sentence(line: str) -> tuple[str, list[tuple[Span, str]]]:
    """Return the plain caption of a line, and the span and chain of each phrase, chain 0 left out.

    Spans are characters of the plain caption, from the first to behind the last.

    Raises:
        BadRecord: Text that is unsafe or too long, or brackets that are not of the documented form.
    """
    check_text(line, what="sentence")
    line = line.strip()
    pieces: list[str] = []
    spans: list[tuple[Span, str]] = []
    end = length = 0
    for found in _PHRASE.finditer(line):
        words = found[2].strip()
        if not words:
            raise BadRecord("empty_text", f"a phrase of chain {found[1]} has no words")
        pieces += [line[end : found.start()], words]
        length += found.start() - end
        if int(found[1]):
            spans.append(((length, length + len(words)), found[1]))
        length += len(words)
        end = found.end()
    caption = "".join([*pieces, line[end:]])
    if "[/EN" in caption:
        raise BadRecord("malformed", f"brackets of {line[:120]!r}")
    return caption, spans


def _boxes(data: bytes, name: str, guard: BoxGuard) -> _Boxes:
    root = read_xml(data)
    width, height = (_number(root.find("size"), side) for side in ("width", "height"))
    if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
        raise BadRecord("bad_size", f"{width}x{height}")
    chains: dict[str, list[int]] = {}
    objects: list[Object] = []
    rejects: list[tuple[str, BadRecord]] = []
    doubtful: set[str] = set()
    for position, item in enumerate(root.findall("object")):
        box = item.find("bndbox")
        if box is None:  # a scene, or not to be boxed
            continue
        names = [(element.text or "").strip() for element in item.findall("name")]
        try:
            if not names or not all(chain.isdecimal() for chain in names):
                raise BadRecord("malformed", f"object {position} has the names {names}")
            x1, y1, x2, y2 = (_number(box, corner) for corner in ("xmin", "ymin", "xmax", "ymax"))
            guard.look((x1, y1, x2, y2), width, height)
            cleaned = clean_box((x1, y1, x2, y2), width, height)
        except BadRecord as error:
            rejects.append((f"{name}.xml/{position}", error))
            doubtful.update(names)
            continue
        for chain in names:
            chains.setdefault(chain, []).append(len(objects))
        objects.append(Object(box=cleaned, label="object"))
    uri = check_uri(f"flickr30k/flickr30k-images/{name}.jpg")
    facts = ImageFacts(
        ref=FLICKR30K.ref(FLICKR30K.id_of(uri), uri, width, height),
        objects=tuple(objects),
        ids=tuple(range(len(objects))),
    )
    rows = {chain: tuple(found) for chain, found in chains.items()}
    return _Boxes(facts=facts, chains=rows, rejects=tuple(rejects), doubtful=frozenset(doubtful))


def read_xml(data: bytes) -> ElementTree.Element:
    """Return the root of an XML text that declares nothing.

    No DOCTYPE means no entity, inside or outside, so nothing can expand or be fetched.

    Args:
        data: UTF-8 or another encoding in which ASCII stays ASCII.

    Raises:
        BadRecord: malformed.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise BadRecord("malformed", "the XML has a DOCTYPE, or is not of one byte a letter")
    try:
        return ElementTree.fromstring(data)  # noqa: S314 - nothing that expands is left
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadRecord("malformed", f"not XML: {error}") from error


def _number(element: ElementTree.Element | None, name: str) -> int:
    text = "" if element is None else (element.findtext(name) or "").strip()
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise BadRecord("malformed", f"{name} is {text[:40]!r}, not a whole number")
    return int(text)


def _read(folders: DataFolders, name: str) -> bytes:
    path = safe_join(folders.root(ROOT), name)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadRecord(
            "unknown_image", f"{name}: {error.strerror or type(error).__name__}"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise BadRecord("text_too_long", f"{name} has more than {MAX_FILE_BYTES} bytes")
    return data


def _unrelated(folders: DataFolders) -> frozenset[tuple[str, int]]:
    """Return the captions that have nothing to do with their image: name, number from 1."""
    path = folders.path(f"{ROOT}/UNRELATED_CAPTIONS")
    if not path.exists():
        return frozenset()
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SettingError(f"{ROOT}/{path.name} is not UTF-8: {error}") from error
    rows = [line.split() for line in lines if not line.startswith("#")]
    return frozenset((row[0], int(row[1])) for row in rows if len(row) == 2 and row[1].isdecimal())


DATASETS = (
    DatasetSpec(
        name=ROOT,
        images=(FLICKR30K,),
        build=build,
        files=(f"{ROOT}/train.txt", f"{ROOT}/Sentences/*.txt", f"{ROOT}/Annotations/*.xml"),
        optional_files=(f"{ROOT}/UNRELATED_CAPTIONS",),
        tasks=("grounding", "referring"),
        licence="Flickr30k: non-commercial research only",
        source="https://github.com/BryanPlummer/flickr30k_entities",
        layout="""flickr30k_entities/train.txt   names of the training images, one a line
flickr30k_entities/Sentences/1000092795.txt   five captions with bracketed phrases (annotations.zip)
flickr30k_entities/Annotations/1000092795.xml   its boxes (annotations.zip)
flickr30k_entities/UNRELATED_CAPTIONS   captions that do not describe their image
flickr30k/flickr30k-images/1000092795.jpg   Flickr30k's images""",
        num_samples=205_000,  # 29,783 training images, five captions and up to two expressions each
    ),
)
