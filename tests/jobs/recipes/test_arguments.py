from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict, Unpack

import pytest

from jobs.recipes.arguments import (
    Field,
    arguments_of,
    describe_arguments,
    fields_given,
    parse_arguments,
)
from jobs.recipes.opn import opn
from jobs.recipes.stages import stage1, stage2
from pipelines.errors import SettingError


def recipe(
    *, lr: float = 1e-3, steps: int = 10, size: Literal["debug", "tiny"] = "tiny",
    pyramid: bool = True, limit: int | None = None, coco_root: str = "x",
):  # fmt: skip
    return lr, steps, size, pyramid, limit, coco_root


def required(*, coco_root: str):
    return coco_root


def test_values_take_their_declared_type():
    words = ["lr=1e-4", "steps=3", "size=debug", "pyramid=false", "limit=none", "coco_root=/a=b"]
    assert parse_arguments(recipe, words) == {
        "lr": 1e-4, "steps": 3, "size": "debug", "pyramid": False, "limit": None,
        "coco_root": "/a=b",
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
    with pytest.raises(SettingError, match=message):
        parse_arguments(recipe, words)


def test_required_arguments():
    with pytest.raises(SettingError, match="required needs coco_root="):
        parse_arguments(required, [])


def test_description_is_itself_parsable():
    words = describe_arguments(recipe).split()
    assert parse_arguments(recipe, words) == {
        "lr": 1e-3, "steps": 10, "size": "tiny", "pyramid": True, "limit": None, "coco_root": "x",
    }  # fmt: skip


@dataclass(frozen=True)
class Config:
    depth: int = 3
    width: int | None = None


class Basic(TypedDict, total=False):
    """Training: how long."""

    steps: int | None


class Shared(Basic, total=False):
    """Model: how big."""

    depth: Annotated[int, Config]
    columns: Annotated[int | None, Field(Config, "width")]


def sharing(*, size: Annotated[str, "data"] = "tiny", **given: Unpack[Shared]):
    return size, given


def test_shared_arguments_are_those_of_the_recipe():
    found = arguments_of(sharing)
    assert {name: (a.group, a.default) for name, a in found.items()} == {
        "size": ("data", "tiny"),
        "steps": ("training", None),
        "depth": ("model", 3),
        "columns": ("model", None),
    }
    assert parse_arguments(sharing, ["columns=4", "steps=none"]) == {"columns": 4, "steps": None}
    with pytest.raises(SettingError, match="did you mean 'depth'"):
        parse_arguments(sharing, ["dept=4"])


def test_values_reach_the_fields_in_which_they_end():
    given = {"columns": 4, "depth": None, "steps": 2}
    assert fields_given(given, Shared, Config) == {"width": 4}
    with pytest.raises(TypeError, match="unexpected argument 'dept'; did you mean 'depth'"):
        fields_given({"dept": 1}, Shared, Config)


@pytest.mark.parametrize("recipe", [stage1, stage2, opn])
def test_a_recipe_refuses_arguments_that_it_does_not_take(recipe):
    with pytest.raises(TypeError, match="unexpected argument 'stpes'; did you mean 'steps'"):
        recipe(stpes=3)
