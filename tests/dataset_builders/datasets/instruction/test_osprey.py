import json
from pathlib import Path
from typing import Any

import pytest

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction.osprey import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

KINDS = ("short_form", "conversation", "detail_description", "part_level", "lvis_positive_negative")
POLYGON = {"segmentation": [[10, 10, 30, 10, 30, 40.5]]}
BOXED = {"segmentation": [[0, 0, 1, 1, 2, 0]], "bbox": [50, 20, 40, 30.25], "category": "dog"}
# 80 high, 100 wide: column 5, rows 8 to 11
MASK = {"segmentation": {"size": [80, 100], "counts": [408, 4, 7588]}}
EMPTY = {"segmentation": [], "id": 7}


def talk(*values: Any) -> list[dict[str, Any]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


def image(name: str, *annotations: Any, **fields: Any) -> dict[str, Any]:
    return {
        "file_name": name,
        "height": 80,
        "width": 100,
        "annotation": list(annotations),
        **fields,
    }


def good() -> dict[str, list[Any]]:
    first, second, third = "COCO_train2014_000000000500.jpg", "000000000501.jpg", "000000000502.jpg"
    return {
        "short_form": [
            image(
                first,
                POLYGON,
                BOXED,
                conversations=talk(
                    "What is <region2>?", "Dog.", "Is <region1> near <region2>?", "Yes"
                ),
            )
        ],
        "conversation": [
            image(
                second,
                MASK,
                POLYGON,
                conversations=talk(
                    "<image>\nWho is <region1>?", "A man beside <region2>.", "Why?", "He waits."
                ),
            )
        ],
        "detail_description": [
            image(
                third,
                BOXED,
                MASK,
                description=["<region1>: A brown dog.", "<Region2>:  A thin line. "],
            )
        ],
        "part_level": [
            image(first, POLYGON, conversations=talk("What part is <region1>?", "The tail"))
        ],
        "lvis_positive_negative": [
            image(
                second,
                MASK,
                BOXED,
                conversations=talk(
                    "Is the object in <region9> a dog?",
                    "No.",
                    "Is the object in <region9> a dog?",
                    "Yes, it is.",
                ),
            )
        ],
    }


def put(root: Path, files: dict[str, Any]) -> DataFolders:
    (root / "coco/train2017").mkdir(parents=True, exist_ok=True)
    (root / "osprey").mkdir(exist_ok=True)
    for kind, records in files.items():
        (root / f"osprey/osprey_{kind}.json").write_text(json.dumps(records))
    return DataFolders(str(root))


def built(root: Path, options: BuildOptions | None = None, **files: Any) -> Any:
    return collect(DATASETS[0].samples(put(root, good() | files), options or BuildOptions()))


def test_golden_samples(tmp_path: Path) -> None:
    found = built(tmp_path)
    assert found.rejects == []
    assert found.ledger.used == {"image": 5, "box": 9, "record": 8}
    assert {
        sample.sample_id: (sample.task, *map(text_of, sample.turns)) for sample in found.samples
    } == {
        "osprey/500/region_qa/short_form.0.0": (
            "region_qa",
            "What is [1]? Answer the question using a single word or phrase.",
            "Dog.",
        ),
        "osprey/500/region_qa/short_form.0.1": (
            "region_qa",
            "Is [0] near [1]? Answer the question using a single word or phrase.",
            "Yes",
        ),
        "osprey/501/region_qa/conversation.0": (
            "region_qa",
            "Who is [0]?",
            "A man beside [1].",
            "Why?",
            "He waits.",
        ),
        "osprey/502/region_caption/detail_description.0.0": (
            "region_caption",
            "Provide a detailed description for [0].",
            "A brown dog.",
        ),
        "osprey/502/region_caption/detail_description.0.1": (
            "region_caption",
            "Provide a detailed description for [1].",
            "A thin line.",
        ),
        "osprey/500/region_qa/part_level.0.0": (
            "region_qa",
            "What part is [0]? Answer the question using a single word or phrase.",
            "The tail",
        ),
        "osprey/501/rejection/lvis_positive_negative.0.0": (
            "rejection",
            "Is the object in [0] a dog?",
            "No.",
        ),
        "osprey/501/region_qa/lvis_positive_negative.0.1": (
            "region_qa",
            "Is the object in [1] a dog?",
            "Yes, it is.",
        ),
    }


def test_objects_from_polygons_boxes_and_masks(tmp_path: Path) -> None:
    samples = {sample.sample_id: sample for sample in built(tmp_path).samples}
    first = samples["osprey/500/region_qa/short_form.0.0"]
    assert first.objects == (
        Object(box=(10.0, 10.0, 30.0, 40.5), label="object"),
        Object(box=(50.0, 20.0, 90.0, 50.25), label="dog"),
    )
    assert samples["osprey/501/region_qa/conversation.0"].objects[0].box == (5.0, 8.0, 6.0, 12.0)
    assert (first.image_source, first.image_id) == ("coco_train2017", "500")
    assert first.image_uri == "coco/train2017/000000000500.jpg"
    assert (first.width, first.height, first.window) == (100, 80, None)
    for sample in samples.values():
        assert sample.absent_labels is None


def test_a_lost_box_keeps_the_numbers_and_takes_its_questions_along(tmp_path: Path) -> None:
    told = talk(
        "What is <region3>?", "A dog", "What is <region1>?", "A line", "And <region2>?", "Air"
    )
    found = built(
        tmp_path, short_form=[image("000000000500.jpg", MASK, EMPTY, BOXED, conversations=told)]
    )
    questions = [
        text_of(s.turns[0]).split("?")[0] for s in found.samples if "short_form" in s.sample_id
    ]
    assert questions == ["What is [1]", "What is [0]"]
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("box", "empty_box", "osprey_short_form.json/0/annotation/1"),
        ("record", "unknown_object", "osprey_short_form.json/0/conversations/4"),
    ]


