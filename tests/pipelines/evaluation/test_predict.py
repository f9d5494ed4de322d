import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_builders.tasks.prompts import TEMPLATES
from fo1_model.checkpoint import new_model, save_model
from fo1_model.generation import Answer
from fo1_model.grammar import parse
from fo1_model.sizes import SIZES
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.evaluation.predict import (
    VERSION,
    PredictConfig,
    asked_names,
    bucket_of_shard,
    encode_question,
    predict,
    predict_examples,
    predict_inputs,
    prediction_row,
    region_score,
)
from pipelines.evaluation.score import evaluate
from pipelines.evaluation.stored_inputs import read_examples
from pipelines.fingerprints import fingerprint
from pipelines.reports.answer_image import question_for
from pipelines.shards.tar_format import tasks_of
from pipelines.shuffled_regions import derangement
from tests.pipelines.evaluation.small_evaluation import (
    proposals_artifact,
    samples_artifact,
    shards_artifact,
    small_world,
)

CONFIG = PredictConfig(
    tasks=("detection", "counting", "region_name", "rejection"), max_new_tokens=4, batch_size=7
)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return new_model(SIZES["debug"](), 0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, model):
    world = small_world(tmp_path_factory.mktemp("world"), scenes=5)
    samples = samples_artifact(tmp_path_factory.mktemp("root"), world, "drawn_val")
    proposals = proposals_artifact(world, samples)
    shards = shards_artifact(samples, proposals, world, regions="proposals_scored")
    run = Artifact(root=samples.root, kind="runs", name="untrained", fingerprint="3" * 16)
    save_model(*model, run.uri("export"))
    run.commit({"buckets": 0})
    return samples, shards, run


def output(root, config, shards, run):
    mark = fingerprint(
        kind="predictions", version=VERSION, config=config, inputs=predict_inputs(shards, run)
    )
    return Artifact(root=str(root), kind="predictions", name="drawn_val", fingerprint=mark)


def runtime(root):
    return RuntimeConfig(root=str(root), data=str(root), workers=0)


def contents(artifact):
    manifest = artifact.manifest()
    return {name: artifact.read_bytes(name) for name in [*manifest["files"], "manifest.json"]}


def test_every_question_gets_a_row_and_bad_answers_are_rows(parts, tmp_path):
    samples, shards, run = parts
    out = output(tmp_path, CONFIG, shards, run)
    manifest = predict(CONFIG, shards, run, out, runtime=runtime(tmp_path))
    questions = [example.sample_id for example, _ in read_examples(shards, CONFIG.tasks)]
    assert {*tasks_of(shards)} == {*CONFIG.tasks, "visual_prompt"}
    assert manifest["ledger"]["rows_out"] == manifest["ledger"]["rows_in"] == len(questions)
    metrics, cases = evaluate(out, shards, samples)
    assert [case.sample_id for case in cases] == [
        e.sample_id for e, _ in read_examples(shards, CONFIG.tasks)
    ]
    assert metrics["valid_answers"] < 0.5  # an untrained model rambles on until it is cut
    assert manifest["ledger"]["problems"] == sum(case.problem is not None for case in cases)
    assert any("cut at the longest answer" in case.problem for case in cases if case.problem)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(parts, tmp_path):
    _, shards, run = parts
    whole = output(tmp_path / "whole", CONFIG, shards, run)
    predict(CONFIG, shards, run, whole, runtime=runtime(tmp_path / "whole"))
    halved = output(tmp_path / "halved", CONFIG, shards, run)
    predict(CONFIG, shards, run, halved, runtime=runtime(tmp_path / "halved"))
    (tmp_path / "halved").joinpath(halved.path, "manifest.json").unlink()
    marker = tmp_path.joinpath(halved.path, "buckets/00001.json")
    kept = tmp_path.joinpath(halved.path, "part-00000.parquet").stat().st_mtime_ns
    marker.unlink()
    assert halved.status() == "partial"
    predict(CONFIG, shards, run, halved, runtime=runtime(tmp_path / "halved"))
    assert contents(halved) == contents(whole)
    assert tmp_path.joinpath(halved.path, "part-00000.parquet").stat().st_mtime_ns == kept


