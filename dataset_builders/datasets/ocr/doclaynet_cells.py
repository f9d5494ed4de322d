"""Text of DocLayNet's pages: the cells of the PDFs, brought into the pixels of the images.

``JSON/<hash>.json`` of DocLayNet_extra has `metadata` with the size of the page, `original_width`
and `original_height`, and `cells` with a `bbox` and a `text` each. What the four numbers of a bbox
are is not sure: the README of https://github.com/DS4SD/DocLayNet calls them corners from the lower
left of the page, and its example is a left, top, width and height in the square image. So the form
is measured: text stands in annotated layout elements under the right one, and beside them under the
others.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dataset_builders.box_checks import four_numbers, get
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.images import safe_join
from dataset_builders.records import BadRecord

Box = tuple[float, float, float, float]
"""Four numbers; xyxy in pixels of the image once it is placed."""
Size = tuple[float, float]
"""Width and height."""

IN_IMAGE = "left, top, width, height in the image"
FORMS = (
    "left, top, width, height on the page",
    IN_IMAGE,
    "corners on the page",
    "corners from the lower left of the page",
    "x0, x1, y0, y1 from the lower left of the page",
)
"""What the four numbers of a cell may be."""
MIN_SHARE, MIN_LEAD = 0.8, 0.1
"""Share of the cells that must stand in elements under one form, and its lead over others. ours"""
MAX_FILE_BYTES = 64 * 2**20
"""Longest file of cells that is read: a page's text needs far less."""
INSIDE, OUTSIDE = 0.8, 0.2
"""Share of its area for a cell to belong to an element, and to stand outside of it. ours

A cell belongs to an element that holds more than `INSIDE` of its area; between the two, nobody can
tell whose it is.
"""
_SLACK_PX = 2.0


@dataclass(frozen=True, kw_only=True)
class Page:
    """The cells of one page as stored."""

    size: Size
    """Width and height of the page in its own units."""
    cells: tuple[tuple[Box, str], ...]
    """The cells as (four numbers, text); those without visible text are left out."""


def read_page(folders: DataFolders, name: str) -> Page | None:
    """Read a file of cells.

    Args:
        folders: Where the data lies.
        name: File below the data root, such as "doclaynet/JSON/<hash>.json".

    Returns:
        The cells of the page; None when the file is not there.

    Raises:
        BadRecord: malformed, unsafe_path, bad_size or text_too_long.
    """
    path = safe_join(folders.root(name), name.partition("/")[2])
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadRecord("text_too_long", f"{path.name} has more than {MAX_FILE_BYTES} bytes")
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except BadRecord:  # it is a ValueError, which would be caught below
        raise
    except OSError as error:  # a name longer than the file system takes, a folder
        raise BadRecord("malformed", f"{path.name[:120]}: {type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord("malformed", f"{path.name} is no JSON: {type(error).__name__}") from error
    sizes = (get(get(record, "metadata"), side) for side in ("original_width", "original_height"))
    width, height, *_ = four_numbers([*sizes, 0, 0], what="original_width and original_height")
    if not (0 < width < 1e6 and 0 < height < 1e6):
        raise BadRecord("bad_size", f"the page is {width:g}x{height:g}")
    listed = get(record, "cells")
    if not isinstance(listed, list):
        raise BadRecord("malformed", f"cells is {type(listed).__name__}, not a list")
    cells = []
    for cell in listed:
        text = get(cell, "text")
        if not isinstance(text, str):
            raise BadRecord("malformed", f"text of a cell is {type(text).__name__}")
        if text.strip():
            cells.append((four_numbers(get(cell, "bbox"), what="bbox of a cell"), text))
    return Page(size=(width, height), cells=tuple(cells))


def find_form(pages: Iterable[tuple[Page, Size, Sequence[Box]]], *, source: str) -> str | None:
    """Return the one of `FORMS` under which the text of some pages stands in their elements.

    Args:
        pages: Cells, size of the image and boxes of the elements (xyxy in image pixels), for each
            page.
        source: The files, for the message.

    Returns:
        The form; None when the pages hold no text.

    Raises:
        SettingError: No form explains the cells, or two do.
    """
    counts, total = dict.fromkeys(FORMS, 0), 0
    for page, image, elements in pages:
        total += len(page.cells)
        for form in FORMS:
            for stored, _ in page.cells:
                counts[form] += _fits(place(stored, form, page.size, image), image, elements)
    if not total:
        return None
    first, second = sorted(FORMS, key=lambda form: -counts[form])[:2]
    if counts[first] < MIN_SHARE * total or counts[first] - counts[second] < MIN_LEAD * total:
        seen = ", ".join(f"{count / total:.0%} as {form}" for form, count in counts.items())
        raise SettingError(
            f"{source}: of {total} text cells stand in layout elements {seen}: cannot tell which"
        )
    return first


def texts(page: Page, form: str, image: Size, elements: Sequence[Box]) -> dict[int, str]:
    """Return the text in each element that has any.

    Elements that cut a cell in two, or share it, are left out.

    Args:
        page: The cells.
        form: One of `FORMS`.
        image: Width and height of the image in pixels.
        elements: Boxes of the elements, xyxy in pixels of the image.

    Returns:
        Position of the element -> its cells' text in the file's order.
    """
    words: dict[int, list[str]] = {}
    doubtful: set[int] = set()
    for stored, text in page.cells:
        box = place(stored, form, page.size, image)
        shares = {
            row: share
            for row, other in enumerate(elements)
            if (share := _share(box, other)) > OUTSIDE
        }
        if len(shares) == 1 and min(shares.values()) > INSIDE:
            words.setdefault(next(iter(shares)), []).append(text)
        else:
            doubtful |= shares.keys()
    return {
        row: " ".join(" ".join(found).split())
        for row, found in words.items()
        if row not in doubtful
    }


def place(stored: Box, form: str, page: Size, image: Size) -> Box:
    """Return the box of a cell, xyxy in pixels of the image.

    Args:
        stored: The four numbers of the cell.
        form: One of `FORMS`.
        page: Width and height of the page in its own units.
        image: Width and height of the image in pixels.
    """
    a, b, c, d = stored
    x1, y1, x2, y2 = (
        (a, b, a + c, b + d),
        (a, b, a + c, b + d),
        (a, b, c, d),
        (a, page[1] - d, c, page[1] - b),
        (a, page[1] - d, b, page[1] - c),
    )[FORMS.index(form)]
    across, down = (1.0, 1.0) if form == IN_IMAGE else (image[0] / page[0], image[1] / page[1])
    return x1 * across, y1 * down, x2 * across, y2 * down


def _fits(box: Box, image: Size, elements: Sequence[Box]) -> bool:
    """Return whether a box is one, inside the image, and has its centre in an element."""
    x1, y1, x2, y2 = box
    if not (
        -_SLACK_PX <= x1 < x2 <= image[0] + _SLACK_PX
        and -_SLACK_PX <= y1 < y2 <= image[1] + _SLACK_PX
    ):
        return False
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return any(e[0] <= x <= e[2] and e[1] <= y <= e[3] for e in elements)


def _share(box: Box, other: Any) -> float:
    """Return the share of a box's area that lies in another; 0 for what is no box."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return 0.0
    across, down = min(x2, other[2]) - max(x1, other[0]), min(y2, other[3]) - max(y1, other[1])
    return max(0.0, across) * max(0.0, down) / ((x2 - x1) * (y2 - y1))
