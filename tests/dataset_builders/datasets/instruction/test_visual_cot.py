import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.instruction.visual_cot import BOX_REQUEST, DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import rotated

LINES, MIXED = DATASETS
STEPS = (
    "Within the reasoning process, please provide image regions that can help you answer the "
    "question better. "
)
THINK = (
    "First thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> "
    "</answer> tags, respectively, i.e., <think> reasoning process here </think><answer> answer "
    "here </answer>. Please give a detailed reasoning process process and provide image regions "
    "that can help you answer the question better. "
)
HELP = "The image regions that can help answer the question better are: "


def line(question: str = "Is it red?", answer: Any = "Yes", **changes: Any) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer,
        "image": "001.Albatross/a_1.jpg",
        "width": 500,
        "height": 336,
        "bboxs": [[139.0, 30.0, 292.3399999, 294.0]],
        "dataset": "cub",
        "split": "train",
    } | changes


def put_lines(root: Path, *records: Any, name: str = "cub") -> DataFolders:
    (root / "visual_cot/cot").mkdir(parents=True, exist_ok=True)
    (root / "visual_cot/viscot_dataset").mkdir(exist_ok=True)
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    (root / f"visual_cot/viscot_dataset/{name}_cot_train.jsonl").write_text(text)
    return DataFolders(str(root))


def built_lines(root: Path, *records: Any, options: BuildOptions | None = None) -> Any:
    return collect(LINES.samples(put_lines(root, *records), options or BuildOptions()))


def test_golden_lines(tmp_path: Path) -> None:
    found = built_lines(
        tmp_path,
        line("What  is\nit?", "A bird.", bboxs=[[10, 20, 110, 90], [300, 0, 400, 50]]),
        line(),
        line(
            "Blue?",
            "No",
            image="X51.jpg",
            dataset="sroie",
            width=592,
            height=982,
            bboxs=[[57, 179, 999, 530]],
        ),
    )
    assert found.rejects == []
    assert found.ledger.used == {"record": 3, "box": 4}
    first, second, third = found.samples
    assert first.sample_id == "visual_cot/cot/cub/001.Albatross/a_1/reasoning/cub_cot_train.jsonl.1"
    assert (first.task, first.image_source, first.width, first.height) == (
        "reasoning",
        "visual_cot",
        500,
        336,
    )
    assert first.image_uri == "visual_cot/cot/cub/001.Albatross/a_1.jpg"
    assert first.objects == (
        Object(box=(10.0, 20.0, 110.0, 90.0), label="evidence"),
        Object(box=(300.0, 0.0, 400.0, 50.0), label="evidence"),
    )
    thinks = f"<think>{HELP}[0,1].</think><answer>A bird.</answer>"
    assert [text_of(turn) for turn in first.turns] in (
        [STEPS + "What is it?", f"{HELP}[0,1]. A bird."],
        [THINK + "What is it?", thinks],
    )
    assert second.objects[0].box == pytest.approx((139.0, 30.0, 292.34, 294.0), abs=1e-4)
    assert third.image_id == "cot/sroie/X51"
    assert third.objects[0].box == (57.0, 179.0, 592.0, 530.0)  # clipped


def test_both_forms_are_made_and_depend_on_the_seed(tmp_path: Path) -> None:
    records = [line(f"Is it {n}?") for n in range(40)]

    def forms(seed: int = 0) -> list[bool]:
        samples = built_lines(tmp_path, *records, options=BuildOptions(seed=seed)).samples
        for n, sample in enumerate(samples):
            said = tuple(map(text_of, sample.turns))
            assert said in (
                (f"{STEPS}Is it {n}?", f"{HELP}[0]. Yes"),
                (f"{THINK}Is it {n}?", f"<think>{HELP}[0].</think><answer>Yes</answer>"),
            )
        return [text_of(sample.turns[1]).startswith("<think>") for sample in samples]

    assert 8 < sum(forms()) < 32
    assert forms() == forms()
    assert forms() != forms(1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        (line(split="val"), "benchmark_image"),
        (line(answer=3), "malformed"),
        (line(answer=""), "empty_text"),
        (line("Is <region1> red?"), "unsafe_text"),
        (line(answer="</think><answer>No"), "unsafe_text"),
        (line("Ignore < ANSWER >"), "unsafe_text"),
        (line(image="../../x.jpg"), "unsafe_path"),
        (line(dataset=".."), "unsafe_path"),
        (line(image=None), "malformed"),
        (line(width="500"), "malformed"),
        (line(width=0), "bad_size"),
        (line(bboxs={}), "malformed"),
        (line(bboxs=[]), "unknown_object"),
        (line(bboxs=[[1, 2, 3, 4]] * 101), "too_many_regions"),
        ({key: value for key, value in line().items() if key != "bboxs"}, "malformed"),
    ],
)
def test_bad_lines(tmp_path: Path, bad: Any, reason: str) -> None:
    found = built_lines(tmp_path, bad, line())
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("record", reason, "cub_cot_train.jsonl/1")
    ]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([586, 435, 683, 517], "outside_box"),
        ([139, 30, 139, 294], "empty_box"),
        ([292, 294, 139, 30], "inverted_box"),
        ([139, 30, float("nan"), 294], "not_finite_box"),
        ([139, 30, 292], "malformed"),
        ("box", "malformed"),
    ],
)
def test_degenerate_boxes_are_counted(tmp_path: Path, box: Any, reason: str) -> None:
    found = built_lines(tmp_path, line(bboxs=[box]), line(bboxs=[box, [1, 2, 30, 40]]))
    assert [(r.unit, r.reason) for r in found.rejects] == [
        ("box", reason),
        ("record", "unknown_object"),
        ("box", reason),
    ]
    (sample,) = found.samples
    assert sample.objects == (Object(box=(1.0, 2.0, 30.0, 40.0), label="evidence"),)


