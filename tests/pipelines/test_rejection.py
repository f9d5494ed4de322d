import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.records import Object, Part, Sample, Turn, validate
from pipelines.rejection import RejectionConfig, rejection_sample, shares_word

LABELS = [f"{colour} {shape}" for colour in ("red", "green", "blue") for shape in ("disc", "square", "star")]


def sample(number: int = 0, present=("red disc", "blue star"), absent=tuple(LABELS[2:8])) -> Sample:
    absent = None if absent is None else tuple(label for label in absent if label not in present)
    objects = tuple(
        Object(box=(5.0 * i, 0.0, 5.0 * i + 4, 4.0), label=label) for i, label in enumerate(present)
    )
    parts: list[Part] = []
    for index, label in enumerate(present):
        parts += [Part("\n")] * bool(parts) + [Part(label, (index,))]
    return Sample(
        sample_id=f"d/{number}",
        dataset="d",
        task="detection",
        image_id=str(number),
        bucket=0,
        image_uri="a.jpg",
        width=100,
        height=100,
        objects=objects,
        turns=(
            Turn("user", (Part("Please detect them."),)),
            Turn("assistant", tuple(parts) or (Part("None"),)),
        ),
        absent_labels=absent,
        absent_regime=None if absent is None else "exhaustive",
    )


def asked(made: Sample) -> list[str]:
    text = made.turns[0].parts[0].text
    return text.removeprefix("Please detect ").split(" in this image.")[0].split("; ")


def answered(made: Sample) -> list[str]:
    return [part.text for part in made.turns[-1].parts if part.objects]


def test_unknown_or_empty_absence_gives_no_rejection() -> None:
    assert rejection_sample(sample(absent=None), RejectionConfig()) is None
    assert rejection_sample(sample(absent=()), RejectionConfig()) is None


@given(st.integers(0, 10**6))
def test_only_what_is_licensed_is_asked_and_the_answer_names_exactly_what_is_present(number: int) -> None:
    source = sample(number)
    made = rejection_sample(source, RejectionConfig())
    validate(made)
    assert made.sample_id == f"d/{number}/rejection"
    assert made.task == "rejection"
    names = asked(made)
    assert len(set(names)) == len(names)
    assert set(names) <= set(source.absent_labels) | {"red disc", "blue star"}
    assert set(names) & set(source.absent_labels)
    assert answered(made) == [name for name in names if name in ("red disc", "blue star")]
    if not answered(made):
        assert made.turns[-1].parts == (Part("None"),)
    assert made == rejection_sample(source, RejectionConfig())


def test_labels_that_are_not_licensed_are_never_asked() -> None:
    # "green square" is not annotated here, but nothing says that it is absent.
    for number in range(300):
        names = asked(rejection_sample(sample(number, absent=("red star", "green disc")), RejectionConfig()))
        assert "green square" not in names


def test_shares_of_pure_and_mixed_questions() -> None:
    config = RejectionConfig(many_share=0.0)
    made = [rejection_sample(sample(number), config) for number in range(1000)]
    pure = sum(not answered(item) for item in made)
    assert 450 < pure < 550
    assert {len(asked(item)) for item in made if not answered(item)} == {1, 2, 3, 4, 5}
    only_pure = RejectionConfig(pure_share=1.0, many_share=0.0)
    assert not any(answered(rejection_sample(sample(number), only_pure)) for number in range(50))


def test_questions_with_many_names_ask_for_everything_known() -> None:
    made = rejection_sample(sample(), RejectionConfig(many_share=1.0))
    assert sorted(asked(made)) == sorted({*sample().absent_labels, "red disc", "blue star"})


def test_hard_names_share_a_word_with_a_present_label() -> None:
    assert shares_word("red star", {"red disc"})
    assert not shares_word("green star", {"red disc"})
    config = RejectionConfig(hard_share=1.0, max_absent=1, pure_share=1.0, many_share=0.0)
    source = sample(present=("red disc",), absent=("red star", "green square", "blue star"))
    drawn = {
        asked(rejection_sample(dataclasses.replace(source, sample_id=str(i)), config))[0] for i in range(50)
    }
    assert drawn == {"red star"}


def test_weights_steer_but_license_nothing() -> None:
    config = RejectionConfig(hard_share=0.0, max_absent=1, pure_share=1.0, many_share=0.0)
    weights = {"blue disc": 1.0, "star of mine": 9.0} | dict.fromkeys(
        ("red star", "green disc", "green square"), 0.0
    )
    source = sample(present=("red square",), absent=("red star", "green disc", "green square", "blue disc"))
    made = rejection_sample(source, config, weights=weights)
    assert asked(made) == ["blue disc"]


def test_image_without_objects_gets_a_pure_question() -> None:
    made = rejection_sample(sample(present=()), RejectionConfig(pure_share=0.0))
    assert made.turns[-1].parts == (Part("None"),)


@pytest.mark.parametrize("wrong", [{"pure_share": 2.0}, {"max_absent": 0}, {"hard_share": -0.1}])
def test_wrong_settings_name_the_field(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RejectionConfig(**wrong)
