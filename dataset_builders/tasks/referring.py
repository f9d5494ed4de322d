"""Referring expressions, and their reader for REFER's layout: a list of refs beside a COCO file.

What is made of the expressions of one image:

| task           | samples
|
| -------------- |
---------------------------------------------------------------------------------- |
| referring      | each expression that has a target asks for it, or for all its targets (gRefCOCO)
|
| rejection      | each expression that has none; the answer is None
|
| region_caption | where asked for: up to `region_texts` expressions with one target, as its caption
|

The list is a pickle, read by an unpickler that knows plain containers and scalars only, so that
opening a downloaded file runs nothing; gRefCOCO gives it as JSON too.

REFER: https://github.com/lichengunc/refer (refer.py); gRefCOCO:
https://github.com/henghuiding/gRefCOCO (grefer.py).
"""

import io
import pickle  # only through RestrictedUnpickler, which resolves no name at all
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dataset_builders.box_checks import get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.coco_files import open_coco
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Part, Reject, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, ImageSource, Item
from dataset_builders.tasks.prompts import conversation, grounded_answer, question
from dataset_builders.validation import check_label, check_text

# what broken bytes make an unpickler raise
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler of dicts, lists, tuples, strings, numbers, booleans and None; else it raises."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class and function; called before any of them could be imported."""
        raise pickle.UnpicklingError(
            f"the file wants to load {module}.{name}; only plain data is read"
        )

    def persistent_load(self, pid: Any) -> NoReturn:  # noqa: ARG002 - the protocol's signature
        """Refuse references to objects outside the file."""
        raise pickle.UnpicklingError(
            "the file refers to objects outside it; only plain data is read"
        )


def load_refs(path: Path) -> list[Any]:
    """Return the list of a REFER pickle, running nothing that it holds; or the same list as JSON.

    Bytes that are not UTF-8 become lone surrogates, which the text check rejects.

    Raises:
        SettingError: The file is not a pickled list of plain data; the message names it.
    """
    if path.suffix == ".json":
        return list(stream_array(path, None))
    reader = RestrictedUnpickler(
        io.BytesIO(path.read_bytes()), encoding="utf-8", errors="surrogateescape"
    )
    try:
        refs = reader.load()
    except _PICKLE_ERRORS as error:
        raise SettingError(f"{path.name} is not a REFER pickle of plain data: {error}") from error
    if not isinstance(refs, list):
        raise SettingError(
            f"{path.name} holds a {type(refs).__name__}; a REFER pickle holds a list"
        )
    return refs


