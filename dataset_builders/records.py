"""What a dataset builder yields: samples, rejects and a closing ledger, with their arrow schemas.

A sample states facts about one image: original-image pixels, no region indices, no tags of the prompt
language. Region indices are born later, in the shard step, where objects meet proposals.

Columns of a samples table (all required; only those called nullable may hold null; written by the builder):

| column        | type                           | meaning                                                   |
| ------------- | ------------------------------ | --------------------------------------------------------- |
| sample_id     | string                         | unique in the dataset, the same on every rebuild          |
| dataset       | string                         | key of `DATASETS`                                         |
| task          | string                         | one of `TASKS`                                            |
| image_id      | string                         | join key with the proposals of the same image source      |
| bucket        | int32                          | `images.bucket_of(image_id, num_buckets)`: unit of work   |
| image_uri     | string                         | posix path relative to the dataset's folder               |
| width, height | int32                          | pixels of the original image                              |
| objects       | list<{box, label, ignore}>     | box: float32[4] xyxy pixels, clipped to the image         |
| turns         | list<{role, parts}>            | the conversation; parts: list<{text nullable, objects}>,  |
|               |                                | where objects: list<int32> are rows of column objects     |
| absent_labels | list<string>, nullable         | labels known to be absent; null = nothing is known        |
| absent_regime | string, nullable               | what licenses absent_labels; null exactly when they are   |

Columns of a rejects table: record_id, unit, reason, detail; all string.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

TASKS = ("detection", "counting", "region_name", "referring", "rejection")
ROLES = ("user", "assistant")
UNITS = ("image", "box", "category", "record")
MAX_TEXT_CHARS = 20_000
MAX_LABEL_CHARS = 1_000

REJECT_REASONS: Mapping[str, str] = {
    "malformed": "a field is missing or of the wrong type",
    "duplicate_id": "an id that was already seen",
    "unknown_image": "refers to an image that the file does not list",
    "unknown_category": "refers to a category that the file does not list",
    "unknown_object": "refers to a box that the file does not list, or that was rejected",
    "image_rejected": "belongs to an image that was itself rejected",
    "bad_size": "image width or height missing, not positive or absurd",
    "unsafe_path": "image path is absolute, leaves its root or holds a forbidden character",
    "missing_image": "the image file is not there",
    "image_too_large": "more pixels or bytes than the decoder accepts",
    "undecodable_image": "not an image, truncated or corrupt",
    "size_mismatch": "the decoded image has another size than its annotation says",
    "not_finite_box": "a coordinate is NaN, infinite or beyond 1e7",
    "inverted_box": "negative width or height",
    "empty_box": "less than one pixel wide or high after clipping to the image",
    "outside_box": "does not touch the image",
    "empty_text": "a label, phrase or question without visible characters",
    "unsafe_text": "holds a tag of the prompt language, or control or direction-override characters",
    "text_too_long": "longer than the limit of its field",
    "bad_answer": "the answer is not of the form that the task needs",
    "missing_proposals": "no proposals row for the image",
    "too_many_regions": "does not fit the region budget",
    "contradiction": "the record contradicts itself, such as a label both present and absent",
}

# The tags that the renderer writes and the parser reads, and the control tokens of chat models: data that
# holds one could forge a region or a turn. <think> and <answer> are allowed: a task template writes them.
RESERVED_TAG = re.compile(
    r"<\s*/?\s*(?:ground|objects?|region\d*|regionfeat|region_token|image)\s*>|<\|[^|<>]*\|>", re.IGNORECASE
)
# C0 and C1 controls other than tab and newline, bidirectional controls, line and paragraph separators, BOM.
FORBIDDEN_CHARACTER = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class BadRecord(ValueError):  # noqa: N818 - it is data that is bad, not the program
    """A record that cannot be used: `reason` from `REJECT_REASONS`, `detail` for a person to read."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REJECT_REASONS:
            raise AssertionError(f"{reason!r} is not in REJECT_REASONS")
        super().__init__(reason, detail)  # both, so that the error survives pickling between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Object:
    """One annotated box."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the original image, inside it, float32-representable."""
    label: str
    """What the dataset calls it."""
    ignore: bool = False
    """True for a crowd or don't-care region: neither answer nor mistake, but its label counts as present."""


