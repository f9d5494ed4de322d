"""One message for every name that there is not: "did you mean ...?"."""

import difflib
from collections.abc import Iterable

MOST_LISTED = 12
"""Names that a message lists; of more it says where the list is."""
LEAST_LIKE = 0.6
"""How like a name must be to be suggested, 0 to 1 (difflib's ratio)."""


def unknown(what: str, name: str, known: Iterable[str], *, lists: str = "", more: str = "") -> str:
    """Return the message for a name that there is not, with the one that was probably meant.

    Args:
        what: Kind of name, such as "recipe".
        name: What was written.
        known: Names that there are.
        lists: Word of ``fo1 list`` that shows them all, for kinds with many names.
        more: What else could be written, such as "or my_module:my_recipe".
    """
    known = list(dict.fromkeys(known))
    if len(known) <= MOST_LISTED or not lists:
        listed = f"known: {', '.join(known) or 'none'}"
    else:
        listed = f"all {len(known)} are in: fo1 list {lists}"
    hints = " ".join(filter(None, (did_you_mean(name, known), listed)))
    return f"unknown {what} {name!r}; {hints}" + (f", {more}" if more else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'steps'?``, or nothing where no name is alike."""
    # Upper case is a slip of the keyboard, and difflib would count each such letter as wrong.
    by_lower = {item.lower(): item for item in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=LEAST_LIKE)
    return f"did you mean {by_lower[close[0]]!r}?" if close else ""