def test_what_is_missing_is_named_before_any_work(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.predict.map_buckets", None)  # no worker may start
    _, shards, run = parts
    absent = dataclasses.replace(run, fingerprint="4" * 16)
    with pytest.raises(SettingError, match=f"{absent.path} is"):
        predict(
            CONFIG,
            shards,
            absent,
            output(tmp_path, CONFIG, shards, absent),
            runtime=runtime(tmp_path),
        )
    config = PredictConfig(tasks=("ocr",))
    with pytest.raises(ValueError, match="ocr"):
        predict(
            config, shards, run, output(tmp_path, config, shards, run), runtime=runtime(tmp_path)
        )
    with pytest.raises(SettingError, match="tasks"):
        PredictConfig(tasks=())
    for wrong in ({"batch_size": 0}, {"constraint": "json"}, {"score": "logit"}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            PredictConfig(tasks=("detection",), **wrong)


def test_rows_keep_the_order_of_examples_and_do_not_depend_on_the_batch(parts, model):
    examples = list(read_examples(parts[1], ["detection"]))[:6]
    together = predict_examples(*model, examples, CONFIG)
    alone = [predict_examples(*model, [item], CONFIG)[0] for item in examples]
    assert [row["sample_id"] for row in together] == [example.sample_id for example, _ in examples]
    assert [row["text"] for row in together] == [row["text"] for row in alone]


def test_a_row_has_boxes_and_scores_of_the_regions_said(parts):
    example = next(read_examples(parts[1], ["detection"]))[0]
    text = "<ground>a</ground><objects><region2><region0></objects><region99>"
    parsed = parse(text, len(example.boxes))
    answer = Answer(text=text, parsed=parsed, region_logprobs=(-1.0, -2.0), finished=True)
    row = prediction_row(example, answer)
    assert row["regions"] == [2, 0]
    assert row["boxes"] == example.boxes[[2, 0]].tolist()
    assert row["scores"] == [example.scores[2], example.scores[0]]
    assert row["phrases"] == [{"text": "a", "regions": [0, 2]}]
    assert row["problem"] == "unknown regions 99"
    cut = prediction_row(example, dataclasses.replace(answer, finished=False))
    assert cut["problem"] == "unknown regions 99; cut at the longest answer"


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("proposal", [0.5, 0.25, None]),
        ("model", [0.25, 0.5, 1.0]),
        ("product", [0.125, 0.125, None]),
    ],
)
def test_scores_by_hand(parts, score, expected):
    example = next(read_examples(parts[1], ["detection"]))[0]
    rest = [0.0] * (len(example.boxes) - 3)
    example = dataclasses.replace(example, scores=(0.25, None, 0.5, *rest))
    text = "<region2><region0><region1>"
    logprobs = (math.log(0.25), math.log(0.5), 0.0)
    answer = Answer(
        text=text, parsed=parse(text, len(example.boxes)), region_logprobs=logprobs, finished=True
    )
    row = prediction_row(example, answer, score)
    assert row["scores"] == pytest.approx(expected)
    assert row["region_logprobs"] == list(logprobs)


def test_a_region_spelled_by_other_tokens_has_no_probability():
    assert region_score("model", 0.5, -math.inf) == 0
    assert region_score("product", 0.5, -math.inf) == 0


def test_constraint_and_score_are_part_of_the_fingerprint(parts, tmp_path):
    changes = ({}, {"score": "model"}, {"constraint": "grammar"})
    configs = [dataclasses.replace(CONFIG, **change) for change in changes]
    assert len({output(tmp_path, config, *parts[1:]).fingerprint for config in configs}) == 3
    assert (CONFIG.score, CONFIG.constraint) == ("proposal", "none")  # the release's


@pytest.mark.parametrize("constraint", ["grammar", "names"])
def test_constrained_answers_all_read_cleanly(parts, model, constraint):
    examples = list(read_examples(parts[1], CONFIG.tasks))[:12]
    config = dataclasses.replace(CONFIG, constraint=constraint, max_new_tokens=12)
    rows = predict_examples(*model, examples, config)
    assert [row["problem"] for row in rows] == [None] * len(rows)
    assert any(row["problem"] for row in predict_examples(*model, examples, CONFIG))


