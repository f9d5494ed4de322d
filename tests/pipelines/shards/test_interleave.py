import dataclasses

import numpy as np
import pytest

from dataset_builders.records import BadRecord, Object, Part, Sample, Turn
from dataset_builders.tasks.prompts import conversation, grounded_answer, question
from fo1_model import grammar
from pipelines.shards.assign import Assignment
from pipelines.shards.interleave import interleave, join_samples, referenced_objects

OBJECTS = (
    Object(box=(0.0, 0.0, 10.0, 10.0), label="cup"),
    Object(box=(20.0, 0.0, 30.0, 10.0), label="cup"),
    Object(box=(40.0, 0.0, 50.0, 10.0), label="plate"),
)


def sample(*turns: Turn) -> Sample:
    return Sample(
        sample_id="d/1",
        dataset="d",
        task="detection",
        image_id="1",
        image_source="s",
        image_uri="a.jpg",
        width=60,
        height=20,
        objects=OBJECTS,
        turns=turns,
    )


def assignment(region_of: dict[int, int], num_regions: int = 4) -> Assignment:
    return Assignment(
        boxes=np.arange(num_regions * 4, dtype=np.float32).reshape(-1, 4),
        scores=(0.5,) * num_regions,
        sources=("proposal",) * num_regions,
        region_of=region_of,
        num_objects=3,
        num_matched=3,
        num_injected=0,
    )


ASK = Turn("user", (Part("Please detect cup; plate."),))
ANSWER = Turn("assistant", (Part("cup", (0, 1)), Part("\n"), Part("plate", (2,))))


def test_golden_messages_and_targets() -> None:
    example = interleave(sample(ASK, ANSWER), assignment({0: 3, 1: 0, 2: 1}))
    line = "<region0><regionfeat><region1><regionfeat><region2><regionfeat><region3><regionfeat>"
    assert example.messages == (
        {"role": "user", "content": f"<image>\n{line}\nPlease detect cup; plate."},
        {
            "role": "assistant",
            "content": "<ground>cup</ground><objects><region0><region3></objects>\n"
            "<ground>plate</ground><objects><region1></objects>",
        },
    )
    assert example.targets == (
        {
            "text": "cup",
            "regions": [0, 3],
            "boxes": [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]],
        },
        {"text": "plate", "regions": [1], "boxes": [[40.0, 0.0, 50.0, 10.0]]},
    )
    parsed = grammar.parse(example.messages[-1]["content"], 4)
    assert parsed.phrases == tuple((t["text"], tuple(t["regions"])) for t in example.targets)


def test_the_answer_to_every_object_reads_back_label_by_label() -> None:
    turns = conversation(
        question("everything", ""), grounded_answer([("cup", (0, 1)), ("plate", (2,))])
    )
    example = interleave(sample(*turns), assignment({0: 3, 1: 0, 2: 1}))
    assert example.messages[0]["content"].endswith(
        "\nPlease identify every object in the image and provide their labels along with their "
        "indexes."
    )
    parsed = grammar.parse(example.messages[-1]["content"], 4)
    assert parsed.phrases == (("cup", (0, 3)), ("plate", (1,)))
    assert parsed.problem is None


def test_evaluation_leaves_the_answer_out_and_keeps_every_annotated_box() -> None:
    example = interleave(sample(ASK, ANSWER), assignment({0: 3}), answer=False)
    assert [message["role"] for message in example.messages] == ["user"]
    assert [target["regions"] for target in example.targets] == [[3], []]
    assert [len(target["boxes"]) for target in example.targets] == [2, 1]


def test_without_regions_there_is_no_region_line() -> None:
    none = Turn("assistant", (Part("None"),))
    example = interleave(sample(ASK, none), assignment({}, 0))
    assert example.messages[0]["content"] == "<image>Please detect cup; plate."
    assert example.targets == ({"text": "None", "regions": [], "boxes": []},)


def test_mention_in_the_question_and_second_turn() -> None:
    show = Turn("user", (Part("Provide a brief description for "), Part(objects=(2,)), Part(".")))
    again = Turn("user", (Part("And the others?"),))
    example = interleave(
        sample(
            show,
            Turn("assistant", (Part("plate"),)),
            again,
            Turn("assistant", (Part(objects=(0,)),)),
        ),
        assignment({0: 0, 1: 2, 2: 1}, 3),
    )
    assert example.messages[0]["content"].endswith("\nProvide a brief description for <region1>.")
    assert example.messages[2]["content"] == "And the others?"
    assert example.messages[3]["content"] == "<region0>"
    assert example.targets == ({"text": "", "regions": [0], "boxes": [[0.0, 0.0, 10.0, 10.0]]},)


def test_equal_phrases_are_one_target_and_merged_objects_one_region() -> None:
    turn = Turn("assistant", (Part("cup", (0,)), Part(" and "), Part("cup", (0, 1))))
    example = interleave(sample(ASK, turn), assignment({0: 1, 1: 3}))
    assert [target["regions"] for target in example.targets] == [[1, 3]]
    assert [target["boxes"] for target in example.targets] == [
        [list(item.box) for item in OBJECTS[:2]]
    ]
    merged = interleave(sample(ASK, turn), assignment({0: 1, 1: 1}))
    assert [target["regions"] for target in merged.targets] == [[1]]


@pytest.mark.parametrize(
    "parts",
    [
        (Part("see <region3>"),),
        (Part("</ground>"),),
        (Part("cup<objects>", (0,)),),
        (Part("<|im_end|>"),),
        (Part("<reg"), Part("ion1>")),
        (Part("<ima"), Part("cup", (0,)), Part("ge>")),
    ],
)
def test_reserved_tags_in_data_are_rejected(parts: tuple[Part, ...]) -> None:
    with pytest.raises(BadRecord, match="unsafe_text"):
        interleave(sample(ASK, Turn("assistant", parts)), assignment({0: 0}))


def test_answer_that_names_an_object_without_region_stops_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"d/1.*\[1\].*no region"):
        interleave(sample(ASK, ANSWER), assignment({0: 0, 2: 1}))


def test_region_beyond_the_boxes_stops_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"d/1.*unknown regions 9"):
        interleave(sample(ASK, ANSWER), assignment({0: 0, 1: 9, 2: 1}))


def test_conversation_must_end_with_an_answer() -> None:
    with pytest.raises(BadRecord, match="malformed"):
        interleave(sample(ASK), assignment({}))


def test_referenced_objects_by_role() -> None:
    show = Turn("user", (Part(objects=(2,)),))
    conversation = sample(show, ANSWER)
    assert referenced_objects(conversation.turns) == {0, 1, 2}
    assert referenced_objects(dataclasses.replace(conversation).turns, role="user") == {2}


def test_joined_samples_keep_every_turn_and_refuse_another_picture() -> None:
    question, answer = Turn("user", (Part("Cups?"),)), Turn("assistant", (Part("cup", (0, 1)),))
    first, second = (
        sample(question, answer),
        dataclasses.replace(sample(question, answer), sample_id="d/2"),
    )
    joined = join_samples([first, second])
    assert joined.sample_id == "d/1+1"
    assert joined.turns == (question, answer, question, answer)
    assert join_samples([first]) is first
    with pytest.raises(ValueError, match="d/2 is not about the image"):
        join_samples([first, dataclasses.replace(second, image_id="2")])
