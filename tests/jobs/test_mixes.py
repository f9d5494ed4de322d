import pytest

from dataset_builders import DATASETS
from jobs.mixes import MIXES, check_mix, only, parse_mix, scaled, with_rejection, without


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
    assert parse_mix("coco/detection=3,coco/rejection") == {
        "coco/detection": 3.0,
        "coco/rejection": 1.0,
    }


def test_only_and_a_dataset_by_its_name():
    assert set(parse_mix("stage2:ocr")) == {s for s in MIXES["stage2"] if s.endswith("/ocr")}
    assert parse_mix("icdar2015") == {"icdar2015/ocr": 1.0}
    assert set(parse_mix("lvis_train")) == {
        f"lvis_train/{task}" for task in DATASETS["lvis_train"].tasks
    }


def test_a_share_of_every_detection_weight_goes_to_rejection():
    mix = with_rejection({"a/detection": 2.0, "b/ocr": 1.0, "a/rejection": 0.1}, 0.25)
    assert mix == {"a/detection": 1.5, "a/rejection": 0.6, "b/ocr": 1.0}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_paper_s_mixes_hold_the_rows_of_table_10(stage):
    mix = MIXES[f"stage{stage}"]
    assert sum(mix.values()) == pytest.approx(1)
    used = {source.split("/")[0] for source in mix}
    listed = {name for name, spec in DATASETS.items() if stage in spec.stages}
    alternatives = {"objects365_v1", "paco_ego4d", "c_refcocop", "c_refcocog"}  # of what is used
    assert used == listed - alternatives
    for source in mix:
        dataset, task = source.split("/")
        assert task in DATASETS[dataset].tasks
    detection = {s.split("/")[0]: w for s, w in mix.items() if s.endswith("/detection")}
    for dataset, weight in detection.items():
        assert mix[f"{dataset}/rejection"] / (
            weight + mix[f"{dataset}/rejection"]
        ) == pytest.approx(0.2)


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