@dataclass(frozen=True, kw_only=True)
class Expression:
    """What a record says of an image."""

    record: str
    """Readable name of the record in its file."""
    number: int | str
    """Id of the expression, unique in the dataset."""
    said: str
    """The expression as the file has it."""
    rows: tuple[int, ...]
    """Objects of the image that it names; none: nothing fits it."""


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    refs: str,
    instances: str,
    folder: str,
    source: ImageSource,
    split: str,
    form: CocoForm | None = None,
    captions: bool = False,
) -> Iterator[Item]:
    """Yield the samples of the given split, the rejects, and the ledger last.

    Args:
        folders: Where the datasets lie.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        refs: Name of the list of refs, pickle or JSON.
        instances: Name of the COCO file.
        folder: Folder of its images.
        source: What the images belong to.
        split: Split that is wanted, as the refs spell it.
        form: Where the COCO file differs from COCO's own.
        captions: Whether expressions are captions too, see `expression_samples`.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    with open_coco(folders, file=instances, folder=folder, source=source, form=form) as coco:
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
            else:
                counter.use("image")
        before = counter.num_read
        by_image: dict[int, list[_Stored]] = {}
        seen: set[int] = set()
        for record, ref, sentence in _sentences(load_refs(folders.path(refs)), split):
            try:
                image_id, stored = _read(record, ref, sentence, seen)
                by_image.setdefault(image_id, []).append(stored)
            except BadRecord as error:
                yield counter.reject(record, error)
        for image_id, listed in by_image.items():
            facts, found = None, []
            for record, number, said, targets in listed:
                try:
                    facts = facts or coco.image(image_id).facts
                    rows = _rows(facts, targets)
                    found.append(Expression(record=record, number=number, said=said, rows=rows))
                except BadRecord as error:
                    yield counter.reject(record, error)
            if facts is not None:
                yield from expression_samples(
                    facts, found, options, dataset=dataset, counter=counter, captions=captions
                )
    if counter.num_read == before:
        raise SettingError(f"{Path(refs).name} holds no refs of split {split!r}")
    yield counter.ledger()


def expression_samples(
    facts: ImageFacts,
    expressions: Sequence[Expression],
    options: BuildOptions,
    *,
    dataset: str,
    counter: RecordCounter,
    captions: bool,
) -> Iterator[Sample | Reject]:
    """Yield the samples of the expressions of one image, or rejects; each counts as one record.

    An expression without target that another record of the image uses for an object is a
    contradiction: the counterfactual ones are made by changing words, and may hit another object.

    Args:
        facts: What is known of the image.
        expressions: The expressions.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        counter: Counts the records.
        captions: Whether to give expressions with one target also as captions of their region, at
            most `options.region_texts` an image.
    """
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id))
    single = [
        position for position, expression in enumerate(expressions) if len(expression.rows) == 1
    ]
    chosen = set(rng.sample(single, min(options.region_texts, len(single)))) if captions else set()
    fitting = {_folded(expression.said) for expression in expressions if expression.rows}

    def make(position: int) -> Iterator[Sample]:
        one = expressions[position]
        if not one.rows and _folded(one.said) in fitting:
            raise BadRecord(
                "contradiction", f"{one.said[:80]!r} is said of an object of the image too"
            )
        if len(one.rows) > options.max_objects:
            raise BadRecord("too_many_regions", f"an expression for {len(one.rows)} objects")
        yield expression_sample(
            facts, one.said, one.rows, options, dataset=dataset, number=one.number
        )
        if position in chosen:
            yield caption_sample(
                facts, one.said, one.rows, options, dataset=dataset, number=one.number
            )

    for position, expression in enumerate(expressions):
        yield from counter.record(expression.record, partial(make, position))


def expression_sample(
    facts: ImageFacts,
    expression: str,
    rows: tuple[int, ...],
    options: BuildOptions,
    *,
    dataset: str,
    number: int | str,
) -> Sample:
    """Return the sample of one referring expression.

    Args:
        facts: What is known of the image.
        expression: The expression as the file has it; blanks are folded.
        rows: Objects that it names; none makes it a `rejection`.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        number: Id of the expression, unique in the dataset.

    Raises:
        BadRecord: The expression is not safe text.
    """
    said = _checked(expression)
    seed = seed_of(options.seed, dataset, number)
    asked = question("referring", said, seed=seed, paraphrases=options.paraphrases)
    turns = conversation(asked, grounded_answer([(said, rows)] if rows else []))
    if rows:
        return facts.sample(dataset=dataset, task="referring", number=number, turns=turns)
    return facts.sample(
        dataset=dataset,
        task="rejection",
        number=number,
        turns=turns,
        absent_labels=(said,),
        absent_regime="constructed",
    )


def caption_sample(
    facts: ImageFacts,
    expression: str,
    rows: tuple[int, ...],
    options: BuildOptions,
    *,
    dataset: str,
    number: int | str,
) -> Sample:
    """Return the sample that shows a region and is answered with its expression.

    The arguments are those of `expression_sample`.
    """
    seed = seed_of(options.seed, dataset, number, "caption")
    asked = question("region_caption", rows, seed=seed, paraphrases=options.paraphrases)
    turns = conversation(asked, (Part(_checked(expression)),))
    return facts.sample(dataset=dataset, task="region_caption", number=number, turns=turns)


def _checked(expression: str) -> str:
    # checked before its blanks are folded, since folding would take control characters for blanks
    check_text(expression, what="expression")
    return check_label(" ".join(expression.split()), what="expression")


def _folded(expression: str) -> str:
    return " ".join(expression.casefold().split())


def _sentences(refs: list[Any], split: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (record id, ref, sentence) for the refs of a split.

    A ref without readable split or sentences comes once, with None.
    """
    for position, ref in enumerate(refs):
        known = isinstance(ref, dict) and isinstance(ref.get("split"), str)
        if known and ref["split"] != split:
            continue
        sentences = ref.get("sentences") if known else None
        if not isinstance(sentences, list) or not sentences:
            yield f"refs/{position}", ref, None
            continue
        for number, sentence in enumerate(sentences):
            yield f"refs/{position}/sentences/{number}", ref, sentence


_Stored = tuple[str, int, str, list[int]]
"""Record id, number, text and annotation ids of a sentence."""


def _read(record: str, ref: Any, sentence: Any, seen: set[int]) -> tuple[int, _Stored]:
    """Return the image id of a sentence, and what it says."""
    if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
        raise BadRecord("malformed", "no split, no sentences, or a sentence without raw text")
    image_id = whole_number(get(ref, "image_id"), what="image_id")
    named = _targets(get(ref, "ann_id"))
    number = whole_number(sentence.get("sent_id"), what="sent_id")
    if number in seen:
        raise BadRecord("duplicate_id", f"sentence {number}")
    seen.add(number)
    return image_id, (record, number, sentence["raw"], named)


def _rows(facts: ImageFacts, named: list[int]) -> tuple[int, ...]:
    """Return the rows of annotation ids among the objects of an image, each once."""
    if missing := [target for target in named if target not in facts.ids]:
        raise BadRecord("unknown_object", f"annotations {missing} of image {facts.ref.image_id}")
    return tuple(dict.fromkeys(facts.ids.index(target) for target in named))


def _targets(value: Any) -> list[int]:
    """Return the annotation ids of a ref: one, or gRefCOCO's list.

    There, -1 alone means that there is no target.
    """
    listed = value if isinstance(value, list | tuple) else [value]
    ids = [whole_number(item, what="ann_id") for item in listed]
    if not ids:
        raise BadRecord("malformed", "ann_id is an empty list: neither objects nor -1 for none")
    return [] if ids == [-1] else ids
