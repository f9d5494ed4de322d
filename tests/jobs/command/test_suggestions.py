import pytest

from jobs.command.suggestions import did_you_mean, unknown


@pytest.mark.parametrize(
    ("name", "meant"),
    [("stpes", "steps"), ("Steps", "steps"), ("seeds", "seed"), ("zzz", ""), ("", "")],
)
def test_what_was_probably_meant(name, meant):
    hint = did_you_mean(name, ["steps", "seed", "size"])
    assert hint == (f"did you mean {meant!r}?" if meant else "")


def test_a_short_list_is_shown_and_a_long_one_named():
    message = unknown("size", "tyny", ["debug", "tiny"], more="or none")
    assert message == "unknown size 'tyny'; did you mean 'tiny'? known: debug, tiny, or none"
    many = [f"coco_{number}" for number in range(40)]
    message = unknown("dataset", "x", many, lists="datasets")
    assert message == "unknown dataset 'x'; all 40 are in: fo1 list datasets"
