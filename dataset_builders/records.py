"""What a dataset builder yields: samples, rejects and a closing ledger, with their arrow schemas.

A sample states facts about one image: original-image pixels, no region indices, no tags of the
prompt language. Region indices are born later, in the shard step, where objects meet proposals.

Columns of a samples table (all required; only those called nullable may hold null; written by the
builder):

| column         | type                       | meaning                                            |
| -------------- | -------------------------- | -------------------------------------------------- |
| sample_id      | string                     | unique in the dataset, the same on every rebuild   |
| dataset        | string                     | key of `DATASETS`                                  |
| task           | string                     | one of `TASKS`                                     |
| image_source   | string                     | name of an `ImageSource`; empty without image      |
| image_id       | string                     | join key with the proposals of the image source    |
| bucket         | int32                      | `images.bucket_of(image_id, num_buckets)`, the     |
|                |                            | unit of work                                       |
| image_uri      | string                     | where the bytes are, see `images`; empty without   |
|                |                            | image                                              |
| width, height  | int32                      | pixels of the original image; 0 without image      |
| window         | list<int32>, nullable      | xyxy pixels of the part that the sample is about;  |
|                |                            | null: the whole image                              |
| objects        | list<{box, label, ignore}> | box: float32[4] xyxy pixels, clipped to image and  |
|                |                            | window                                             |
| turns          | list<{role, parts}>        | the conversation; parts: list<{text nullable,      |
|                |                            | objects}>, where objects: list<int32> are rows of  |
|                |                            | column objects                                     |
| absent_labels  | list<string>, nullable     | labels known to be absent; null: nothing is known  |
| absent_regime  | string, nullable           | what licenses absent_labels; null exactly when     |
|                |                            | they are                                           |
| absent_weights | list<float32>, nullable    | chance of each absent label to be asked for, see   |
|                |                            | `absence`; null: all the same                      |

Columns of a rejects table: record_id, unit, reason, detail; all string.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

TASKS = (
    "detection",  # names -> all their objects
    "visual_prompt",  # an object -> all of its category
    "counting",  # how many: objects, then the number; or the number alone
    "referring",  # an expression -> its object or objects
    "grounding",  # describe the image -> a caption whose phrases are grounded
    "region_name",  # a region -> its category
    "region_caption",  # a region -> a description of it
    "region_qa",  # a question about regions -> an answer, which may name regions
    "ocr",  # a region -> its text
    "reasoning",  # a question -> steps that name regions, then the answer
    "caption",  # describe the image -> a description without regions
    "instruction",  # any conversation about an image or about none
    "rejection",  # any of these, asked for what is not there
)
"""What a sample asks for."""
ROLES = ("user", "assistant")
"""Who speaks, in the order of a conversation."""
ABSENT_REGIMES = {
    "exhaustive": "every object of the dataset's categories is annotated on every image",
    "federated": "people verified that the label is absent from this image",
    "tree": "the label lies in another part of the category tree than everything annotated",
    "attribute": "every object of the name is annotated not to have the attribute",
    "constructed": "the expression was written, or the image edited, so that nothing fits it",
}
"""What licenses calling a label absent from an image."""
UNITS = ("image", "box", "category", "record")
"""What a record may be, for the counts of read, used and rejected."""

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
    "unsafe_text": (
        "holds a tag of the prompt language, or control or direction-override characters"
    ),
    "text_too_long": "longer than the limit of its field",
    "bad_answer": "the answer is not of the form that the task needs",
    "missing_proposals": "no proposals row for the image",
    "too_many_regions": "does not fit the region budget",
    "contradiction": "the record contradicts itself, such as a label both present and absent",
    "several_images": "a conversation about more than one image",
    "unsupported": (
        "a form of the record that no task has a use for, such as a point in place of a box"
    ),
    "benchmark_image": "the image belongs to a benchmark: it is left out of training",
    "not_in_file": "a file of boxes has nothing about the image",
    "malformed_boxes": "what a file of boxes says of the image is not boxes with scores",
    "ambiguous_key": "a file of boxes names the image in a way that fits several",
}
"""Why a record may be left out, in this package and in the steps behind it."""


class BadRecord(ValueError):  # noqa: N818 - it is data that is bad, not the program
    """A record that cannot be used.

    Args:
        reason: Key of `REJECT_REASONS`.
        detail: The offending value, for a person to read.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REJECT_REASONS:
            raise AssertionError(f"{reason!r} is not in REJECT_REASONS")
        # both, so that the error survives pickling between processes
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Object:
    """One annotated box."""

    box: tuple[float, float, float, float]
    """Corners x1, y1, x2, y2 in pixels of the original image, inside it, float32-representable."""
    label: str
    """What the dataset calls the object."""
    ignore: bool = False
    """True for a crowd or don't-care region: neither answer nor mistake, but its label counts as
    present."""


