import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fo1_model import grammar
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig
from fo1_model.generation.answer_tokens import AnswerVocabulary, PhraseNames, token_texts
from fo1_model.generation.constraint import GrammarConstraint
from fo1_model.generation.decoding import _choose
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer

NUM_REGIONS = 12
NAMES = ("red cup", "cup", "café", "a<b>", "x")
STOP = 0
NUM_OTHERS = 1 + NUM_REGIONS + 4
"""The stop token and those of the region language; ordinary tokens follow."""
SINGLE = [bytes([value]) for value in range(256)]
# What tags, their spellings in the paper, chat markup, line breaks and the names are made of.
TEXTS = (
    "</", "<region", "region", "reg", "ion", "<reg", "12", "5>", "0>", ">", "<", "feat>",
    "<image", "image>", "ground", "ground>", "<ground>", "</ground>", "objects>", "</obj", "ects",
    "OBJECT", "Ground>", "<|", "|>", "im_end", "end|>", "<region3>", "s><", "\n", "\n\n", " ",
    " red", "red ", "cup", "afé", "\u2028", "a\n>",
)  # fmt: skip
FRAGMENTS = [text.encode() for text in TEXTS]
FRAGMENTS += [b"", b"\xe2\x80", b"\xa8", b"\xc2", b"\x85", b"\xa9x", b"\xc3", b"<\xe2", b"\xc5\xbf"]


def vocabulary_of(texts: list[bytes]) -> AnswerVocabulary:
    """Id 0 ends answers, the region language's ids follow, then tokens that write ``texts``."""
    new = tuple(range(1, 1 + len(grammar.new_tokens(NUM_REGIONS))))
    return AnswerVocabulary([None] * (1 + len(new)) + list(texts), new, (STOP,))


def text_of(tokens: list[int], texts: list[bytes]) -> str:
    """As a byte-level tokenizer decodes: all bytes together, what is no UTF-8 replaced."""
    new = [token.encode() for token in grammar.new_tokens(NUM_REGIONS)]
    return b"".join([b"", *new, *texts][token] for token in tokens).decode(errors="replace")


@st.composite
def tokenizations(draw):
    """Byte tokens and a random choice of longer ones, some of them twice."""
    longer = st.one_of(
        st.sampled_from(FRAGMENTS),
        st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=3).map(b"".join),
    )
    return SINGLE + draw(st.lists(longer, max_size=30))


