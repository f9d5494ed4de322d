"""Box forms and disk layouts, asserted rather than assumed. What leaves here is xyxy px, float32.

| form       | the four numbers of a stored box                                                   |
| ---------- | ---------------------------------------------------------------------------------- |
| xyxy       | left, top, right, bottom in pixels                                                 |
| xywh       | left, top, width, height in pixels                                                 |
| cxcywh     | centre, width and height in pixels; no dataset has it, but a file may              |
| normalised | xyxy divided by the sides of the image, 0 to 1                                     |
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.records import BadRecord

MAX_COORDINATE = 1e7
"""Largest coordinate in pixels; beyond it a number is garbage."""
MIN_SIDE_PX = 1.0
"""Smallest side of a box after clipping."""
GUARD_ROWS = 200
"""Number of boxes of a file that the guard looks at."""
MIN_GUARD_ROWS = 20
"""Least number of boxes that give a verdict on their form."""
_SLACK_PX = 2.0  # annotation tools round, and some count from 1


def require(folders: DataFolders, names: Sequence[str], *, what: str, layout: str = "") -> None:
    """Raise unless all files and folders of a list are there.

    Args:
        folders: Where the datasets lie.
        names: Names or patterns below the data root.
        what: What needs them, for the message.
        layout: The documented layout, for the message.

    Raises:
        SettingError: One is not there; the message names the first such, its place, and the layout.
    """
    for name in names:
        if not folders.matches(name):
            raise SettingError(
                f"{what}: {name} not found: there is no {folders.path(name)}. Put it there, or "
                "name the right folder: --data DIR holds all of them under their names. "
                f"{layout}".rstrip()
            )


def form_shares(values: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Return for each box form the share of rows that make a box inside their image under it.

    Args:
        values: float64[N, 4], boxes as stored.
        sizes: float64[N, 2], width and height of their images in pixels.
    """
    a, b, c, d = values.T
    width, height = sizes.T
    corners = {
        "xyxy": (a, b, c, d),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }
    shares = {}
    for form, (x1, y1, x2, y2) in corners.items():
        inside = (
            (x1 >= -_SLACK_PX)
            & (y1 >= -_SLACK_PX)
            & (x2 <= width + _SLACK_PX)
            & (y2 <= height + _SLACK_PX)
        )
        shares[form] = float(np.mean(inside & (x2 > x1) & (y2 > y1)))
    # only an image of a pixel or two could hold whole boxes with no number above 1
    shares["normalised"] = float(
        np.mean((np.abs(values) <= 1.0).all(1) & (np.minimum(width, height) > 4))
    )
    return shares


def check_box_form(values: np.ndarray, sizes: np.ndarray, *, declared: str, source: str) -> None:
    """Raise when the boxes of a file speak against the form that it is said to have.

    Less than 99 % under the declared form fails when another form explains more, less than half
    fails always; what remains below is left to the rejects. Under `MIN_GUARD_ROWS` boxes nothing
    fails.

    Args:
        values: float64[N, 4], boxes as stored.
        sizes: float64[N, 2], width and height of their images in pixels.
        declared: Form that the builder takes them for, "xyxy", "xywh" or "normalised".
        source: The file, for the message.

    Raises:
        SettingError: The boxes are of another form.
    """
    if len(values) < MIN_GUARD_ROWS:
        return
    shares = form_shares(values, sizes)
    own = shares.pop(declared)
    runner_up = max(shares, key=lambda form: shares[form])
    doubted = own < 0.99 and shares[runner_up] > own
    # boxes between 0 and 1 are also tiny boxes in pixels: they fit every other form as well
    shrunk = shares.get("normalised", 0.0) >= 0.99
    if doubted or own < 0.5 or shrunk:
        other = "normalised" if shrunk else runner_up
        raise SettingError(
            f"{source}: boxes are declared {declared}, but of {len(values)} looked at {own:.0%} "
            f"fit that form and {shares[other]:.0%} fit {other}. Convert the file to {declared}."
        )


class BoxGuard:
    """Looks at the first boxes of a file and raises when they are not of the declared form.

    It raises as soon as it has seen `GUARD_ROWS` of them, so that no file of several GB is read to
    its end first.

    Args:
        declared: Form of the boxes, "xyxy", "xywh" or "normalised".
        source: The file, for the message.
    """

    def __init__(self, declared: str, *, source: str) -> None:
        self._declared, self.source = declared, source
        self._rows: list[tuple[float, ...]] = []

    def look(self, stored: Sequence[float], width: int, height: int) -> None:
        """Look at one box as stored, of an image of width x height pixels.

        Raises:
            SettingError: Enough boxes were seen, and they are of another form (`check_box_form`).
        """
        # garbage is left to the rejects: a few wild numbers say nothing of the form
        if len(self._rows) < GUARD_ROWS and all(abs(value) < 1e6 for value in stored):
            self._rows.append((*stored, width, height))
            if len(self._rows) == GUARD_ROWS:
                self.check()

    def check(self) -> None:
        """Judge what was seen so far: to be called at the end of a file, which may have few boxes.

        Raises:
            SettingError: The boxes are of another form (`check_box_form`).
        """
        rows = np.array(self._rows, np.float64).reshape(-1, 6)
        check_box_form(rows[:, :4], rows[:, 4:], declared=self._declared, source=self.source)


