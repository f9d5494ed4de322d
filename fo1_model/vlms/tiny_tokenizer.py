"""The tokenizer of the tiny base: byte-level, about a thousand tokens, Qwen2.5-VL's special tokens.

The full-size model brings its own tokenizer. The tiny one needs one that a 100-wide embedding can
afford, in which the words of the prompts, the drawn world and the COCO class names are single
tokens. The vocabulary is, in this order:

    256 bytes
    the words of ``assets/tiny_words.txt``, bare and with a leading space
    the special tokens

A piece of text that is one of the words is that token; any other piece falls back to bytes, so
every text survives a round trip. Splitting follows Qwen2 (letters, single digits, punctuation, line
breaks).
"""

import hashlib
import json
from functools import cache
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens of the Qwen2.5-VL tokenizer, in its order; the tool and code tokens are left
out."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before its merges: a word keeps one leading blank, digits stand alone."""


@cache
def tiny_words() -> tuple[str, ...]:
    """Return the words that are single tokens, in file order, without repeats."""
    text = (
        resources.files("fo1_model").joinpath("assets/tiny_words.txt").read_text(encoding="utf-8")
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(dict.fromkeys(word for line in lines for word in line.split()))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: the same ids on every machine, a fresh object every call.

    Ids are bytes from 0, words from 256, special tokens last; tokens added later (the region
    language) follow.
    """
    vocabulary = {
        symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    for word in tiny_words():
        # U+0120 is how byte-level tokenizers write a blank.
        for form in (word, "\u0120" + word):
            vocabulary.setdefault(form, len(vocabulary))
    # Without merges, `ignore_merges` makes a piece its own token when it is in the vocabulary, else
    # bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a marker of the chat format
        pad_token="<|endoftext|>",  # noqa: S106
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def tokenizer_digest() -> str:
    """Return sixteen hex digits that change when any id does.

    A tiny base carries the digest it was trained with.
    """
    vocabulary = sorted(tiny_tokenizer().get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
