"""One self-contained HTML page from sections of tables, plots and pictures with conversations.

Nothing is fetched: pictures are data URIs, the style is inline. Every text is escaped, also what datasets and
models wrote; the tags of the region language become coloured chips after the text around them is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup, escape

from pipelines.reports.drawing import region_colour

TONES = ("good", "bad", "plain")

_TOKEN = re.compile(
    r"(?P<listed>(?:<region\d+><regionfeat>)+)\n?|<region(?P<region>\d+)>|<ground>(?P<phrase>.*?)</ground>"
    r"|(?P<image><image>)\n?|(?P<objects></?objects>)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; columns of numbers are aligned right."""

    header: Sequence[str]
    """Column names."""
    rows: Sequence[Sequence[str]]
    """Cells as text."""
    note: str = ""
    """One line below."""
    kind: str = "table"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One turn or remark beside a picture."""

    who: str
    """Short label: "asked", "answer", "truth"."""
    text: str
    """Content; tags of the region language are shown as chips."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A picture with its conversation."""

    picture: str
    """Data URI."""
    title: str
    """Which sample it is."""
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
    """In order."""
    kind: str = "cards"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Plots:
    """Plots side by side."""

    plots: Sequence[tuple[str, str]]
    """(caption, data URI)."""
    kind: str = "plots"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values, folded away when long."""

    facts: Mapping[str, str]
    """Shown in order, values in a fixed-width font."""
    summary: str = ""
    """When given, the facts are folded behind this line."""
    kind: str = "facts"
    """Which part of the template draws it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with blocks under it."""

    title: str
    """Heading; also its anchor in the list at the top."""
    blocks: Sequence[Table | Cards | Plots | Facts]
    """In order; a section without blocks says so."""
    intro: str = ""
    """A sentence or two that says what is shown and how to read it."""


def render_page(title: str, sections: Sequence[Section], *, intro: str = "") -> str:
    """Return the page as HTML text."""
    return _TEMPLATE.render(
        title=title, sections=sections, intro=intro, chips=chips, number_columns=_number_columns
    )


def chips(text: str) -> Markup:
    """Escape a text and show the tags of the region language as coloured chips."""
    pieces: list[Markup] = []
    end = 0
    for found in _TOKEN.finditer(text):
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
    return [
        bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))
    ]


def _is_number(cell: str) -> bool:
    return (
        re.fullmatch(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?\s*(%|s|ms|MB)?|-|", cell.strip()) is not None
    )


_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2933; --soft: #667085; --line: #e4e7ec; --wash: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 28px 60px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 6px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 90ch; }
nav { margin: 12px 0; font-size: 14px; } nav a { margin-right: 16px; color: #1f4fd8; text-decoration: none; }
.scroll { overflow-x: auto; margin: 10px 0 4px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px 5px 8px; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; white-space: nowrap; overflow-wrap: anywhere; }
td.wide { white-space: pre-line; min-width: 30ch; }
th { color: var(--soft); font-weight: 600; background: var(--wash); }
td.number, th.number { text-align: right; }
.note { font-size: 13px; color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 18px; margin: 10px 0; }
figure { margin: 0; } figure img { width: 380px; max-width: 100%; display: block; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 18px; margin: 12px 0; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; display: flex; flex-direction: column; }
.card img { width: 100%; max-height: 400px; object-fit: contain; background: var(--wash); display: block; }
.card header { display: flex; justify-content: space-between; align-items: baseline; gap: 8px;
               padding: 8px 12px 0; font-size: 12.5px; color: var(--soft); overflow-wrap: anywhere; }
.badge { font-size: 12px; font-weight: 600; padding: 1px 8px; border-radius: 10px; background: #eef0f3;
         color: var(--ink); white-space: nowrap; }
.badge.good { background: #dcfce7; color: #14662f; } .badge.bad { background: #fee2e2; color: #a31515; }
.talk { margin: 0; padding: 6px 12px 12px; font-size: 14px; display: grid; grid-template-columns: max-content 1fr;
        gap: 4px 10px; }
.talk dt { color: var(--soft); font-size: 12.5px; padding-top: 1px; }
.talk dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.chip { display: inline-block; color: #fff; border-radius: 4px; padding: 0 5px; margin: 0 1px; font-size: 12px;
        line-height: 1.45; font-weight: 600; }
.stub { color: var(--soft); background: #eef0f3; border-radius: 4px; padding: 0 5px; font-size: 12px;
        margin-right: 3px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 8px 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; font-family: ui-monospace, Menlo, Consolas, monospace;
            overflow-wrap: anywhere; white-space: pre-wrap; }
summary { cursor: pointer; font-size: 14px; margin: 6px 0; }
</style></head><body>
<h1>{{ title }}</h1>
{% if intro %}<p>{{ intro }}</p>{% endif %}
<nav>{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>{% endfor %}</nav>
{% for section in sections %}
<section id="s{{ loop.index }}"><h2>{{ section.title }}</h2>
{% if section.intro %}<p>{{ section.intro }}</p>{% endif %}
{% for block in section.blocks %}
{% if block.kind == "table" %}
{% set numeric = number_columns(block.header, block.rows) %}
<div class="scroll"><table><thead><tr>
{% for name in block.header %}<th{% if numeric[loop.index0] %} class="number"{% endif %}>{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in block.rows %}<tr>
{% for cell in row %}<td class="{% if numeric[loop.index0] %}number{% elif cell|length > 48 %}wide{% endif %}">{{ cell }}</td>{% endfor %}
</tr>{% endfor %}
</tbody></table></div>
{% if block.note %}<div class="note">{{ block.note }}</div>{% endif %}
{% elif block.kind == "plots" %}
<div class="plots">{% for caption, uri in block.plots %}
<figure><figcaption>{{ caption }}</figcaption><img src="{{ uri }}" alt="{{ caption }}"></figure>
{% endfor %}</div>
{% elif block.kind == "cards" %}
<div class="cards">{% for card in block.cards %}
<article class="card"><img src="{{ card.picture }}" alt="{{ card.title }}">
<header><span>{{ card.title }}</span>
{% if card.badge %}<span class="badge {{ card.tone }}">{{ card.badge }}</span>{% endif %}</header>
<dl class="talk">{% for line in card.lines %}<dt>{{ line.who }}</dt><dd>{{ chips(line.text) }}</dd>{% endfor %}</dl>
</article>
{% endfor %}</div>
{% elif block.kind == "facts" %}
{% if block.summary %}<details><summary>{{ block.summary }}</summary>{% endif %}
<dl class="facts">{% for name, value in block.facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if block.summary %}</details>{% endif %}
{% endif %}
{% else %}<p>Nothing to show.</p>
{% endfor %}</section>
{% endfor %}
</body></html>
""")  # noqa: E501
