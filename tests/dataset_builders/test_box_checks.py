import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.box_checks import (
    GUARD_ROWS,
    BoxGuard,
    check_box_form,
    clean_box,
    detect_form,
    form_shares,
    four_numbers,
    require,
    whole_number,
    xywh_to_xyxy,
)
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.records import BadRecord
from dataset_builders.validation import check_box


def random_boxes(count: int, form: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    sizes = rng.integers(200, 640, (count, 2)).astype(float)
    low = rng.uniform(0.05, 0.6, (count, 2)) * sizes
    high = low + rng.uniform(0.1, 0.95, (count, 2)) * (sizes - low)
    values = {
        "xyxy": np.concatenate([low, high], 1),
        "xywh": np.concatenate([low, high - low], 1),
        "cxcywh": np.concatenate([(low + high) / 2, high - low], 1),
        "normalised": np.concatenate([low / sizes, high / sizes], 1),
    }[form]
    return values, sizes


@pytest.mark.parametrize("form", ["xyxy", "xywh", "cxcywh", "normalised"])
def test_guard_tells_the_forms_apart(form: str) -> None:
    values, sizes = random_boxes(200, form)
    assert form_shares(values, sizes)[form] == 1.0
    if form == "xywh":
        check_box_form(values, sizes, declared="xywh", source="a.json")
    else:
        with pytest.raises(
            SettingError, match=rf"a\.json: boxes are declared xywh.*100% fit {form}"
        ):
            check_box_form(values, sizes, declared="xywh", source="a.json")


def test_guard_leaves_few_rows_and_few_bad_rows_to_the_rejects() -> None:
    values, sizes = random_boxes(19, "xyxy")
    check_box_form(values, sizes, declared="xywh", source="a.json")
    values, sizes = random_boxes(200, "xywh")
    values[:10, 2] *= -1
    check_box_form(values, sizes, declared="xywh", source="a.json")
    values[:, 2] *= -1
    with pytest.raises(SettingError, match="declared xywh"):
        check_box_form(values, sizes, declared="xywh", source="a.json")


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((10, 20, 30, 40), (10, 20, 30, 40)),
        ((-5, -5, 30, 40), (0, 0, 30, 40)),
        ((90, 70, 110, 90), (90, 70, 100, 80)),
        ((0, 0, 100, 80), (0, 0, 100, 80)),
        ((0.5, 0.5, 1.5, 1.5), (0.5, 0.5, 1.5, 1.5)),
        ((math.nan, 0, 1, 1), "not_finite_box"),
        ((0, 0, math.inf, 1), "not_finite_box"),
        ((0, 0, 1e30, 1), "not_finite_box"),
        ((5, 5, 4, 9), "inverted_box"),
        ((5, 5, 9, 4), "inverted_box"),
        ((100, 0, 120, 20), "outside_box"),
        ((-20, 0, 0, 20), "outside_box"),
        ((0, 80, 20, 99), "outside_box"),
        ((5, 5, 5, 9), "empty_box"),
        ((5, 5, 5.99, 9), "empty_box"),
        ((99.5, 5, 200, 9), "empty_box"),
    ],
)
def test_clean_box(corners: tuple, expected: object) -> None:
    if isinstance(expected, str):
        with pytest.raises(BadRecord) as error:
            clean_box(corners, 100, 80)
        assert error.value.reason == expected
    else:
        assert clean_box(corners, 100, 80) == expected