def decode(constraint, texts, *, steps, seed, taste, temperature):
    """Answers of a model that says anything: one likes the ids of ``taste``, one spells tags where
    it can."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.Generator().manual_seed(seed + row) for row in range(2)]
    tokens = torch.zeros((2, 0), dtype=torch.int64)
    config = GenerationConfig(temperature=temperature)
    for _ in range(steps):
        logits = torch.randn(2, NUM_OTHERS + len(texts), generator=generator)
        logits[0, taste] += 6
        said = text_of(tokens[1].tolist(), texts).rpartition(">")[2]
        logits[1, NUM_OTHERS:] += torch.tensor([4.0 * spells(said, text) for text in texts])
        chosen = _choose(constraint(tokens, logits), config, draws)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return [row[: row.index(STOP)] if STOP in row else None for row in tokens.tolist()]


def spells(said: str, text: bytes) -> int:
    """2 when ``text`` finishes a reserved tag, 1 when it starts or goes on with one."""
    added = said + text.decode(errors="replace")
    return 2 if grammar.reserved_text(added) else len(grammar.unfinished_tag(added)) > 0


def check(text: str, num_regions: int, names: tuple[str, ...] | None) -> None:
    parsed = grammar.parse(text, num_regions)
    assert parsed.problem is None
    outside = re.sub(
        r"<ground>([^<]|<(?!/?ground>))*</ground><objects>(<region\d+>)*</objects>", "", text
    )
    assert not re.search(r"</?(ground|objects?)>", outside, re.IGNORECASE)
    assert not grammar.reserved_text(re.sub(r"<region\d+>", "", outside))
    for phrase, objects in re.findall(
        r"<ground>(.*?)</ground><objects>(.*?)</objects>", text, re.DOTALL
    ):
        assert len(phrase.splitlines()) == 1
        assert max(Counter(objects.split(">")[:-1]).values(), default=0) <= 1
        assert names is None or phrase in names
    assert all(int(index) < num_regions for index in re.findall(r"<region(\d+)>", text))


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    tokenizations(),
    st.tuples(st.integers(0, NUM_REGIONS), st.integers(0, NUM_REGIONS)),
    st.integers(1, 30),
    st.lists(st.sampled_from([None, NAMES, ("café",)]), min_size=2, max_size=2),
    st.sampled_from([0.0, 1.0]),
)
def test_whatever_the_model_says_the_answer_reads_cleanly(
    data, texts, num_regions, limit, names, temperature
):
    constraint = GrammarConstraint(
        vocabulary_of(texts), num_regions=num_regions, max_new_tokens=limit, names=names
    )
    taste = data.draw(st.lists(st.integers(1, NUM_OTHERS + len(texts) - 1), max_size=9))
    taste += data.draw(st.lists(st.integers(1, NUM_OTHERS - 1), max_size=9))
    seed = data.draw(st.integers(0, 2**16))
    answers = decode(
        constraint, texts, steps=limit, seed=seed, taste=taste, temperature=temperature
    )
    for tokens, count, allowed in zip(answers, num_regions, names, strict=True):
        assert tokens is not None, "the answer must have ended"
        check(text_of(tokens, texts), count, allowed)


phrases = st.text(st.sampled_from("ab <>/|\né\u2028g5"), min_size=1, max_size=8).filter(
    lambda text: (
        text == text.strip() and len(text.splitlines()) == 1 and not grammar.reserved_text(text)
    )
)
pieces = st.lists(
    st.one_of(
        st.tuples(phrases, st.lists(st.integers(0, 6), min_size=1, max_size=4)),
        st.tuples(st.none(), st.lists(st.integers(0, 6), min_size=1, max_size=3)),
        st.tuples(
            st.text(st.sampled_from("<>/regionGROUND |\n5é"), min_size=1, max_size=12), st.just([])
        ),
    ),
    max_size=4,
)


@settings(max_examples=120, deadline=None)
@given(st.data(), tokenizations(), pieces)
def test_every_clean_answer_is_allowed_token_by_token(data, texts, parts):
    parts = [part for part in parts if part[1] or not grammar.reserved_text(part[0])]
    written = grammar.render(parts)
    pattern = "(" + "|".join(map(re.escape, grammar.new_tokens(NUM_REGIONS))) + ")"
    spans = [span for span in re.split(pattern, written) if span]
    new = grammar.new_tokens(NUM_REGIONS)
    if any(span not in new and grammar.reserved_text(span) for span in spans):
        return  # text beside text made a tag
    vocabulary = vocabulary_of(texts)
    ids: list[int] = []
    for span in spans:
        if span in new:
            ids.append(1 + new.index(span))
            continue
        rest = span.encode()
        while rest:
            fitting = [token for token, text in vocabulary.texts.items() if rest.startswith(text)]
            ids.append(data.draw(st.sampled_from(fitting)))
            rest = rest[len(vocabulary.texts[ids[-1]]) :]
    names = data.draw(
        st.sampled_from([None, [text for text, said in parts if text and said] or None])
    )
    constraint = GrammarConstraint(
        vocabulary, num_regions=[7], max_new_tokens=len(ids) + 5, names=[names]
    )
    for place, token in enumerate([*ids, STOP]):
        logits = torch.zeros(1, NUM_OTHERS + len(texts))
        allowed = constraint(torch.tensor([ids[:place]], dtype=torch.int64), logits)
        assert allowed[0, token] == 0, (written, place)


def allowed_texts(said: list[bytes | str], *, limit=50, num_regions=3, names=None, extra=()):
    """What may follow ``said``: text of ordinary tokens as bytes, tags and the stop token as
    strings."""
    texts = [*SINGLE, *extra]
    new = grammar.new_tokens(NUM_REGIONS)
    words = ["<stop>", *new, *texts]
    constraint = GrammarConstraint(
        vocabulary_of(texts), num_regions=[num_regions], max_new_tokens=limit, names=[names]
    )
    ids = [words.index(word) for word in said]
    for place in range(len(ids) + 1):
        scores = constraint(
            torch.tensor([ids[:place]], dtype=torch.int64), torch.zeros(1, len(words))
        )
    return {word for word, score in zip(words, scores[0], strict=True) if score == 0}


def tags(allowed):
    return {word for word in allowed if isinstance(word, str)}


INDICES = {"<region0>", "<region1>", "<region2>"}


def test_places_by_hand():
    start = allowed_texts([])
    assert tags(start) == {*INDICES, "<ground>", "<stop>"}
    assert {b"a", b"<", b"\n", b" "} <= start
    opened = allowed_texts(["<ground>"])
    assert tags(opened) == set()
    assert opened.isdisjoint({b" ", b"\n"})
    written = allowed_texts(["<ground>", b"a"])
    assert tags(written) == {"</ground>"}
    assert b" " in written
    assert b"\n" not in written
    assert allowed_texts(["<ground>", b"a", "</ground>"]) == {"<objects>"}
    named = ["<ground>", b"a", "</ground>", "<objects>", "<region1>"]
    assert allowed_texts(named) == {"<region0>", "<region2>", "</objects>"}
    assert tags(allowed_texts([*named, "</objects>"])) == {*INDICES, "<ground>", "<stop>"}
    again = [*named, "</objects>", "<ground>", b"a", "</ground>", "<objects>"]
    assert allowed_texts(again) == {*INDICES, "</objects>"}
    assert tags(allowed_texts([], num_regions=0)) == {"<ground>", "<stop>"}


def test_room_for_the_end_is_kept():
    # <ground> a </ground> <objects> </objects> stop: six tokens.
    assert "<ground>" in allowed_texts([], limit=6)
    assert "<ground>" not in allowed_texts([], limit=5)
    assert tags(allowed_texts(["<ground>", b"a"], limit=6)) == {"</ground>"}
    assert allowed_texts(["<ground>", b"a"], limit=6) == {"</ground>"}
    assert b"a" in allowed_texts(["<ground>", b"a"], limit=7)
    closed = ["<ground>", b"a", "</ground>", "<objects>"]
    assert allowed_texts(closed, limit=6) == {"</objects>"}
    assert allowed_texts(closed, limit=7) == {*INDICES, "</objects>"}
    assert allowed_texts([], limit=1) == {"<stop>"}
    assert allowed_texts([b"a"], limit=2) == {"<stop>"}


@pytest.mark.parametrize(
    "tag", ["<region5>", "<Region07>", "</ground>", "<object>", "<regionfeat>", "<|im_end|>"]
)
def test_tags_cannot_be_spelled(tag):
    text = tag.encode()
    for cut in range(1, len(text)):
        said = [text[place : place + 1] for place in range(cut)]
        after = allowed_texts(said, extra=[text[cut:], text[cut:] + b" a", text])
        assert text[cut:] not in after
        assert text[cut:] + b" a" not in after
        assert text not in after
        assert b"x" in after
    spoiled = [text[place : place + 1] for place in range(len(text) - 1)] + [b" "]
    assert b">" in allowed_texts(spoiled)
    interrupted = [b"<", b"/", "<region1>"]
    assert b"ground>" in allowed_texts(interrupted, extra=[b"ground>"])


def test_a_long_line_break_cannot_be_assembled_in_a_phrase():
    assert b"\xa8" not in allowed_texts(["<ground>", b"a", b"\xe2", b"\x80"])
    assert b"\xa6" in allowed_texts(["<ground>", b"a", b"\xe2", b"\x80"])
    assert b"\x85" not in allowed_texts(["<ground>", b"a", b"\xc2"])
    assert b"\xa8" in allowed_texts([b"a", b"\xe2", b"\x80"])


def test_names_are_spelled_to_their_end_on_every_path():
    def after(said, limit=50):
        return allowed_texts(
            ["<ground>", *said],
            names=("cat", "cats", "dog"),
            extra=(b"ca", b"do", b"tsx"),
            limit=limit,
        )

    assert after([]) == {b"c", b"ca", b"d", b"do"}
    assert after([b"ca"]) == after([b"c", b"a"]) == {b"t"}
    assert after([b"ca", b"t"]) == {b"s", "</ground>"}
    assert after([b"ca", b"t", b"s"]) == {"</ground>"}
    # <ground> do g </ground> <objects> </objects> stop: seven tokens, and no room for a detour.
    assert after([], limit=7) == {b"ca", b"do"}
    assert after([b"ca", b"t"], limit=7) == {"</ground>"}
    start = allowed_texts([], names=("dog",), limit=6)
    assert "<ground>" not in start


def test_samples_are_followed_one_by_one():
    vocabulary = vocabulary_of(SINGLE)
    constraint = GrammarConstraint(
        vocabulary, num_regions=[1, 2, 0], max_new_tokens=9, names=[None, ("a",), None]
    )
    first, start = vocabulary.regions[0], vocabulary.phrase_start
    width = NUM_OTHERS + 256
    rows = torch.tensor([[first, STOP], [start, NUM_OTHERS + ord("a")], [STOP, STOP]])
    constraint(rows[:, :0], torch.zeros(3, width))
    constraint(rows[:, :1], torch.zeros(3, width))
    allowed = constraint(rows, torch.zeros(3, width)) == 0
    assert allowed[0].all()
    assert allowed[2].all()
    assert allowed[1].nonzero().flatten().tolist() == [vocabulary.phrase_end]


def test_rows_beyond_the_tokenizer_are_never_said():
    vocabulary = vocabulary_of(SINGLE)
    constraint = GrammarConstraint(vocabulary, num_regions=[1], max_new_tokens=9)
    width = NUM_OTHERS + 256
    allowed = constraint(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, width + 7))
    assert torch.isneginf(allowed[0, width:]).all()


@pytest.mark.parametrize("names", [(), ("",), (" a",), ("a\nb",), ("<region1>",), ("a\u2028b",)])
def test_names_that_are_no_phrases(names):
    with pytest.raises(SettingError, match="names"):
        PhraseNames(names, vocabulary_of(SINGLE))


def test_names_that_no_tokens_spell():
    with pytest.raises(SettingError, match="'cap'"):
        PhraseNames(("cup", "cap"), vocabulary_of([b"c", b"u", b"p", b"cup", b"ap"[:1] + b"!"]))


def test_a_start_that_no_token_goes_on_from_is_not_taken():
    names = PhraseNames(("cup",), vocabulary_of([b"c", b"cu", b"p", b"cupp"]))
    vocabulary = vocabulary_of([b"c", b"cu", b"p", b"cupp"])
    constraint = GrammarConstraint(vocabulary, num_regions=[1], max_new_tokens=50, names=[("cup",)])
    opened = torch.tensor([[vocabulary.phrase_start]])
    constraint(opened[:, :0], torch.zeros(1, 30))
    allowed = constraint(opened, torch.zeros(1, 30)) == 0
    assert [vocabulary.texts[token] for token in allowed[0].nonzero().flatten().tolist()] == [b"cu"]
    assert names.to_end(b"") == 2


@settings(max_examples=100)
@given(st.data())
def test_the_texts_of_tokens_are_what_the_tokenizer_writes(data):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<region0>", "two words", "<think>"])
    texts = token_texts(tokenizer)
    assert texts[tokenizer.convert_tokens_to_ids("<|im_end|>")] is None
    ordinary = [token for token, text in enumerate(texts) if text is not None]
    assert len(ordinary) == len(tokenizer) - 14
    ids = data.draw(st.lists(st.sampled_from(ordinary), max_size=12))
    together = b"".join(texts[token] for token in ids).decode(errors="replace")
    assert together == tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def test_another_kind_of_tokenizer_is_refused():
    from tokenizers import decoders

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(SettingError, match="byte-level"):
        token_texts(tokenizer)
