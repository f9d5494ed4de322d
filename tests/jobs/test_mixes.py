import pytest

from jobs.mixes import MIXES, check_mix, only, parse_mix, scaled, without


def test_every_named_mix_is_valid():
    for mix in MIXES.values():
        assert check_mix(dict(mix)) == mix


def test_changes_by_dataset_task_or_source():
    mix = {"a/x": 1.0, "a/y": 2.0, "b/x": 3.0}
    assert without(mix, "x") == {"a/y": 2.0}
    assert without(mix, "a") == {"b/x": 3.0}
    assert scaled(mix, "a/x", 4) == {"a/x": 4.0, "a/y": 2.0, "b/x": 3.0}
    assert only(mix, "x") == {"a/x": 1.0, "b/x": 3.0}
    assert mix == {"a/x": 1.0, "a/y": 2.0, "b/x": 3.0}


def test_command_line_forms():
    assert parse_mix("drawn_stage2") == MIXES["drawn_stage2"]
    assert "drawn_train/rejection" not in parse_mix("drawn_stage2-rejection")
    doubled = parse_mix("drawn_stage2*counting=2")
    assert doubled["drawn_train/counting"] == 2 * MIXES["drawn_stage2"]["drawn_train/counting"]
    assert parse_mix("coco/detection=3,coco/rejection") == {"coco/detection": 3.0, "coco/rejection": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "unknown mix 'nothing'; known: coco"),
        ("drawn_stage2-cars", "'cars' names no source"),
        ("coco/detection=-1", "weight of coco/detection is -1.0"),
        ("coco/detection=nan", "weight of coco/detection is nan"),
        ("coco/detection=much", "weight 'much' is not a number"),
        ("a/b/c=1", "not of the form dataset/task"),
    ],
)
def test_wrong_mixes_name_the_fault(text, message):
    with pytest.raises(ValueError, match=message):
        parse_mix(text)
