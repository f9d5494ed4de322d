"""Strict parsing of ``name=value`` words against a recipe's own keyword arguments.

A recipe's signature is its sweep surface: names, types and defaults are read from it, and from the
`TypedDict` behind ``**given: Unpack[...]`` where it has one; all else is an error. The same holds
for a dataclass of plain fields, which verbs without a recipe use.
"""

import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from jobs.command.suggestions import did_you_mean
from pipelines.errors import SettingError

REQUIRED = inspect.Parameter.empty
"""Default of an argument that has none."""


@dataclass(frozen=True)
class Field:
    """A field of a config dataclass; in an annotation, the one in which an argument ends."""

    config: type
    """The dataclass."""
    name: str
    """Name of the field."""

    @property
    def default(self) -> Any:
        """Default of the field, REQUIRED where it has none."""
        found = next(f.default for f in fields(self.config) if f.name == self.name)
        return REQUIRED if found is MISSING else found


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a recipe."""

    name: str
    """Name on the command line."""
    hint: Any
    """Type of its value."""
    default: Any
    """Value where it is left out; REQUIRED where it must be given."""
    owner: Any
    """What declares and documents it: the recipe, a dataclass or a `TypedDict`."""
    field: Field | None = None
    """Field of a config in which it ends."""
    group: str = ""
    """Heading under which the help shows it."""


def arguments_of(recipe: Callable[..., Any]) -> dict[str, Argument]:
    """Return the arguments of a recipe or a dataclass by name, in the order of declaration."""
    hints = typing.get_type_hints(recipe, include_extras=True)
    found: dict[str, Argument] = {}
    for name, parameter in inspect.signature(recipe).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            # PEP 692: the annotation is Unpack[SomeTypedDict]. Bare **kwargs declare nothing.
            shared = next(iter(typing.get_args(hints.get(name))), None)
            if shared is not None:
                found |= _shared_arguments(shared)
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            found[name] = _argument(name, hints.get(name, str), parameter.default, recipe)
    return found


def fields_given(
    given: Mapping[str, Any], declared: Callable[..., Any], config: type
) -> dict[str, Any]:
    """Return the given values that end in a config, by field; None counts as not given.

    Args:
        given: Values by argument.
        declared: `TypedDict` that declares the arguments.
        config: Dataclass in which they may end.

    Raises:
        TypeError: For an argument that is not declared: Python itself does not look behind ``**``.
    """
    arguments = _shared_arguments(declared)
    for name in given:
        if name not in arguments:
            raise TypeError(f"unexpected argument {name!r}; {_suggest(name, arguments)}")
    return {
        end.name: given[name]
        for name, argument in arguments.items()
        if (end := argument.field) and end.config is config and given.get(name) is not None
    }


def parse_arguments(
    recipe: Callable[..., Any], words: Sequence[str], *, whole: bool = True
) -> dict[str, Any]:
    """Return the keyword arguments that words such as ``["lr=1e-3", "mix=drawn"]`` say.

    Args:
        recipe: Function or dataclass whose arguments they are.
        words: ``name=value`` words.
        whole: Whether required arguments must be among them.

    Raises:
        SettingError: Naming the argument, the value and what would be right: an unknown name, a
            name
            given twice, a value of the wrong type, a required argument left out.
    """
    declared = arguments_of(recipe)
    # A dataclass such as PredictArguments has no name that a person ever wrote.
    what = recipe.__name__ if inspect.isfunction(recipe) else "this command"
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise SettingError(
                f"{word!r}: recipe arguments are written name=value, such as {_example(declared)}"
            )
        if name not in declared:
            raise SettingError(f"unknown argument {name!r} of {what}; {_suggest(name, declared)}")
        if name in values:
            raise SettingError(f"argument {name!r} is given twice")
        values[name] = convert(name, text, declared[name].hint)
    missing = [n for n, a in declared.items() if a.default is REQUIRED and n not in values]
    if missing and whole:
        raise SettingError(f"{what} needs {', '.join(f'{name}=...' for name in missing)}")
    return values


def convert(name: str, text: str, hint: Any) -> Any:
    """Return one value from its text. SettingError naming the argument, the text and the type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if text == "none":
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        value = next((choice for choice in choices if str(choice) == text), None)
        if value is None:
            hint_words = did_you_mean(text, map(str, choices))
            known = f"choose one of {', '.join(map(str, choices))}"
            raise SettingError(f"{name}={text}: " + " ".join(filter(None, (hint_words, known))))
        return value
    if hint is bool:
        if text not in ("true", "false"):
            raise SettingError(f"{name}={text}: write true or false")
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        raise SettingError(f"{name}={text}: not {type_words(hint)}") from None


