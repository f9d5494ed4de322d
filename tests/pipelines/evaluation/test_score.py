import dataclasses

import numpy as np
import pytest

from dataset_builders.records import Object, Part, Sample, Turn
from pipelines.errors import SettingError
from pipelines.evaluation.joined_cases import make_case
from pipelines.evaluation.metrics.summary import summarise
from pipelines.evaluation.score import evaluate, evaluate_proposals, evaluate_slice
from pipelines.evaluation.stored_inputs import load_scenes, read_examples
from pipelines.schemas import RegionExample
from pipelines.shards.tar_format import tasks_of
from tests.pipelines.evaluation.small_evaluation import (
    prediction_row,
    predictions_artifact,
    proposals_artifact,
    samples_artifact,
    shards_artifact,
    small_world,
    true_answer,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("world"))


def chain(root, world, dataset):
    samples = samples_artifact(root, world, dataset)
    proposals = proposals_artifact(root, samples)
    shards = shards_artifact(samples, proposals, world, regions="proposals_scored")
    return samples, proposals, shards


@pytest.fixture(scope="module")
def val(world, tmp_path_factory):
    return chain(tmp_path_factory.mktemp("root"), world, "drawn_val")


def answered(parts, answer, folder, tasks=None):
    samples, _, shards = parts
    tasks = tasks or tasks_of(shards)
    rows = [prediction_row(example, answer(example)) for example, _ in read_examples(shards, tasks)]
    return predictions_artifact(dataclasses.replace(samples, root=str(folder)), rows, tasks)


def test_a_perfect_model_is_perfect_in_every_metric(val, tmp_path):
    predictions = answered(val, true_answer, tmp_path)
    metrics, cases = evaluate(predictions, val[2], val[0])
    assert metrics.pop("samples") == len(cases) > 40
    assert metrics.pop("absent_false_positives") == 0.0
    assert {"f1", "exact_match", "rejection_accuracy", "count_accuracy", "name_accuracy"} <= set(
        metrics
    )
    assert set(metrics.values()) == {1.0}


def test_a_model_that_always_declines_only_rejects(val, tmp_path):
    metrics, _ = evaluate(answered(val, lambda example: "None", tmp_path), val[2], val[0])
    assert metrics["rejection_accuracy"] == 1.0
    assert metrics["f1"] == metrics["name_accuracy"] == metrics["count_accuracy"] == 0.0


def test_coco_ap_of_true_answers_is_the_ceiling_of_their_boxes(world, tmp_path):
    parts = chain(tmp_path / "root", world, "drawn_val_all")
    metrics, _ = evaluate(
        answered(parts, true_answer, tmp_path, ["detection"]), parts[2], parts[0], coco=True
    )
    assert metrics["ap50"] == pytest.approx(1.0)
    assert 0.7 < metrics["ap"] < 1.0  # boxes are off by up to a pixel
    silent, _ = evaluate(
        answered(parts, lambda example: "None", tmp_path / "b", ["detection"]),
        *parts[2::-2],
        coco=True,
    )
    assert silent["ap"] == 0.0


def test_a_slice_is_judged_by_its_own_images(world, tmp_path):
    samples, _, shards = chain(tmp_path, world, "drawn_val_all")
    examples = [example for example, _ in read_examples(shards, ["detection"])]
    rows = [prediction_row(example, true_answer(example)) for example in examples]
    whole, _ = evaluate(
        predictions_artifact(samples, rows, ["detection"]), shards, samples, coco=True
    )
    assert evaluate_slice(examples, rows, samples, coco=True) == whole
    some = evaluate_slice(examples[::3], rows[::3], samples, coco=True)
    assert some["samples"] == len(examples[::3]) < whole["samples"]
    # The objects of images that nobody asked about would be missed.
    assert some["ap50"] == pytest.approx(1.0)
    assert "ap" not in evaluate_slice(examples[::3], rows[::3], samples, coco=False)


def test_coco_ap_refuses_questions_for_some_names_only(val, tmp_path):
    with pytest.raises(SettingError, match="was asked for 1 of 12 names"):
        evaluate(answered(val, true_answer, tmp_path), val[2], val[0], coco=True)