def test_boxes_as_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"cub_cot_train\.jsonl.*declared xyxy"):
        built_lines(tmp_path, *[line(bboxs=[[0.1, 0.2, 0.5, 0.6]])] * 30)


def test_where_the_images_of_a_set_lie(tmp_path: Path) -> None:
    put_lines(tmp_path, line(dataset="textcap", image="a.jpg"), name="textcap")
    put_lines(tmp_path, line(dataset="visual7w", image="v7w_1.jpg"), name="visual7w")
    folders = put_lines(tmp_path, line())

    def uris() -> list[str]:
        return [
            sample.image_uri
            for sample in collect(LINES.samples(folders, BuildOptions())).samples[1:]
        ]

    assert uris() == ["visual_cot/cot/textvqa/a.jpg", "visual_cot/cot/visual7w/v7w_1.jpg"]
    (tmp_path / "visual_cot/cot/v7w").mkdir()
    assert uris()[1] == "visual_cot/cot/v7w/v7w_1.jpg"


@pytest.mark.parametrize(
    "content", ["", "[\n{},\n{}\n]\n", "x\n", json.dumps(line(split="val")) + "\n"]
)
def test_a_line_file_of_another_form(tmp_path: Path, content: str) -> None:
    put_lines(tmp_path, line(), name="vsr")
    folders = put_lines(tmp_path, line())
    (tmp_path / "visual_cot/viscot_dataset/vsr_cot_train.jsonl").write_text(content)
    with pytest.raises(
        SettingError, match=r"vsr_cot_train\.jsonl: none of its \d records could be used"
    ):
        list(LINES.samples(folders, BuildOptions()))


def test_no_files(tmp_path: Path) -> None:
    (tmp_path / "visual_cot/cot").mkdir(parents=True)
    with pytest.raises(SettingError, match="not found"):
        list(LINES.samples(DataFolders(str(tmp_path)), BuildOptions()))
    with pytest.raises(SettingError, match="not found"):
        list(MIXED.samples(DataFolders(str(tmp_path)), BuildOptions()))


# the three boxes are those of viscot_benchmark/benchmark/gqa.json: 391 x 500 and 500 x 374 pixels
def mixed(
    path: str = "cot/gqa/2316539.jpg",
    crop: str = "[217, 343, 242, 393]",
    told: Any = "[0.542, 0.686, 0.592, 0.786]",
    question: str = "What is it?",
    answer: Any = "window",
) -> dict[str, Any]:
    values = [f"<image>\n{question} {BOX_REQUEST}", told, "<image>", answer]
    return {
        "dataset": "gqa",
        "split": "train",
        "question_id": 7,
        "image": [path, f"{path}###{crop}"],
        "conversations": [
            {"from": ("human", "gpt")[n % 2], "value": v} for n, v in enumerate(values)
        ],
    }


def put_mixed(root: Path, *records: Any) -> DataFolders:
    (root / "visual_cot/cot/gqa").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (391, 500)).save(root / "visual_cot/cot/gqa/2316539.jpg")
    Image.new("RGB", (500, 374)).save(root / "visual_cot/cot/gqa/2.jpg")
    (root / "visual_cot/cot/gqa/broken.jpg").write_bytes(b"no picture")
    (root / "visual_cot/cot/gqa/turned.jpg").write_bytes(rotated(Image.new("RGB", (391, 500))))
    (root / "visual_cot/viscot_363k.json").write_text(json.dumps(records))
    return DataFolders(str(root))


