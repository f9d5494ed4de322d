import re

import pytest

from pipelines.errors import SettingError
from pipelines.reports.evaluation_report import Result, make_report
from pipelines.reports.plots import neighbours
from pipelines.reports.training_plots import RunFacts, groups_by_rate, held_out_plots


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


def test_a_page_explains_the_columns_it_shows():
    html = make_report("t", [Result(benchmark="val", run="a", metrics={"f1": 0.5, "ap": 0.5})]).html
    assert re.findall(r"<dt>(.*?)</dt>", html) == ["AP", "F1"]
    assert "<dt>F1</dt><dd>harmonic mean of precision and recall</dd>" in html


def test_a_slice_without_a_main_metric_has_no_empty_plot():
    validation = {"val.samples": [(2, 9.0)], "val.valid_answers": [(2, 0.5)]}
    assert held_out_plots(RunFacts(run="r", validation=validation)) == []


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
    assert held_out == ["recall of the best 10 boxes", "loss", "a slice of val"]
    assert html.count("data:image/png") == 8


def test_groups_of_one_rate_are_one_line():
    first, second = [(1, 0.1), (2, 0.2)], [(1, 0.3)]
    rates = {
        "language": first,
        "language_no_decay": first,
        "auxiliary": first,
        "new_rows_no_decay": second,
    }
    assert groups_by_rate(rates) == {"language, auxiliary": tuple(first), "new_rows": tuple(second)}


def test_a_point_is_the_mean_of_its_neighbours():
    points = [(1.0, 2.0), (2.0, 4.0), (3.0, 0.0), (4.0, 1.0), (5.0, 1.0)]
    assert neighbours(points, most=5) == points
    assert neighbours(points, most=2) == [(2.0, 2.0), (4.5, 1.0)]


def test_nothing_evaluated_is_nothing_to_report():
    with pytest.raises(SettingError, match="nothing was evaluated"):
        make_report("t", [])
