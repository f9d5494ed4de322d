import re

import numpy as np
import pytest

from dataset_builders.drawn_world.write import draw_scene, encode_jpeg
from fo1_model.grammar import region_prompt
from pipelines.evaluation.score import make_case
from pipelines.reports.drawing import MISSED, OFFERED, RIGHT, WRONG, region_colour
from pipelines.reports.evaluation_report import (
    Result,
    RunFacts,
    _joined,
    is_right,
    judged_cards,
    judged_marks,
    make_report,
)
from pipelines.reports.plots import neighbours
from pipelines.schemas import RegionExample
from tests.pipelines.evaluation.small_evaluation import prediction_row, true_answer

IMAGE = encode_jpeg(draw_scene((1, 2)))
# Region 3 covers region 0 with IoU 0.9: a double of it. Region 2 stands for nothing.
BOXES = np.array([[0, 0, 20, 20], [30, 30, 60, 60], [70, 70, 90, 90], [0, 0, 20, 18]], np.float32)


def example(task="detection", targets=None, question="Find a.", sample_id="s1"):
    true = (
        [{"text": "a", "regions": [0], "boxes": [[0, 0, 20, 20]]}] if targets is None else targets
    )
    return RegionExample(
        sample_id=sample_id,
        dataset="d",
        task=task,
        image_id="i",
        width=128,
        height=128,
        boxes=BOXES,
        scores=(0.9, 0.8, 0.7, 0.6),
        box_sources=("proposal",) * 4,
        messages=({"role": "user", "content": f"<image>\n{region_prompt(4)}\n{question}"},),
        targets=tuple(true),
    )


def case(asked, text):
    return make_case(asked, prediction_row(asked, text), None)


def say(phrase, *regions):
    return f"<ground>{phrase}</ground><objects>{''.join(f'<region{r}>' for r in regions)}</objects>"


def test_a_reader_accepts_a_double_of_the_region_but_not_both():
    asked = example()
    assert is_right(case(asked, say("a", 0)))
    assert is_right(case(asked, say("a", 3)))
    assert not is_right(case(asked, say("a", 0, 3)))
    assert not is_right(case(asked, say("b", 0)))
    assert not is_right(case(asked, say("a", 0, 77)))  # an unknown region is a problem


def test_counting_and_naming_need_their_words():
    none = [{"text": "There are 0.", "regions": [], "boxes": []}]
    assert is_right(case(example("counting", none), "There are 0."))
    assert not is_right(case(example("counting", none), "There are 1."))
    name = [{"text": "red circle", "regions": [], "boxes": []}]
    assert is_right(case(example("region_name", name), " Red circle"))
    assert not is_right(case(example("region_name", name), "blue circle"))


def test_marks_show_the_verdict_on_every_box():
    true = [{"text": "a", "regions": [0], "boxes": [[0, 0, 20, 20], [100, 100, 120, 120]]}]
    asked = example(targets=true, question="Beside <region2>, find a.")
    marks = {tuple(m.box): m for m in judged_marks(case(asked, say("a", 0, 1)), asked)}
    assert (marks[0, 0, 20, 20].colour, marks[0, 0, 20, 20].tag) == (RIGHT, "0 a")
    assert (marks[30, 30, 60, 60].colour, marks[30, 30, 60, 60].tag) == (WRONG, "1 a")
    assert (marks[100, 100, 120, 120].colour, marks[100, 100, 120, 120].dashed) == (MISSED, True)
    assert (marks[70, 70, 90, 90].colour, marks[70, 70, 90, 90].tag) == (region_colour(2), "2")
    assert (marks[0, 0, 20, 18].colour, marks[0, 0, 20, 18].faint) == (OFFERED, True)


def test_cards_are_chosen_the_same_way_whatever_the_order():
    examples = [example(sample_id=f"s{i}") for i in range(8)]
    absent = [
        example("rejection", [{"text": "None", "regions": [], "boxes": []}], sample_id=f"r{i}")
        for i in range(4)
    ]
    cases = [case(e, true_answer(e) if i % 2 else say("b", 1)) for i, e in enumerate(examples)]
    cases += [case(absent[0], "None"), *(case(e, say("c", 2)) for e in absent[1:])]
    pairs = [(e, IMAGE) for e in [*examples, *absent]]
    groups = judged_cards(cases, pairs, right=3, wrong=2)
    assert {heading: len(cards) for heading, cards in groups.items()} == {
        "Right answers": 3,
        "Wrong answers": 2,
        "Asked for absent things only": 2,
    }
    assert groups == judged_cards(cases[::-1], pairs[::-1], right=3, wrong=2)
    assert {card.badge for card in groups["Right answers"]} == {"right"}
    assert any(line.who == "truth" for line in groups["Wrong answers"][0].lines)