def test_names_reach_the_constraint_and_the_score_the_rows(parts, model, monkeypatch):
    seen = {}

    def remember(model, processor, samples, config, *, names):
        assert config.constrained == (names is not None)
        for sample, allowed in zip(samples, names or [], strict=names is not None):
            seen[sample.sample_id] = allowed
        parsed = parse("<region0>", 1)
        answer = Answer(
            text="<region0>", parsed=parsed, region_logprobs=(math.log(0.5),), finished=True
        )
        return [answer] * len(samples)

    monkeypatch.setattr("fo1_model.generation.generate", remember)
    examples = list(read_examples(parts[1], CONFIG.tasks))
    predict_examples(*model, examples, CONFIG)
    assert seen == {}
    rows = predict_examples(
        *model, examples, dataclasses.replace(CONFIG, constraint="names", score="model")
    )
    assert [row["scores"] for row in rows] == [[0.5]] * len(rows)
    assert len(seen) == len(examples)
    for example, _ in examples:
        if example.task in ("detection", "rejection"):
            assert example.messages[0]["content"].endswith(question_for(seen[example.sample_id]))
            assert {target["text"] for target in example.targets if target["regions"]} <= {
                *seen[example.sample_id]
            }
        else:
            assert seen[example.sample_id] is None


@pytest.mark.parametrize("wording", TEMPLATES["detection"])
def test_names_are_read_from_every_wording(parts, wording):
    example = next(read_examples(parts[1], ["detection"]))[0]
    names = ("red cup", "Find every instance of this", "a. b")
    content = "<image>\n<region0><regionfeat>\n" + wording.format("; ".join(names))
    asked = dataclasses.replace(example, messages=({"role": "user", "content": content},))
    assert asked_names(asked) == names
    other = dataclasses.replace(example, messages=({"role": "user", "content": "What is here?"},))
    with pytest.raises(SettingError, match="What is here"):
        asked_names(other)


@pytest.mark.parametrize("wording", TEMPLATES["everything"])
def test_the_question_for_everything_lists_no_names(parts, wording):
    example = next(read_examples(parts[1], ["detection"]))[0]
    content = "<image>\n<region0><regionfeat>\n" + wording.format("")
    asked = dataclasses.replace(example, messages=({"role": "user", "content": content},))
    assert asked_names(asked) is None


def test_shuffled_regions_show_other_boxes_and_nothing_else(parts, model):
    processor = model[1]
    example, image = next(read_examples(parts[1], ["detection"]))
    plain = encode_question(processor, example, image)
    shuffled = encode_question(processor, example, image, shuffled=True)
    assert torch.equal(plain.input_ids, shuffled.input_ids)
    assert not (plain.boxes[0] == shuffled.boxes[0]).all(dim=1).any()
    assert sorted(plain.boxes[0].tolist()) == sorted(shuffled.boxes[0].tolist())


@given(st.integers(0, 40), st.text(max_size=5))
def test_nothing_keeps_its_place_when_shuffled(count, seed):
    moved = derangement(count, seed)
    assert sorted(moved) == list(range(count))
    assert count < 2 or not (moved == np.arange(count)).any()
    assert (moved == derangement(count, seed)).all()


def test_shuffles_differ_between_samples():
    assert len({tuple(derangement(12, f"s{i}")) for i in range(20)}) > 15


def test_the_answer_of_the_example_is_never_shown(parts, model):
    example, image = next(read_examples(parts[1], ["detection"]))
    taught = dataclasses.replace(
        example, messages=(*example.messages, {"role": "assistant", "content": "secret"})
    )
    asked, shown = (encode_question(model[1], item, image) for item in (example, taught))
    assert torch.equal(asked.input_ids, shown.input_ids)


def test_the_bucket_of_a_shard_is_in_its_name():
    assert bucket_of_shard("region_name-00012.tar") == 12