def built_mixed(root: Path, *records: Any) -> Any:
    return collect(MIXED.samples(put_mixed(root, *records), BuildOptions()))


def test_golden_conversations(tmp_path: Path) -> None:
    second = mixed(
        "cot/gqa/2.jpg", "[10, 68, 60, 100]", "[0.020, 0.262, 0.120, 0.326]", "Where?", "There"
    )
    # shown upright it is 391 x 500 again, so that the boxes hold
    third = mixed("cot/gqa/turned.jpg")
    found = built_mixed(tmp_path, mixed(), second, third)
    assert found.rejects == []
    assert [sample.sample_id for sample in found.samples] == [
        "visual_cot_mixed/cot/gqa/2316539/reasoning/viscot_363k.json.0",
        "visual_cot_mixed/cot/gqa/2/reasoning/viscot_363k.json.1",
        "visual_cot_mixed/cot/gqa/turned/reasoning/viscot_363k.json.2",
    ]
    assert [sample.objects[0].box for sample in found.samples] == [
        (217.0, 343.0, 242.0, 393.0),
        (10.0, 68.0, 60.0, 100.0),
        (217.0, 343.0, 242.0, 393.0),
    ]
    assert [(sample.width, sample.height) for sample in found.samples] == [
        (391, 500),
        (500, 374),
        (391, 500),
    ]
    for sample, asked in zip(found.samples, ("What is it?", "Where?", "What is it?"), strict=True):
        assert text_of(sample.turns[0]) in (STEPS + asked, THINK + asked)


def edited(**changes: Any) -> dict[str, Any]:
    return mixed() | changes


def message(number: int, **changes: Any) -> dict[str, Any]:
    record = mixed()
    record["conversations"][number] |= changes
    return record


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "malformed"),
        (edited(split="val"), "benchmark_image"),
        (edited(image="cot/gqa/2.jpg"), "malformed"),
        (edited(image=["cot/gqa/2.jpg"]), "malformed"),
        (edited(image=["cot/gqa/2.jpg", "cot/gqa/2.jpg"]), "malformed"),
        (edited(image=["cot/gqa/1.jpg", "cot/gqa/2.jpg###[1, 2, 3, 4]"]), "several_images"),
        (mixed(crop="[1, 2, 3]"), "malformed"),
        (mixed(crop="[1, 2"), "malformed"),
        (mixed(told="on the left"), "malformed"),
        (mixed(told=[1, 2, 3, 4]), "malformed"),
        (mixed(answer=None), "malformed"),
        (message(2, value="<image>\nand?"), "malformed"),
        (message(2, **{"from": "gpt"}), "malformed"),
        (message(1, **{"from": "human"}), "malformed"),
        (message(0, value="<image>\nWhat is it?"), "malformed"),
        (edited(conversations=mixed()["conversations"][:2]), "malformed"),
        (mixed(question="<image>"), "several_images"),
        (mixed(question=""), "empty_text"),
        (mixed("cot/gqa/none.jpg"), "missing_image"),
        (mixed("cot/gqa/broken.jpg"), "undecodable_image"),
        (mixed("/etc/passwd"), "unsafe_path"),
        (mixed("gqa/2.jpg"), "unknown_image"),
        (mixed(told="[0.1, 0.686, 0.592, 0.786]"), "contradiction"),
        # shares of the image itself, not of the padded square
        (mixed(told="[0.555, 0.686, 0.619, 0.786]"), "contradiction"),
        (mixed(told="[0.542, NaN, 0.592, 0.786]"), "contradiction"),
    ],
)
def test_bad_conversations(tmp_path: Path, bad: Any, reason: str) -> None:
    found = built_mixed(tmp_path, bad, mixed())
    assert [(r.unit, r.reason, r.record_id) for r in found.rejects] == [
        ("record", reason, "viscot_363k.json/0")
    ]


def test_a_crop_outside_the_image(tmp_path: Path) -> None:
    outside = mixed(crop="[400, 0, 500, 40]", told="[0.908, 0.0, 1.108, 0.080]")
    found = built_mixed(tmp_path, outside, mixed(crop="[NaN, 343, 242, 393]"), mixed())
    assert [(r.unit, r.reason) for r in found.rejects] == [
        ("box", "outside_box"),
        ("record", "unknown_object"),
        ("box", "not_finite_box"),
        ("record", "unknown_object"),
    ]


def test_the_other_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="none of its 1 records could be used"):
        built_mixed(tmp_path, line())
