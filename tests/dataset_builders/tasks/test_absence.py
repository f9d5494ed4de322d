"""Which names may be asked for as absent, and how likely. Numbers by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.names import normalised, plural, prompt_name, prompt_names, singular
from dataset_builders.tasks.absence import (
    MAX_ABSENT,
    LabelStatistics,
    absent_fields,
    safe_names,
    shares_word,
    tree_nearness,
    weigh,
)

SETS = [{"cup", "table"}, {"cup", "table", "fork"}, {"cup"}, {"ship"}]


def test_statistics_count_images_and_pairs() -> None:
    counted = LabelStatistics.of(SETS)
    assert counted.images == {"cup": 3, "table": 2, "fork": 1, "ship": 1}
    assert counted.together("table", {"cup"}) == 2 / 3
    assert counted.together("fork", {"cup", "table"}) == 1 / 2  # the higher of 1/3 and 1/2
    assert counted.together("ship", {"cup"}) == 0
    assert counted.together("cup", {"never seen"}) == 0


def test_weights_are_the_mixture_by_hand() -> None:
    counted = LabelStatistics.of(SETS)
    weights = weigh(("table", "ship"), {"cup"}, counted)
    # hard: 2/3 and 0; frequent: sqrt 2 and 1; uniform: even
    frequent = 2**0.5 / (2**0.5 + 1)
    assert weights == pytest.approx(
        (0.5 + 0.3 * frequent + 0.1, 0.3 * (1 - frequent) + 0.1), abs=1e-6
    )
    assert sum(weights) == pytest.approx(1)


def test_what_occurs_together_and_what_is_near_is_likelier() -> None:
    counted = LabelStatistics.of([{"cup", "fork"}] * 3 + [{"cup"}, {"ship"}, {"ship"}, {"ship"}])
    together, apart = weigh(("fork", "ship"), {"cup"}, counted)
    assert together > 2 * apart
    near, far = weigh(("red square", "blue disc"), {"red disc x"}, LabelStatistics())
    assert shares_word("red square", "red disc x")
    assert near == pytest.approx(far)  # both share a word
    assert weigh(("red square", "blue star"), {"red disc"}, LabelStatistics())[0] > 0.6


def test_names_that_may_mean_something_present_are_left_out() -> None:
    names = ("Dogs", "hot_dog", "puppy", "cat (animal)", "Cat", "bird")
    assert safe_names(names, {"dog", "cat"}) == ("hot_dog", "puppy", "bird")
    assert safe_names(
        names, {"dog"}, related=lambda name: {"puppy", "birds"} if name == "dog" else ()
    ) == (
        "hot_dog",
        "cat (animal)",
        "Cat",
    )


def test_thousands_of_names_are_cut_to_the_likeliest() -> None:
    names = tuple(f"thing {i}" for i in range(1000))
    counted = LabelStatistics.of([{"cup", "thing 777"}] * 5)
    fields = absent_fields(names, {"cup"}, counted, regime="tree")
    assert len(fields["absent_labels"]) == len(fields["absent_weights"]) == MAX_ABSENT
    assert "thing 777" in fields["absent_labels"]
    assert list(fields["absent_labels"]) == sorted(fields["absent_labels"], key=names.index)
    assert sum(fields["absent_weights"]) == pytest.approx(1, abs=1e-4)
    assert fields["absent_regime"] == "tree"


def test_nearness_in_a_tree_by_hand() -> None:
    near = tree_nearness({"poodle": "dog", "dog": "animal", "cat": "animal", "ship": "vehicle"})
    assert near("poodle", "dog") == 2 * 2 / (3 + 2)
    assert near("poodle", "cat") == 2 * 1 / (3 + 2)
    assert near("cat", "ship") == 0
    assert near("cat", "cat") == 1
    loop = tree_nearness({"a": "b", "b": "a"})
    assert 0 <= loop("a", "b") <= 1  # a broken tree ends all the same


@given(
    st.sets(st.sampled_from("abcdefgh"), max_size=5),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
)
def test_weights_are_chances_whatever_the_counts(present: set[str], absent: set[str]) -> None:
    names = tuple(sorted(absent - present))
    weights = weigh(names, present, LabelStatistics.of([present, absent, present]))
    assert len(weights) == len(names)
    assert all(weight > 0 for weight in weights)
    assert sum(weights) == pytest.approx(1 if names else 0, abs=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dogs", "dog"),
        ("wine_glasses", "wine glass"),
        ("people", "Person"),
        ("drum (instrument)", "drums"),
    ],
)
def test_names_that_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_plurals_and_singulars() -> None:
    words = ["red circle", "person", "knife", "bus", "box", "berry", "key", "sheep"]
    assert [plural(word) for word in words] == [
        *("red circles", "people", "knives", "buses", "boxes", "berries", "keys", "sheep")
    ]
    assert all(normalised(plural(word)) == normalised(word) for word in words if word != "bus")
    assert singular("glass") == "glass"


def test_prompt_names_are_different_for_different_categories() -> None:
    names = ["drum_(musical_instrument)", "drum_(container)", "alarm_clock", "Table Tennis "]
    shown = prompt_names(names, {"alarm_clock": "alarm clock"})
    assert shown == {
        "drum_(musical_instrument)": "drum (musical instrument)",
        "drum_(container)": "drum (container)",
        "alarm_clock": "alarm clock",
        "Table Tennis ": "Table Tennis",
    }
    assert prompt_name("(only this)") == "(only this)"
