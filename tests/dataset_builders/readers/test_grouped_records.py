from typing import Any

import pytest

from dataset_builders.errors import SettingError
from dataset_builders.readers.grouped_records import grouped_records, id_number
from dataset_builders.readers.json_files import read_members
from dataset_builders.records import BadRecord


def test_records_come_back_by_kind_and_image_in_the_order_of_positions() -> None:
    with grouped_records() as rows:
        rows.add("boxes", 9, 2, {"name": "cat \ud800"})
        rows.add("boxes", 2, 1, ["dog"])
        rows.add("texts", 9, 0, None)
        rows.add("boxes", 9, 0, 1.5)
        rows.index()
        assert list(rows.images("boxes")) == [2, 9]
        assert rows.of("boxes", 9) == [(0, 1.5), (2, {"name": "cat \ud800"})]
        assert rows.of("texts", 9) == [(0, None)]
        assert rows.of("texts", 2) == []


@pytest.mark.parametrize(("value", "number"), [(7, 7), ("7", 7), (7.0, 7), ("0", 0)])
def test_an_id_may_be_text(value: Any, number: int) -> None:
    assert id_number(value) == number


@pytest.mark.parametrize(
    "value", [-1, "-1", "", "7.0", "\u0667", 2**62, "9" * 30, None, True, 1.5, float("inf")]
)
def test_what_is_no_id(value: Any) -> None:
    with pytest.raises(BadRecord, match="malformed"):
        id_number(value)


def test_small_members_of_a_big_file(tmp_path: Any) -> None:
    file = tmp_path / "big.json"
    file.write_text(
        '{"rows": [[1], {"names": 2}], "names": {"a": [1, 2]}, "last": 3, "other": "x"}'
    )
    assert read_members(file, ("names", "last", "absent")) == {"names": {"a": [1, 2]}, "last": 3}
    file.write_text("[1]")
    with pytest.raises(SettingError, match=r"big.json is not valid JSON: it holds no object"):
        read_members(file, ("names",))
