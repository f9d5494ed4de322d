"""What every sample must keep to: safe text, boxes inside the image, turns that name real objects.

Text goes into a prompt as it is or not at all: it is checked, never mended in silence.
"""

import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any

from dataset_builders.records import (
    ABSENT_REGIMES,
    ROLES,
    TASKS,
    BadRecord,
    Object,
    Part,
    Sample,
)

MAX_TEXT_CHARS = 20_000
"""Most characters of a text of a turn."""
MAX_LABEL_CHARS = 1_000
"""Most characters of a label or grounded phrase."""
_SHORT = 64  # labels up to this length are remembered

# The tags that the renderer writes and the parser reads, and the control tokens of chat models:
# data that holds one could forge a region or a turn. <think> and <answer> are allowed: a task
# template writes them.
RESERVED_TAG = re.compile(
    r"<\s*/?\s*(?:ground|objects?|region\d*|regionfeat|region_token|image)\s*>|<\|[^|<>]*\|>",
    re.IGNORECASE,
)
# C0 and C1 controls other than tab and newline, bidirectional controls, line and paragraph
# separators, BOM, halves of surrogate pairs.
FORBIDDEN_CHARACTER = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def check_text(text: Any, *, what: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return `text` when it is safe to put into a prompt, unchanged.

    Args:
        text: Anything that a file holds in its place.
        what: What it is, for the message.
        max_chars: Most characters.

    Raises:
        BadRecord: The reason is malformed, empty_text, text_too_long or unsafe_text.
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
    """Return a label or grounded phrase that survives rendering and parsing.

    It is one line, without blanks around it.

    Args:
        label: Anything that a file holds in its place.
        what: What it is, for the message.

    Raises:
        BadRecord: As `check_text` raises it.
    """
    if isinstance(label, str) and len(label) <= _SHORT and _is_plain(label):
        return label
    label = check_text(label, what=what, max_chars=MAX_LABEL_CHARS)
    if "\n" in label or label != label.strip():
        raise BadRecord(
            "unsafe_text", f"{what} {label[:80]!r} has a line break, or blanks around it"
        )
    return label


@lru_cache(1 << 16)  # a dataset has few names, and every sample is checked
def _is_plain(label: str) -> bool:
    """Return whether a label passes every check."""
    try:
        check_text(label, what="label", max_chars=MAX_LABEL_CHARS)
    except BadRecord:
        return False
    return "\n" not in label and label == label.strip()


def check_box(box: tuple[float, ...], frame: tuple[int, int, int, int], *, what: str) -> None:
    """Raise unless a box is finite, not empty and inside its image or window.

    Args:
        box: Corners x1, y1, x2, y2 in pixels.
        frame: Corners of the image or window in pixels.
        what: What it is, for the message.

    Raises:
        BadRecord: The reason is not_finite_box, inverted_box, empty_box or outside_box.
    """
    if len(box) != 4 or not all(math.isfinite(value) for value in box):
        raise BadRecord("not_finite_box", f"{what} is {box}")
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise BadRecord("inverted_box" if x2 < x1 or y2 < y1 else "empty_box", f"{what} is {box}")
    if x1 < frame[0] or y1 < frame[1] or x2 > frame[2] or y2 > frame[3]:
        raise BadRecord("outside_box", f"{what} {box} leaves {frame}")


def validate(sample: Sample) -> None:
    """Raise unless the sample keeps every rule of this module.

    Raises:
        BadRecord: It breaks one.
    """
    for name in ("sample_id", "dataset", "image_id"):
        check_label(getattr(sample, name), what=name)
    if sample.task not in TASKS:
        raise BadRecord("malformed", f"task {sample.task!r} is not one of {TASKS}")
    _validate_image(sample)
    frame = sample.window or (0, 0, sample.width, sample.height)
    for index, item in enumerate(sample.objects):
        check_box(item.box, frame, what=f"box of object {index}")
        check_label(item.label, what=f"label of object {index}")
    _validate_turns(sample)
    _validate_absent(sample)


def _validate_image(sample: Sample) -> None:
    if not sample.image_uri:
        if sample.image_source or sample.objects or sample.window or sample.width or sample.height:
            raise BadRecord(
                "contradiction", "a sample without image has a source, size, window or objects"
            )
        return
    check_label(sample.image_uri, what="image_uri")
    check_label(sample.image_source, what="image_source")
    if sample.width < 1 or sample.height < 1:
        raise BadRecord("bad_size", f"{sample.width}x{sample.height}")
    if sample.window is not None:
        x1, y1, x2, y2 = sample.window
        if not (0 <= x1 < x2 <= sample.width and 0 <= y1 < y2 <= sample.height):
            raise BadRecord("bad_size", f"window {sample.window} of {sample.width}x{sample.height}")


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
        raise BadRecord(
            "contradiction", f"a part repeats an object or names an ignored one: {named}"
        )
    if part.text is not None and named:
        check_label(part.text, what="grounded phrase")
    # a line break or a blank may stand between two phrases
    elif part.text is not None and part.text not in ("\n", " "):
        check_text(part.text, what="text")


def _validate_absent(sample: Sample) -> None:
    if (sample.absent_labels is None) != (sample.absent_regime is None):
        raise BadRecord("contradiction", "absent_labels and absent_regime must be given together")
    if sample.absent_regime is not None and sample.absent_regime not in ABSENT_REGIMES:
        raise BadRecord(
            "malformed", f"absent_regime {sample.absent_regime!r} is not in ABSENT_REGIMES"
        )
    absent = Counter(
        check_label(label, what="absent label") for label in sample.absent_labels or ()
    )
    present = {item.label for item in sample.objects}
    if wrong := sorted(label for label, count in absent.items() if count > 1 or label in present):
        raise BadRecord("contradiction", f"absent labels repeated or present: {wrong[:5]}")
    weights = sample.absent_weights
    if weights is not None and (
        len(weights) != len(sample.absent_labels or ())
        or not all(math.isfinite(weight) and weight >= 0 for weight in weights)
    ):
        raise BadRecord("contradiction", "absent_weights are not one finite number an absent label")
