"""Detectors in words: ``detector=NAME[:SOURCE][,field=value...]``, and unions of them with "+".

opn                                   trained by the recipe itself
opn:RUN                               a finished run of ours, or a folder that one exported
closed_set:PekingU/rtdetr_r18vd       weights by their name on the Hugging Face hub, or a folder
text_prompted:DIR,prompt=person;dog   settings are the fields of the config and of its selection
upn:upn_large.pth,score_min=0.3       a file of weights
file:boxes.jsonl                      boxes that were found elsewhere
opn+file:boxes.jsonl                  a union: the boxes of both, overlaps suppressed
"""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fo1_model.detectors.configs import (
    DETECTORS,
    DetectorConfig,
    Leaf,
    Selection,
    UnionConfig,
    leaves,
)
from jobs.command.suggestions import did_you_mean, unknown
from jobs.recipes.arguments import convert
from pipelines.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class DetectorChoice:
    """A detector and where what it needs is to be found."""

    config: DetectorConfig
    """Which boxes it gives: hashed."""
    sources: tuple[str | None, ...]
    """For each of its leaves a run, weights or a box file as the user named it.

    None where nothing was named. Not hashed: contents are.
    """


def parse_detector(text: str, selection: Mapping[str, Any] | None = None) -> DetectorChoice:
    """Return the detector that the words of the command line mean.

    Args:
        text: NAME[:SOURCE][,setting=value...], or a union of them with "+".
        selection: Settings of `Selection` that replace the detector's own defaults where the text
            says
            nothing.

    Raises:
        SettingError: Naming the part that is not understood and what would be.
    """
    names = "|".join(re.escape(name) for name in DETECTORS if name != "union")
    parts = re.split(rf"\+(?=(?:{names})(?:[:,+]|$))", text)
    parsed = [_leaf(part, dict(selection or {})) for part in parts]
    sources = tuple(source for _, source in parsed)
    if len(parsed) == 1:
        return DetectorChoice(config=parsed[0][0], sources=sources)
    members = tuple(config for config, _ in parsed)
    union = UnionConfig(members=members, selection=replace(Selection(), **(selection or {})))
    return DetectorChoice(config=union, sources=sources)


def describe_detectors() -> list[str]:
    """Return one line a detector: name with source, what it is, settings with their defaults."""
    lines = []
    for name, kind in DETECTORS.items():
        if kind is UnionConfig:
            continue
        config = typing.cast("type[Leaf]", kind)()
        source = {"run": "[:RUN]", "weights": ":WEIGHTS", "boxes": ":FILE"}.get(config.needs, "")
        values = [
            f"{f.name}={getattr(config, f.name)}" for f in fields(config) if f.name != "selection"
        ]
        what = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name + source:<24}{what}" + (f" [{', '.join(values)}]" if values else ""))
    return lines


def is_trained_here(choice: DetectorChoice) -> bool:
    """Whether a recipe must train the detector: it needs a run, and none was named."""
    pairs = zip(leaves(choice.config), choice.sources, strict=True)
    return any(leaf.needs == "run" and source is None for leaf, source in pairs)


def _leaf(text: str, selection: dict[str, Any]) -> tuple[Leaf, str | None]:
    head, *settings = text.split(",")
    name, _, source = head.partition(":")
    if name not in DETECTORS or name == "union":
        detectors = [name for name in DETECTORS if name != "union"]
        message = unknown("detector", name, detectors, lists="detectors", more="a union: A+B")
        raise SettingError(f"detector={text}: {message}")
    kind = typing.cast("type[Leaf]", DETECTORS[name])
    _check_source(name, kind, source)
    own = [f.name for f in fields(kind) if f.name != "selection"]
    hints = typing.get_type_hints(kind) | typing.get_type_hints(Selection)
    given: dict[str, Any] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or key not in own + _SELECTION:
            known = f"it has {', '.join(own + _SELECTION)}"
            hint = did_you_mean(key, own + _SELECTION) if equals else ""
            raise SettingError(
                f"detector={text}: {word!r} is no setting of {name}; "
                + " ".join(filter(None, (hint, known)))
            )
        if key in given:
            raise SettingError(f"detector={text}: {key} is given twice")
        given[key] = convert(key, value, hints[key])
    config = kind(**{key: value for key, value in given.items() if key in own})
    selection |= {key: value for key, value in given.items() if key in _SELECTION}
    config = replace(config, selection=replace(config.selection, **selection))
    return config, (str(Path(source).absolute()) if kind.needs == "boxes" else source) or None


def _check_source(name: str, kind: type[Leaf], source: str) -> None:
    """Raise SettingError for a source that is missing or that the detector cannot use."""
    if kind.needs in ("weights", "boxes") and not source:
        what = (
            "the folder, file or hub name of its weights"
            if kind.needs == "weights"
            else "a file of boxes"
        )
        raise SettingError(f"detector={name}: it needs {what}; write detector={name}:PATH")
    if kind.needs in ("nothing", "objects") and source:
        raise SettingError(f"detector={name}:{source}: {name} needs nothing; write detector={name}")
    if kind.needs == "boxes" and not Path(source).is_file():
        raise SettingError(f"detector={name}:{source}: there is no such file")


_SELECTION = [f.name for f in fields(Selection)]