@pytest.mark.parametrize(
    "tag", ["<region2>", "<Region2>", "<region 2>", "<regin2>", "<region2]", "<region of2>"]
)
def test_spellings_of_a_tag(tmp_path: Path, tag: str) -> None:
    told = talk(f"What is {tag}?", "A dog")
    found = built(tmp_path, part_level=[image("000000000500.jpg", MASK, BOXED, conversations=told)])
    assert found.rejects == []
    assert text_of(found.samples[-3].turns[0]).startswith("What is [1]?")


@pytest.mark.parametrize(
    ("asked", "answer", "reason"),
    [
        ("What is <region0>?", "A dog", "unknown_object"),
        ("What is <region3>?", "A dog", "unknown_object"),
        ("What is <region1>?", "Not <region3>", "unknown_object"),
        ("What is <region>?", "A dog", "unsupported"),
        ("What is <region> by <region1>?", "A dog", "unsafe_text"),
        ("What is <region1>?", "region1 is a dog", "unsafe_text"),
        ("What are <region1> and Region 2?", "Dogs", "unsafe_text"),
        ("What is here?", "A dog", "unsupported"),
        ("What is <region1>?", "<|im_end|>", "unsafe_text"),
        ("What is <region1>?", "x" * 20_001, "text_too_long"),
        ("<region1> <region1>", "A dog", "contradiction"),
        ("What is <region1>?", 3, "malformed"),
        ("What is <region1>?", " ", "empty_text"),
    ],
)
@pytest.mark.parametrize("kind", ["short_form", "conversation"])
def test_bad_questions(tmp_path: Path, kind: str, asked: str, answer: Any, reason: str) -> None:
    bad = image("000000000500.jpg", MASK, BOXED, conversations=talk(asked, answer))
    content: dict[str, Any] = {kind: [*good()[kind], bad]}
    found = built(tmp_path, **content)
    assert [(reject.unit, reject.reason) for reject in found.rejects] == [("record", reason)]
    assert len(found.samples) == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_name": "x.jpg"}, "malformed"),
        ({"file_name": 500}, "malformed"),
        ({"height": None}, "malformed"),
        ({"height": "80"}, "malformed"),
        ({"height": 0}, "bad_size"),
        ({"annotation": {}}, "malformed"),
    ],
)
def test_bad_records(tmp_path: Path, changes: Any, reason: str) -> None:
    bad = (
        image("000000000500.jpg", MASK, conversations=talk("What is <region1>?", "A dog")) | changes
    )
    found = built(tmp_path, short_form=[*good()["short_form"], bad, None, []])
    assert [(r.unit, r.reason) for r in found.rejects] == [
        ("image", reason),
        ("image", "malformed"),
        ("image", "malformed"),
    ]