def test_the_table_has_the_runs_of_a_benchmark_side_by_side():
    results = [
        Result(
            benchmark="val",
            run="stage 2",
            metrics={"f1": 0.875, "ap": 0.5, "samples": 12.0, "secret": 1.0},
        ),
        Result(benchmark="val", run="paper", metrics={"ap": 0.444}),
        Result(benchmark="refs", run="stage 2", metrics={"f1": 0.25, "samples": 3.0}),
    ]
    report = make_report(
        "t", results, detectors={"opn": {"ar@10": 0.1, "ar@100": 0.9, "oracle_ap": 0.8}}
    )
    assert report.text.splitlines() == [
        "val",
        "run        AP    F1  samples",
        "-------  ----  ----  -------",
        "stage 2  50.0  87.5       12",
        "paper    44.4     -        -",
        "",
        "refs",
        "run        F1  samples",
        "-------  ----  -------",
        "stage 2  25.0        3",
        "",
        "proposals",
        "detector  boxes    AR  R50  R75  AR small  AR medium  AR large  oracle AP",
        "--------  -----  ----  ---  ---  --------  ---------  --------  ---------",
        "opn          10  10.0    -    -         -          -         -          -",
        "opn         100  90.0    -    -         -          -         -       80.0",
    ]
    for shown in ("stage 2", "87.5", "AR medium", ">val</h2>", ">Proposals</h2>"):
        assert shown in report.html


def test_settings_and_curves_are_on_the_page():
    run = RunFacts(
        run="stage 1",
        config={"rate": "<0.1>"},
        fingerprints={"shards/a": "0" * 16},
        loss=[(1, 2.0), (2, 1.0)],
        loss_by_source={f"drawn/{number}": [(1, 1.0)] for number in range(10)},
        learning_rates={
            "language": [(1, 0.1)],
            "language_no_decay": [(1, 0.1)],
            "new_rows_no_decay": [(1, 1.0)],
        },
        gradient_norm=[(1, 1.0)],
        speed={"tokens_per_second": [(2, 100.0)], "step_seconds": [(2, 1.0)]},
        validation={
            n: [(2, 0.5)] for n in ("loss", "ar@10", "r50@10", "val.f1", "val.ap", "val.samples")
        },
    )
    html = make_report("t", [Result(benchmark="b", run="r", metrics={"f1": 1.0})], runs=[run]).html
    assert "&lt;0.1&gt;" in html
    assert "made from shards/a" in html
    captions = re.findall(r"<figcaption>stage 1: (.*?)</figcaption>", html)
    assert captions == [
        "loss",
        "loss by source, 8 largest of 10",
        "learning rate",
        "gradient norm",
        "tokens per second",
    ]
    held_out = re.findall(r"<figcaption>stage 1, (.*?)</figcaption>", html)
    assert held_out == ["best 10 boxes", "loss", "a slice of val"]
    assert html.count("data:image/png") == 8


def test_groups_of_one_rate_are_one_line():
    first, second = [(1, 0.1), (2, 0.2)], [(1, 0.3)]
    rates = {
        "language": first,
        "language_no_decay": first,
        "auxiliary": first,
        "new_rows_no_decay": second,
    }
    assert _joined(rates) == {"language, auxiliary": tuple(first), "new_rows": tuple(second)}


def test_a_point_is_the_mean_of_its_neighbours():
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, 0.0), (4.0, 1.0), (5.0, 1.0)]
    assert neighbours(points, most=5) == points
    assert neighbours(points, most=2) == [(2.0, 2.0), (4.5, 1.0)]


def test_nothing_evaluated_is_nothing_to_report():
    with pytest.raises(ValueError, match="nothing was evaluated"):
        make_report("t", [])
