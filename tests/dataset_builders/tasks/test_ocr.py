import pytest

from dataset_builders import BuildOptions
from dataset_builders.box_checks import BoxGuard
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object
from dataset_builders.tasks.ocr import (
    TextImage,
    TextRegion,
    numbers,
    quad_corners,
    read_regions,
    reading,
    reading_samples,
)
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import text_of

REF = ImageRef(image_source="signs", image_id="a", image_uri="signs/a.jpg", width=400, height=200)


def page(*regions: tuple[tuple[float, float, float, float], str | None]) -> TextImage:
    objects = tuple(Object(box=box, label="text", ignore=text is None) for box, text in regions)
    facts = ImageFacts(ref=REF, objects=objects, ids=tuple(range(len(regions))))
    return TextImage(
        facts=facts, texts={row: text for row, (_, text) in enumerate(regions) if text is not None}
    )


def row_of(count: int) -> TextImage:
    return page(
        *(((20.0 * place, 0.0, 20.0 * place + 15, 10.0), f"word {place}") for place in range(count))
    )


def asked(image: TextImage, **options: object) -> list[tuple[str, str]]:
    chosen = BuildOptions(**options)  # type: ignore[arg-type]
    samples = reading_samples(image, chosen, dataset="signs")
    for sample in samples:
        validate(sample)
    return [(text_of(sample.turns[0]), text_of(sample.turns[1])) for sample in samples]


def test_one_region_gives_one_question() -> None:
    assert asked(row_of(1)) == [("Please provide the ocr results of [0] in the image.", "word 0")]


def test_two_regions_are_asked_for_alone() -> None:
    assert sorted(asked(row_of(2))) == [
        ("Please provide the ocr results of [0] in the image.", "word 0"),
        ("Please provide the ocr results of [1] in the image.", "word 1"),
    ]


def test_what_is_left_is_asked_for_together_in_the_order_of_the_file() -> None:
    found = asked(row_of(5))
    alone, (question, answer) = found[:2], found[2]
    single = [text.partition("[")[2][0] for text, _ in alone]
    together = [place for place in "01234" if place not in single]
    assert len(found) == 3
    assert [said for _, said in alone] == [f"word {place}" for place in single]
    assert (
        question
        == "Please provide the ocr results of "
        + ", ".join(f"[{p}]" for p in together)
        + " in the image."
    )
    assert answer == "\n".join(f"[{place}]: word {place}" for place in together)


def test_no_more_regions_than_the_options_say() -> None:
    assert len(asked(row_of(19))) == 3
    assert asked(row_of(19))[2][1].count("\n") == 5  # eight in all
    assert asked(row_of(19), region_texts=0) == []
    assert [answer.count("\n") for _, answer in asked(row_of(19), region_texts=4)] == [0, 0, 1]


def test_paraphrases_name_the_same_regions() -> None:
    questions = {question for question, _ in asked(row_of(19), paraphrases=True)}
    assert not any("[" not in question for question in questions)
    different = {asked(row_of(1), paraphrases=True, seed=seed)[0][0] for seed in range(20)}
    assert len(different) > 2


def test_choices_depend_on_the_seed_alone() -> None:
    assert asked(row_of(12)) == asked(row_of(12))
    assert len({tuple(asked(row_of(12), seed=seed)) for seed in range(5)}) == 5


def test_regions_that_cover_each_other_are_not_asked_about() -> None:
    # 0 and 1 share 60 x 10 of 140 x 10 (0.43); 2 and 3 share 40 of 160 (0.25);
    # 4 lies on a region that nobody read
    image = page(
        ((0, 0, 100, 10), "a"),
        ((40, 0, 140, 10), "b"),
        ((0, 50, 100, 60), "c"),
        ((60, 50, 160, 60), "d"),
        ((200, 0, 250, 10), "e"),
        ((200, 0, 250, 12), None),
    )
    assert {answer for _, answer in asked(image)} == {"c", "d"}
    samples = reading_samples(image, BuildOptions(), dataset="signs")
    assert all(len(sample.objects) == 6 for sample in samples)


def test_a_region_that_a_window_cuts_is_not_read_there() -> None:
    # more than two in view halve the image into 0..220 and 180..400; the fourth is cut by both
    image = page(
        ((10, 10, 40, 20), "left"),
        ((50, 10, 80, 20), "second"),
        ((300, 10, 340, 20), "right"),
        ((150, 100, 250, 120), "middle"),
    )
    samples = reading_samples(image, BuildOptions(max_objects=3), dataset="signs")
    found = [(sample.window, text_of(sample.turns[1])) for sample in samples]
    assert sorted(found) == [
        ((0, 0, 220, 200), "left"),
        ((0, 0, 220, 200), "second"),
        ((180, 0, 400, 200), "right"),
    ]
    assert len({sample.sample_id for sample in samples}) == 3


def test_too_many_regions_in_the_smallest_window() -> None:
    image = page(*(((0.0, 0.0, 9.0, 9.0), "x") for _ in range(3)))
    with pytest.raises(BadRecord, match="too_many_regions"):
        reading_samples(image, BuildOptions(max_objects=2), dataset="signs")


def test_quads_in_any_order_of_corners() -> None:
    assert quad_corners([550, 190, 937, 191, 937, 104, 549, 105]) == (549, 104, 937, 191)
    assert quad_corners([10, 0, 20, 10, 10, 20, 0, 10]) == (0, 0, 20, 20)


def test_readings_are_checked_and_keep_their_order() -> None:
    assert reading("  a \t b\u3000c ") == "a b c"
    assert reading("شارع ١٢") == "شارع ١٢"
    for text, reason in {
        "": "empty_text",
        " ": "empty_text",
        "<region3>": "unsafe_text",
        "a\u202eb": "unsafe_text",
        "a\u2028b": "unsafe_text",
        "a\x1fb": "unsafe_text",
        "x" * 1001: "text_too_long",
        None: "malformed",
        5: "malformed",
    }.items():
        with pytest.raises(BadRecord, match=reason):
            reading(text)


def test_stored_numbers() -> None:
    assert numbers([1, 2.5], 2, what="box") == [1.0, 2.5]
    for stored, reason in (
        ([1], "malformed"),
        ([1, "2"], "malformed"),
        ([1, True], "malformed"),
        ("12", "malformed"),
        ([1, float("nan")], "not_finite_box"),
        ([1, 10**400], "not_finite_box"),
    ):
        with pytest.raises(BadRecord, match=reason):
            numbers(stored, 2, what="box")


def test_a_bad_text_leaves_an_ignore_region_and_a_bad_box_nothing() -> None:
    regions = [
        TextRegion(corners=(0, 0, 50, 10), text="good"),
        TextRegion(corners=(0, 20, 50, 30), text="<image>"),
        TextRegion(corners=(0, 40, 50, 50), text=None, label="Latin text"),
        TextRegion(corners=(500, 40, 550, 50), text="outside"),
    ]
    counter = RecordCounter()
    guard = BoxGuard("xyxy", source="signs")
    rejects, image = read_regions(
        REF, enumerate(regions), lambda region: region, counter, guard, name="a"
    )
    assert [(r.record_id, r.reason, r.unit) for r in rejects] == [
        ("a/1", "unsafe_text", "record"),
        ("a/3", "outside_box", "box"),
    ]
    assert [(o.label, o.ignore) for o in image.facts.objects] == [
        ("text", False),
        ("text", True),
        ("Latin text", True),
    ]
    assert counter.ledger().used == {"box": 3, "record": 1}
    assert counter.ledger().read == {"box": 4, "record": 2}
