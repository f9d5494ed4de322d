import json
from pathlib import Path
from typing import Any

import pytest

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction.vcr import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

CLIP = "lsmdc_3015_CHARLIE/3015_CHARLIE_00.23.57.935-00.24.00.783@0"


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "boxes": [
            [10.5, 20.0, 60.0, 90.0, 0.99],
            [100.0, 10.0, 150.25, 95.0, 0.98],
            [40.0, 5.0, 80.0, 60.0, 0.9],
            [-3.0, 50.0, 30.0, 120.0, 0.7],
        ],
        "segms": [[], [], [], []],
        "names": ["person", "person", "person", "car"],
        "width": 200,
        "height": 100,
    } | changes


def record(**changes: Any) -> dict[str, Any]:
    """The record printed in r2c's loader, its last rationale made the right one."""
    wrong = ["Yes", "."]
    return {
        "movie": "3015_CHARLIE",
        "objects": ["person", "person", "person", "car"],
        "img_fn": f"{CLIP}.jpg",
        "metadata_fn": f"{CLIP}.json",
        "question": ["Does", [2], "feel", "comfortable", "?"],
        "question_orig": "Does 3 feel comfortable?",
        "answer_choices": [wrong, ["No", "she", "does", "n't", "."], wrong, wrong],
        "answer_label": 1,
        "rationale_choices": [
            wrong,
            wrong,
            wrong,
            [[0, 1], "left", "[2]", "and", [3], "'s", "open", "."],
        ],
        "rationale_label": 3,
        "annot_id": "train-0",
    } | changes


def put(root: Path, *records: Any, stills: dict[str, Any] | None = None) -> DataFolders:
    folder = root / "vcr/vcr1images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({CLIP: metadata()} | (stills or {})).items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    (root / "vcr/train.jsonl").write_text("".join(f"{text}\n" for text in lines))
    return DataFolders(str(root))


def built(root: Path, *records: Any, options: BuildOptions | None = None, **stills: Any) -> Any:
    return collect(DATASETS[0].samples(put(root, *records, **stills), options or BuildOptions()))


def other(name: str, **changes: Any) -> dict[str, Any]:
    return record(img_fn=f"m/{name}.jpg", metadata_fn=f"m/{name}.json", **changes)


def test_golden_samples(tmp_path: Path) -> None:
    nobody = [["It", "is", "dark", "."]] * 4
    scene = other(
        "b",
        objects=[],
        question=["What", "time", "is", "it", "?"],
        answer_choices=nobody,
        rationale_choices=nobody,
    )
    pair = other(
        "a",
        objects=["dog", "person"],
        question=["Why", "is", [1], [0], "?"],
        answer_choices=[[[1, 0], ",", "too"]] * 4,
        rationale_choices=[["All", "of", [0], ",", [1]]] * 4,
    )
    stills = {
        "m/a": metadata(boxes=[[0, 0, 9, 9, 1], [5, 5, 20, 20, 0.5]], names=["dog", "person"]),
        "m/b": metadata(boxes=[], names=[]),
    }
    found = built(tmp_path, record(), pair, scene, stills=stills)
    assert found.rejects == []
    assert found.ledger.used == {"record": 3, "box": 6}
    first, second, third = found.samples
    assert first.sample_id == f"vcr/vcr1images/{CLIP}/region_qa/1"
    assert (first.image_source, first.image_uri) == ("vcr", f"vcr/vcr1images/{CLIP}.jpg")
    assert (first.width, first.height) == (200, 100)
    assert first.objects == (
        Object(box=(10.5, 20.0, 60.0, 90.0), label="person"),
        Object(box=(100.0, 10.0, 150.25, 95.0), label="person"),
        Object(box=(40.0, 5.0, 80.0, 60.0), label="person"),
        Object(box=(0.0, 50.0, 30.0, 100.0), label="car"),
    )
    # [2] in the list is the third object; "[2]" in quotes is a word
    assert [text_of(turn) for turn in first.turns] == [
        "Does [2] feel comfortable?",
        "No she doesn't.",
        "Why?",
        "[0] and [1] left [2] and [3]'s open.",
    ]
    assert [turn.role for turn in first.turns] == ["user", "assistant"] * 2
    assert first.turns[0].parts[1].objects == (2,)
    assert first.turns[3].parts[3].text == " left [2] and "
    assert [text_of(turn) for turn in second.turns] == [
        "Why is [1,0]?",
        "[1] and [0], too",
        "Why?",
        "All of [0], [1]",
    ]
    assert (third.task, third.objects) == ("instruction", ())
    assert text_of(third.turns[0]) == "What time is it?"


def test_three_objects_in_a_list(tmp_path: Path) -> None:
    (sample,) = built(tmp_path, record(question=["Are", [0, 2, 3], "near", "?"])).samples
    assert text_of(sample.turns[0]) == "Are [0], [2] and [3] near?"


