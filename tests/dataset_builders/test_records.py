import pickle
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.records import (
    REJECT_REASONS,
    REJECT_SCHEMA,
    SAMPLE_SCHEMA,
    BadRecord,
    Ledger,
    Object,
    Part,
    Reject,
    Sample,
    Turn,
    reject_to_row,
    sample_from_row,
    sample_to_row,
)
from dataset_builders.validation import MAX_LABEL_CHARS, check_label, check_text, validate

SAMPLE = Sample(
    sample_id="coco/7/detection/0",
    dataset="coco",
    task="detection",
    image_source="coco",
    image_id="7",
    image_uri="coco/train2017/seven.jpg",
    width=100,
    height=80,
    objects=(
        Object(box=(0.0, 0.0, 30.0, 30.0), label="dog"),
        Object(box=(1.5, 2.25, 100.0, 80.0), label="cat"),
        Object(box=(5.0, 5.0, 9.0, 9.0), label="cat", ignore=True),
    ),
    turns=(
        Turn("user", (Part("Please detect dog in "), Part(objects=(1,)), Part("."))),
        Turn("assistant", (Part("dog", (0,)), Part("\n"), Part("cat", (1,)))),
    ),
    absent_labels=("toaster",),
    absent_regime="exhaustive",
)

TEXT = Sample(
    sample_id="llava/text/1",
    dataset="llava",
    task="instruction",
    image_source="",
    image_id="text/1",
    image_uri="",
    width=0,
    height=0,
    objects=(),
    turns=(Turn("user", (Part("Why?"),)), Turn("assistant", (Part("Because."),))),
)
"""A conversation without image."""


def test_arrow_roundtrip_keeps_every_field() -> None:
    unknown = replace(
        SAMPLE,
        sample_id="b",
        absent_labels=None,
        absent_regime=None,
        objects=(),
        turns=SAMPLE.turns,
    )
    view = replace(SAMPLE, window=(0, 0, 100, 80), absent_weights=(1.0,))
    samples = [SAMPLE, unknown, view, TEXT]
    table = pa.Table.from_pylist(
        [sample_to_row(sample, bucket=3) for sample in samples], SAMPLE_SCHEMA
    )
    table.validate(full=True)
    assert [sample_from_row(row) for row in table.to_pylist()] == samples
    assert table.column("absent_labels").to_pylist() == [["toaster"], None, ["toaster"], None]
    assert table.column("bucket").to_pylist() == [3] * 4


def test_reject_row_follows_its_schema() -> None:
    reject = Reject.of("annotations/4", BadRecord("empty_box", "box [1, 1, 1, 1]"), "box")
    rows = pa.Table.from_pylist([reject_to_row(reject)], REJECT_SCHEMA).to_pylist()
    assert rows == [
        {
            "record_id": "annotations/4",
            "unit": "box",
            "reason": "empty_box",
            "detail": "box [1, 1, 1, 1]",
        }
    ]


def test_a_reject_quotes_what_is_no_text_in_escapes() -> None:
    reject = Reject.of("images/\ud800", BadRecord("unsafe_path", "path a\udc80.png"), "image")
    assert (reject.record_id, reject.detail) == ("images/\\ud800", "path a\\udc80.png")
    pa.Table.from_pylist([reject_to_row(reject)], REJECT_SCHEMA).validate(full=True)


def test_unknown_reasons_and_units_are_program_errors() -> None:
    with pytest.raises(AssertionError, match="because"):
        BadRecord("because", "")
    with pytest.raises(AssertionError, match="pixel"):
        Reject("a", "malformed", "", "pixel")


def test_bad_record_survives_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadRecord("bad_size", "0x4")))
    assert (error.reason, error.detail, str(error)) == ("bad_size", "0x4", "bad_size: 0x4")


def test_the_reference_samples_are_valid() -> None:
    validate(SAMPLE)
    validate(TEXT)
    validate(replace(SAMPLE, window=(0, 0, 100, 80), absent_weights=(1.0,)))