@given(
    st.lists(st.floats(width=64), min_size=4, max_size=4),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_a_cleaned_box_is_float32_and_inside_and_stays_itself(
    corners: list, width: int, height: int
) -> None:
    try:
        box = clean_box(corners, width, height)
    except BadRecord:
        return
    assert all(float(np.float32(value)) == value for value in box)
    check_box(box, (0, 0, width, height), what="box")
    assert clean_box(box, width, height) == box


def test_numbers_of_json_files() -> None:
    assert four_numbers([1, Decimal("2.5"), 3.0, 4], what="bbox") == (1.0, 2.5, 3.0, 4.0)
    assert four_numbers([10**400, Decimal("1e999"), 0, 0], what="bbox")[:2] == (math.inf, math.inf)
    assert whole_number(Decimal("3.0"), what="id") == 3
    assert whole_number(2**60 + 1, what="id") == 2**60 + 1
    for value in (
        None,
        [1, 2, 3],
        "1234",
        [1, 2, 3, "4"],
        [1, 2, 3, True],
        {"x": 1},
        [1, 2, 3, None],
    ):
        with pytest.raises(BadRecord, match="malformed"):
            four_numbers(value, what="bbox")
    for value in (None, "3", True, 3.5, Decimal("3.5"), math.inf, Decimal("1e999"), [3]):
        with pytest.raises(BadRecord, match="malformed"):
            whole_number(value, what="id")
    assert xywh_to_xyxy((1, 2, 3, 4)) == (1, 2, 4, 6)


def test_missing_file_is_named_with_place_and_layout(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a.json").touch()
    folders = DataFolders(str(tmp_path))
    require(folders, ("coco/a.json", "coco/*.json"), what="dataset coco", layout="LAYOUT")
    missing = rf"coco: coco/b/c\.json not found: there is no {tmp_path}/coco/b/c.json[\s\S]*LAYOUT"
    with pytest.raises(SettingError, match=missing):
        require(folders, ("coco/a.json", "coco/b/c.json"), what="dataset coco", layout="LAYOUT")
    with pytest.raises(SettingError, match=r"coco/\*\.txt not found"):
        require(folders, ("coco/*.txt",), what="dataset coco", layout="LAYOUT")


@pytest.mark.parametrize("form", ["xyxy", "xywh"])
def test_the_form_is_found_where_a_file_does_not_say(form: str) -> None:
    values, sizes = random_boxes(120, form)
    assert detect_form(values, sizes, forms=("xyxy", "xywh"), source="a.tsv") == form


def test_a_form_that_cannot_be_told_is_refused() -> None:
    values, sizes = random_boxes(60, "xyxy")
    mixed = np.concatenate([values, random_boxes(60, "xywh")[0]])
    with pytest.raises(SettingError, match=r"a\.tsv: of 120 boxes .* cannot tell xyxy from xywh"):
        detect_form(
            mixed,
            np.concatenate([sizes, random_boxes(60, "xywh")[1]]),
            forms=("xyxy", "xywh"),
            source="a.tsv",
        )
    with pytest.raises(SettingError, match="of 0 boxes"):
        detect_form(np.zeros((0, 4)), np.zeros((0, 2)), forms=("xyxy", "xywh"), source="a.tsv")
    tiny = np.tile([0.0, 0.0, 2.0, 2.0], (30, 1))  # a box at the corner is the same in both forms
    with pytest.raises(SettingError, match="cannot tell"):
        detect_form(tiny, np.full((30, 2), 100.0), forms=("xyxy", "xywh"), source="a.tsv")


def test_the_guard_stops_a_file_at_its_first_boxes() -> None:
    values, sizes = random_boxes(GUARD_ROWS, "xyxy")
    guard = BoxGuard("xywh", source="big.json")
    looks = zip(values, sizes.astype(int).tolist(), strict=True)
    with pytest.raises(SettingError, match=r"big\.json: boxes are declared xywh, .* fit xyxy"):
        _ = [guard.look(row, *size) for row, size in looks]
    right = BoxGuard("xyxy", source="big.json")
    for row, (width, height) in zip(values[:50], sizes, strict=False):
        right.look(row, int(width), int(height))
    right.look((float("nan"), 1e30, 0, 0), 10, 10)  # garbage says nothing about the form
    right.check()


@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["huge", "huge negative"])
def test_a_number_of_too_many_digits_is_a_bad_record(value: int) -> None:
    """Python refuses to write such an integer; a pickle may hold one."""
    for read in (whole_number, lambda v, what: four_numbers([v], what=what)):
        with pytest.raises(BadRecord, match="malformed: side is"):
            read(value, what="side")
