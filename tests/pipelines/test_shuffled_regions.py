"""The control permutes the boxes of an example among its regions, and nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.seeds import seed_of
from pipelines.shuffled_regions import derangement, shuffle_regions
from tests.pipelines.training.stub_learner import record


@given(st.integers(0, 40), st.text(max_size=5))
def test_nothing_keeps_its_place(count: int, name: str) -> None:
    moved = derangement(count, name)
    assert sorted(moved) == list(range(count))
    assert count < 2 or not (moved == np.arange(count)).any()
    assert (moved == derangement(count, name)).all()


def test_orders_differ_between_samples() -> None:
    assert len({tuple(derangement(12, f"s{i}")) for i in range(20)}) > 15


def test_shuffled_regions_are_the_same_boxes_under_other_indices() -> None:
    examples = [record(number) for number in range(2, 60, 3)]
    assert all(len(example.boxes) == 3 for example in examples)
    before = [example.boxes.copy() for example in examples]
    for example, boxes in zip(examples, before, strict=True):
        other = shuffle_regions(example)
        np.testing.assert_array_equal(example.boxes, boxes)
        assert sorted(map(tuple, other.boxes)) == sorted(map(tuple, boxes))
        assert not (other.boxes == boxes).all(axis=1).any()
        assert (other.sample_id, other.messages, other.targets) == (
            example.sample_id,
            example.messages,
            example.targets,
        )
        np.testing.assert_array_equal(shuffle_regions(example).boxes, other.boxes)


def test_seeds_stay_what_they_were() -> None:
    """They seed every step of training: another number would be another run."""
    assert seed_of("step", 0, 7, 1) == 5062022860411615634
    assert seed_of("a", "b") != seed_of("b", "a")
