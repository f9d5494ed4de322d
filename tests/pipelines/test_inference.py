import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_evaluation import proposals_artifact, samples_artifact, shards_artifact, small_world

from fo1_model.checkpoint import new_model, save_model
from fo1_model.config import SIZES
from fo1_model.generation import Answer
from fo1_model.grammar import parse
from pipelines.artifacts import Artifact, fingerprint
from pipelines.cluster import RuntimeConfig
from pipelines.evaluation import evaluate, read_examples
from pipelines.inference import (
    VERSION,
    PredictConfig,
    bucket_of_shard,
    derangement,
    encode_question,
    predict,
    predict_examples,
    predict_inputs,
    prediction_row,
)
from pipelines.tars import tasks_of

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
    mark = fingerprint(kind="predictions", version=VERSION, config=config, inputs=predict_inputs(shards, run))
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
    questions = [example.sample_id for example, _ in read_examples(shards, tasks_of(shards))]
    assert manifest["ledger"]["rows_out"] == manifest["ledger"]["rows_in"] == len(questions)
    figures, cases = evaluate(out, shards, samples)
    assert [case.sample_id for case in cases] == [e.sample_id for e, _ in read_examples(shards, CONFIG.tasks)]
    assert figures["valid_answers"] < 0.5  # an untrained model rambles on until it is cut
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
    monkeypatch.setattr("pipelines.inference.map_buckets", None)  # no worker may start
    _, shards, run = parts
    absent = dataclasses.replace(run, fingerprint="4" * 16)
    with pytest.raises(ValueError, match=f"{absent.path} is"):
        predict(CONFIG, shards, absent, output(tmp_path, CONFIG, shards, absent), runtime=runtime(tmp_path))
    config = PredictConfig(tasks=("ocr",))
    with pytest.raises(ValueError, match="ocr"):
        predict(config, shards, run, output(tmp_path, config, shards, run), runtime=runtime(tmp_path))
    with pytest.raises(ValueError, match="tasks"):
        PredictConfig(tasks=())
    with pytest.raises(ValueError, match="batch_size"):
        PredictConfig(tasks=("detection",), batch_size=0)


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