@dataclass(frozen=True)
class Part:
    """Piece of a turn: text alone, objects alone (a bare mention), or both (a grounded phrase)."""

    text: str | None = None
    """Plain text, or the phrase that `objects` ground."""
    objects: tuple[int, ...] = ()
    """Rows of `Sample.objects`."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """"user" or "assistant"."""
    parts: tuple[Part, ...]
    """In reading order."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about one image. See the column table of this module."""

    sample_id: str
    """Unique in the dataset, stable across rebuilds."""
    dataset: str
    """Name in `DATASETS`."""
    task: str
    """One of `TASKS`."""
    image_id: str
    """Join key with proposals; unique within an image source."""
    bucket: int
    """`images.bucket_of(image_id, num_buckets)`."""
    image_uri: str
    """Posix path relative to the dataset's folder."""
    width: int
    """Pixels of the original image."""
    height: int
    """Pixels of the original image."""
    objects: tuple[Object, ...]
    """Everything annotated on the image, also what the conversation does not mention."""
    turns: tuple[Turn, ...]
    """User and assistant in alternation."""
    absent_labels: tuple[str, ...] | None = None
    """Labels known to be absent from the image; None when unknown."""
    absent_regime: str | None = None
    """What licenses `absent_labels`: "exhaustive", "federated", ..."""


@dataclass(frozen=True)
class Reject:
    """A record left out, and why."""

    record_id: str
    """Readable name of the record in its file, such as "annotations/17"."""
    reason: str
    """Key of `REJECT_REASONS`."""
    detail: str
    """The offending value."""
    unit: str = "record"
    """What is lost: "image", "box", "category", or "record" (a question, an expression, a conversation)."""

    def __post_init__(self) -> None:
        if self.reason not in REJECT_REASONS or self.unit not in UNITS:
            raise AssertionError(f"unknown reason {self.reason!r} or unit {self.unit!r} in a reject")

    @classmethod
    def of(cls, record_id: str, error: BadRecord, unit: str = "record") -> "Reject":
        """Make the reject of a record that raised `error`."""
        return cls(record_id, error.reason, error.detail, unit)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The last thing a builder yields: for each unit, how many records were read and how many accepted."""

    read: Mapping[str, int]
    """Unit -> records found in the annotation files."""
    used: Mapping[str, int]
    """Unit -> records accepted."""

    def check(self, rejects: Mapping[str, int]) -> None:
        """Hold read == used + rejects for every unit.

        rejects: unit -> number of `Reject` the builder yielded.
        Raises RuntimeError naming the unit and the numbers.
        """
        for unit in sorted({*self.read, *self.used, *rejects}):
            read, used, lost = self.read.get(unit, 0), self.used.get(unit, 0), rejects.get(unit, 0)
            if read != used + lost:
                raise RuntimeError(f"{unit} records do not add up: {read} read, {used} used, {lost} rejected")


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of an image source: what the proposal step needs to know of it."""

    image_id: str
    """Unique within the image source."""
    image_uri: str
    """Posix path relative to the dataset's folder."""
    width: int
    """Pixels; 0 when the annotation files do not say."""
    height: int
    """Pixels; 0 when the annotation files do not say."""
    bucket: int
    """`images.bucket_of(image_id, num_buckets)`."""


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


BOX_TYPE = pa.list_(pa.field("item", pa.float32(), nullable=False), 4)
_OBJECT = pa.struct([_field("box", BOX_TYPE), _field("label", pa.string()), _field("ignore", pa.bool_())])
_PART = pa.struct([_field("text", pa.string(), nullable=True), _field("objects", _list(pa.int32()))])
_TURN = pa.struct([_field("role", pa.string()), _field("parts", _list(_PART))])

SAMPLE_SCHEMA = pa.schema(
    [
        _field("sample_id", pa.string()),
        _field("dataset", pa.string()),
        _field("task", pa.string()),
        _field("image_id", pa.string()),
        _field("bucket", pa.int32()),
        _field("image_uri", pa.string()),
        _field("width", pa.int32()),
        _field("height", pa.int32()),
        _field("objects", _list(_OBJECT)),
        _field("turns", _list(_TURN)),
        _field("absent_labels", _list(pa.string()), nullable=True),
        _field("absent_regime", pa.string(), nullable=True),
    ]
)
REJECT_SCHEMA = pa.schema([_field(name, pa.string()) for name in ("record_id", "unit", "reason", "detail")])


def sample_to_row(sample: Sample) -> dict[str, Any]:
    """Return the plain values of one row under `SAMPLE_SCHEMA`."""
    row = {name: getattr(sample, name) for name in SAMPLE_SCHEMA.names}
    row["objects"] = [{"box": list(o.box), "label": o.label, "ignore": o.ignore} for o in sample.objects]
    row["turns"] = [
        {"role": t.role, "parts": [{"text": p.text, "objects": list(p.objects)} for p in t.parts]}
        for t in sample.turns
    ]
    row["absent_labels"] = None if sample.absent_labels is None else list(sample.absent_labels)
    return row


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """Rebuild the sample of a row, as `to_pylist` of a samples table gives it."""
    plain = {name: row[name] for name in SAMPLE_SCHEMA.names}
    plain["objects"] = tuple(
        Object(box=tuple(o["box"]), label=o["label"], ignore=o["ignore"]) for o in row["objects"]
    )
    plain["turns"] = tuple(
        Turn(t["role"], tuple(Part(p["text"], tuple(p["objects"])) for p in t["parts"])) for t in row["turns"]
    )
    plain["absent_labels"] = None if row["absent_labels"] is None else tuple(row["absent_labels"])
    return Sample(**plain)


