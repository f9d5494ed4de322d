"""The ``fo1`` command: ``fo1 VERB [RECIPE] [name=value ...] [flags]``.

Exit status: 0 done; 1 a step failed, or the world outside did (a full disk, a cluster that is
away); 2 a wrong setting, named in one line; 3 only from ``plan --json``: something is to do; 130
interrupted. Anything else that is raised is a defect of the program: it shows its traceback, and
the status is 1.
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from jobs.command.flags import ACCEPTED, FLAGS, SHOWN, Flag
from jobs.command.suggestions import MOST_LISTED, did_you_mean, unknown
from jobs.command.verbs import VERBS, Verb, function_of
from jobs.errors import ClusterError

PACKAGES = ("dataset_builders", "fo1_model", "pipelines", "jobs")
"""Packages, each with a logger of its name."""
DEFECT = (
    "fo1: this is a defect of the program, not of your settings: please report it with the lines "
    "above where the project's README says"
)
HELP = ("-h", "--help")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as a shell has it."""

logger = logging.getLogger("jobs")


class UsageError(ValueError):
    """Words or flags that the command does not understand: one line, exit status 2.

    A type of its own beside `pipelines.errors.SettingError`, because that package is not imported
    before a verb runs.
    """


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a person wrote, taken apart."""

    verb: Verb
    """The verb."""
    words: list[str]
    """Words after it that are no flags."""
    flags: argparse.Namespace
    """Value of every flag that the verb accepts, given or not."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status; see the module for what it says."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv[: argv.index("--")] if "--" in argv else argv  # behind it: a command for the cluster
    verbose = "--verbose" in own
    with _shown_logs(verbose=verbose, quiet="--quiet" in own):
        try:
            return _run(argv, own)
        except KeyboardInterrupt:
            print("fo1: interrupted; run the same command again to go on", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            return _report(error, verbose=verbose)


def _run(argv: Sequence[str], own: Sequence[str]) -> int:
    """Do what the words say and return the exit status."""
    if not argv or any(word in HELP for word in own):
        from jobs.command.help import help_text

        print(help_text(_without_flags(own)))
        return 0
    if list(argv) == ["--version"]:
        from importlib.metadata import version

        print(f"fo1 {version('vlm-fo1-ray')}")
        return 0
    command = parse(argv)
    _log_unused(command, own)
    return function_of(command.verb)(command.words, command.flags) or 0


def parse(argv: Sequence[str]) -> Command:
    """Take a command apart.

    Raises:
        UsageError: For an unknown verb, an unknown flag, or a flag without its value.
    """
    argv = list(argv)
    place = _verb_place(argv)
    if place is None:
        raise UsageError(f"name a verb: {', '.join(VERBS)} (fo1 --help says what each does)")
    name = argv[place]
    if name not in VERBS:
        raise UsageError(unknown("verb", name, VERBS))
    if name == "submit" and place:
        raise UsageError("submit comes first: fo1 submit --address URL -- VERB RECIPE ...")
    verb = VERBS[name]
    rest = argv[:place] + argv[place + 1 :]
    sent: list[str] = []
    if name == "submit":  # behind the --: words and flags of another command
        cut = rest.index("--") if "--" in rest else len(rest)
        rest, sent = rest[:cut], rest[cut + 1 :]
    parser = _parser(verb)
    flags, others = parser.parse_known_intermixed_args(rest)
    if wrong := next((word for word in others if word.startswith("-")), None):
        raise UsageError(_unknown_flag(verb, wrong.partition("=")[0]))
    words = [*flags.words, *others]
    if name == "submit" and words:
        raise UsageError(
            f"submit: {words[0]!r} belongs behind --: fo1 submit --address URL -- VERB RECIPE ..."
        )
    del flags.words
    return Command(verb=verb, words=words or sent, flags=flags)


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are raised instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} ({self.prog} --help)")


def _parser(verb: Verb) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"fo1 {verb.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    for flag in _accepted(verb):
        _add(parser, flag)
    return parser


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    if not flag.metavar:
        parser.add_argument(flag.name, action="store_true")
        return
    options: dict[str, Any] = {"metavar": flag.metavar, "type": flag.read, "default": flag.value()}
    parser.add_argument(flag.name, **options)


