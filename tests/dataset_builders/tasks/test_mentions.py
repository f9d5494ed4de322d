import re

import pytest

from dataset_builders.records import BadRecord, Part
from dataset_builders.tasks.mentions import joined, mention_parts, named_rows

TAG = re.compile(r"<r(\d)>")


def parts(text: str) -> tuple[Part, ...]:
    return mention_parts(text, TAG, lambda found: int(found[1]))


def test_mentions_are_cut_out() -> None:
    assert parts("Is <r1> near <r0>?") == (
        Part("Is "),
        Part(objects=(1,)),
        Part(" near "),
        Part(objects=(0,)),
        Part("?"),
    )
    assert parts("<r1>") == (Part(objects=(1,)),)
    assert parts("none") == (Part("none"),)
    assert parts("") == ()


def test_blanks_between_mentions() -> None:
    assert parts("<r1> <r0><r2>") == (Part(objects=(1, 0, 2)),)
    assert parts("<r1>\n <r0>\n") == (Part(objects=(1,)), Part("\n"), Part(objects=(0,)))
    with pytest.raises(BadRecord, match="contradiction"):
        parts("<r1> <r1>")
    assert parts("<r1>, <r1>")[2] == Part(objects=(1,))


def test_rows_that_are_named() -> None:
    assert named_rows(parts("<r1> a <r2>"), parts("b"), parts("<r1>")) == {1, 2}
    assert joined([" ", 3, "."]) == (Part(objects=(3,)), Part("."))
