from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import GQA
from dataset_builders.records import BadRecord, Object, Part, Turn
from dataset_builders.spec import BuildOptions
from dataset_builders.tasks.grounding import (
    Mention,
    Phrase,
    caption_parts,
    expressions,
    find_phrases,
    grounding_sample,
    labelled,
    read_spans,
)
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import text_of

CAPTION = "Two young guys with shaggy hair look at their hands"


def facts(count: int = 3) -> ImageFacts:
    objects = tuple(
        Object(box=(10.0 * k, 0.0, 10.0 * k + 9, 9.0), label="object") for k in range(count)
    )
    ref = GQA.ref("7", "gqa/images/7.jpg", 2000, 100)
    return ImageFacts(ref=ref, objects=objects, ids=tuple(range(count)))


def told(caption: str, *mentions: Mention) -> str:
    return text_of(Turn("assistant", caption_parts(caption, find_phrases(caption, mentions))))


def test_mentions_of_one_span_are_one_phrase() -> None:
    said = told(CAPTION, Mention(((0, 14),), 1), Mention(((0, 14),), 0), Mention(((20, 31),), 2))
    assert said == "Two young guys[0,1] with shaggy hair[2] look at their hands"


def test_spans_one_blank_apart_are_joined_and_others_are_not() -> None:
    # "Two young" + "guys", then "hands" far away: two phrases of one object
    assert told(CAPTION, Mention(((46, 51), (10, 14), (0, 9)), 0)) == (
        "Two young guys[0] with shaggy hair look at their hands[0]"
    )
    assert told("a man, a dog", Mention(((0, 5), (7, 12)), 0)) == "a man[0], a dog[0]"
    assert told("a  man", Mention(((0, 1), (3, 6)), 0)) == "a[0] man[0]"  # two blanks apart


def test_of_overlapping_spans_the_longest_is_kept() -> None:
    nested = told(CAPTION, Mention(((10, 14),), 0), Mention(((0, 14),), 1), Mention(((0, 9),), 2))
    assert nested == "Two young guys[1] with shaggy hair look at their hands"
    crossing = told("red big blue", Mention(((0, 7),), 0), Mention(((4, 12),), 1))
    assert crossing == "red big blue[1]"


def test_a_phrase_with_an_unknown_object_stays_text_and_frees_what_is_nested() -> None:
    said = told(CAPTION, Mention(((0, 14),), 0), Mention(((0, 14),), None), Mention(((10, 14),), 1))
    assert said == "Two young guys[1] with shaggy hair look at their hands"


def test_spans_count_code_points() -> None:
    caption = "😀 café: a naïve 👩‍👩‍👧 group"
    start = caption.index("a naïve")
    assert told(caption, Mention(((start, len(caption)),), 0)) == "😀 café: a naïve 👩‍👩‍👧 group[0]"
    assert (
        caption_parts(caption, find_phrases(caption, [Mention(((start, start + 7),), 0)]))[1].text
        == "a naïve"
    )


def test_blanks_are_folded_and_kept_out_of_phrases() -> None:
    assert told("  a  man \n and a dog ", Mention(((1, 9),), 0)) == "a man[0] and a dog"
    parts = caption_parts("two men two hats", [Phrase(0, 7, (0,)), Phrase(8, 16, (1,))])
    assert parts == (Part("two men", (0,)), Part(" "), Part("two hats", (1,)))
    sample = grounding_sample(
        facts(),
        "two men two hats",
        [Phrase(0, 7, (0,)), Phrase(8, 16, (1,))],
        BuildOptions(),
        dataset="x",
        number=1,
    )
    validate(sample)  # a blank may stand between two phrases


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "0,3",
        [[0]],
        [[0, 3, 4]],
        [["a", 3]],
        [[3, 3]],
        [[5, 3]],
        [[-1, 3]],
        [[0, 99]],
        [[3, 4]],
        [[0.5, 2]],
    ],
)
def test_spans_outside_the_caption_are_malformed(value: object) -> None:
    with pytest.raises(BadRecord, match="malformed"):
        read_spans(value, "Two young")


def test_floats_that_are_whole_are_spans() -> None:
    assert read_spans([[0.0, 3.0]], "Two young") == ((0, 3),)


def test_captions_that_cannot_be_grounded() -> None:
    phrase = Phrase(0, 3, (0,))

    def reason(caption: str, phrases: list[Phrase], count: int = 3) -> str:
        with pytest.raises(BadRecord) as caught:
            grounding_sample(facts(count), caption, phrases, BuildOptions(), dataset="x", number=0)
        return caught.value.reason

    assert reason(CAPTION, []) == "unknown_object"
    assert reason(CAPTION, [phrase], 101) == "too_many_regions"
    assert reason("Two <region1> men", [phrase]) == "unsafe_text"
    assert (
        reason("Two <reg" + "ion1> men", [Phrase(4, 9, (0,))]) == "unsafe_text"
    )  # a tag cut by a phrase
    assert reason("Two \u202e men", [phrase]) == "unsafe_text"
    assert reason("x" * 1_000_000, [phrase]) == "text_too_long"


def test_objects_are_called_by_their_first_phrase() -> None:
    named = labelled(
        facts(),
        CAPTION,
        [Mention(((20, 31),), 1), Mention(((0, 9), (10, 14)), 1), Mention(((0, 3),), None)],
    )
    assert [item.label for item in named.objects] == ["object", "shaggy hair", "object"]


def test_expressions_are_unique_and_the_longest_first() -> None:
    caption = "The man in black and the woman with a dog ; a man . The man in black sits"
    named = [
        ("The man in black", (0,)),
        ("the woman with a dog", (1,)),
        ("a man", (2,)),  # one word besides the article
        ("The man in black", (0,)),  # said twice of the same
    ]
    assert expressions([caption], named, 5) == [
        ("the woman with a dog", (1,)),
        ("The man in black", (0,)),
    ]
    assert expressions([caption], named, 1) == [("the woman with a dog", (1,))]
    assert expressions([caption], [*named[:2], ("The man in black", (3,))], 5) == [
        ("the woman with a dog", (1,))
    ]
    assert (
        expressions([caption], named[:1], 5) == []
    )  # it stands once more in the caption, without a box
    assert expressions(
        ["red hat", "big red hat"], [("red hat", (0,)), ("big red hat", (0,))], 5
    ) == [("big red hat", (0,))]


@given(st.text(alphabet="ab é😀\n", max_size=30), st.data())
def test_parts_say_the_caption(caption: str, data: st.DataObject) -> None:
    spans = st.tuples(st.integers(0, 30), st.integers(0, 30))
    mentions = []
    for row, (start, end) in enumerate(data.draw(st.lists(spans, max_size=5))):
        if start < end <= len(caption) and caption[start:end].strip():
            mentions.append(Mention(read_spans([[start, end]], caption), row))
    phrases = find_phrases(caption, mentions)
    assert all(one.end <= other.start for one, other in pairwise(phrases))
    parts = caption_parts(caption, phrases)
    assert "".join(part.text or "" for part in parts).split() == caption.split()
    assert [part.objects for part in parts if part.objects] == [phrase.rows for phrase in phrases]
