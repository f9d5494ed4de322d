"""Names of categories: how they are asked for, and when two of them may mean the same thing."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

_IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "knife": "knives",
    "shelf": "shelves",
    "leaf": "leaves",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
}
_SINGULAR = {plural: noun for noun, plural in _IRREGULAR.items()}


def plural(noun: str) -> str:
    """Return the English plural of a category name by its last word. The rules are ours."""
    *before, last = noun.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return " ".join([*before, last])


def singular(noun: str) -> str:
    """Return the English singular of a name by its last word, roughly: for comparing names.

    The rules are ours.
    """
    *before, last = noun.split(" ")
    if last in _SINGULAR:
        last = _SINGULAR[last]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif last.endswith(("ches", "shes", "xes", "sses")):
        last = last[:-2]
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return " ".join([*before, last])


@lru_cache(1 << 16)  # a dataset's names are compared again for every image
def normalised(name: str) -> str:
    """Return a name as it is compared: lower case, no underscores, no parentheses, singular."""
    bare = re.sub(r"\([^()]*\)", " ", name.lower().replace("_", " "))
    return singular(" ".join(re.sub(r"[^\w/&+'-]+", " ", bare).split()))


def prompt_name(name: str) -> str:
    """Return a name as a question says it: no underscores, no parentheses, no blanks around it.

    It is the name itself, stripped, when nothing else would be left.
    """
    bare = " ".join(re.sub(r"\([^()]*\)", " ", name.replace("_", " ")).split())
    return bare or name.strip()


def prompt_names(names: Iterable[str], synonyms: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return official name -> the name that a question uses, each of them different.

    Where two would be asked for by the same name, each keeps its parenthesis: "drum (musical
    instrument)"; where that does not help, its official name.

    Args:
        names: Official names.
        synonyms: Official name -> a better one, where there is any.
    """
    names = list(names)
    wanted = {name: prompt_name((synonyms or {}).get(name, name)) for name in names}
    for spelled in (
        lambda name: " ".join(name.replace("_", " ").split()),
        lambda name: name.strip(),
    ):
        uses: dict[str, list[str]] = {}
        for name, shown in wanted.items():
            uses.setdefault(shown.casefold(), []).append(name)
        for sharing in uses.values():
            if len(sharing) > 1:
                wanted |= {name: spelled(name) for name in sharing}
    return wanted