@dataclass(frozen=True)
class Part:
    """Piece of a turn: text alone, objects alone (a bare mention), or both (a grounded phrase)."""

    text: str | None = None
    """Plain text, or the phrase that `objects` ground."""
    objects: tuple[int, ...] = ()
    """Rows of `Sample.objects` that the part names."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """Who speaks: "user" or "assistant"."""
    parts: tuple[Part, ...]
    """Pieces of the message in reading order."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation about one image. See the column table of this module."""

    sample_id: str
    """Name of the sample, unique in the dataset, stable across rebuilds."""
    dataset: str
    """Name of its dataset in `DATASETS`."""
    task: str
    """Task of the conversation: one of `TASKS`."""
    image_source: str
    """Name of the `ImageSource` that the image belongs to; empty for a text without image."""
    image_id: str
    """Id of the image, unique within its source: the join key with proposals."""
    image_uri: str
    """Where the bytes of the image are, see `images`; empty for a text without image."""
    width: int
    """Width of the original image in pixels; 0 for a text without image."""
    height: int
    """Height of the original image in pixels; 0 for a text without image."""
    window: tuple[int, int, int, int] | None = None
    """Part of the image that the sample is about: xyxy pixels of the original image; None for all
    of it."""
    objects: tuple[Object, ...]
    """Everything annotated on the image (in the window), also what the conversation does not
    mention."""
    turns: tuple[Turn, ...]
    """Messages of user and assistant in alternation."""
    absent_labels: tuple[str, ...] | None = None
    """Labels known to be absent from the image; None when unknown."""
    absent_regime: str | None = None
    """What licenses `absent_labels`: one of `ABSENT_REGIMES`."""
    absent_weights: tuple[float, ...] | None = None
    """Chance of each absent label to be asked for, adding up to 1; None: all the same."""


