import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fo1_model import grammar
from fo1_model.grammar import parse, render

phrases = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: (
        text == text.strip() and len(text.splitlines()) == 1 and not grammar.reserved_text(text)
    )
)
free_text = st.text(max_size=12).filter(lambda text: text and not re.search(r"[<>|]", text))
regions = st.lists(st.integers(0, 99), min_size=1, max_size=6)
parts = st.one_of(
    st.tuples(phrases, regions), st.tuples(st.none(), regions), st.tuples(free_text, st.just([]))
)


@given(st.lists(parts, max_size=6))
def test_what_is_rendered_reads_back(written):
    answer = parse(render(written), 100)
    united: dict[str, set[int]] = {}
    said: list[int] = []
    for text, indices in written:
        if text is not None and indices:
            united.setdefault(text, set()).update(indices)
            said += sorted(set(indices))
        else:
            said += indices
    assert answer.phrases == tuple(
        (text, tuple(sorted(indices))) for text, indices in united.items()
    )
    assert answer.regions == tuple(dict.fromkeys(said))
    assert answer.problem is None


@given(
    st.lists(st.integers(0, 99), max_size=4).map(
        lambda indices: "".join(f"<region{i}>" for i in indices)
    ),
    st.text(st.characters(exclude_characters="<>\n", exclude_categories=("Cs",)), max_size=8),
    st.sampled_from(["objects", "object", "Objects"]),
)
def test_only_words_among_the_regions_make_an_answer_unreadable(indices, words, tag):
    answer = parse(f"<ground>cup</ground><{tag}>{indices}{words}</{tag}>", 100)
    readable = re.fullmatch(r"[\s,;]*", words) is not None
    assert answer.problem == (None if readable else "words among the regions of a phrase")
    assert answer.regions == tuple(dict.fromkeys(grammar.mentioned_regions(indices)))


tags = st.sampled_from(["<ground>", "</ground>", "<objects>", "</objects>", "<region3>", "a", "\n"])


@given(st.lists(tags).map("".join))
def test_reading_never_fails_and_stays_in_range(text):
    answer = parse(text, 3)
    assert answer.regions == ()
    assert all(indices == () for _, indices in answer.phrases)


def test_spelling():
    assert render([("red cup", [7, 3, 7]), ("\n", []), (None, [5, 2])]) == (
        "<ground>red cup</ground><objects><region3><region7></objects>\n<region5><region2>"
    )
    assert grammar.region_prompt(2) == "<region0><regionfeat><region1><regionfeat>"
    assert grammar.region_prompt(1, first=4) == "<region4><regionfeat>"
    assert grammar.new_tokens(2) == (
        "<region0>", "<region1>", "<ground>", "</ground>", "<objects>", "</objects>",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "phrases", "regions", "problem"),
    [
        # the paper's spelling, and any case
        ("<ground>Cup</ground><object><Region3></object>", (("Cup", (3,)),), (3,), None),
        # blanks around the phrase go, equal phrases unite, indices ascend
        (
            (
                "<ground> a</ground><objects><region4></objects>"
                "<ground>a </ground><objects><region1></objects>"
            ),
            (("a", (1, 4)),),
            (4, 1),
            None,
        ),
        ("<ground>cup</ground><objects></objects>", (("cup", ()),), (), None),
        # the tags must touch, and neither span may hold a line break
        ("<ground>cup</ground> <objects><region1></objects>", (), (1,), "unpaired tags"),
        ("<ground>cup</ground>\n<objects><region1></objects>", (), (1,), "unpaired tags"),
        ("<ground>c\nup</ground><objects><region1></objects>", (), (1,), "unpaired tags"),
        ("<ground>cup</ground><objects><region1>\n</objects>", (), (1,), "unpaired tags"),
        ("<ground>cup</ground><objects><region1>", (), (1,), "unpaired tags"),
        # an unanswered phrase runs on to the next pair, as in the release, and is reported
        (
            "<ground>a</ground> <ground>b</ground><objects><region1></objects>",
            (("a</ground> <ground>b", (1,)),),
            (1,),
            "unpaired tags",
        ),
        # between regions stand blanks, commas and semicolons, or nothing; the words of a sentence
        # do not
        (
            "<ground>cup</ground><objects><region1>, <Region2> ;<region3></objects>",
            (("cup", (1, 2, 3)),),
            (1, 2, 3),
            None,
        ),
        *(
            (
                f"<ground>cup</ground><objects>{between}</objects>",
                (("cup", regions),),
                regions,
                "words among the regions of a phrase",
            )
            for between, regions in (
                ("the red one", ()),
                ("<region1> and <region2>", (1, 2)),
                ("None", ()),
                ("<region>", ()),
                ("<region1a><region2>", (2,)),
                ("1, 2", ()),
            )
        ),
        # a second phrase inside the first one's regions is no phrase
        (
            "<ground>a</ground><objects><ground>b</ground><objects><region1></objects>",
            (("a", (1,)),),
            (1,),
            "words among the regions of a phrase",
        ),
        # regions that do not exist are dropped and reported, the phrase stays
        (
            "<ground>cup</ground><objects><region2><region512></objects>",
            (("cup", (2,)),),
            (2,),
            "unknown regions 512",
        ),
        (
            "<ground>cup</ground><objects><region5></objects>",
            (("cup", ()),),
            (),
            "unknown regions 5",
        ),
        # without phrases every index counts
        ("It is <region2>, not <region0> or <region2>.", (), (2, 0), None),
        ("None", (), (), None),
        ("", (), (), None),
    ],
)
def test_reading(text, phrases, regions, problem):
    answer = parse(text, 5)
    assert (answer.phrases, answer.regions, answer.problem) == (phrases, regions, problem)


