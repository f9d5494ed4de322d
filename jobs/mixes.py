"""Mixes as people write them: ``mix=stage2-osprey*vcr/region_qa=0.5``, after this grammar.

    mix      =  start { change }
    start    =  NAME                       a named mix, or a dataset: all its tasks
             |  weighted { "," weighted }
    weighted =  DATASET "/" TASK [ "=" WEIGHT ]          weight 1 where none is written
    change   =  "-" part                                 without it
             |  ":" part                                 only it
             |  "*" part [ "=" WEIGHT ]                  its weight times WEIGHT
    part     =  DATASET | TASK | DATASET "/" TASK        what it names must be in the mix

Changes apply from left to right, any number of them. A WEIGHT is a positive number such as ``2``,
``0.5`` or ``1e-1``; weights are relative. Names hold letters, digits, ``_`` and ``.``; spaces
around them do not count.

    drawn_stage2-rejection          stage2-vcr-osprey          stage2:ocr*mlt2019=2
    stage2-coco_train/rejection     coco/detection=3,coco/rejection=1
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from dataset_builders import DATASETS
from jobs.command.suggestions import MOST_LISTED, did_you_mean
from jobs.named_mixes import MIXES, Mix
from pipelines.errors import SettingError

GRAMMAR = (
    "NAME or DATASET, or DATASET/TASK=WEIGHT,...; then any number of changes, from left to right:",
    "-PART without it, :PART only it, *PART=WEIGHT its weight times WEIGHT;",
    "a PART is DATASET, TASK or DATASET/TASK: mix=stage2-vcr*coco_train/detection=2",
)
"""The grammar in three lines, for ``fo1 list mixes``."""

Sign = Literal["-", ":", "*"]
SIGNS = get_args(Sign)

_NAME = re.compile(r"\s*([\w.]*)\s*")
_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?=$|[-,:*])")
_REST = re.compile(r"[^-,:*]*")
"""What stands where a weight should: all up to the next sign."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a mix."""

    sign: Sign
    """Without a part, only a part, or a part with another weight."""
    part: str
    """Dataset, task or source that it is about."""
    factor: float = 1.0
    """What weights are multiplied by; for ``*`` alone."""


@dataclass(frozen=True, kw_only=True)
class MixWords:
    """A mix as it was written: where it starts, and what is changed."""

    start: str | tuple[tuple[str, float], ...]
    """A name, or sources with their weights."""
    changes: tuple[Change, ...] = ()
    """Changes in their order."""


def parse_mix(text: str) -> Mix:
    """Return the mix that the words of the command line mean; see the module for their grammar.

    Raises:
        SettingError: Naming the part that is not understood, and the known mixes.
    """
    words = read_words(text)
    mix = _started(words.start)
    for change in words.changes:
        if change.sign == "-":
            mix = without(mix, change.part)
        elif change.sign == ":":
            mix = only(mix, change.part)
        else:
            mix = scaled(mix, change.part, change.factor)
    return check_mix(mix)


def read_words(text: str) -> MixWords:
    """Read the words of a mix without looking any name up.

    Raises:
        SettingError: Where they do not follow the grammar.
    """
    reader = _Reader(text)
    first = reader.part()
    weighted = "/" in first or reader.sign() in ("=", ",")
    start = tuple(reader.weighted(first)) if weighted else first
    changes = []
    while (sign := reader.sign()) in SIGNS:
        reader.at += 1
        part = reader.part()
        factor = reader.weight() if sign == "*" else 1.0
        changes.append(Change(sign=cast("Sign", sign), part=part, factor=factor))
    if reader.at < len(text):
        raise reader.error(f"{text[reader.at :]!r} is not understood")
    return MixWords(start=start, changes=tuple(changes))


def render_words(words: MixWords) -> str:
    """Return the text that `read_words` reads as these words."""
    start = words.start
    if not isinstance(start, str):
        start = ",".join(f"{source}={weight!r}" for source, weight in start)
    changes = (
        f"{c.sign}{c.part}" + (f"={c.factor!r}" if c.sign == "*" else "") for c in words.changes
    )
    return start + "".join(changes)


def without(mix: Mapping[str, float], part: str) -> Mix:
    """Return the mix less a dataset, a task or one source. SettingError when nothing matches."""
    _check_part(mix, part)
    return {source: weight for source, weight in mix.items() if not _matches(source, part)}


