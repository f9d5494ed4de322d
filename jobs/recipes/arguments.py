"""Strict parsing of ``name=value`` words against a recipe's own keyword arguments.

A recipe's signature is its sweep surface: names, types and defaults are read from it; all else is an error.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any


def parse_arguments(recipe: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """``["lr=1e-3", "mix=drawn"]`` -> keyword arguments of the recipe, each converted to its declared type.

    Raises ValueError naming the argument, the value and what would be right: an unknown name, a name given
    twice, a value of the wrong type, a required argument left out.
    """
    parameters = inspect.signature(recipe).parameters
    hints = typing.get_type_hints(recipe)
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(
                f"{word!r}: recipe arguments are written name=value, such as {_example(parameters)}"
            )
        if name not in parameters:
            raise ValueError(
                f"unknown argument {name!r} of {recipe.__name__}; {_suggest(name, parameters)}"
            )
        if name in values:
            raise ValueError(f"argument {name!r} is given twice")
        values[name] = convert(name, text, hints[name])
    missing = [
        name
        for name, p in parameters.items()
        if p.default is inspect.Parameter.empty and name not in values
    ]
    if missing:
        raise ValueError(f"{recipe.__name__} needs {', '.join(f'{name}=...' for name in missing)}")
    return values


def convert(name: str, text: str, hint: Any) -> Any:
    """One value from its text; raises ValueError naming the argument, the text and the type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if text == "none":
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise ValueError(f"{name}={text}: choose one of {', '.join(choices)}")
        return text
    if hint is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name}={text}: write true or false")
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{name}={text}: not {_a(hint.__name__)}") from None


def describe_arguments(recipe: Callable[..., Any]) -> str:
    """``lr=0.001 mix=drawn_stage1 ...``: every argument with its default, in the order of the signature."""
    parameters = inspect.signature(recipe).parameters.values()
    return " ".join(
        f"{p.name}={'...' if p.default is p.empty else format_value(p.default)}" for p in parameters
    )


def format_value(value: Any) -> str:
    """A default as the command line spells it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _example(parameters: typing.Mapping[str, inspect.Parameter]) -> str:
    name, parameter = next(iter(parameters.items()), ("seed", None))
    default = "" if parameter is None or parameter.default is parameter.empty else parameter.default
    return f"{name}={format_value(default) or '...'}"


def _suggest(name: str, parameters: typing.Mapping[str, inspect.Parameter]) -> str:
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}it takes {', '.join(parameters) or 'none'}"


def _a(type_name: str) -> str:
    return {"int": "a whole number", "float": "a number"}.get(type_name, type_name)