@pytest.mark.parametrize(
    "part",
    [
        ("two\nlines", [1]),
        (" cup", [1]),
        ("", [1]),
        ("cup", [-1]),
        ("</ground>", [1]),
        ("see <region3>", []),
        (None, []),
    ],
)
def test_parts_that_would_not_read_back_are_refused(part):
    with pytest.raises(ValueError, match=r"part|phrase|reserved|negative"):
        render([part])


@pytest.mark.parametrize(
    "text",
    [
        "a <region12>",
        "<Object>",
        "</objects>",
        "<ground>",
        "x<image>",
        "<regionfeat>",
        "<|im_end|>",
    ],
)
def test_reserved(text):
    assert grammar.reserved_text(text)


@pytest.mark.parametrize("text", ["a < b > c", "region 3", "<regional>", "<|", "5 <objections>"])
def test_not_reserved(text):
    assert not grammar.reserved_text(text)


def test_only_ascii_letters_and_digits_make_tags():
    # Ignoring case, a long s is an s; and Arabic digits are digits.
    assert parse("<object\u017f>", 3).problem is None
    assert parse("<region\u0663>", 3) == parse("no region", 3)
    assert not grammar.reserved_text("<region\u0663>")


def test_an_absurd_index_is_no_region():
    assert parse(f"<region{'7' * 5000}>", 3).regions == ()


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("", ""),
        ("a b", ""),
        ("a <", "<"),
        ("<ground", "<ground"),
        ("</Obj", "</obj"),
        ("<Region12", "<region0"),
        ("<region1a", ""),
        ("<|im_st", "<|x"),
        ("<|im_start|", "<|x|"),
        ("<regionfea", "<regionfea"),
        ("<reg<", "<"),
        ("<reg ", ""),
        ("<ground>", ""),
    ],
)
def test_the_end_that_may_become_a_tag(text, end):
    assert grammar.unfinished_tag(text) == end


@given(
    st.text(st.sampled_from("</regionGROUND|>5 é"), max_size=12),
    st.text(st.sampled_from("</onfeatund|>5s"), max_size=8),
)
def test_only_an_unfinished_end_can_become_a_tag(text, more):
    if not grammar.reserved_text(text):
        kept = grammar.unfinished_tag(text)
        assert grammar.reserved_text(text + more) == grammar.reserved_text(kept + more)
