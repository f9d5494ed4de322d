from pathlib import Path

import pytest

from dataset_builders.readers import json_lines
from dataset_builders.readers.json_lines import opened, stream_lines
from dataset_builders.records import BadRecord


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2, NaN]\n{"broken\n\xff\n"last"')
    found = list(stream_lines(path))
    assert [name for name, _ in found] == [
        "a.jsonl/1",
        "a.jsonl/4",
        "a.jsonl/5",
        "a.jsonl/6",
        "a.jsonl/7",
    ]
    assert found[0][1] == {"a": 1}
    assert found[1][1][0] == 2
    assert found[4][1] == "last"
    for _, value in found[2:4]:
        with pytest.raises(BadRecord, match="malformed"):
            opened(value)
    assert opened(3) == 3


def test_a_long_line_is_a_reject_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 16)
    path = tmp_path / "a.jsonl"
    path.write_text('"' + "x" * 100 + '"\n{"a": 1}\n' + "1" * 15 + "\n" + "2" * 40)
    values = [value for _, value in stream_lines(path)]
    assert values[1:3] == [{"a": 1}, 111111111111111]
    for value in (values[0], values[3]):
        with pytest.raises(BadRecord, match="text_too_long"):
            opened(value)


def test_deep_nesting_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("[" * 100_000 + "\n1\n")
    (_, deep), (_, one) = stream_lines(path)
    assert isinstance(deep, BadRecord)
    assert one == 1