def test_a_lost_box_keeps_the_numbers(tmp_path: Path) -> None:
    boxes = metadata()["boxes"]
    boxes[1] = [300, 10, 400, 90, 0.5]
    asks_for_lost = record(question=["Is", [1], "here", "?"])
    simple = record(question=["Is", [3], "here", "?"], rationale_label=0)
    found = built(tmp_path, asks_for_lost, simple, stills={CLIP: metadata(boxes=boxes)})
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("box", "outside_box", f"{CLIP}.json/boxes/1"),
        ("record", "unknown_object", "train.jsonl/1"),
    ]
    (sample,) = found.samples
    assert text_of(sample.turns[0]) == "Is [2] here?"
    assert sample.objects[2].label == "car"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"annot_id": "val-0"}, "benchmark_image"),
        ({"annot_id": 0}, "benchmark_image"),
        ({"img_fn": "../x.jpg"}, "unsafe_path"),
        ({"img_fn": None}, "malformed"),
        ({"metadata_fn": f"{CLIP}2.json"}, "contradiction"),
        ({"img_fn": "m/none.jpg", "metadata_fn": "m/none.json"}, "image_rejected"),
        ({"objects": ["person", "person", "car", "person"]}, "contradiction"),
        ({"objects": None}, "contradiction"),
        ({"question": "Does 3 feel comfortable?"}, "malformed"),
        ({"question": ["Does", 2]}, "malformed"),
        ({"question": ["Does", []]}, "malformed"),
        ({"question": ["Does", ["2"]]}, "malformed"),
        ({"question": ["Does", [4]]}, "unknown_object"),
        ({"question": ["Does", [-1]]}, "unknown_object"),
        ({"question": []}, "empty_text"),
        ({"question": [" "]}, "empty_text"),
        ({"question": ["<region0>"]}, "unsafe_text"),
        ({"question": [[0], [0]]}, "contradiction"),
        ({"answer_label": 4}, "bad_answer"),
        ({"answer_label": -1}, "bad_answer"),
        ({"answer_label": None}, "malformed"),
        ({"answer_choices": [["a"]]}, "malformed"),
        ({"rationale_choices": None}, "malformed"),
    ],
)
def test_bad_questions(tmp_path: Path, changes: Any, reason: str) -> None:
    found = built(tmp_path, record(**changes), record())
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("record", reason, "train.jsonl/1")
    ]
    assert len(found.samples) == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        metadata(width=0),
        metadata(height="100"),
        metadata(names=["person"]),
        metadata(boxes=None),
        "[" * 100_000,
    ],
)
def test_bad_metadata_takes_its_questions_along(tmp_path: Path, content: Any) -> None:
    found = built(tmp_path, other("a"), other("a"), record(), stills={"m/a": content})
    assert [(r.unit, r.reason) for r in found.rejects] == [("record", "image_rejected")] * 2


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([1, 2, 3, 4], "malformed"),
        ([1, 2, 30, 40, "0.9"], "malformed"),
        ([1, 2, 30, 40, float("nan")], "malformed"),
        ([1, float("inf"), 30, 40, 0.9], "not_finite_box"),
        ([30, 2, 1, 40, 0.9], "inverted_box"),
        ([1, 2, 1.5, 40, 0.9], "empty_box"),
    ],
)
def test_bad_boxes(tmp_path: Path, box: Any, reason: str) -> None:
    still = metadata(boxes=[*metadata()["boxes"][:3], box])
    found = built(tmp_path, record(rationale_label=0), stills={CLIP: still})
    assert [(r.unit, r.reason) for r in found.rejects] == [("box", reason)]
    assert len(found.samples) == 1


def test_the_budget_of_regions(tmp_path: Path) -> None:
    found = built(
        tmp_path, record(), record(rationale_label=0), options=BuildOptions(max_objects=1)
    )
    assert found.reasons == {"too_many_regions": 1}


@pytest.mark.parametrize(
    "lines",
    [[], ["{}"], [record(annot_id="test-0")], [record(annot_id="val-0"), record(annot_id="val-1")]],
)
def test_another_file_or_split_is_refused(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(
        SettingError, match=r"vcr/train\.jsonl: none of its \d records could be used"
    ):
        built(tmp_path, *lines)


def test_boxes_as_sizes_are_refused(tmp_path: Path) -> None:
    boxes = [[150, 60, 40 + n, 30, 0.9] for n in range(4)]
    stills = {f"m/{n}": metadata(boxes=boxes) for n in range(10)}
    with pytest.raises(SettingError, match="declared xyxy"):
        built(tmp_path, *[other(str(n)) for n in range(10)], stills=stills)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"vcr/train\.jsonl not found"):
        list(DATASETS[0].samples(DataFolders(str(tmp_path)), BuildOptions()))
