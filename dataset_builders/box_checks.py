"""Box forms and disk layouts, asserted rather than assumed. What leaves here is xyxy pixels, float32."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset_builders.data_folders import DataFolders
from dataset_builders.records import BadRecord

MAX_COORDINATE = 1e7
"""Beyond it a number is garbage, not a pixel."""
MIN_SIDE_PX = 1.0
"""Smallest side of a box after clipping."""
GUARD_ROWS = 200
"""Boxes that the guard looks at."""
MIN_GUARD_ROWS = 20
"""Fewer boxes give no verdict."""
_SLACK_PX = 2.0  # annotation tools round, and some count from 1


def require(folders: DataFolders, names: Sequence[str], *, what: str, layout: str = "") -> None:
    """Raise ValueError naming the first of `names` (names or patterns) that is not there, and the layout."""
    for name in names:
        if not folders.matches(name):
            raise ValueError(
                f"{what}: {name} not found: there is no {folders.path(name)}. Put it there, or name the "
                f"right folder: --data DIR holds all of them under their names. {layout}".rstrip()
            )


def form_shares(values: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Return for each box form the share of rows that make a box inside their image under it.

    values: float64[N, 4] as stored. sizes: float64[N, 2] width and height of their images, pixels.
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
    # only a picture of a pixel or two could hold whole boxes with no number above 1
    shares["normalised"] = float(
        np.mean((np.abs(values) <= 1.0).all(1) & (np.minimum(width, height) > 4))
    )
    return shares


def check_box_form(values: np.ndarray, sizes: np.ndarray, *, declared: str, source: str) -> None:
    """Raise ValueError when the boxes of `source` speak against the declared form.

    values, sizes: as for `form_shares`. Less than 99 % under the declared form fails when another form
    explains more, less than half fails always; what remains below is left to the rejects.
    """
    if len(values) < MIN_GUARD_ROWS:
        return
    shares = form_shares(values, sizes)
    own = shares.pop(declared)
    runner_up = max(shares, key=lambda form: shares[form])
    doubted = own < 0.99 and shares[runner_up] > own
    shrunk = shares.get("normalised", 0.0) >= 0.99
    if doubted or own < 0.5 or shrunk:
        other = "normalised" if shrunk else runner_up
        raise ValueError(
            f"{source}: boxes are declared {declared}, but of {len(values)} looked at {own:.0%} fit that "
            f"form and {shares[other]:.0%} fit {other}. Convert the file to {declared}."
        )


class BoxGuard:
    """Looks at the first boxes of a file and raises when they are not of the declared form.

    It raises as soon as it has seen `GUARD_ROWS` of them, so that no file of several GB is read to its end
    first.
    """

    def __init__(self, declared: str, *, source: str) -> None:
        """declared: "xyxy", "xywh" or "normalised". source: the file, for the message."""
        self._declared, self.source = declared, source
        self._rows: list[tuple[float, ...]] = []

    def look(self, stored: Sequence[float], width: int, height: int) -> None:
        """Look at one box as stored. Raises ValueError, see `check_box_form`."""
        if len(self._rows) < GUARD_ROWS and all(abs(value) < 1e6 for value in stored):
            self._rows.append((*stored, width, height))
            if len(self._rows) == GUARD_ROWS:
                self.check()

    def check(self) -> None:
        """Evaluator what was seen so far: at the end of a file with fewer boxes. Raises ValueError."""
        rows = np.array(self._rows, np.float64).reshape(-1, 6)
        check_box_form(rows[:, :4], rows[:, 4:], declared=self._declared, source=self.source)


def detect_form(values: np.ndarray, sizes: np.ndarray, *, forms: Sequence[str], source: str) -> str:
    """Return which of `forms` the boxes of a file are in, where its documentation does not say or lies.

    values, sizes: as for `form_shares`. Raises ValueError when no form explains 99 % of them, or two do and
    neither explains more.
    """
    shares = form_shares(values, sizes) if len(values) else dict.fromkeys(forms, 0.0)
    ranked = sorted(forms, key=lambda form: -shares[form])
    best = shares[ranked[0]]
    if best < 0.99 or (len(ranked) > 1 and shares[ranked[1]] >= best):
        seen = ", ".join(f"{share:.0%} fit {form}" for form, share in shares.items())
        raise ValueError(
            f"{source}: of {len(values)} boxes {seen}: cannot tell {' from '.join(forms)}"
        )
    return ranked[0]


def get(record: object, name: str) -> Any:
    """Return a field of a JSON record. Raises BadRecord with reason malformed when it is not there."""
    if not isinstance(record, dict):
        raise BadRecord("malformed", f"record is {type(record).__name__}, not an object")
    if name not in record:
        raise BadRecord("malformed", f"no field {name!r}")
    return record[name]


def clean_box(
    corners: Sequence[float], width: int, height: int
) -> tuple[float, float, float, float]:
    """Return the box clipped to its image, each number a float32.

    corners: x1, y1, x2, y2 in pixels of the image of width x height.
    Raises BadRecord with reason not_finite_box, inverted_box, outside_box or empty_box.
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
    left, right = (float(np.float32(min(max(value, 0.0), width))) for value in (x1, x2))
    top, bottom = (float(np.float32(min(max(value, 0.0), height))) for value in (y1, y2))
    if right - left < MIN_SIDE_PX or bottom - top < MIN_SIDE_PX:
        raise BadRecord(
            "empty_box", f"box {_show(corners)} is under {MIN_SIDE_PX:g} px in {width}x{height}"
        )
    return left, top, right, bottom


def four_numbers(value: object, *, what: str) -> tuple[float, float, float, float]:
    """Return the four numbers of a stored box as floats; infinity stands for any that a float cannot hold.

    Raises BadRecord with reason malformed.
    """
    if (
        not isinstance(value, list | tuple)
        or len(value) != 4
        or any(not _is_number(v) for v in value)
    ):
        raise BadRecord("malformed", f"{what} is {str(value)[:80]!r}, not four numbers")
    a, b, c, d = (_float(v) for v in value)
    return a, b, c, d


def whole_number(value: object, *, what: str) -> int:
    """Return an integer of a JSON file, also one written 3.0. Raises BadRecord with reason malformed."""
    if not _is_number(value) or not math.isfinite(number := _float(value)) or number != int(number):
        raise BadRecord("malformed", f"{what} is {str(value)[:80]!r}, not a whole number")
    return int(value)  # type: ignore[call-overload]


def xywh_to_xyxy(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the corners of a box stored as left, top, width, height."""
    x, y, w, h = values
    return x, y, x + w, y + h


def _is_number(value: object) -> bool:
    return not isinstance(value, bool | str | bytes) and hasattr(value, "__float__")


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def _show(corners: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in corners) + "]"
