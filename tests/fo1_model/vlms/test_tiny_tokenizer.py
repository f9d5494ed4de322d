"""The tiny tokenizer: one token a word, every text back unchanged, ids that never move."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from fo1_model.vlms.tiny_tokenizer import SPECIAL_TOKENS, tiny_tokenizer, tiny_words

TOKENIZER = tiny_tokenizer()
PROMPT = (
    "Please detect red circle; blue square in this image. Answer the question with object indexes."
)


def test_prompt_words_are_single_tokens():
    pieces = TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(PROMPT, add_special_tokens=False))
    assert [piece.replace("\u0120", " ") for piece in pieces] == [
        "Please", " detect", " red", " circle", ";", " blue", " square", " in", " this", " image",
        ".", " Answer", " the", " question", " with", " object", " indexes", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "word", ["red", " red", "triangle", " triangle", "None", " giraffe", "There", "7"]
)
def test_a_listed_word_is_one_token(word):
    assert len(TOKENIZER.encode(word, add_special_tokens=False)) == 1


def test_digits_stand_alone_and_special_tokens_are_whole():
    assert len(TOKENIZER.encode("12", add_special_tokens=False)) == 2
    for token in SPECIAL_TOKENS:
        assert TOKENIZER.encode(token, add_special_tokens=False) == [
            TOKENIZER.convert_tokens_to_ids(token)
        ]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_a_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_ids_are_contiguous_and_pinned():
    vocabulary = TOKENIZER.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(TOKENIZER)))
    assert len(tiny_words()) == len(set(tiny_words()))
    # A changed id would silently misread the shipped tiny base.
    digest = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()
    assert digest[:16] == "48be207fe7f4d27a"
    assert tiny_tokenizer().get_vocab() == vocabulary


def test_tokens_added_later_follow_the_base():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<region0>"], special_tokens=True)
    assert tokenizer.encode("<region0>red", add_special_tokens=False) == [
        size,
        tokenizer.convert_tokens_to_ids("red"),
    ]


def test_saved_and_loaded_it_says_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = PROMPT + " zyzzyva\n<|im_end|> 42"
    assert loaded.encode(text, add_special_tokens=False) == TOKENIZER.encode(
        text, add_special_tokens=False
    )
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
