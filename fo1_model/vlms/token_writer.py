"""Ids and labels of one conversation, written together from its texts and tokens."""

from collections.abc import Callable, Sequence

from fo1_model.batch import IGNORE


class TokenWriter:
    """Grows ids and labels side by side, so that they never differ in length.

    Args:
        tokenize: Function that gives the ids of a text.
        joins_text: Whether texts and the tokens between them are tokenised as one, up to an answer
            (``VLMFamily.joins_text``), instead of each text on its own.
    """

    def __init__(self, tokenize: Callable[[str], list[int]], *, joins_text: bool) -> None:
        self._tokenize = tokenize
        self._joins_text = joins_text
        self._waiting = ""
        self.ids: list[int] = []
        self.labels: list[int] = []

    def text(self, text: str) -> None:
        """Write text that is not supervised."""
        self._waiting += text
        if not self._joins_text:
            self.flush()

    def slots(self, token: str, index: int, count: int = 1) -> None:
        """Write a token of the vocabulary some times.

        Args:
            token: Its text.
            index: Its id.
            count: How often.
        """
        if self._joins_text:
            self._waiting += token * count
        else:
            self.tokens([index] * count)

    def answer(self, text: str, *, supervised: bool) -> None:
        """Write text of an answer: begun anew behind its head, as generation has it."""
        self.tokens(self._tokenize(text), supervised=supervised)

    def tokens(self, ids: Sequence[int], *, supervised: bool = False) -> None:
        """Write ids behind all text so far."""
        self.flush()
        self._append(ids, supervised=supervised)

    def flush(self) -> None:
        """Write the text that waits for what follows it."""
        waiting, self._waiting = self._waiting, ""
        if waiting:
            self._append(self._tokenize(waiting), supervised=False)

    def _append(self, ids: Sequence[int], *, supervised: bool) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if supervised else [IGNORE] * len(ids))
