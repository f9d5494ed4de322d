import pytest

from dataset_builders.records import Part
from dataset_builders.tasks.prompts import (
    TEMPLATES,
    counted_answer,
    grounded_answer,
    question,
)
from dataset_builders.validation import check_text


def test_the_first_wording_is_the_release_s() -> None:
    (part,) = question("detection", "person; dog")
    assert (
        part.text
        == "Please detect person; dog in this image. Answer the question with object indexes."
    )
    (part,) = question("counting", "dog", seed=3)
    assert part.text == (
        "How many dog are there in this image? Count each instance of the target object. "
        "Locate them with object indexes and then answer the question with the number of objects."
    )
    assert question("region_name", (4,)) == (
        Part("Provide a brief description for "),
        Part(objects=(4,)),
        Part("."),
    )


def test_the_question_for_everything_is_the_release_s() -> None:
    assert question("everything", "") == (
        Part(
            "Please identify every object in the image and provide their labels along with their "
            "indexes."
        ),
    )


@pytest.mark.parametrize("task", sorted(TEMPLATES))
def test_wordings_are_many_distinct_safe_and_take_one_argument(task: str) -> None:
    wordings = TEMPLATES[task]
    assert len(wordings) >= 2
    assert len(set(wordings)) == len(wordings)
    for wording in wordings:
        assert wording.count("{}") == 1
        check_text(wording, what=task)


def test_every_wording_is_reached_by_some_seed_and_braces_stay() -> None:
    texts = {
        question("detection", "a {} b", seed=seed, paraphrases=True)[0].text for seed in range(60)
    }
    assert len(texts) == len(TEMPLATES["detection"])
    assert all("a {} b" in text for text in texts if text)


def test_answers() -> None:
    assert grounded_answer([("cat", (0, 2)), ("dog", (1,))]) == (
        Part("cat", (0, 2)),
        Part("\n"),
        Part("dog", (1,)),
    )
    assert grounded_answer([]) == (Part("None"),)
    assert counted_answer(2, ("cat", (0, 2))) == (Part("cat", (0, 2)), Part("\nThere are 2."))
    assert counted_answer(0, ("cat", ())) == counted_answer(0) == (Part("There are 0."),)
