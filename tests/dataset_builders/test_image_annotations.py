"""What is known of an image, and windows into crowded ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.image_annotations import ImageFacts, unique, whole_image
from dataset_builders.records import BadRecord, ImageRef, Object
from dataset_builders.tasks.prompts import conversation, grounded_answer, question
from dataset_builders.validation import validate

REF = ImageRef(image_source="s", image_id="7", image_uri="s/7.jpg", width=400, height=200)


def facts(*boxes: tuple[float, float, float, float], label: str = "car") -> ImageFacts:
    objects = tuple(Object(box=box, label=label) for box in boxes)
    return ImageFacts(ref=REF, objects=objects, ids=tuple(range(len(boxes))))


def test_an_image_within_the_budget_is_its_own_window() -> None:
    seen = facts((0, 0, 10, 10), (20, 0, 30, 10))
    assert list(seen.windows(2)) == [seen]
    assert seen.window is None


def test_a_crowded_image_is_halved_across_its_longer_side() -> None:
    # four cars on the left, one in the middle, two on the right; halves overlap by a tenth
    left = [(10.0 * i, 0.0, 10.0 * i + 8, 8.0) for i in range(4)]
    seen = facts(*left, (190, 50, 210, 70), (300, 0, 320, 20), (350, 100, 390, 140))
    one, two = seen.windows(5)
    assert (one.window, two.window) == ((0, 0, 220, 200), (180, 0, 400, 200))
    assert one.ids == (0, 1, 2, 3, 4)  # the car on the cut is whole in both
    assert two.ids == (4, 5, 6)
    assert two.objects[0].box == (190, 50, 210, 70), "boxes stay in pixels of the image"


def test_a_box_cut_below_half_is_an_ignore_region() -> None:
    view = facts((90, 0, 110, 10), (96, 20, 116, 30), (80, 40, 100, 50)).view((100, 0, 200, 200))
    assert [item.box for item in view.objects] == [(100, 0, 110, 10), (100, 20, 116, 30)]
    assert [item.ignore for item in view.objects] == [False, False]
    less = facts((90, 0, 108, 10)).view((100, 0, 200, 200))  # 8 of 18 pixels are left
    assert [item.ignore for item in less.objects] == [True]
    assert less.present() == {}
    assert less.crowded() == {"car"}, "present, not countable"
    assert less.absent(("car", "bus")) == ("bus",)


def test_more_objects_than_the_smallest_window_may_show_is_a_reject() -> None:
    heap = [(10.0, 10.0, 30.0 + i / 100, 30.0) for i in range(12)]
    with pytest.raises(BadRecord, match="too_many_regions"):
        list(facts(*heap).windows(10))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 380), st.integers(0, 180), st.integers(4, 20), st.integers(4, 20)),
        max_size=60,
    ),
    st.integers(5, 20),
)
def test_windows_keep_the_budget_and_show_every_object_whole_or_by_half(
    drawn: list[tuple[int, int, int, int]], budget: int
) -> None:
    seen = facts(*((x, y, x + w, y + h) for x, y, w, h in drawn))
    try:
        views = list(seen.windows(budget))
    except BadRecord:
        return
    shown: set[int] = set()
    for view in views:
        assert view.num_boxed <= budget
        frame = view.window or (0, 0, 400, 200)
        for item, number in zip(view.objects, view.ids, strict=True):
            x1, y1, x2, y2 = item.box
            assert frame[0] <= x1 < x2 <= frame[2]
            assert frame[1] <= y1 < y2 <= frame[3]
            if not item.ignore:
                shown.add(number)
        if view.present():
            answer = grounded_answer([("car", view.present()["car"])])
            turns = conversation(question("detection", "car"), answer)
            validate(view.sample(dataset="d", task="detection", number=0, turns=turns))
    assert shown == set(seen.ids)


def test_windows_have_ids_of_their_own() -> None:
    turns = conversation(question("detection", "car"), grounded_answer([]))
    ids = {
        view.sample(dataset="d", task="detection", number=0, turns=turns).sample_id
        for view in facts(*((40.0 * i, 0.0, 40.0 * i + 9, 9.0) for i in range(9))).windows(6)
    }
    assert ids == {"d/7@0-0-220-200/detection/0", "d/7@180-0-400-200/detection/0"}


def test_whole_image_and_unique() -> None:
    assert whole_image(REF, "image").box == (0, 0, 400, 200)
    assert unique(["A cat", "a CAT", "dog", "A cat "]) == [0, 2, 3]
