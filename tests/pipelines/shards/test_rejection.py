import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.records import Object, Part, Sample, Turn
from dataset_builders.validation import validate
from pipelines.errors import SettingError
from pipelines.shards.rejection import RejectionConfig, choose, quotas, rejection_sample

LABELS = [
    f"{colour} {shape}"
    for colour in ("red", "green", "blue")
    for shape in ("disc", "square", "star")
]


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
        image_source="s",
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


def test_unknown_or_empty_absence_is_never_chosen() -> None:
    samples = [sample(0, absent=None), sample(1, absent=()), sample(2)]
    assert list(choose(samples, 3, RejectionConfig())) == ["d/2"]


@given(st.integers(0, 10**6), st.sampled_from(["pure", "mixed", "many"]))
def test_only_what_is_licensed_is_asked_and_the_answer_names_exactly_what_is_present(
    number: int, style: str
) -> None:
    source = sample(number)
    made = rejection_sample(source, RejectionConfig(), style)
    validate(made)
    assert made.sample_id == f"d/{number}/rejection"
    assert made.task == "rejection"
    names = asked(made)
    assert len(set(names)) == len(names)
    assert set(names) <= set(source.absent_labels) | {"red disc", "blue star"}
    assert set(names) & set(source.absent_labels)
    assert answered(made) == [name for name in names if name in ("red disc", "blue star")]
    assert bool(answered(made)) == (style != "pure")
    if not answered(made):
        assert made.turns[-1].parts == (Part("None"),)
    assert made == rejection_sample(source, RejectionConfig(), style)


def test_labels_that_are_not_licensed_are_never_asked() -> None:
    # "green square" is not annotated here, but nothing says that it is absent.
    for number in range(300):
        source = sample(number, absent=("red star", "green disc"))
        assert "green square" not in asked(rejection_sample(source, RejectionConfig(), "mixed"))


def test_styles_are_a_quota_not_a_chance() -> None:
    samples = [sample(number) for number in range(103)]
    chosen = choose(samples, 100, RejectionConfig(many_share=0.1, pure_share=0.5))
    styles = list(chosen.values())
    assert (styles.count("many"), styles.count("pure"), styles.count("mixed")) == (10, 45, 45)
    assert choose(samples[::-1], 100, RejectionConfig(many_share=0.1, pure_share=0.5)) == chosen
    assert len(choose(samples, 200, RejectionConfig())) == 103


def test_number_of_absent_names() -> None:
    made = [rejection_sample(sample(number), RejectionConfig(), "pure") for number in range(300)]
    assert {len(asked(item)) for item in made} == {1, 2, 3, 4, 5}


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.1, 0.2, 0.5]),
)
def test_quotas_add_up_to_the_share_of_the_whole_dataset(
    counts: list[tuple[int, int]], share: float
) -> None:
    positives, negatives = [p for p, _ in counts], [n for _, n in counts]
    made = quotas(positives, negatives, share)
    assert len(made) == len(counts)
    assert min(made) >= 0
    wanted = max(0, round(share / (1 - share) * sum(positives)) - sum(negatives))
    assert sum(made) == (wanted if sum(positives) else 0)
    # and a bucket is never more than one off its part
    assert all(
        abs(m - wanted * p / max(1, sum(positives))) < 1
        for m, p in zip(made, positives, strict=True)
    )


def test_twenty_percent_by_hand() -> None:
    # 80 detection samples: 20 rejections make a fifth of 100; 3 are there already
    assert sum(quotas([40, 30, 10], [1, 2, 0], 0.2)) == 17


def test_questions_with_many_names_ask_for_everything_known() -> None:
    made = rejection_sample(sample(), RejectionConfig(), "many")
    assert sorted(asked(made)) == sorted({*sample().absent_labels, "red disc", "blue star"})


def test_weights_steer() -> None:
    config = RejectionConfig(max_absent=1)
    source = sample(
        present=("red square",), absent=("red star", "green disc", "green square", "blue disc")
    )
    source = dataclasses.replace(source, absent_weights=(0.0, 0.25, 0.0, 0.75))
    drawn = [
        asked(rejection_sample(dataclasses.replace(source, sample_id=str(i)), config, "pure"))[0]
        for i in range(400)
    ]
    assert set(drawn) == {"green disc", "blue disc"}
    assert 260 < drawn.count("blue disc") < 340


def test_image_without_objects_gets_a_pure_question() -> None:
    made = rejection_sample(sample(present=()), RejectionConfig(), "mixed")
    assert made.turns[-1].parts == (Part("None"),)


@pytest.mark.parametrize("wrong", [{"pure_share": 2.0}, {"max_absent": 0}, {"share": 1.0}])
def test_wrong_settings_name_the_field(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        RejectionConfig(**wrong)