def detect_form(values: np.ndarray, sizes: np.ndarray, *, forms: Sequence[str], source: str) -> str:
    """Return the form of a file's boxes, where its documentation does not say or is wrong.

    Args:
        values: float64[N, 4], boxes as stored.
        sizes: float64[N, 2], width and height of their images in pixels.
        forms: Forms that it may be.
        source: The file, for the message.

    Raises:
        SettingError: No form explains 99 % of the boxes, or two do and neither explains more.
    """
    shares = form_shares(values, sizes) if len(values) else dict.fromkeys(forms, 0.0)
    ranked = sorted(forms, key=lambda form: -shares[form])
    best = shares[ranked[0]]
    if best < 0.99 or (len(ranked) > 1 and shares[ranked[1]] >= best):
        seen = ", ".join(f"{share:.0%} fit {form}" for form, share in shares.items())
        raise SettingError(
            f"{source}: of {len(values)} boxes {seen}: cannot tell {' from '.join(forms)}"
        )
    return ranked[0]


def get(record: object, name: str) -> Any:
    """Return a field of a JSON record.

    Raises:
        BadRecord: The reason is malformed: the field is not there, or the record is no object.
    """
    if not isinstance(record, dict):
        raise BadRecord("malformed", f"record is {type(record).__name__}, not an object")
    if name not in record:
        raise BadRecord("malformed", f"no field {name!r}")
    return record[name]


def clean_box(
    corners: Sequence[float], width: int, height: int
) -> tuple[float, float, float, float]:
    """Return the box clipped to its image, each number a float32.

    Args:
        corners: x1, y1, x2, y2 in pixels of the image.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Raises:
        BadRecord: The reason is not_finite_box, inverted_box, outside_box or empty_box.
    """
    x1, y1, x2, y2 = corners
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in corners):
        raise BadRecord("not_finite_box", f"box {_show(corners)}")
    if x2 < x1 or y2 < y1:
        raise BadRecord("inverted_box", f"box {_show(corners)} has a negative side")
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise BadRecord(
            "outside_box", f"box {_show(corners)} does not touch the image of {width}x{height}"
        )
    # as float32 now, so that the side that is measured is the side that is stored
    left, right = (float(np.float32(min(max(value, 0.0), width))) for value in (x1, x2))
    top, bottom = (float(np.float32(min(max(value, 0.0), height))) for value in (y1, y2))
    if right - left < MIN_SIDE_PX or bottom - top < MIN_SIDE_PX:
        raise BadRecord(
            "empty_box", f"box {_show(corners)} is under {MIN_SIDE_PX:g} px in {width}x{height}"
        )
    return left, top, right, bottom


def four_numbers(value: object, *, what: str) -> tuple[float, float, float, float]:
    """Return the four numbers of a stored box as floats; infinity stands for one beyond floats.

    Raises:
        BadRecord: The reason is malformed.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or any(not _is_number(v) for v in value)
    ):
        raise BadRecord("malformed", f"{what} is {shown(value)!r}, not four numbers")
    a, b, c, d = (_float(v) for v in value)
    return a, b, c, d


def whole_number(value: object, *, what: str) -> int:
    """Return an integer of a JSON file, also one written 3.0.

    Raises:
        BadRecord: The reason is malformed.
    """
    if not _is_number(value) or not math.isfinite(number := _float(value)) or number != int(number):
        raise BadRecord("malformed", f"{what} is {shown(value)!r}, not a whole number")
    return int(value)  # type: ignore[call-overload]


def xywh_to_xyxy(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box stored as left, top, width, height."""
    x, y, w, h = values
    return x, y, x + w, y + h


def shown(value: object, limit: int = 80) -> str:
    """Return the start of a value's text for a message, whatever the value is."""
    try:
        return str(value)[:limit]
    except ValueError:  # Python writes no integer of over 4300 digits; a pickle may hold one
        return f"a {type(value).__name__} of too many digits"


def _is_number(value: object) -> bool:
    return not isinstance(value, bool | str | bytes) and hasattr(value, "__float__")


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def _show(corners: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in corners) + "]"
