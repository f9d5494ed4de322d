"""What tokens write into an answer: what may stand in text, finishes a tag, or spells a name.

The reader of answers sees text, not tokens, so a tag spelled letter by letter counts. All of it is
done on bytes: the tokens of a byte-level tokenizer may hold parts of characters.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from tokenizers import decoders
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fo1_model import grammar
from fo1_model.errors import SettingError
from fo1_model.processing import Processor

_LINE_BREAK = re.compile(rb"[\n\r\v\f\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
"""What `str.splitlines` breaks at, in UTF-8."""
_UNFINISHED_BREAK = re.compile(rb"(\xc2|\xe2\x80?)\Z")
_LAST_BYTES = b"\x80\x85\xa8\xa9"
"""First bytes of a token that goes on with an unfinished line break."""


class AnswerVocabulary:
    """The tokens of a vocabulary by what they may do in an answer.

    Args:
        texts: Bytes that each token id writes; None for tokens that no answer holds as text.
        new: Ids of `grammar.new_tokens`, in that order.
        stops: Ids that end an answer.
    """

    def __init__(
        self, texts: Sequence[bytes | None], new: Sequence[int], stops: Sequence[int]
    ) -> None:
        self.stops = tuple(stops)
        *regions, self.phrase_start, self.phrase_end, self.objects_start, self.objects_end = new
        self.regions = tuple(regions)
        own = {*new, *stops}
        self.texts = {
            token: text
            for token, text in enumerate(texts)
            if text and token not in own and not _breaks(text, in_phrase=False)
        }
        """Ordinary tokens, which hold no tag by themselves."""
        one_line = [
            token for token, text in self.texts.items() if not _breaks(text, in_phrase=True)
        ]
        self.masks = {
            "text": _mask(len(texts), list(self.texts)),
            "phrase": _mask(len(texts), one_line),
            "phrase start": _mask(
                len(texts), [t for t in one_line if not self.texts[t][:1].isspace()]
            ),
        }
        """Ordinary tokens by where they may stand, bool[number of tokens]: a phrase starts with no
        blank."""
        self.by_text: dict[bytes, list[int]] = {}
        for token, text in self.texts.items():
            self.by_text.setdefault(text, []).append(token)
        self._finishers = [
            token for token, text in self.texts.items() if b">" in text or text[0] in _LAST_BYTES
        ]
        self._finishing: dict[tuple[bytes, bool], list[int]] = {}

    def finishing(self, tail: bytes, *, in_phrase: bool) -> list[int]:
        """Return ids that would finish a tag, or in a phrase a line break, after `unfinished`."""
        if not tail:
            return []
        key = tail, in_phrase
        if key not in self._finishing:
            self._finishing[key] = [
                token
                for token in self._finishers
                if _breaks(tail + self.texts[token], in_phrase=in_phrase)
            ]
        return self._finishing[key]


def unfinished(text: bytes, *, in_phrase: bool) -> bytes:
    """Return the end of ``text`` that `AnswerVocabulary.finishing` has to know; empty for none.

    Ends that go on alike are one, so there are few of them.
    """
    if tag := grammar.unfinished_tag(text.decode("latin-1")):
        return tag.encode("latin-1")
    found = _UNFINISHED_BREAK.search(text) if in_phrase else None
    return found.group() if found else b""


class PhraseNames:
    """The phrases that an answer may ground, and every way in which tokens spell them.

    Raises:
        SettingError: For no names, for one that is no phrase (empty, with outer blanks, a line
            break or a reserved tag) and for one that the tokens cannot spell.
    """

    def __init__(self, names: Sequence[str], vocabulary: AnswerVocabulary) -> None:
        wrong = [
            n
            for n in names
            if n != n.strip() or len(n.splitlines()) != 1 or grammar.reserved_text(n)
        ]
        if wrong or not names:
            raise SettingError(
                f"names={wrong or list(names)!r}: give at least one, each a line without outer "
                "blanks or tags"
            )
        self._by_text = vocabulary.by_text
        self._counts = {name.encode(): self._count(name.encode()) for name in names}
        self._steps: dict[bytes, dict[int, float]] = {}
        if unspellable := [name for name in names if math.isinf(self._counts[name.encode()][0])]:
            raise SettingError(f"names={unspellable!r}: no tokens of the tokenizer spell them")

    def _count(self, name: bytes) -> list[float]:
        """Return the fewest tokens from every byte of ``name`` to its end; infinite for no way."""
        counts = [math.inf] * len(name) + [0.0]
        for start in reversed(range(len(name))):
            for end in range(start + 1, len(name) + 1):
                if name[start:end] in self._by_text:
                    counts[start] = min(counts[start], 1 + counts[end])
        return counts

    def to_end(self, written: bytes) -> float:
        """Return the fewest tokens that complete a name of which ``written`` stands already."""
        return min(
            counts[len(written)]
            for name, counts in self._counts.items()
            if name.startswith(written)
        )

    def complete(self, written: bytes) -> bool:
        """Return whether ``written`` is one of the names."""
        return written in self._counts

    def steps(self, written: bytes) -> Mapping[int, float]:
        """Return ids that may follow ``written``, each with the fewest tokens left after it."""
        if written not in self._steps:
            steps: dict[int, float] = {}
            for name, counts in self._counts.items():
                for end in (
                    range(len(written) + 1, len(name) + 1) if name.startswith(written) else ()
                ):
                    for token in self._by_text.get(name[len(written) : end], ()):
                        steps[token] = min(counts[end], steps.get(token, math.inf))
            self._steps[written] = steps
        return self._steps[written]


@lru_cache(maxsize=2)
def answer_vocabulary(processor: Processor) -> AnswerVocabulary:
    """Return the vocabulary of a processor, kept because a large one takes a second.

    Raises:
        SettingError: When its tokenizer is not a byte-level one.
    """
    return AnswerVocabulary(
        token_texts(processor.tokenizer), processor.token_ids.new, processor.stop_ids
    )


def token_texts(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """Return what each id writes when it is decoded.

    Returns:
        Bytes by id; None for special tokens and ids without a token.

    Raises:
        SettingError: When the tokenizer is not a byte-level one, as those of all known families
            but LLaVA's on Vicuna and Mistral are.
    """
    decoder = tokenizer.backend_tokenizer.decoder
    if not isinstance(decoder, decoders.ByteLevel):
        raise SettingError(
            "the constraint reads byte-level tokenizers only and this one decodes with "
            f"{type(decoder).__name__}; decode without the constraint"
        )
    byte_of = _byte_of_symbol()
    vocabulary = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    texts: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for symbols, token in vocabulary.items():
        if token in added and added[token].special:
            continue
        # Otherwise it is an added token, which is its own text.
        known = all(symbol in byte_of for symbol in symbols)
        texts[token] = bytes(byte_of[symbol] for symbol in symbols) if known else symbols.encode()
    return texts


def _byte_of_symbol() -> dict[str, int]:
    """Return the byte behind each letter of a byte-level vocabulary (GPT-2's mapping)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


def _breaks(text: bytes, *, in_phrase: bool) -> bool:
    """Return whether ``text`` holds something reserved, or in a phrase a line break."""
    if b">" in text and grammar.reserved_text(text.decode("latin-1")):
        return True
    return in_phrase and _LINE_BREAK.search(text) is not None


def _mask(length: int, ids: list[int]) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[ids] = True
    return mask
