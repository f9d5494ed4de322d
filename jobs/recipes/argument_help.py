"""The table of arguments that ``fo1 VERB RECIPE --help`` shows.

The meaning of an argument is read where it is documented, never written again: the docstring of the
config field in which the argument ends, else the string below the key of its `TypedDict` or below
its field, else the ``Args:`` section of the recipe.
"""

import ast
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jobs.recipes.arguments import (
    REQUIRED,
    Argument,
    arguments_of,
    format_value,
)

GROUPS = ("", "data", "model", "training", "evaluation")
"""Headings in the order of the help; others follow. The first has none."""
LEAST_MEANING = 34
"""Columns that the meaning gets at least; with fewer it stands below the name."""
TYPE_WORDS = {int: "whole number", float: "number", str: "text", bool: "true|false"}


def argument_table(
    recipe: Callable[..., Any],
    *,
    width: int,
    values: Mapping[str, Any] | None = None,
    column: str = "",
) -> str:
    """Lay out every argument of a recipe or dataclass: name, type, default, value, meaning.

    Args:
        recipe: Function or dataclass.
        width: Columns of the terminal.
        values: What the arguments are in this command, by name.
        column: Heading of these values; empty: there is no such column.
    """
    groups: dict[str, list[Argument]] = {name: [] for name in GROUPS}
    for argument in arguments_of(recipe).values():
        groups.setdefault(argument.group, []).append(argument)
    header = ["argument", "type", "default", *([column] if column else []), "meaning"]
    rows = {
        argument.name: _row(argument, values or {}, with_value=bool(column))
        for arguments in groups.values()
        for argument in arguments
    }
    if not rows:
        return "  it takes no arguments"
    # A long list of choices or a long value hangs over instead of pushing all others to the right.
    columns = list(zip(header, *rows.values(), strict=True))[:-1]
    widths = [min(max(map(len, cells)), 26) for cells in columns]
    lines = _lines(header, widths, width)
    for name, arguments in groups.items():
        if arguments and name:
            lines += ["", f"{name}:"]
        for argument in arguments:
            lines += _lines(rows[argument.name], widths, width)
    return "\n".join(lines)


def meaning_of(argument: Argument) -> str:
    """Return the sentence that says what an argument means; empty where nothing documents it."""
    places = [(argument.owner, argument.name)]
    if argument.field is not None:
        places.insert(0, (argument.field.config, argument.field.name))
    texts = (_documented(owner).get(name, "") for owner, name in places)
    return _first_sentence(next((text for text in texts if text), ""))


def type_of(hint: Any) -> str:
    """Return a type as the help shows it: its choices, or a word."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    return TYPE_WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _row(argument: Argument, values: Mapping[str, Any], *, with_value: bool) -> list[str]:
    default = "required" if argument.default is REQUIRED else format_value(argument.default)
    row = [argument.name, type_of(argument.hint), default]
    if with_value:
        value = values.get(argument.name, argument.default)
        row.append("" if value is REQUIRED else format_value(value) or "''")
    return [*row, meaning_of(argument)]


def _lines(cells: list[str], widths: list[int], width: int) -> list[str]:
    """Return one row: the cells side by side, the last one wrapped beside or below them."""
    *front, meaning = cells
    left = "  " + "  ".join(cell.ljust(wide) for cell, wide in zip(front, widths, strict=True))
    start = 2 + sum(widths) + 2 * len(widths)
    if width - start >= LEAST_MEANING and len(left) < start:
        wrapped = textwrap.wrap(meaning, width - start) or [""]
        first, rest = f"{left}  {wrapped[0]}", wrapped[1:]
        return [line.rstrip() for line in (first, *(" " * start + text for text in rest))]
    start = 6 if width - start < LEAST_MEANING else start
    below = textwrap.wrap(meaning, max(LEAST_MEANING, width - start))
    return [left.rstrip(), *(" " * start + text for text in below)]


@cache
def _documented(owner: Any) -> dict[str, str]:
    """Return what documents the arguments or fields of a class or function, by name."""
    return _field_docstrings(owner) if inspect.isclass(owner) else _args_section(owner)


def _field_docstrings(owner: type) -> dict[str, str]:
    """Return the string below each annotated name of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    found = {}
    body = getattr(tree, "body", [])
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
            name, text = ast.unparse(field.target), below.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[name] = text.value
    return found


def _args_section(owner: Callable[..., Any]) -> dict[str, str]:
    """Return the entries of the ``Args:`` section of a Google docstring."""
    text = inspect.getdoc(owner) or ""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    if section is None:
        return {}
    entries = re.split(r"^ {4}(?=\S)", section[1], flags=re.MULTILINE)[1:]
    pairs = (entry.partition(":")[::2] for entry in entries)
    return {name.split(" ")[0].strip(): meaning for name, meaning in pairs}


def _first_sentence(text: str) -> str:
    flat = " ".join(text.split()).replace("``", "").replace("`", "")
    return re.split(r"(?<=\.)\s+(?=[A-Z])", flat)[0]
