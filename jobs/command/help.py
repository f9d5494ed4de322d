"""The texts of ``fo1 --help``, ``fo1 VERB --help`` and ``fo1 VERB RECIPE --help``."""

import inspect
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from jobs.command.flags import FLAGS, SHOWN
from jobs.command.verbs import VERBS, Form, Verb, first_words, load

EXAMPLES = (
    "fo1 list datasets",
    "fo1 plan stage2",
    "fo1 run stage2 steps=200",
    "fo1 evaluate drawn_val checkpoint=stage2",
    "fo1 predict checkpoint=stage2 image=a.jpg query='red circle'",
)
STATUS = (
    "exit status: 0 done, 1 a step failed, 2 a wrong setting, 3 plan --json and something is to "
    "do, 130 interrupted; any other error is a defect and shows its traceback"
)
WIDEST = 110
"""Columns that a text has at most: longer lines read badly."""


def help_text(words: Sequence[str]) -> str:
    """Return the help that the words before ``--help`` ask for.

    Raises:
        SettingError: For a verb, recipe or argument that there is not.
    """
    if not words:
        return general_help()
    if words[0] not in VERBS:
        from jobs.command.suggestions import unknown
        from pipelines.errors import SettingError

        raise SettingError(unknown("verb", words[0], VERBS))
    verb = VERBS[words[0]]
    # `fo1 evaluate steps=3 --help` names no recipe: what it can name is in the verb's help.
    named = len(words) > 1 and "=" not in words[1] and any(f.first for f in verb.forms)
    return words_help(verb, words[1:]) if named else verb_help(verb)


def general_help() -> str:
    """Return every verb with what it does, for a newcomer."""
    wide = max(map(len, VERBS)) + 4
    lines = ["usage: fo1 VERB [RECIPE] [name=value ...] [flags]", ""]
    lines += [
        "VLM-FO1 as a pipeline: datasets -> proposals -> shards -> training -> evaluation.",
        "",
    ]
    lines += ["verbs:"]
    for verb in VERBS.values():
        lines += _entry(verb.name, verb.summary, wide)
    lines += ["", "help:"]
    lines += _entry("fo1 VERB --help", "words, flags and examples of a verb", 26)
    lines += _entry("fo1 VERB RECIPE --help", "every argument of a recipe", 26)
    lines += _entry("fo1 --version", "the version", 26)
    lines += [
        "",
        *_examples(EXAMPLES),
        "",
        *textwrap.wrap(STATUS, _width(), subsequent_indent="  "),
    ]
    return "\n".join(lines)


def verb_help(verb: Verb) -> str:
    """Return the words, flags and examples of one verb."""
    lines = _usage(verb, verb.forms)
    lines += ["", *textwrap.wrap(f"{verb.summary[0].upper()}{verb.summary[1:]}.", _width())]
    if len(verb.forms) > 1:
        for form in verb.forms:
            lines += _entry(form.words, form.summary, 40)
    for form in verb.forms:
        if isinstance(form.first, str):
            names = ", ".join(first_words(form))
            word = form.words.split()[0]
            lines += [
                "",
                *textwrap.wrap(f"{word}: {names}{_also(word)}", _width(), subsequent_indent="  "),
            ]
            if not form.arguments:
                lines.append(f"  its arguments: fo1 {verb.name} {word} --help")
    for form in verb.forms:
        if form.arguments and not form.arguments.startswith("pipelines."):
            lines += ["", f"arguments of {verb.name} {form.words}:", _table(load(form.arguments))]
        elif form.arguments:
            lines += [
                "",
                f"arguments of {form.words}: fo1 {verb.name} {form.words.split()[0]} --help",
            ]
    if verb.more:
        lines += ["", *textwrap.wrap(verb.more, _width())]
    lines += ["", *_flags(verb), "", *_examples(verb.examples)]
    return "\n".join(lines)


def words_help(verb: Verb, words: Sequence[str]) -> str:
    """Return the arguments of what the first word names: a recipe, a benchmark, an experiment."""
    name = words[0]
    form = next((form for form in verb.forms if name in first_words(form)), verb.forms[0])
    if form.arguments:
        what, arguments = form, load(form.arguments)
        lines = [*_usage(verb, (what,)), "", f"{form.summary[0].upper()}{form.summary[1:]}.", ""]
        return "\n".join([*lines, _table(arguments), "", *_see(verb)])
    if not isinstance(form.first, str):  # a word without arguments, such as `proposals list`
        return verb_help(verb)
    return _recipe_help(verb, form, words)


def _recipe_help(verb: Verb, form: Form, words: Sequence[str]) -> str:
    """Return every argument of a recipe, with what it is in this command."""
    from jobs.benchmarks import BENCHMARKS
    from jobs.experiment import recipe_of
    from jobs.recipes.arguments import parse_arguments
    from jobs.recipes.catalogue import find_recipe
    from jobs.recipes.settings import usual_arguments

    name = words[0]
    if verb.name == "experiment":
        name = recipe_of(name)
        recipe = find_recipe(name)
    else:
        recipe = find_recipe(name, others=list(BENCHMARKS) if verb.name == "evaluate" else ())
    own = [
        word for word in words[1:] if not (verb.name == "inspect" and word.startswith("dataset="))
    ]
    given = parse_arguments(recipe, own, whole=False)
    parameter = inspect.signature(recipe).parameters.get("size")
    size = given.get("size", parameter.default if parameter else None)
    values = {
        **usual_arguments(name, str(size)),
        **{k: v for k, v in given.items() if v is not None},
    }
    column = f"at size={size}" if parameter else "here" if given else ""
    usage = " ".join([words[0], *form.words.split()[1:]])
    documented = inspect.getdoc(recipe) or ""
    lines = [f"usage: fo1 {verb.name} {usage} [flags]", ""]
    for paragraph in documented.split("\n\nArgs:")[0].split("\n\n"):
        lines += [*textwrap.wrap(paragraph.replace("``", ""), _width()), ""]
    return "\n".join([*lines, _table(recipe, values, column), "", *_see(verb)])


def _table(
    arguments: Callable[..., Any], values: dict[str, Any] | None = None, column: str = ""
) -> str:
    from jobs.recipes.argument_help import argument_table

    return argument_table(arguments, width=_width(), values=values, column=column)


def _usage(verb: Verb, forms: Sequence[Form]) -> list[str]:
    flags = "" if verb.name == "submit" else " [flags]"  # its own come first
    usages = [f"fo1 {verb.name} {form.words}{flags}" for form in forms]
    return [f"{'usage:' if not number else '      '} {text}" for number, text in enumerate(usages)]


def _flags(verb: Verb) -> list[str]:
    lines = ["flags:"]
    for name in (*verb.flags, *SHOWN):
        flag = FLAGS[name]
        lines += _entry(f"{flag.name} {flag.metavar}".rstrip(), flag.help, 30)
    return lines


def _examples(examples: Sequence[str]) -> list[str]:
    return ["examples:", *(f"  {example}" for example in examples)]


def _see(verb: Verb) -> list[str]:
    return [f"its flags: fo1 {verb.name} --help"]


def _also(word: str) -> str:
    return ", or my_module:my_recipe" if word == "RECIPE" else ""


def _entry(name: str, text: str, wide: int) -> list[str]:
    """Return a name with its text beside it, or below where the name is too long."""
    indent = " " * wide
    lines = textwrap.wrap(text, max(30, _width() - wide))
    if len(name) + 2 >= wide:
        return [f"  {name}", *(indent + line for line in lines)]
    return [f"  {name:<{wide - 2}}{lines[0]}", *(indent + line for line in lines[1:])]


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns)
