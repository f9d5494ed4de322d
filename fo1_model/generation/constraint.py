"""The region language as a constraint on decoding: what would break the answer cannot be chosen.

An answer decoded under it reads without a problem (`grammar.parse`), names only regions that exist
and none twice in a phrase, and ends within the token limit with every tag closed. Where the
likeliest token is allowed it stays the choice, so an answer that keeps to the language by itself
is not changed.

    TEXT --<ground>--> PHRASE --</ground>--> CLOSED --<objects>--> OBJECTS --</objects>--> TEXT
    TEXT --stop--> DONE

Index tokens stand in TEXT (bare mentions) and in OBJECTS, ordinary tokens in TEXT and in PHRASE.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fo1_model.generation.answer_tokens import AnswerVocabulary, PhraseNames, unfinished

_TEXT_END, _OBJECTS_END, _PHRASE_END = 1, 2, 4
"""Number of tokens from a place to the end of the answer, the stop token included."""


class Place(Enum):
    """Where in an answer its next token stands."""

    TEXT = "text"
    PHRASE = "phrase"
    CLOSED = "closed"
    OBJECTS = "objects"
    DONE = "done"


class Choices(NamedTuple):
    """Which tokens may come next: those of a mask without some, and some more."""

    mask: str | None = None
    """Key of `AnswerVocabulary.masks`; None for no token."""
    without: Sequence[int] = ()
    """Ids that are left out of the mask."""
    more: Sequence[int] = ()
    """Ids that are allowed beside the mask."""


class _Sample:
    """One answer as far as it is decoded.

    ``left`` below is the number of tokens that may still come, the next and the stop token
    included.
    """

    def __init__(
        self, vocabulary: AnswerVocabulary, num_regions: int, names: PhraseNames | None
    ) -> None:
        self.vocabulary = vocabulary
        self.regions = vocabulary.regions[:num_regions]
        self.names = names
        self.place = Place.TEXT
        self.tail = b""  # the unfinished spelling at the end of the text or phrase
        self.phrase = b""  # the open phrase so far
        self.named: set[int] = set()  # its index tokens so far

    def advance(self, token: int) -> None:
        """Take in the token that was chosen."""
        words = self.vocabulary
        if self.place is Place.DONE:
            return
        if token in words.texts:
            in_phrase = self.place is Place.PHRASE
            self.tail = unfinished(self.tail + words.texts[token], in_phrase=in_phrase)
            self.phrase += words.texts[token] if in_phrase else b""
        elif self.place is Place.OBJECTS and token != words.objects_end:
            self.named.add(token)  # no region twice in a phrase
        else:
            self.tail, self.phrase, self.named = b"", b"", set()
            places = {
                words.phrase_start: Place.PHRASE,
                words.phrase_end: Place.CLOSED,
                words.objects_start: Place.OBJECTS,
                **dict.fromkeys(words.stops, Place.DONE),
            }
            self.place = places.get(token, Place.TEXT)

    def choices(self, left: int) -> Choices:
        """Return what may come next, such that the rest of the answer still fits."""
        words = self.vocabulary
        if self.place is Place.PHRASE:
            return self._phrase_choices(left)
        if self.place is Place.CLOSED:
            return Choices(more=(words.objects_start,))
        if self.place is Place.OBJECTS:
            unnamed = [token for token in self.regions if token not in self.named]
            return Choices(more=(*(unnamed if left > _OBJECTS_END else ()), words.objects_end))
        # The last token that fits is the stop token.
        if left <= _TEXT_END:
            return Choices(more=words.stops)
        shortest = 1 if self.names is None else self.names.to_end(b"")
        opening = (words.phrase_start,) if left > shortest + _PHRASE_END else ()
        return Choices(
            "text",
            words.finishing(self.tail, in_phrase=False),
            (*self.regions, *opening, *words.stops),
        )

    def _phrase_choices(self, left: int) -> Choices:
        """Return what may come next in an open phrase."""
        words = self.vocabulary
        if self.names is not None:
            steps = [
                t for t, rest in self.names.steps(self.phrase).items() if rest + _PHRASE_END < left
            ]
            end = (words.phrase_end,) if self.names.complete(self.phrase) else ()
            return Choices(more=(*steps, *end))
        if not self.phrase:
            return Choices("phrase start")
        if left <= _PHRASE_END:
            return Choices(more=(words.phrase_end,))
        return Choices("phrase", words.finishing(self.tail, in_phrase=True), (words.phrase_end,))


class GrammarConstraint:
    """Keeps a batch's answers to the region language; a logits hook of `generation.generate`.

    It follows its answers from call to call, so every batch needs its own.

    Args:
        vocabulary: What each token may do in an answer.
        num_regions: Number of regions of each sample.
        max_new_tokens: Number of tokens an answer may have, its end included.
        names: Per sample the phrases it may ground; None for any.

    Raises:
        SettingError: When a sample's names are no phrases (see `PhraseNames`).
    """

    def __init__(
        self,
        vocabulary: AnswerVocabulary,
        *,
        num_regions: Sequence[int],
        max_new_tokens: int,
        names: Sequence[Sequence[str] | None] | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._max_new_tokens = max_new_tokens
        self._masks: dict[str, Tensor] = {}
        per_sample = [
            None if given is None else tuple(given) for given in names or [None] * len(num_regions)
        ]
        # Samples of one question share their names, and spelling them out is slow.
        known = {
            given: PhraseNames(given, vocabulary) for given in set(per_sample) if given is not None
        }
        self._samples = [
            _Sample(vocabulary, count, None if given is None else known[given])
            for count, given in zip(num_regions, per_sample, strict=True)
        ]

    def __call__(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Return logits that leave only tokens that may follow.

        Args:
            tokens: int64[B, T], chosen so far.
            logits: float[B, V].

        Returns:
            ``logits`` with minus infinity at tokens that may not follow.
        """
        if tokens.shape[1]:
            for sample, token in zip(self._samples, tokens[:, -1].tolist(), strict=True):
                sample.advance(token)
        if not self._masks:
            self._masks = {
                name: _resized(mask, logits) for name, mask in self._vocabulary.masks.items()
            }
        left = self._max_new_tokens - tokens.shape[1]
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        for row, sample in zip(allowed, self._samples, strict=True):
            if sample.place is Place.DONE:
                row.fill_(True)
                continue
            mask, without, more = sample.choices(left)
            if mask is not None:
                row.copy_(self._masks[mask])
            if without:
                row[list(without)] = False
            if more:
                row[list(more)] = True
        return logits.masked_fill(~allowed, float("-inf"))


def _resized(mask: Tensor, logits: Tensor) -> Tensor:
    """Return the mask as long as the rows of ``logits`` and on their device.

    Rows of the vocabulary without a token are left out.
    """
    width = logits.shape[1]
    return F.pad(mask, (0, max(0, width - len(mask))))[:width].to(logits.device)
