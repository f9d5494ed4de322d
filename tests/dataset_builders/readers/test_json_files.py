import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.errors import SettingError
from dataset_builders.readers import json_files
from dataset_builders.readers.json_files import stream_array

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.lists(VALUES, max_size=6),
    VALUES,
    st.integers(1, 40),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_values_are_those_of_json_load_whatever_the_chunk_size(
    tmp_path_factory: Any, values: list, other: Any, chunk: int, indent: int | None, plain: bool
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    text = json.dumps(
        {"other": other, "rows": values, "more": [other]}, indent=indent, ensure_ascii=plain
    )
    path.write_bytes(
        text.encode("utf-8", "surrogatepass") if plain else text.encode("utf-8", "replace")
    )
    expected = json.loads(path.read_text(encoding="utf-8"))
    whole = json_files.CHUNK_BYTES
    json_files.CHUNK_BYTES = chunk
    try:
        read = list(stream_array(path, "rows"))
        more = list(stream_array(path, "more"))
    finally:
        json_files.CHUNK_BYTES = whole
    assert repr(read) == repr(expected["rows"])  # repr: NaN is not equal to itself
    assert repr(more) == repr(expected["more"])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 1000])
def test_numbers_are_not_cut_by_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_files, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(
        b'\xef\xbb\xbf[12345, 1.5e3 ,-17,NaN, -Infinity, 1e999, "a, NaN]", "\xc3\xa9"]'
    )
    values = list(stream_array(path, None))
    assert values[:3] == [12345, 1500.0, -17]
    assert math.isnan(values[3])
    assert values[4:] == [-math.inf, math.inf, "a, NaN]", "é"]


def test_an_absent_array_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ('{"rows": [1, 2]}', "{}", "[1, 2]", '{"others": 3}', '{"deep": {"others": [1]}}'):
        path.write_text(text)
        assert list(stream_array(path, "others")) == []
    assert list(stream_array(path, None)) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": [1, 2',
        "",
        "  ",
        "<html>",
        '{"rows": [1 2]}',
        '{"rows" [1]}',
        "{1: []}",
        '{"a": 1; "rows": []}',
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"a\.json is not valid JSON"):
        list(stream_array(path, "rows"))


def test_bytes_that_are_not_utf8_and_endless_values_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'["\xff"]')
    with pytest.raises(SettingError, match=r"a\.json is not valid JSON.*utf-8"):
        list(stream_array(path, None))
    path.write_text('["' + "x" * 5000)
    monkeypatch.setattr(json_files, "CHUNK_BYTES", 100)
    monkeypatch.setattr(json_files, "MAX_VALUE_CHARS", 1000)
    with pytest.raises(SettingError, match="longer than 1000 characters"):
        list(stream_array(path, None))
