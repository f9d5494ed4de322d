from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.humanref import DATASETS, read_verdicts
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from dataset_builders.tasks.prompts import TEMPLATES
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.grounding import annotation_tsv, image_tsv
from tests.formats.scenes import jpeg

SPECS = {spec.name: spec for spec in DATASETS}
PICTURES = [jpeg(Image.new("RGB", (200, 100))), jpeg(Image.new("RGB", (120, 90)))]
_, STARTS = image_tsv(PICTURES, wrapped=[1])
BOXES = [[10, 5, 30, 90], [60, 5, 30.5, 80], [150, 10, 40, 85]]
THINK = """OK, the user needs us to detect the person in red. Steps:
- Step 1: Find red.

# Step 1: Find red
Person 1, Person 2 and Person 3's clothes:
- Person 2: wears red → ✅
- Person 3: hidden → ⚠️

# Summarize and Re-Check answer
Let's now recheck our answer and put ✅ for the target person and ❌ for others
- Person 1: wears blue → ❌
- **Person 2**: wears blue after all → ❌
- Person 3: wears red like person 2 → ✅"""


def write(root: Path, *rows: tuple[int, Any], name: str = "humanref_cot") -> None:
    folder = root / "humanref_cot"
    folder.mkdir(exist_ok=True)
    content, starts = image_tsv(PICTURES, wrapped=[1])
    (folder / f"{name}.images.tsv").write_bytes(content)
    (folder / f"{name}.images.tsv.lineidx").write_text("".join(f"{start}\n" for start in starts))
    (folder / f"{name}.annotations.tsv").write_bytes(annotation_tsv(rows)[0])


def build(
    root: Path, options: BuildOptions | None = None, *, name: str = "humanref_cot"
) -> SimpleNamespace:
    return collect(SPECS[name].samples(DataFolders(str(root)), options or BuildOptions()))


def record(
    chosen: list[int], think: Any = THINK, *, said: str = "the person in red", boxes: Any = BOXES
) -> Any:
    return {"gt_boxes": boxes, "region_map": {said: chosen}, "think": think}


def verdicts(*marks: str) -> str:
    return "Let us see.\n" + "\n".join(
        f"- Person {k + 1}: so → {mark}" for k, mark in enumerate(marks)
    )


GOOD = record([1], verdicts("❌", "✅", "❌"))


def test_golden_lines(tmp_path: Path) -> None:
    two = record([2, 0], verdicts("✅", "❌", "✅"), said="people  who sit")
    one = {
        "gt_boxes": [[0, 0, 60, 90]],
        "region_map": {"he": [0]},
        "think": "<think>\nPerson 1: ✅</think>",
    }
    write(tmp_path, (STARTS[0], record([2])), (STARTS[0], two), (STARTS[1], one))
    built = build(tmp_path)
    assert built.ledger.used == {"box": 7, "record": 3}
    assert not built.rejects
    assert [sample.sample_id for sample in built.samples] == [
        f"humanref_cot/{image}/{task}/{line}-0"
        for line, image in enumerate((STARTS[0], STARTS[0], STARTS[1]))
        for task in ("referring", "counting", "reasoning")
    ]
    referring, counting, reasoning, *_ = built.samples
    assert referring.objects == (
        Object(box=(10.0, 5.0, 40.0, 95.0), label="person"),
        Object(box=(60.0, 5.0, 90.5, 85.0), label="person"),
        Object(box=(150.0, 10.0, 190.0, 95.0), label="person"),
    )
    assert text_of(referring.turns[1]) == "the person in red[2]"
    assert text_of(counting.turns[0]).startswith(
        'How many people fit the description "the person in red"? Count each'
    )
    assert text_of(counting.turns[1]) == "the person in red[2]\nThere are 1."
    assert text_of(reasoning.turns[0]) == TEMPLATES["reasoning"][0].replace(
        "{}",
        "Please detect the person in red in this image. Answer the question with object indexes.",
    )
    assert (
        text_of(reasoning.turns[1])
        == """<think>OK, the user needs us to detect the person in red. Steps:
- Step 1: Find red.

# Step 1: Find red
[0], [1] and [2]'s clothes:
- [1]: wears red → ✅
- [2]: hidden → ⚠️

# Summarize and Re-Check answer
Let's now recheck our answer and put ✅ for the target person and ❌ for others
- [0]: wears blue → ❌
- **[1]**: wears blue after all → ❌
- [2]: wears red like [1] → ✅</think><answer>the person in red[2]</answer>"""
    )
    assert [text_of(sample.turns[1]) for sample in built.samples[3:5]] == [
        "people who sit[0,2]",
        "people who sit[0,2]\nThere are 2.",
    ]
    last = built.samples[-1]
    assert text_of(last.turns[1]) == "<think>[0]: ✅</think><answer>he[0]</answer>"
    assert (last.image_source, last.width, last.height) == ("humanref_cot", 120, 90)
    assert last.image_uri == f"humanref_cot/humanref_cot.images.tsv#{STARTS[1]}"
    assert build(tmp_path, BuildOptions(counting=0)).tasks == {"referring": 3, "reasoning": 3}


