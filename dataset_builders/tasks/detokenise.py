"""English tokens back to text, with objects standing among the words. The rules are ours."""

import re
from collections.abc import Sequence

# what takes no blank before it: closing marks, "n't", "'s" and the other contractions
_TO_THE_LEFT = re.compile(r"[.,?!:;%)\]}]+|n't|'(?:s|m|d|t|re|ve|ll)?", re.IGNORECASE)
_TO_THE_RIGHT = frozenset("([{$#")
_BOTH_SIDES = frozenset({"-", "/"})
_QUOTES = frozenset({'"', "``", "''"})
_CONTRACTED = frozenset({"s", "t", "m", "d", "re", "ve", "ll"})


def detokenised(tokens: Sequence[str | int]) -> list[str | int]:
    """Return texts and objects: words joined by blanks, but for punctuation and the like.

    Contractions and quotes are written together too. Neighbouring words become one text.

    Args:
        tokens: Words, and rows of objects, which stand for a word each.
    """
    pieces: list[str | int] = []
    quoted = glued = False
    before: str | int | None = None
    for token in tokens:
        if isinstance(token, str) and not (token := token.strip()):
            continue
        closes = token in _QUOTES and quoted
        tight = before is None or glued or closes or _hugs(token, before)
        if not tight:
            _add(pieces, " ")
        _add(pieces, token)
        if token in _QUOTES:
            quoted = not quoted
        glued = token in _TO_THE_RIGHT or token in _BOTH_SIDES or (token in _QUOTES and quoted)
        before = token
    return pieces


def _hugs(token: str | int, before: str | int | None) -> bool:
    """Return whether a token stands right behind the one before it."""
    if isinstance(token, int):
        return False
    if before == "'" and token.lower() in _CONTRACTED:
        return True
    return token in _BOTH_SIDES or _TO_THE_LEFT.fullmatch(token) is not None


def _add(pieces: list[str | int], piece: str | int) -> None:
    """Add a piece, a text to the text before it where there is one."""
    if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
        pieces[-1] += piece
    else:
        pieces.append(piece)
