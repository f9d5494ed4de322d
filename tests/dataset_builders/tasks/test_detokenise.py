import pytest

from dataset_builders.tasks.detokenise import detokenised


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("No she does not .", "No she does not."),
        ("Yes , she is , is n't she ?", "Yes, she is, isn't she?"),
        ("They do n't know .", "They don't know."),
        ("It 's the man 's hat", "It's the man's hat"),
        ("It ' s the men ' hats", "It's the men' hats"),
        ("I 'll go , we 've won", "I'll go, we've won"),
        ("a t - shirt and / or hat", "a t-shirt and/or hat"),
        ("a ( small ) dog", "a (small) dog"),
        ('He says " stop ! " and runs', 'He says "stop!" and runs'),
        ("`` no '' he says", "``no'' he says"),
        ("It costs $ 5 : 10 % off ;", "It costs $5: 10% off;"),
        ("  padded   words ", "padded words"),
    ],
)
def test_sentences(tokens: str, text: str) -> None:
    assert detokenised(tokens.split(" ")) == [text]


def test_objects_are_words() -> None:
    assert detokenised(["Does", 2, "like", 0, "'s", "hat", "?"]) == [
        "Does ",
        2,
        " like ",
        0,
        "'s hat?",
    ]
    assert detokenised([1, ",", 2, "and", 0, "."]) == [1, ", ", 2, " and ", 0, "."]
    assert detokenised(["(", 1, ")", "-", 2]) == ["(", 1, ")-", 2]
    assert detokenised([1, 2]) == [1, " ", 2]
    assert detokenised([]) == []
