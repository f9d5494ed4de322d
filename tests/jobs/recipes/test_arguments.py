from typing import Literal

import pytest

from jobs.recipes.arguments import describe_arguments, parse_arguments


def recipe(
    *, lr: float = 1e-3, steps: int = 10, size: Literal["debug", "tiny"] = "tiny", pyramid: bool = True,
    limit: int | None = None, coco_root: str = "x",
):  # fmt: skip
    return lr, steps, size, pyramid, limit, coco_root


def required(*, coco_root: str):
    return coco_root


def test_values_take_their_declared_type():
    words = ["lr=1e-4", "steps=3", "size=debug", "pyramid=false", "limit=none", "coco_root=/a=b"]
    assert parse_arguments(recipe, words) == {
        "lr": 1e-4, "steps": 3, "size": "debug", "pyramid": False, "limit": None, "coco_root": "/a=b",
    }  # fmt: skip
    assert parse_arguments(recipe, ["limit=7"]) == {"limit": 7}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["stepz=3"],
            "unknown argument 'stepz' of recipe; did you mean 'steps'\\? it takes lr, steps",
        ),
        (["steps"], "written name=value"),
        (["steps=1", "steps=2"], "'steps' is given twice"),
        (["steps=1.5"], "steps=1.5: not a whole number"),
        (["lr=fast"], "lr=fast: not a number"),
        (["size=huge"], "size=huge: choose one of debug, tiny"),
        (["pyramid=yes"], "pyramid=yes: write true or false"),
    ],
)
def test_wrong_words_name_the_fault(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(recipe, words)


def test_required_arguments():
    with pytest.raises(ValueError, match="required needs coco_root="):
        parse_arguments(required, [])


def test_description_is_itself_parsable():
    words = describe_arguments(recipe).split()
    assert parse_arguments(recipe, words) == {
        "lr": 1e-3, "steps": 10, "size": "tiny", "pyramid": True, "limit": None, "coco_root": "x",
    }  # fmt: skip