def _turn(*parts: Part) -> tuple[Turn, Turn]:
    return (SAMPLE.turns[0], Turn("assistant", parts))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sample_id": ""}, "empty_text"),
        ({"task": "dancing"}, "malformed"),
        ({"width": 0}, "bad_size"),
        ({"image_source": ""}, "empty_text"),
        ({"image_uri": ""}, "contradiction"),
        ({"window": (0, 0, 101, 80)}, "bad_size"),
        ({"window": (50, 0, 50, 80)}, "bad_size"),
        ({"window": (10, 0, 100, 80)}, "outside_box"),
        ({"absent_regime": "guess"}, "malformed"),
        ({"absent_weights": (0.5, 0.5)}, "contradiction"),
        ({"absent_weights": (float("nan"),)}, "contradiction"),
        ({"width": 99}, "outside_box"),
        ({"objects": (Object(box=(3.0, 3.0, 3.0, 9.0), label="dog"),)}, "empty_box"),
        ({"objects": (Object(box=(4.0, 3.0, 3.0, 9.0), label="dog"),)}, "inverted_box"),
        ({"objects": (Object(box=(float("nan"), 3.0, 3.0, 9.0), label="dog"),)}, "not_finite_box"),
        ({"objects": (Object(box=(0.0, 3.0, 3.0, 9.0), label=" dog"),)}, "unsafe_text"),
        ({"turns": ()}, "malformed"),
        ({"turns": SAMPLE.turns[:1]}, "malformed"),
        ({"turns": SAMPLE.turns[::-1]}, "malformed"),
        ({"turns": _turn()}, "empty_text"),
        ({"turns": _turn(Part())}, "empty_text"),
        ({"turns": _turn(Part("dog", (3,)))}, "unknown_object"),
        ({"turns": _turn(Part("dog", (-1,)))}, "unknown_object"),
        ({"turns": _turn(Part("dog", (0, 0)))}, "contradiction"),
        ({"turns": _turn(Part("cat", (2,)))}, "contradiction"),
        ({"turns": _turn(Part("two\nlines", (0,)))}, "unsafe_text"),
        ({"turns": _turn(Part("see <region3>"))}, "unsafe_text"),
        ({"absent_regime": None}, "contradiction"),
        ({"absent_labels": None}, "contradiction"),
        ({"absent_labels": ("dog",)}, "contradiction"),
        ({"absent_labels": ("toaster", "toaster")}, "contradiction"),
        ({"absent_labels": ("",)}, "empty_text"),
    ],
)
def test_validate_names_what_is_wrong(change: dict, reason: str) -> None:
    with pytest.raises(BadRecord) as error:
        validate(replace(SAMPLE, **change))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "<region3>",
        "</ground>",
        "< Objects >",
        "<object>",
        "<regionfeat>",
        "<image>",
        "<|im_end|>",
        "a\x00b",
        "a\u202eb",
        "a\u2066b",
        "\ufeffa",
        "\udc80",
        "a\rb",
        "a\u2028b",
    ],
)
def test_text_that_could_forge_our_tags_is_refused(text: str) -> None:
    with pytest.raises(BadRecord) as error:
        check_text(f"before {text} after", what="caption")
    assert error.value.reason == "unsafe_text"


@pytest.mark.parametrize(
    "text",
    ["a < b > c", "<region>x".replace("<region>", "region 3"), "naïve 猫 🐈", "x\ty\nz", "<b>"],
)
def test_harmless_text_passes_unchanged(text: str) -> None:
    assert check_text(text, what="caption") == text


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (3, "malformed"),
        (None, "malformed"),
        ("", "empty_text"),
        (" \t", "empty_text"),
        ("x" * (MAX_LABEL_CHARS + 1), "text_too_long"),
    ],
)
def test_label_reasons(label: object, reason: str) -> None:
    with pytest.raises(BadRecord) as error:
        check_label(label)
    assert error.value.reason == reason


@given(st.text(max_size=40))
def test_check_label_never_alters_and_only_raises_bad_record(text: str) -> None:
    try:
        assert check_label(text) == text
        assert text == text.strip()
        assert "\n" not in text
    except BadRecord as error:
        assert error.reason in REJECT_REASONS  # noqa: PT017 - it may pass too


def test_ledger_holds_the_books() -> None:
    ledger = Ledger(read={"box": 5, "image": 2}, used={"box": 3, "image": 2})
    ledger.check({"box": 2})
    with pytest.raises(RuntimeError, match="box records do not add up: 5 read, 3 used, 1 rejected"):
        ledger.check({"box": 1})
    with pytest.raises(RuntimeError, match="record"):
        ledger.check({"box": 2, "record": 1})
