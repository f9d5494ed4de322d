import numpy as np
import pytest

from pipelines.errors import SettingError
from pipelines.evaluation.metrics.cases import Answer, Case, Target, as_boxes
from pipelines.evaluation.metrics.counting import count_said, count_said_strictly, counting


@pytest.mark.parametrize(
    ("text", "released", "strict"),
    [
        ("<ground>cat</ground><objects><region3><region17></objects>\nThere are 2.", 2, 2),
        ("There are 0.", 0, 0),
        ("none at all", 0, None),
        ("", 0, None),
        (
            "<ground>size 7 ball</ground><objects><region0></objects>\nThere are 1.",
            7,
            1,
        ),  # digit in the name
        ("There are 12 of 13.", 12, 13),
        ("<region5> 4", 4, 4),
        ("<Region5>", 0, None),
        ("3<region1>", 3, None),
    ],
)
def test_reading_the_number(text, released, strict):
    assert count_said(text) == released
    assert count_said_strictly(text) == strict


def case(text, reference, regions=(), task="counting", grounded=True):
    target = Target(text="cat", regions=(0,), boxes=as_boxes([[0, 0, 1, 1]]))
    said = Answer(
        text="cat",
        regions=regions,
        boxes=as_boxes([[0, 0, 1, 1]] * len(regions)),
        scores=np.ones(len(regions)),
    )
    return Case(
        sample_id="s7",
        image_id="i",
        task=task,
        targets=(target,) if grounded else (),
        answers=(said,),
        text=text,
        reference=reference,
    )


def test_metrics_by_hand():
    cases = [
        case("There are 2.", "There are 2.", (0, 1)),  # all right
        case("There are 3.", "There are 2.", (0, 1)),  # number wrong, regions right, no agreement
        case("There are 1.", "There are 2.", (4,)),  # both wrong, but they agree
        case(
            "size 7: <region1> There are 1.", "There are 1.", (1,)
        ),  # right only when read strictly
        case("There are 3.", "There are 3.", (0, 1, 2)),  # all right
        case("5", "6", task="detection"),  # no counting question
    ]
    assert counting(cases) == {
        "count_accuracy": 0.4,
        "count_accuracy_strict": 0.6,
        "count_regions_accuracy": 0.8,
        "count_agreement": 0.6,
    }


def test_regions_are_judged_only_where_the_truth_names_them():
    number_only = case("There are 2.", "There are 2.", grounded=False)
    assert counting([number_only]) == {"count_accuracy": 1.0, "count_accuracy_strict": 1.0}
    none_there = case("There are 0.", "There are 0.", grounded=False)
    assert counting([number_only, none_there])["count_regions_accuracy"] == 1.0


def test_no_counting_questions_no_metrics():
    assert counting([case("5", "6", task="detection")]) == {}


def test_a_reference_without_a_number_names_the_sample():
    with pytest.raises(SettingError, match="s7"):
        counting([case("There are 2.", "several")])
