import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders import DATASETS
from jobs.command.command_line import main
from jobs.mixes import (
    GRAMMAR,
    Change,
    MixWords,
    check_mix,
    only,
    parse_mix,
    read_words,
    render_words,
    scaled,
    without,
)
from jobs.named_mixes import MIXES, with_rejection
from pipelines.errors import SettingError


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
    with pytest.raises(SettingError, match=message):
        parse_mix(text)


MIX = {"a/x": 1.0, "a/y": 2.0, "b/x": 3.0, "c/z": 4.0}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("stage2-coco_train/rejection", without(MIXES["stage2"], "coco_train/rejection")),
        ("stage2*vcr=1e-1", scaled(MIXES["stage2"], "vcr", 0.1)),
        ("stage2-vcr-osprey", without(without(MIXES["stage2"], "vcr"), "osprey")),
        ("stage2*vcr=2*osprey=3", scaled(scaled(MIXES["stage2"], "vcr", 2), "osprey", 3)),
        ("stage2:ocr*mlt2019=2", scaled(only(MIXES["stage2"], "ocr"), "mlt2019", 2)),
        ("stage2*vcr=2e-1-osprey", without(scaled(MIXES["stage2"], "vcr", 0.2), "osprey")),
        ("coco/detection=3,coco/rejection=1-rejection", {"coco/detection": 3.0}),
        ("a/x = 2 , a/y", {"a/x": 2.0, "a/y": 1.0}),
    ],
)
def test_changes_follow_each_other(text, same):
    """The first four were one source, or refused, when signs were looked for anywhere."""
    assert parse_mix(text) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a name is missing"),
        ("stage2-", "a name is missing"),
        ("stage2*vcr=", "weight '' is not a number"),
        ("stage2*vcr=2x", "weight '2x' is not a number"),
        ("stage2*vcr=0", "weight of vcr/region_qa is 0.0"),
        ("stage2=2", "source 'stage2' is not of the form dataset/task"),
        ("a/x,a/x", "source a/x is given twice"),
        ("a/x!", "'!' is not understood"),
        ("stage2-rejection:rejection", "'rejection' names no source of it"),
    ],
)
def test_words_outside_the_grammar(text, message):
    with pytest.raises(SettingError, match=message):
        parse_mix(text)


NAMES = st.from_regex(r"[a-z][a-z0-9_.]{0,6}", fullmatch=True)
SOURCES = st.builds("{}/{}".format, NAMES, NAMES)
WEIGHTS = st.floats(min_value=1e-9, max_value=1e9, allow_nan=False)
CHANGES = st.one_of(
    st.builds(Change, sign=st.sampled_from("-:"), part=NAMES | SOURCES),
    st.builds(Change, sign=st.just("*"), part=NAMES | SOURCES, factor=WEIGHTS),
)
WORDS = st.builds(
    MixWords,
    start=NAMES | st.lists(st.tuples(SOURCES, WEIGHTS), min_size=1, max_size=4).map(tuple),
    changes=st.lists(CHANGES, max_size=4).map(tuple),
)


@given(WORDS)
def test_what_is_rendered_is_read_again(words):
    assert read_words(render_words(words)) == words


@given(st.text(alphabet="ab/-:*=,.1e ", max_size=24))
def test_any_text_is_read_or_refused(text):
    try:
        words = read_words(text)
    except SettingError:
        return
    assert read_words(render_words(words)) == words


def slow_reference(mix: dict[str, float], change: Change) -> dict[str, float]:
    """Apply a change source by source, as the grammar says it in words."""
    result = {}
    for source, weight in mix.items():
        dataset, task = source.split("/")
        is_meant = change.part in (dataset, task, source)
        if change.sign == "-" and not is_meant:
            result[source] = weight
        if change.sign == ":" and is_meant:
            result[source] = weight
        if change.sign == "*":
            result[source] = weight * change.factor if is_meant else weight
    return result


PARTS = st.sampled_from(["a", "b", "c", "x", "y", "z", *MIX])
KNOWN_CHANGES = st.builds(
    Change,
    sign=st.sampled_from("-:*"),
    part=PARTS,
    factor=st.sampled_from([0.5, 1.0, 2.0, 0.1]),
)


@given(st.lists(KNOWN_CHANGES, max_size=4))
def test_every_operation_does_what_the_slow_one_does(changes):
    start = ",".join(f"{source}={weight}" for source, weight in MIX.items())
    expected, before = dict(MIX), dict(MIX)
    for change in changes:
        if not any(change.part in (*source.split("/"), source) for source in expected):
            expected = {}
            break
        expected = slow_reference(expected, change)
    text = render_words(MixWords(start=tuple(MIX.items()), changes=tuple(changes)))
    assert text.startswith(start)
    if expected:
        assert parse_mix(text) == expected
    else:
        with pytest.raises(SettingError):
            parse_mix(text)
    assert before == MIX


def test_the_grammar_is_shown(capsys):
    assert main(["list", "mixes"]) == 0
    shown = capsys.readouterr().out
    assert all(line in shown for line in GRAMMAR)