@dataclass(frozen=True)
class Reject:
    """A record left out, and why."""

    record_id: str
    """Readable name of the record in its file, such as "annotations/17"."""
    reason: str
    """Why it is left out: a key of `REJECT_REASONS`."""
    detail: str
    """The offending value, for a person to read."""
    unit: str = "record"
    """What is lost: "image", "box", "category", or "record" (a question, an expression, a
    conversation)."""

    def __post_init__(self) -> None:
        if self.reason not in REJECT_REASONS or self.unit not in UNITS:
            raise AssertionError(
                f"unknown reason {self.reason!r} or unit {self.unit!r} in a reject"
            )
        # quotes of the data may hold half a surrogate pair, which no table stores
        for name in ("record_id", "detail"):
            quoted = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, quoted)

    @classmethod
    def of(cls, record_id: str, error: BadRecord, unit: str = "record") -> "Reject":
        """Return the reject of a record that raised `error`."""
        return cls(record_id, error.reason, error.detail, unit)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Counts of records read and accepted, for each unit: the last thing that a builder yields."""

    read: Mapping[str, int]
    """Unit -> number of records found in the annotation files."""
    used: Mapping[str, int]
    """Unit -> number of records accepted."""

    def check(self, rejects: Mapping[str, int]) -> None:
        """Hold read == used + rejects for every unit.

        Args:
            rejects: Unit -> number of `Reject` that the builder yielded.

        Raises:
            RuntimeError: The numbers of a unit do not add up; the message names them.
        """
        for unit in sorted({*self.read, *self.used, *rejects}):
            read, used, lost = self.read.get(unit, 0), self.used.get(unit, 0), rejects.get(unit, 0)
            if read != used + lost:
                raise RuntimeError(
                    f"{unit} records do not add up: {read} read, {used} used, {lost} rejected"
                )


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """One image of an image source: what the proposal step needs to know of it."""

    image_source: str
    """Name of the image source."""
    image_id: str
    """Id of the image, unique within the image source."""
    image_uri: str
    """Where the bytes of the image are, see `images`."""
    width: int
    """Width in pixels; 0 when the annotation files do not say."""
    height: int
    """Height in pixels; 0 when the annotation files do not say."""


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


BOX_TYPE = pa.list_(pa.field("item", pa.float32(), nullable=False), 4)
"""Arrow type of a box: float32[4]."""
_OBJECT = pa.struct(
    [_field("box", BOX_TYPE), _field("label", pa.string()), _field("ignore", pa.bool_())]
)
_PART = pa.struct(
    [_field("text", pa.string(), nullable=True), _field("objects", _list(pa.int32()))]
)
_TURN = pa.struct([_field("role", pa.string()), _field("parts", _list(_PART))])

SAMPLE_SCHEMA = pa.schema(
    [
        _field("sample_id", pa.string()),
        _field("dataset", pa.string()),
        _field("task", pa.string()),
        _field("image_source", pa.string()),
        _field("image_id", pa.string()),
        _field("bucket", pa.int32()),
        _field("image_uri", pa.string()),
        _field("width", pa.int32()),
        _field("height", pa.int32()),
        _field("window", _list(pa.int32()), nullable=True),
        _field("objects", _list(_OBJECT)),
        _field("turns", _list(_TURN)),
        _field("absent_labels", _list(pa.string()), nullable=True),
        _field("absent_regime", pa.string(), nullable=True),
        _field("absent_weights", _list(pa.float32()), nullable=True),
    ]
)
"""Columns of a samples table, see the table of this module."""
_NULLABLE_LISTS = ("window", "absent_labels", "absent_weights")
REJECT_SCHEMA = pa.schema(
    [_field(name, pa.string()) for name in ("record_id", "unit", "reason", "detail")]
)
"""Columns of a rejects table."""


def sample_to_row(sample: Sample, *, bucket: int) -> dict[str, Any]:
    """Return the plain values of one row under `SAMPLE_SCHEMA`."""
    row = {name: getattr(sample, name) for name in SAMPLE_SCHEMA.names if name != "bucket"}
    row["bucket"] = bucket
    row["objects"] = [
        {"box": list(o.box), "label": o.label, "ignore": o.ignore} for o in sample.objects
    ]
    row["turns"] = [
        {"role": t.role, "parts": [{"text": p.text, "objects": list(p.objects)} for p in t.parts]}
        for t in sample.turns
    ]
    for name in _NULLABLE_LISTS:
        row[name] = None if row[name] is None else list(row[name])
    return row


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """Return the sample of a row, as `to_pylist` of a samples table gives it."""
    plain = {name: row[name] for name in SAMPLE_SCHEMA.names if name != "bucket"}
    plain["objects"] = tuple(
        Object(box=tuple(o["box"]), label=o["label"], ignore=o["ignore"]) for o in row["objects"]
    )
    plain["turns"] = tuple(
        Turn(t["role"], tuple(Part(p["text"], tuple(p["objects"])) for p in t["parts"]))
        for t in row["turns"]
    )
    for name in _NULLABLE_LISTS:
        plain[name] = None if row[name] is None else tuple(row[name])
    return Sample(**plain)


def reject_to_row(reject: Reject) -> dict[str, str]:
    """Return the plain values of one row under `REJECT_SCHEMA`."""
    return {name: getattr(reject, name) for name in REJECT_SCHEMA.names}