def test_golden_rejections(tmp_path: Path) -> None:
    name = "humanref_cot_rejection"
    nobody = record([], verdicts("❌", "❌", "❌"), said="the person who flies")
    write(
        tmp_path,
        (STARTS[0], nobody),
        (STARTS[0], GOOD),
        (STARTS[1], {**nobody, "think": THINK}),
        name=name,
    )
    built = build(tmp_path, name=name)
    assert built.reasons == {"contradiction": 1, "outside_box": 1, "unknown_object": 1}
    plain, reasoned = built.samples
    assert plain.sample_id == f"humanref_cot_rejection/{STARTS[0]}/rejection/0-0"
    assert text_of(plain.turns[0]) == (
        "Please detect the person who flies in this image. Answer the question with object indexes."
    )
    assert text_of(plain.turns[1]) == "None"
    assert text_of(reasoned.turns[1]) == (
        "<think>Let us see.\n- [0]: so → ❌\n- [1]: so → ❌\n- [2]: so → ❌</think>"
        "<answer>None</answer>"
    )
    for sample in built.samples:
        assert (sample.absent_labels, sample.absent_regime) == (
            ("the person who flies",),
            "constructed",
        )
        assert len(sample.objects) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(record([1]), "contradiction", id="another answer"),
        pytest.param(record([1], verdicts("✅", "❌", "❌")), "contradiction", id="from 0"),
        pytest.param(record([1], verdicts("✅", "✅", "❌")), "contradiction", id="one more"),
        pytest.param(record([], verdicts("❌", "❌", "❌")), "contradiction", id="nobody"),
        pytest.param(record([1], "Person 2 it is."), "bad_answer", id="no verdict"),
        pytest.param(
            record([1], verdicts("❌", "✅") + "\n<answer>x</answer>"), "bad_answer", id="tags"
        ),
        pytest.param(
            record([1], verdicts("❌", "✅") + " of Persons 1-3"), "unsupported", id="plural"
        ),
        pytest.param(
            record([1], verdicts("❌", "✅") + " of Person 4"),
            "unknown_object",
            id="no such person",
        ),
        pytest.param(
            record([1], verdicts("❌", "✅") + " of person 0"), "unknown_object", id="person 0"
        ),
        pytest.param(
            record([1], verdicts("❌", "✅") + " <region1>"), "unsafe_text", id="tag of ours"
        ),
        pytest.param(record([1], None), "malformed", id="no text"),
        pytest.param(record([3], verdicts("❌", "✅")), "unknown_object", id="beyond"),
        pytest.param(record([-1], verdicts("❌", "✅")), "unknown_object", id="negative"),
        pytest.param(record(["1"], verdicts("❌", "✅")), "malformed", id="text index"),
        pytest.param(record([1], verdicts("❌", "✅"), said=" "), "empty_text", id="silent"),
        pytest.param(
            record([1], verdicts("❌", "✅"), said="a\u202eb"), "unsafe_text", id="direction"
        ),
        pytest.param(record([1], boxes={}), "malformed", id="no boxes"),
        pytest.param(
            record([0], verdicts("✅"), boxes=[[1, 2, 30, 40]] * 101),
            "too_many_regions",
            id="crowd",
        ),
    ],
)
def test_bad_lines(tmp_path: Path, content: Any, reason: str) -> None:
    write(tmp_path, (STARTS[0], content), (STARTS[0], GOOD))
    built = build(tmp_path)
    assert built.reasons == {reason: 1}
    assert {sample.sample_id.rpartition("/")[2] for sample in built.samples} == {"1-0"}


def test_a_lost_box_costs_the_text_that_counts_on_it(tmp_path: Path) -> None:
    lost = record([1], verdicts("❌", "✅", "❌"), boxes=[*BOXES[:2], [1, 2, float("nan"), 4]])
    write(tmp_path, (STARTS[0], lost), (STARTS[0], GOOD))
    built = build(tmp_path)
    assert built.reasons == {"not_finite_box": 1, "unknown_object": 1}
    assert built.ledger.used == {"box": 5, "record": 1}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("- Person 1: yes ✅\n- Person 2: no ❌", {1: True, 2: False}),
        (
            "Person 1 and Person 3: ✅\n  1. **Person 2** → ❌ or ✅",
            {1: True, 3: True, 2: True},
        ),
        (
            "✅ Person 1\n❌ Person 2, Person 3 & Person 4\n• person 5 ✔",
            {1: True, 2: False, 3: False, 4: False, 5: True},
        ),
        ("- Person 1 is left of Person 2 ✅", {1: True}),
        ("put ✅ for the target person and ❌ for others\nThe Person 1 ✅", {}),
        ("- Person 1: ⚠️", {1: False}),
        ("- Person 1: no ❌\n- Person 1: yes ✅", {1: True}),
    ],
)
def test_verdicts(text: str, chosen: dict[int, bool]) -> None:
    assert read_verdicts(text) == chosen


def test_verdicts_of_hostile_text_take_no_time() -> None:
    assert read_verdicts("*" * 300_000 + "✅") == {}
    assert read_verdicts("person 1" + " , " * 100_000 + "x ✅") == {1: True}
    assert read_verdicts("- " * 200_000 + "✅") == {}


def test_wrong_files_raise(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"annotations.tsv not found"):
        build(tmp_path)
    corners = [[100 + k, 50, 150 + k, 95] for k in range(25)]
    write(tmp_path, (STARTS[0], record([0], boxes=corners)))
    with pytest.raises(
        SettingError, match="declared xywh, but of 25 looked at 0% fit that form and 100% fit xyxy"
    ):
        build(tmp_path)
    from_zero = [
        (
            STARTS[0],
            record([0], verdicts("❌", "❌").replace("Person 1: so → ❌", "Person 0: so → ✅")),
        )
    ] * 30
    write(tmp_path, *from_zero)
    with pytest.raises(
        SettingError, match=r"of 30 texts 30 agree .* counted from 0 and 0 when from 1"
    ):
        build(tmp_path)
    write(tmp_path)
    with pytest.raises(SettingError, match="has no line"):
        build(tmp_path)
    write(tmp_path, *[(STARTS[0], {"boxes": []})] * 100)
    with pytest.raises(SettingError, match="none of the first 100 records"):
        build(tmp_path)
