import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.drawn_world import datasets as drawn_world
from dataset_builders.errors import SettingError
from dataset_builders.names import plural
from dataset_builders.readers.coco_images import coco_source
from dataset_builders.tasks.counting import build
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import coco_records, collect, text_of

DATASETS = {spec.name: spec for spec in drawn_world.DATASETS}
SOURCE = coco_source("pictures", file="toy/instances.json", folder="toy/train2014", num_buckets=4)


def row(number: int, image: str, question: Any, answer: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "image": f"train2014/{image}.jpg",
        "image_id": 92410408,
        "question": question,
        "answer": answer,
        "data_source": "amt",
    }


def questions() -> list[dict[str, Any]]:
    return [
        row(0, "seven", "How many cats are there?", 2),
        row(1, "seven", "How many cats are in the picture?", 3),  # boxes disagree
        row(2, "seven", "How many whiskers does the cat have?", 9),  # no category
        row(3, "five", "How many dogs do you see?", 0),
        row(4, "three", "How many cats are there?", 1),  # a crowd of cats beside it
        row(5, "seven", "how many DOGS are there in this image?", 1),
    ]


@pytest.fixture
def tally_root(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        (tmp_path / "toy/train2014").mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy/instances.json").write_text(json.dumps(coco_records()))
        (tmp_path / "toy/train.json").write_text(json.dumps(content))
        return tmp_path

    return write


def build_tally(root: Path) -> Any:
    return collect(
        build(
            DataFolders(str(root)),
            BuildOptions(),
            dataset="tallyqa",
            questions="toy/train.json",
            instances="toy/instances.json",
            folder="toy/train2014",
            source=SOURCE,
        )
    )


def test_golden_samples(tally_root: Any) -> None:
    built = build_tally(tally_root(questions()))
    assert built.ledger.used == {"image": 3, "box": 5, "category": 3, "record": 6}
    located = (
        " Count each instance of the target object. "
        "Locate them with object indexes and then answer the question"
    )
    assert (
        text_of(built.samples[0].turns[0])
        == f"How many cats are there?{located} with the number of objects."
    )
    assert text_of(built.samples[1].turns[0]) == (
        "How many cats are in the picture? Answer the question with the number of objects."
    )
    assert [text_of(sample.turns[1]) for sample in built.samples] == [
        "cat[0,2]\nThere are 2.",
        "There are 3.",
        "There are 9.",
        "There are 0.",
        "There are 1.",
        "dog[1]\nThere are 1.",
    ]
    assert located in text_of(built.samples[3].turns[0])
    assert located not in text_of(built.samples[4].turns[0])
    assert built.samples[0].sample_id == "tallyqa/7/counting/0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": -1}, "bad_answer"),
        ({"answer": "2"}, "malformed"),
        ({"answer": 2.5}, "malformed"),
        ({"image": "train2014/none.jpg"}, "unknown_image"),
        ({"image": 4}, "malformed"),
        ({"question": ""}, "empty_text"),
        ({"question": "how many <region3>?"}, "unsafe_text"),
        ({"question": "a" * 30_000}, "text_too_long"),
        ({"question_id": 1}, "duplicate_id"),
        ({"question_id": None}, "malformed"),
    ],
)
def test_bad_questions_are_rejected_with_their_reason(
    tally_root: Any, change: dict, reason: str
) -> None:
    rows = questions()
    rows[5] |= change
    built = build_tally(tally_root(rows))
    assert built.reasons == {reason: 1}


def test_an_empty_or_wrong_file_is_named(tally_root: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"train\.json holds no questions"):
        build_tally(tally_root({"questions": []}))
    with pytest.raises(SettingError, match=r"tally/val\.json not found"):
        next(DATASETS["drawn_tally_val"].samples(DataFolders(str(tmp_path)), BuildOptions()))


def test_plurals() -> None:
    for noun, many in {
        "dog": "dogs",
        "bus": "buses",
        "bench": "benches",
        "teddy bear": "teddy bears",
        "toothbrush": "toothbrushes",
        "person": "people",
        "sheep": "sheep",
        "key": "keys",
        "puppy": "puppies",
    }.items():
        assert plural(noun) == many


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_questions_are_used_or_rejected(data: Any, tally_root: Any) -> None:
    rows: list[Any] = copy.deepcopy(questions())
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-3, 99)
        | st.floats()
        | st.text(max_size=9)
        | st.just([])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, 5))
        if not isinstance(rows[index], dict) or data.draw(st.integers(0, 4)) == 0:
            rows[index] = data.draw(junk)
        else:
            rows[index][data.draw(st.sampled_from(sorted(rows[index])))] = data.draw(junk)
    built = build_tally(tally_root(rows))
    assert built.ledger.read["record"] == 6
    for sample in built.samples:
        validate(sample)


def test_the_drawn_world(drawn_root: Path) -> None:
    folders = DataFolders(str(drawn_root.parent), moved={"drawn": str(drawn_root)})
    built = collect(DATASETS["drawn_tally_train"].samples(folders, BuildOptions()))
    assert built.rejects == []
    assert len(built.samples) == 120
    answers = [text_of(sample.turns[1]) for sample in built.samples]
    assert 20 < sum("[" in answer for answer in answers) < 80
    assert "There are 0." in answers