def test_metrics_of_nothing_are_refused():
    with pytest.raises(SettingError, match="nothing was evaluated"):
        summarise([])


def test_a_question_without_answer_and_the_reverse_are_errors(val, tmp_path):
    samples, _, shards = val
    rows = [prediction_row(e, "None") for e, _ in read_examples(shards, ["detection"])]
    short = predictions_artifact(
        dataclasses.replace(samples, root=str(tmp_path / "a")), rows[1:], ["detection"]
    )
    with pytest.raises(RuntimeError, match=f"{rows[0]['sample_id']} has no prediction"):
        evaluate(short, shards, samples)
    extra = [*rows, rows[0] | {"sample_id": "nobody"}]
    long = predictions_artifact(
        dataclasses.replace(samples, root=str(tmp_path / "b")), extra, ["detection"]
    )
    with pytest.raises(RuntimeError, match="nobody has no question"):
        evaluate(long, shards, samples)


def test_proposals_are_judged_against_all_objects_of_the_images(val):
    samples, proposals, _ = val
    metrics = evaluate_proposals(proposals, samples, budgets=(1, 100))
    assert metrics["r50@100"] == 1.0
    assert metrics["r50@1"] < 1.0
    assert 0.5 < metrics["oracle_ap"] <= 1.0
    scenes, names = load_scenes(samples)
    assert len(names) == 12
    assert len(scenes) == len({scene.image_id for scene in scenes})


def example(question, targets, task="detection"):
    return RegionExample(
        sample_id="s",
        dataset="d",
        task=task,
        image_id="i",
        width=9,
        height=9,
        boxes=np.array([[0, 0, 2, 2], [4, 4, 8, 8], [1, 1, 3, 3]], np.float32),
        scores=(0.9, 0.8, 0.7),
        box_sources=("proposal",) * 3,
        messages=({"role": "user", "content": question},),
        targets=targets,
    )


def test_a_case_keeps_boxes_and_scores_beside_their_regions():
    asked = example(
        "Find a.", ({"text": "a", "regions": [1], "boxes": [[4, 4, 8, 8], [0, 5, 1, 6]]},)
    )
    row = prediction_row(asked, "<region2> <ground>a</ground><objects><region1><region0></objects>")
    case = make_case(asked, row, None)
    spoken, bare = case.answers
    assert (spoken.text, spoken.regions, spoken.scores.tolist()) == (
        "a",
        (0, 1),
        pytest.approx([0.9, 0.8]),
    )
    assert spoken.boxes.tolist() == [[0, 0, 2, 2], [4, 4, 8, 8]]
    assert (bare.text, bare.regions) == ("", (2,))
    assert case.targets[0].boxes.shape == (2, 4)
    assert (case.asked, case.reference, dict(case.ignored)) == (None, "", {})


def test_a_plain_target_is_the_reference_and_no_region_target():
    case = make_case(
        example("?", ({"text": "None", "regions": [], "boxes": []},)),
        prediction_row(example("?", ()), "no"),
        None,
    )
    assert case.targets == ()
    assert case.reference == "None"


def test_names_asked_are_whole_names():
    said = (Part("There are "), Part("hot dog", (0,)), Part("2."))
    sample = Sample(
        sample_id="s",
        dataset="d",
        task="detection",
        image_id="i",
        image_source="s",
        image_uri="a.jpg",
        width=9,
        height=9,
        objects=(
            Object(box=(0, 0, 2, 2), label="hot dog"),
            Object(box=(0, 0, 9, 9), label="cat", ignore=True),
        ),
        turns=(Turn("user", (Part("?"),)), Turn("assistant", said)),
        absent_labels=("dog", "hot", "c.t", "sheepdog"),
        absent_regime="exhaustive",
    )
    asked = example(
        "Find hot dog; cat; cot; c.t; hot dog in sheepdogs",
        ({"text": "hot dog", "regions": [0], "boxes": [[0, 0, 2, 2]]},),
    )
    case = make_case(asked, prediction_row(asked, ""), sample)
    assert case.asked == ("hot dog", "cat", "c.t")
    assert list(case.ignored) == ["cat"]
    assert case.reference == "There are 2."