def describe_arguments(recipe: Callable[..., Any]) -> str:
    """Return ``lr=0.001 mix=drawn_stage1 ...``: every argument with its default, in their order."""
    return " ".join(
        f"{a.name}={'...' if a.default is REQUIRED else format_value(a.default)}"
        for a in arguments_of(recipe).values()
    )


def format_value(value: Any) -> str:
    """Return a value as the command line spells it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "+".join(map(format_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_words(hint: Any) -> str:
    """Return a type in words, such as "a whole number"."""
    return {int: "a whole number", float: "a number", str: "text"}.get(hint, hint.__name__)


def _shared_arguments(declared: Callable[..., Any]) -> dict[str, Argument]:
    """Return the arguments that a `TypedDict` declares, its bases' first."""
    hints = typing.get_type_hints(declared, include_extras=True)
    owners = {name: owner for owner, names in _family(declared).items() for name in names}
    return {name: _argument(name, hint, None, owners[name]) for name, hint in hints.items()}


def _family(declared: Any) -> dict[Any, list[str]]:
    """Return a `TypedDict` and those it is made from, each with the keys that it declares itself.

    They are read from the source: at run time every class of them has all keys and no bases.
    """
    source = ast.parse(textwrap.dedent(inspect.getsource(declared))).body[0]
    found: dict[Any, list[str]] = {}
    if isinstance(source, ast.ClassDef):
        names = vars(sys.modules[declared.__module__])
        for base in source.bases:
            if typing.is_typeddict(parent := names.get(ast.unparse(base))):
                found |= _family(parent)
        own = [field for field in source.body if isinstance(field, ast.AnnAssign)]
        found[declared] = [ast.unparse(field.target) for field in own]
    return found


def _argument(name: str, hint: Any, default: Any, owner: Any) -> Argument:
    """Read an annotation: a type, and in `Annotated` the config in which it ends and its group.

    Where the type of a shared argument has no None, its default is that of the field in which it
    ends.
    """
    marks: tuple[Any, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *marked = typing.get_args(hint)
        marks = tuple(marked)
    end = next((m for m in marks if isinstance(m, Field)), None)
    config = next((m for m in marks if isinstance(m, type)), None)
    if config is not None:
        end = Field(config, name)
    group = next((mark for mark in marks if isinstance(mark, str)), "")
    if typing.is_typeddict(owner):
        group = (owner.__doc__ or "").partition(":")[0].lower()
        optional = type(None) in typing.get_args(hint)
        default = end.default if end is not None and not optional else default
    return Argument(name=name, hint=hint, default=default, owner=owner, field=end, group=group)


def _example(declared: Mapping[str, Argument]) -> str:
    argument = next(iter(declared.values()), None)
    if argument is None:
        return "seed=0"
    unset = argument.default is REQUIRED or argument.default is None
    return f"{argument.name}={'...' if unset else format_value(argument.default)}"


def _suggest(name: str, declared: Mapping[str, Argument]) -> str:
    hint = did_you_mean(name, declared)
    takes = f"it takes {', '.join(declared) or 'none'}"
    return f"{hint} {takes}" if hint else takes
