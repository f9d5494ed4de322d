import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.instruction.cogvlm import DATASETS, FOLDERS
from dataset_builders.errors import SettingError
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, rotated, write

(SPEC,) = DATASETS
DETAILS, MULTI, SINGLE = FOLDERS
PICTURE = Image.new("RGB", (64, 48))


def talk(*contents: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "conversations": [
            {"role": roles[n % 2], "content": content} for n, content in enumerate(contents)
        ]
    }


def captions(*contents: Any) -> dict[str, Any]:
    return {"captions": [{"role": "caption", "content": content} for content in contents]}


def put(
    root: Path, folder: str, labels: str, number: int, content: Any, image: bytes | None = None
) -> None:
    write(root / f"{folder}/images/{number:08d}.jpg", image or jpeg(PICTURE))
    raw = (
        content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    )
    write(root / f"{folder}/{labels}/{number:08d}.json", raw)


def write_all(root: Path) -> None:
    put(root, DETAILS, "labels", 1, captions("A beach with  ten surfers."))
    put(
        root,
        MULTI,
        "labels_en",
        1,
        talk("What is it?", "A zebra.", "Where?", "Under a tree."),
        rotated(PICTURE),
    )
    put(root, MULTI, "labels_zh", 1, talk("这是什么", "斑马。"), rotated(PICTURE))
    put(
        root,
        SINGLE,
        "labels",
        7,
        b"\xef\xbb\xbf" + json.dumps(talk("Why?", "For shade.\r\nPerhaps.")).encode(),
    )


def build(root: Path, **options: Any) -> Any:
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions(**options)))


def test_golden_samples(tmp_path: Path) -> None:
    write_all(tmp_path)
    built = build(tmp_path)
    assert built.rejects == []
    assert built.ledger.used == {"record": 4}
    caption, english, chinese, single = built.samples
    assert (caption.task, caption.sample_id) == (
        "caption",
        "cogvlm_sft/llava_details-minigpt4_3500_formate/images/00000001/caption/labels-0",
    )
    assert [text_of(turn) for turn in caption.turns] == [
        "Provide a detailed description for this image.",
        "A beach with  ten surfers.",
    ]
    assert caption.image_uri == "cogvlm_sft/llava_details-minigpt4_3500_formate/images/00000001.jpg"
    assert (caption.image_source, caption.width, caption.height, caption.objects) == (
        "cogvlm_sft",
        64,
        48,
        (),
    )
    assert [(turn.role, text_of(turn)) for turn in english.turns] == [
        ("user", "What is it?"),
        ("assistant", "A zebra."),
        ("user", "Where?"),
        ("assistant", "Under a tree."),
    ]
    assert (english.task, english.image_id) == (
        "instruction",
        "llava_instruction_multi_conversations_formate/images/00000001",
    )
    assert (english.width, english.height) == (64, 48)
    assert chinese.image_id == english.image_id
    assert [text_of(turn) for turn in chinese.turns] == ["这是什么", "斑马。"]
    assert text_of(single.turns[1]) == "For shade.\nPerhaps."
    assert single.image_id == "llava_instruction_single_conversation_formate/images/00000007"


def test_several_captions_and_paraphrased_questions(tmp_path: Path) -> None:
    write_all(tmp_path)
    put(tmp_path, DETAILS, "labels", 2, captions("One.", "Two."))
    built = build(tmp_path, paraphrases=True)
    told = [
        (s.sample_id[-8:], text_of(s.turns[1])) for s in built.samples if s.image_id.endswith("2")
    ]
    assert told == [("labels-0", "One."), ("labels-1", "Two.")]
    asked = {
        text_of(s.turns[0])
        for seed in range(9)
        for s in build(tmp_path, paraphrases=True, seed=seed).samples
    }
    assert len({question for question in asked if "etail" in question or "photo" in question}) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{broken", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        ([], "malformed"),
        ({}, "malformed"),
        ({"captions": []}, "malformed"),
        ({"captions": "A beach."}, "malformed"),
        ({"captions": [{"role": "user", "content": "A beach."}]}, "malformed"),
        ({"captions": ["A beach."]}, "malformed"),
        (captions(5), "malformed"),
        (captions(""), "empty_text"),
        (captions("a <ground>b"), "unsafe_text"),
        (captions("good", "a\u202eb"), "unsafe_text"),
        (captions("x" * 20_001), "text_too_long"),
        (talk("Why?"), "malformed"),
        (talk("Why?", None), "malformed"),
        (talk("Why?", " "), "empty_text"),
        (talk("<image>Why?", "a"), "unsafe_text"),
        ({"conversations": talk("Why?", "a")["conversations"][::-1]}, "malformed"),
        ({"conversations": []}, "malformed"),
        (b" " * (8 * 2**20 + 1), "malformed"),
    ],
)
def test_bad_labels_are_rejected_with_their_reason(
    tmp_path: Path, content: Any, reason: str
) -> None:
    write_all(tmp_path)
    put(tmp_path, SINGLE, "labels", 8, content)
    built = build(tmp_path)
    assert built.reasons == {reason: 1}
    assert (
        built.rejects[0].record_id
        == "llava_instruction_single_conversation_formate/labels/00000008.json"
    )
    assert len(built.samples) == 4


def test_images_that_are_missing_or_broken(tmp_path: Path) -> None:
    write_all(tmp_path)
    put(tmp_path, SINGLE, "labels", 8, talk("a", "b"), b"no picture")
    put(tmp_path, SINGLE, "labels", 9, talk("a", "b"))
    (tmp_path / f"{SINGLE}/images/00000009.jpg").unlink()
    assert build(tmp_path).reasons == {"undecodable_image": 1, "missing_image": 1}


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"llava_details-minigpt4_3500_formate/labels\*/\*\.json not found"
    ):
        build(tmp_path)
    write_all(tmp_path)
    for number in range(1, 121):
        put(tmp_path, DETAILS, "labels", number, {"caption": "A beach."})
    with pytest.raises(SettingError, match=r"(?s)none of the first 100 records.*layout is"):
        build(tmp_path)
