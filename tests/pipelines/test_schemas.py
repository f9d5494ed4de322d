import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.artifacts import parquet_bytes
from pipelines.schemas import PROPOSALS_SCHEMA, RegionExample, proposals_by_image


def example(boxes: np.ndarray, **changes) -> RegionExample:
    values = {
        "sample_id": "d/1",
        "dataset": "d",
        "task": "detection",
        "image_id": "1",
        "width": 640,
        "height": 480,
        "boxes": boxes,
        "scores": tuple(None if i % 2 else 0.1 * i for i in range(len(boxes))),
        "box_sources": tuple("gt" if i % 2 else "proposal" for i in range(len(boxes))),
        "messages": ({"role": "user", "content": "<image>\nwhat? é"},),
        "targets": ({"text": "cup", "regions": [0], "boxes": [[1.5, 2.0, 3.0, 4.0]]},),
    }
    return RegionExample(**(values | changes))


@given(
    arrays(
        np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(0, 4096, width=32)
    )
)
def test_json_round_trip_is_exact(boxes: np.ndarray) -> None:
    made = example(boxes)
    again = RegionExample.from_json(made.to_json())
    np.testing.assert_array_equal(again.boxes, boxes)
    assert again.boxes.dtype == np.float32
    assert again.messages == made.messages
    assert again.targets == made.targets
    assert again.ignore is None
    assert again.to_json() == made.to_json()


def test_json_is_short_and_readable() -> None:
    value = json.loads(example(np.array([[12.3, 0, 45.6, 7]], np.float32)).to_json())
    assert value["boxes"] == [[12.3, 0.0, 45.6, 7.0]]
    assert "ignore" not in value


def test_written_numbers_give_the_same_float32() -> None:
    values = np.array([[0.1, 1 / 3, 639.99994, 1e-7], [0.0, 1e9, 2.5, 16777216.0]], np.float32)
    made = example(values)
    assert RegionExample.from_json(made.to_json()).boxes.tolist() == values.tolist()
    assert json.loads(made.to_json())["boxes"][0][0] == 0.1
    with pytest.raises(ValueError, match="nan has no place"):
        example(np.array([[np.nan, 0, 1, 1]], np.float32)).to_json()


def test_ignore_flags_survive() -> None:
    made = example(np.zeros((2, 4), np.float32), ignore=(True, False))
    assert RegionExample.from_json(made.to_json()).ignore == (True, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": np.zeros((1, 4))},
        {"boxes": np.zeros((1, 5), np.float32)},
        {"scores": ()},
        {"box_sources": ("gt", "gt")},
        {"ignore": ()},
    ],
)
def test_mismatched_columns_raise_with_the_sample(changes: dict) -> None:
    with pytest.raises(ValueError, match="d/1"):
        example(**({"boxes": np.zeros((1, 4), np.float32)} | changes))


def test_proposals_survive_parquet() -> None:
    row = {
        "image_id": "a",
        "bucket": 1,
        "width": 9,
        "height": 8,
        "rotation": 1,
        "status": "ok",
        "error": None,
    }
    rows = [
        row | {"boxes": [[0, 1, 2, 3.25]], "scores": [0.5]},
        row | {"image_id": "b", "boxes": [], "scores": []},
    ]
    data = parquet_bytes(pa.Table.from_pylist(rows, schema=PROPOSALS_SCHEMA))
    found = proposals_by_image(pa.parquet.read_table(pa.BufferReader(data)))
    np.testing.assert_array_equal(found["a"]["boxes"], np.array([[0, 1, 2, 3.25]], np.float32))
    assert found["b"]["boxes"].shape == (0, 4)
    assert found["b"]["scores"].dtype == np.float32
    with pytest.raises(ValueError, match="'a'"):
        proposals_by_image(pa.Table.from_pylist(rows[:1] * 2, schema=PROPOSALS_SCHEMA))
