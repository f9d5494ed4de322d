from typing import Any

import pytest

from dataset_builders.readers.conversations import read_image, read_turns, text_turns
from dataset_builders.records import BadRecord, Part, Turn


def record(*values: Any, roles: tuple[str, ...] = ("human", "gpt")) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": roles[number % len(roles)], "value": value}
            for number, value in enumerate(values)
        ]
    }


@pytest.mark.parametrize(
    "stored",
    [
        "<image>\nWhat is it?",
        "What is it?\n<image>",
        "<image>What is it?",
        "<image> What is it? ",
        "What is it?",
        "\r\n<image>\r\nWhat is it?\r\n",
    ],
)
def test_the_marker_is_taken_away_at_either_end(stored: str) -> None:
    assert read_turns(record(stored, " A cat.\r\nBig. ")) == [
        ("user", "What is it?"),
        ("assistant", "A cat.\nBig."),
    ]


def test_all_messages_in_order() -> None:
    turns = read_turns(record("<image>\na", "b", "c", "d"))
    assert turns == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    assert text_turns(turns)[1] == Turn("assistant", (Part("b"),))


def test_a_marker_elsewhere_stays_in_the_text() -> None:
    assert read_turns(record("Is <image> a word?", "<image> is one"))[0][1] == "Is <image> a word?"
    assert read_turns(record("a", "<image> b"))[1][1] == "<image> b"
    assert read_turns(record("a", "b", "<image>\nc", "d"))[2][1] == "<image>\nc"


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({}, "malformed"),
        ([], "malformed"),
        (None, "malformed"),
        ({"conversations": None}, "malformed"),
        ({"conversations": {}}, "malformed"),
        (record(), "malformed"),
        (record("a"), "malformed"),
        (record("a", "b", "c"), "malformed"),
        (record("a", 3), "malformed"),
        (record("a", None), "malformed"),
        (record("a", ["b"]), "malformed"),
        (record("a", "b", roles=("gpt", "human")), "malformed"),
        (record("a", "b", roles=("human", "human")), "malformed"),
        (record("a", "b", roles=("system", "gpt")), "malformed"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]}, "malformed"),
        ({"conversations": [{"value": "a"}, {"from": "gpt", "value": "b"}]}, "malformed"),
        ({"conversations": ["a", "b"]}, "malformed"),
        (
            {"conversations": [{"from": ["human"], "value": "a"}, {"from": "gpt", "value": "b"}]},
            "malformed",
        ),
        (record("<image>\n<image>\na", "b"), "several_images"),
        (record("<image>\na", "b", "<image>\nc", "d"), "several_images"),
        (record("<image>", "b"), "empty_text"),
        (record("a", " \n"), "empty_text"),
    ],
)
def test_bad_records(stored: Any, reason: str) -> None:
    with pytest.raises(BadRecord) as raised:
        read_turns(stored)
    assert raised.value.reason == reason


def test_image_paths() -> None:
    assert (
        read_image({"image": "coco/train2017/000000000009.jpg"})
        == "coco/train2017/000000000009.jpg"
    )
    assert read_image({"image": ["a.jpg"]}) == "a.jpg"
    assert read_image({}) is None
    assert read_image({"image": None}) is None


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"image": ["a.jpg", "b.jpg"]}, "several_images"),
        ({"image": []}, "malformed"),
        ({"image": 9}, "malformed"),
        ({"image": ""}, "unsafe_path"),
        ({"image": "../a.jpg"}, "unsafe_path"),
        ({"image": "/etc/passwd"}, "unsafe_path"),
        ("a.jpg", "malformed"),
    ],
)
def test_bad_image_paths(stored: Any, reason: str) -> None:
    with pytest.raises(BadRecord) as raised:
        read_image(stored)
    assert raised.value.reason == reason
