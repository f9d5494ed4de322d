"""Referring expressions in REFER's layout: a pickled list beside a COCO file.

Each sentence of a ref becomes one sample of task `referring`. The pickle is read by an unpickler that knows
plain containers and scalars only, so that opening a downloaded file runs nothing.
"""

import io
import pickle  # only through RestrictedUnpickler, which resolves no name at all
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from dataset_builders import BuildOptions
from dataset_builders.coco_files import CocoFile, read_coco
from dataset_builders.conventions import whole_number
from dataset_builders.prompts import grounded_answer, question, seed_of
from dataset_builders.records import BadRecord, Ledger, Reject, Sample, Turn, check_label, validate

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
    """Unpickler of dicts, lists, tuples, strings, numbers, booleans and None; anything else raises."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every class and function; called before any of them could be imported."""
        raise pickle.UnpicklingError(f"the file wants to load {module}.{name}; only plain data is read")

    def persistent_load(self, pid: Any) -> NoReturn:  # noqa: ARG002 - the protocol's signature
        """Refuse references to objects outside the file."""
        raise pickle.UnpicklingError("the file refers to objects outside it; only plain data is read")


def load_refs(path: Path) -> list[Any]:
    """Return the list of a REFER pickle, running nothing that it holds.

    Bytes that are not UTF-8 become lone surrogates, which the text check rejects.
    Raises ValueError naming the file when it is not a pickled list of plain data.
    """
    reader = RestrictedUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8", errors="surrogateescape")
    try:
        refs = reader.load()
    except _PICKLE_ERRORS as error:
        raise ValueError(f"{path.name} is not a REFER pickle of plain data: {error}") from error
    if not isinstance(refs, list):
        raise ValueError(f"{path.name} holds a {type(refs).__name__}; a REFER pickle holds a list")
    return refs


def build(
    root: Path,
    options: BuildOptions,
    *,
    dataset: str,
    refs: str,
    instances: str,
    images: str,
    split: str,
    num_buckets: int,
) -> Iterator[Sample | Reject | Ledger]:
    """Yield one sample a sentence of the given split, the rejects, and the ledger last.

    refs, instances, images: pickle, COCO file and picture folder relative to root. split: as refs spell it.
    num_buckets: of the image source.
    Raises ValueError when a file is not of this form.
    """
    coco = read_coco(root / instances, images=images, num_buckets=num_buckets)
    yield from coco.rejects
    read, seen = 0, set[int]()
    used = 0
    for record_id, ref, sentence in _sentences(load_refs(root / refs), split):
        read += 1
        try:
            sample = _sample(coco, ref, sentence, options, dataset, seen)
            validate(sample)
        except BadRecord as error:
            yield Reject.of(record_id, error)
        else:
            used += 1
            yield sample
    if read == 0:
        raise ValueError(f"{Path(refs).name} holds no refs of split {split!r}")
    yield coco.ledger(records_read=read, records_used=used)


def _sentences(refs: list[Any], split: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (record id, ref, sentence); a ref without readable split or sentences comes once, with None."""
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


def _sample(
    coco: CocoFile, ref: Any, sentence: Any, options: BuildOptions, dataset: str, seen: set[int]
) -> Sample:
    if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
        raise BadRecord("malformed", "no split, no sentences, or a sentence without raw text")
    image_id = whole_number(ref.get("image_id"), what="image_id")
    annotation_id = whole_number(ref.get("ann_id"), what="ann_id")
    number = whole_number(sentence.get("sent_id"), what="sent_id")
    if number in seen:
        raise BadRecord("duplicate_id", f"sentence {number}")
    seen.add(number)
    if image_id not in coco.refs:
        raise BadRecord("unknown_image", f"image {image_id}")
    facts = coco.facts(image_id)
    if annotation_id not in facts.annotation_ids:
        raise BadRecord("unknown_object", f"annotation {annotation_id} of image {image_id}")
    expression = check_label(" ".join(sentence["raw"].split()), what="expression")
    row = facts.annotation_ids.index(annotation_id)
    seed = seed_of(options.seed, dataset, number)
    asked = question("referring", expression, seed=seed, paraphrases=options.paraphrases)
    turns = (Turn("user", asked), Turn("assistant", grounded_answer([(expression, (row,))])))
    return facts.sample(dataset=dataset, task="referring", number=number, turns=turns)