def _accepted(verb: Verb) -> list[Flag]:
    """Return the flags that a verb takes, whether or not they change what it does."""
    # submit runs nothing here, and its --address is another one.
    common = () if verb.name == "submit" else ACCEPTED
    return [FLAGS[name] for name in dict.fromkeys((*common, *verb.flags, *SHOWN))]


def _unknown_flag(verb: Verb, name: str) -> str:
    users = [other.name for other in VERBS.values() for f in _accepted(other) if f.name == name]
    if users:
        where = ", ".join(dict.fromkeys(users)) if len(users) < MOST_LISTED else "other verbs"
        return f"{verb.name} takes no {name}; it belongs to {where}"
    hint = did_you_mean(name, [flag.name for flag in _accepted(verb)])
    return f"unknown flag {name} of {verb.name}; {hint or f'fo1 {verb.name} --help shows them'}"


def _verb_place(argv: Sequence[str]) -> int | None:
    """Return the index of the first word that is neither a flag nor a flag's value."""
    with_value = {flag.name for flag in FLAGS.values() if flag.metavar}
    skip = False
    for index, word in enumerate(argv):
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in with_value
        else:
            return index
    return None


def _without_flags(argv: Sequence[str]) -> list[str]:
    """Return the words of a command that asks for help: it may be unfinished."""
    with_value = {flag.name for flag in FLAGS.values() if flag.metavar}
    words, skip = [], False
    for word in argv:
        if not skip and not word.startswith("-"):
            words.append(word)
        skip = not skip and word in with_value
    return words


def _log_unused(command: Command, own: Sequence[str]) -> None:
    """Say at --verbose which of the given flags change nothing."""
    used = {FLAGS[name].name for name in (*command.verb.flags, *SHOWN)}
    for flag in _accepted(command.verb):
        if flag.name not in used and any(word.partition("=")[0] == flag.name for word in own):
            logger.debug("%s changes nothing in %s", flag.name, command.verb.name)


@contextmanager
def _shown_logs(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Show the logs of our packages on standard error; logging is configured nowhere else.

    Afterwards everything is as before: `main` may run many times in one process, each time with
    another standard error.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    packages = [logging.getLogger(name) for name in PACKAGES]
    levels = [package.level for package in packages]
    for package in packages:
        package.addHandler(handler)
        package.setLevel(level)
    try:
        yield
    finally:
        for package, before in zip(packages, levels, strict=True):
            package.removeHandler(handler)
            package.setLevel(before)


def _report(error: Exception, *, verbose: bool) -> int:
    """Show an error as its kind deserves, and return the exit status."""
    cause = _of_worker(error)
    status = _status(cause)
    if status is None or verbose:
        traceback.print_exception(error)
    print(DEFECT if status is None else f"fo1: {cause}", file=sys.stderr)
    return 1 if status is None else status


def _of_worker(error: Exception) -> Exception:
    """Return the error that a worker of Ray raised, or the error itself.

    Ray's own error is an instance of its cause's type too, but its text is the worker's traceback.
    """
    exceptions = sys.modules.get("ray.exceptions")
    if exceptions is not None and isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, Exception) else error
    return error


def _status(error: Exception) -> int | None:
    """Return the exit status of an error that a message explains, None for a defect."""
    if isinstance(error, UsageError):
        return 2
    if isinstance(error, ClusterError):
        return 1
    from pipelines.errors import SETTING_ERRORS
    from pipelines.row_accounting import LedgerError

    if isinstance(error, SETTING_ERRORS):
        return 2
    if isinstance(error, LedgerError):
        return 1
    return 1 if isinstance(error, OSError) and _is_of_the_world(error) else None


def _is_of_the_world(error: OSError) -> bool:
    """Whether the system raised an error: it has a number or a file then; a store's has neither."""
    told = error.errno is not None or error.filename is not None
    return told or isinstance(error, ConnectionError | TimeoutError) or "AWS Error" in str(error)