def reject_to_row(reject: Reject) -> dict[str, str]:
    """Return the plain values of one row under `REJECT_SCHEMA`."""
    return {name: getattr(reject, name) for name in REJECT_SCHEMA.names}


def check_text(text: Any, *, what: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return `text` when it is safe to put into a prompt, unchanged.

    Raises BadRecord with reason malformed, empty_text, text_too_long or unsafe_text.
    """
    if not isinstance(text, str):
        raise BadRecord("malformed", f"{what} is {type(text).__name__}, not text")
    if len(text) > max_chars:
        raise BadRecord("text_too_long", f"{what} has {len(text)} characters, limit {max_chars}")
    if not text.strip():
        raise BadRecord("empty_text", f"{what} is empty")
    if found := RESERVED_TAG.search(text) or FORBIDDEN_CHARACTER.search(text):
        raise BadRecord("unsafe_text", f"{what} holds {found.group()!a}")
    return text


def check_label(label: Any, *, what: str = "label") -> str:
    """Return a label or grounded phrase that survives rendering and parsing: one line, no blanks around it.

    Raises BadRecord as `check_text` does.
    """
    label = check_text(label, what=what, max_chars=MAX_LABEL_CHARS)
    if "\n" in label or label != label.strip():
        raise BadRecord("unsafe_text", f"{what} {label[:80]!r} has a line break, or blanks around it")
    return label


def check_box(box: tuple[float, ...], width: int, height: int, *, what: str) -> None:
    """Raise BadRecord unless `box` is finite, not empty and inside an image of width x height pixels."""
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise BadRecord("not_finite_box", f"{what} is {box}")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise BadRecord("inverted_box" if x2 < x1 or y2 < y1 else "empty_box", f"{what} is {box}")
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise BadRecord("outside_box", f"{what} {box} leaves the image of {width}x{height}")


def validate(sample: Sample) -> None:
    """Raise BadRecord when the sample breaks a rule of this module; return None when it keeps them all."""
    for name in ("sample_id", "dataset", "image_id", "image_uri"):
        check_label(getattr(sample, name), what=name)
    if sample.task not in TASKS:
        raise BadRecord("malformed", f"task {sample.task!r} is not one of {TASKS}")
    if sample.width < 1 or sample.height < 1 or sample.bucket < 0:
        raise BadRecord("bad_size", f"{sample.width}x{sample.height}, bucket {sample.bucket}")
    for index, item in enumerate(sample.objects):
        check_box(item.box, sample.width, sample.height, what=f"box of object {index}")
        check_label(item.label, what=f"label of object {index}")
    _validate_turns(sample)
    _validate_absent(sample)


def _validate_turns(sample: Sample) -> None:
    roles = tuple(turn.role for turn in sample.turns)
    if not roles or len(roles) % 2 or roles != ROLES * (len(roles) // 2):
        raise BadRecord("malformed", f"turns are {roles}, want user and assistant in alternation")
    for turn in sample.turns:
        if not turn.parts:
            raise BadRecord("empty_text", f"a {turn.role} turn has no parts")
        for part in turn.parts:
            _validate_part(part, sample.objects)


def _validate_part(part: Part, objects: tuple[Object, ...]) -> None:
    named = part.objects
    if part.text is None and not named:
        raise BadRecord("empty_text", "a part has neither text nor objects")
    if any(not 0 <= index < len(objects) for index in named):
        raise BadRecord("unknown_object", f"a part names objects {named} of {len(objects)}")
    if len(set(named)) != len(named) or any(objects[index].ignore for index in named):
        raise BadRecord("contradiction", f"a part repeats an object or names an ignored one: {named}")
    if part.text is not None and named:
        check_label(part.text, what="grounded phrase")
    elif part.text is not None and part.text != "\n":
        check_text(part.text, what="text")


def _validate_absent(sample: Sample) -> None:
    if (sample.absent_labels is None) != (sample.absent_regime is None):
        raise BadRecord("contradiction", "absent_labels and absent_regime must be given together")
    absent = Counter(check_label(label, what="absent label") for label in sample.absent_labels or ())
    present = {item.label for item in sample.objects}
    if wrong := sorted(label for label, count in absent.items() if count > 1 or label in present):
        raise BadRecord("contradiction", f"absent labels repeated or present: {wrong[:5]}")