def scaled(mix: Mapping[str, float], part: str, factor: float) -> Mix:
    """Return the mix with the weight of a dataset, a task or a source times ``factor`` (> 0)."""
    _check_part(mix, part)
    return {
        source: weight * (factor if _matches(source, part) else 1.0)
        for source, weight in mix.items()
    }


def only(mix: Mapping[str, float], part: str) -> Mix:
    """Return the part of the mix that a dataset, a task or one source makes up."""
    _check_part(mix, part)
    return {source: weight for source, weight in mix.items() if _matches(source, part)}


def datasets_of(mix: Mapping[str, float]) -> list[str]:
    """Return the names of the datasets in a mix, each once, in its order."""
    return list(dict.fromkeys(source.split("/")[0] for source in mix))


def check_mix(mix: Mix) -> Mix:
    """Return the mix itself. SettingError naming the source whose weight or name cannot be."""
    for source, weight in mix.items():
        if source.count("/") != 1:
            raise SettingError(f"mix: source {source!r} is not of the form dataset/task")
        if not 0 < weight < float("inf"):
            raise SettingError(
                f"mix: weight of {source} is {weight}; give a positive, finite number"
            )
    if not mix:
        raise SettingError("mix: it names no source; give at least one dataset/task")
    return mix


def _started(start: str | tuple[tuple[str, float], ...]) -> Mix:
    """Return the mix that the words start with."""
    if not isinstance(start, str):
        mix: Mix = {}
        for source, weight in start:
            if source in mix:
                raise SettingError(f"mix: source {source} is given twice")
            mix[source] = weight
        return check_mix(mix)
    if start in MIXES:
        return dict(MIXES[start])
    if start in DATASETS:
        return dict.fromkeys((f"{start}/{task}" for task in DATASETS[start].tasks), 1.0)
    if close := did_you_mean(start, [*MIXES, *DATASETS]):
        raise SettingError(f"mix: unknown mix {start!r}; {close} {_known()}")
    raise SettingError(f"mix: unknown mix {start!r}; {_known()}")


def _known() -> str:
    names = ", ".join(sorted(MIXES))
    return f"known: {names}, a dataset (fo1 list datasets), or DATASET/TASK=WEIGHT,..."


def _check_part(mix: Mapping[str, float], part: str) -> None:
    if not any(_matches(source, part) for source in mix):
        parts = sorted({name for source in mix for name in (*source.split("/"), source)})
        sources = f"its sources are {', '.join(sorted(mix))}" if len(mix) <= MOST_LISTED else ""
        hints = [hint for hint in (did_you_mean(part, parts), sources) if hint]
        raise SettingError(
            f"mix: {part!r} names no source of it; "
            + ("; ".join(hints) or f"it has {len(mix)} sources: fo1 list mixes")
        )


def _matches(source: str, part: str) -> bool:
    return part in (source, *source.split("/"))


class _Reader:
    """A place in the text, moved on by what is read."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def sign(self) -> str:
        """Return the next character, or nothing at the end."""
        return self.text[self.at : self.at + 1]

    def part(self) -> str:
        """Read names with slashes between them."""
        names = [self._name()]
        while self.sign() == "/":
            self.at += 1
            names.append(self._name())
        return "/".join(names)

    def weighted(self, first: str) -> list[tuple[str, float]]:
        """Read sources with their weights; the first name was read already."""
        found = [(first, self.weight())]
        while self.sign() == ",":
            self.at += 1
            part = self.part()
            found.append((part, self.weight()))
        return found

    def weight(self) -> float:
        """Read ``=WEIGHT``, or nothing, which is 1."""
        if self.sign() != "=":
            return 1.0
        self.at += 1
        # A number first: the "-" of 1e-1 is no change.
        if found := _WEIGHT.match(self.text, self.at):
            self.at = found.end()
            return float(found[1])
        word = _REST.match(self.text, self.at)
        written = word[0].strip() if word else ""
        if written not in ("nan", "inf"):  # numbers too, but none that a mix can have
            raise self.error(f"weight {written!r} is not a number")
        self.at += len(written)
        return float(written)

    def error(self, what: str) -> SettingError:
        """Return the error of words that do not follow the grammar."""
        return SettingError(f"mix: {what}, in {self.text!r} (fo1 list mixes says what can be)")

    def _name(self) -> str:
        found = _NAME.match(self.text, self.at)
        if found is None or not found[1]:
            left = self.text[self.at :]
            raise self.error(f"a name is missing before {left!r}" if left else "a name is missing")
        self.at = found.end()
        return found[1]