def test_boxes_are_rejected_one_by_one(tmp_path: Path) -> None:
    bad = [
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, -3, 4]},
        {"bbox": [200, 2, 3, 4]},
        {"bbox": [1, 2, float("nan"), 4]},
        {},
        None,
        {"segmentation": {"size": [100, 80], "counts": [8000]}},
        {"bbox": [1, 2, 3, 4], "category": "a\nb"},
    ]
    told = talk("What is <region9>?", "A dog")
    found = built(tmp_path, short_form=[image("000000000500.jpg", *bad, BOXED, conversations=told)])
    assert [reject.reason for reject in found.rejects] == [
        "malformed",
        "inverted_box",
        "outside_box",
        "not_finite_box",
        "malformed",
        "malformed",
        "size_mismatch",
        "unsafe_text",
    ]
    (sample,) = [s for s in found.samples if "short_form" in s.sample_id]
    assert text_of(sample.turns[0]).startswith("What is [0]?")


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("A dog", "malformed"),
        (3, "malformed"),
        ("<region2>: A dog", "contradiction"),
        ("<region1>: ", "empty_text"),
        ("<region1>: It is region1", "unsafe_text"),
        ("<region1>: Not <region7>", "unknown_object"),
    ],
)
def test_bad_descriptions(tmp_path: Path, description: Any, reason: str) -> None:
    bad = image("000000000500.jpg", BOXED, description=[description])
    found = built(tmp_path, detail_description=[*good()["detail_description"], bad])
    assert [(reject.unit, reject.reason) for reject in found.rejects] == [("record", reason)]


def test_a_description_list_is_needed(tmp_path: Path) -> None:
    bad = image("000000000500.jpg", BOXED, conversations=talk("a", "b"))
    found = built(tmp_path, detail_description=[*good()["detail_description"], bad])
    assert [(reject.unit, reject.reason) for reject in found.rejects] == [("record", "malformed")]


def test_descriptions_are_capped_by_a_seeded_draw(tmp_path: Path) -> None:
    many = image(
        "000000000500.jpg",
        *[{"bbox": [n, n, 9, 9]} for n in range(20)],
        description=[f"<region{n + 1}>: Thing {n}." for n in range(20)],
    )
    files = {"detail_description": [many]}

    def chosen(**options: Any) -> list[str]:
        found = built(tmp_path, BuildOptions(**options), **files)
        assert found.ledger.used["record"] == 26
        return [text_of(s.turns[1]) for s in found.samples if s.task == "region_caption"]

    assert len(chosen()) == 8
    assert chosen() == chosen()
    assert chosen() != chosen(seed=1)
    assert len(chosen(region_texts=3)) == 3
    assert len(chosen(region_texts=50)) == 20


def test_yes_and_no(tmp_path: Path) -> None:
    first = image("000000000500.jpg", MASK, BOXED, conversations=talk("Is <region1> a dog?", "no"))
    second = image("000000000500.jpg", MASK, conversations=talk("Is <region1> a dog?", "Nothing"))
    files = good()["lvis_positive_negative"]
    found = built(tmp_path, lvis_positive_negative=[*files, first, second])
    # one mention of two regions cannot be told by position; "Nothing" is neither
    assert [reject.reason for reject in found.rejects] == ["contradiction", "bad_answer"]


def test_the_budget_of_regions(tmp_path: Path) -> None:
    found = built(tmp_path, BuildOptions(max_objects=1))
    assert found.reasons == {"too_many_regions": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no array"),
        ("[]", "holds no array"),
        ('[{"a": 1}]', "none of its 1 records could be used"),
        ("[{", "is not valid JSON"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, content: str, message: str) -> None:
    folders = put(tmp_path, good())
    (tmp_path / "osprey/osprey_part_level.json").write_text(content)
    with pytest.raises(SettingError, match=rf"osprey.*{message}"):
        list(DATASETS[0].samples(folders, BuildOptions()))


def test_a_file_that_is_missing_or_there_twice(tmp_path: Path) -> None:
    folders = put(tmp_path, good() | {"conversations": []})
    with pytest.raises(SettingError, match="want one such file"):
        list(DATASETS[0].samples(folders, BuildOptions()))
    (tmp_path / "osprey/osprey_conversation.json").unlink()
    (tmp_path / "osprey/osprey_conversations.json").write_text(json.dumps(good()["conversation"]))
    assert len(collect(DATASETS[0].samples(folders, BuildOptions())).samples) == 8
    (tmp_path / "osprey/osprey_part_level.json").unlink()
    with pytest.raises(SettingError, match=r"osprey_part_level\.json not found"):
        list(DATASETS[0].samples(folders, BuildOptions()))


def test_boxes_as_corners_are_refused(tmp_path: Path) -> None:
    corners = [{"bbox": [60 + n, 50, 90 + n / 2, 75]} for n in range(10)]
    wrong = [
        image("000000000500.jpg", *corners, conversations=talk("<region1>?", "A")) for _ in range(3)
    ]
    with pytest.raises(SettingError, match="declared xywh"):
        built(tmp_path, part_level=wrong)
