"""One self-contained HTML page from sections of tables, plots and images with conversations.

Nothing is fetched: images are data URIs, the style is inline. Every text is escaped, also what
datasets and models wrote; the tags of the region language become coloured chips after the text
around them is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup, escape

from pipelines.reports.drawing import region_colour
from pipelines.reports.page_template import PAGE

TONES = ("good", "bad", "plain")
"""Colours of a badge: green, red, grey."""

_TOKEN = re.compile(
    r"(?P<listed>(?:<region\d+><regionfeat>)+)\n?|<region(?P<region>\d+)>"
    r"|<ground>(?P<phrase>.*?)</ground>|(?P<image><image>)\n?|(?P<objects></?objects>)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; columns of numbers are aligned right."""

    header: Sequence[str]
    """Name of each column."""
    rows: Sequence[Sequence[str]]
    """Cells of each row as text."""
    note: str = ""
    """One line below the table; empty for none."""
    kind: str = "table"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One turn or remark below an image."""

    who: str
    """Short label: "asked", "answer", "truth"."""
    text: str
    """What was said; tags of the region language are shown as chips."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """An image with its conversation."""

    image: str
    """Data URI of the image."""
    title: str
    """Name of the sample."""
    lines: Sequence[Line]
    """The conversation, then remarks."""
    badge: str = ""
    """Verdict or task in one or two words."""
    tone: str = "plain"
    """Colour of the badge: one of TONES."""


@dataclass(frozen=True, kw_only=True)
class Cards:
    """A grid of cards."""

    cards: Sequence[Card]
    """The cards, in order."""
    kind: str = "cards"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Plots side by side."""

    plots: Sequence[tuple[str, str]]
    """Caption and data URI of each plot."""
    kind: str = "plots"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values; long ones can be folded away."""

    facts: Mapping[str, str]
    """Value by name, in the order shown."""
    summary: str = ""
    """Line behind which the facts are folded; empty shows them at once."""
    fixed_width: bool = True
    """Whether values are in a fixed-width font, as settings and fingerprints are; prose is not."""
    kind: str = "facts"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with blocks under it."""

    title: str
    """Heading; also its anchor in the list at the top."""
    blocks: Sequence[Table | Cards | Plots | Facts]
    """Blocks, in order; a section without any says so."""
    intro: str = ""
    """A sentence or two that says what is shown and how to read it."""


def render_page(title: str, sections: Sequence[Section], *, intro: str = "") -> str:
    """Render a page.

    Args:
        title: Heading of the page.
        sections: Its sections, in order; a list at the top links to them.
        intro: A sentence below the heading.

    Returns:
        HTML text that needs nothing else; the same input gives the same text.
    """
    return _TEMPLATE.render(
        title=title, sections=sections, intro=intro, chips=chips, number_columns=_number_columns
    )


def chips(text: str) -> Markup:
    """Escape a text and show the tags of the region language as coloured chips."""
    pieces: list[Markup] = []
    end = 0
    for found in _TOKEN.finditer(text):
        # Piece by piece: escaping first would hide the tags, escaping last would undo the chips.
        pieces.append(escape(text[end : found.start()]))
        pieces.append(_chip(found))
        end = found.end()
    pieces.append(escape(text[end:]))
    return Markup("").join(pieces)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as aligned text for a terminal; numbers are aligned right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    right = _number_columns(header, rows)

    def line(row: Sequence[str]) -> str:
        cells = [
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(
        [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]
    )


def _chip(found: re.Match[str]) -> Markup:
    """Return what stands for a tag of the region language, or for a list of regions."""
    if found["region"] is not None:
        index = int(found["region"])
        return Markup('<span class="chip" style="background:{}">{}</span>').format(
            region_colour(index), index
        )
    if found["phrase"] is not None:
        return Markup('<b class="phrase">{}</b>').format(chips(found["phrase"]))
    if found["listed"] is not None:
        count = found["listed"].lower().count("<regionfeat>")
        return Markup('<span class="stub">{} region{}</span>').format(
            count, "" if count == 1 else "s"
        )
    return Markup('<span class="stub">image</span>') if found["image"] else Markup("")


def _number_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell for each column whether every cell is a number, a dash or empty."""
    return [
        bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))
    ]


def _is_number(cell: str) -> bool:
    return (
        re.fullmatch(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?\s*(%|s|ms|MB)?|-|", cell.strip()) is not None
    )


_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    PAGE
)
