"""Runs under a token budget and with loader processes: the same loss and gradient as without."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.loading.collators import batch_of
from pipelines.loading.loader import Loader, make_plan, open_sources
from pipelines.shards.tar_format import TarWriter
from pipelines.train_config import TrainConfig
from pipelines.training.driver import train
from pipelines.training.job import TrainJob
from tests.pipelines.training.stub_learner import stub_job, write_stub_shards
from tests.pipelines.training.test_learners import DEBUG, example

MIX = {"drawn/detection": 1.0}
CONFIG = {
    "steps": 3,
    "batch_size": 7,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}
BUDGET = 150
"""Tokens: three of the shortest examples, one of the longest."""


def write_shards(root: Path) -> Artifact:
    """Finished shards of 30 examples with 0 to 20 boxes, so of many lengths."""
    artifact = Artifact(root=str(root), kind="shards", name="drawn", fingerprint="0123456789abcdef")
    files = {}
    for number in range(2):
        writer = TarWriter()
        for seed in range(number * 15, number * 15 + 15):
            made = example(seed, boxes=seed * 7 % 21)
            writer.add(made.record, made.image)
        name = f"detection-{number:05d}"
        tar, index = writer.finish()
        artifact.write_bytes(f"{name}.tar", tar)
        artifact.write_bytes(f"{name}.index.parquet", index)
        files[f"{name}.tar"] = {"rows": 15}
    artifact.commit({"files": files})
    return artifact


def history(
    shards: Artifact, root: Path, *, learner=DEBUG, workers: int = 0, processes: int = 0, **changes
):
    job = TrainJob(
        name="run",
        learner=learner,
        config=TrainConfig(**{**CONFIG, **changes}),
        mix=MIX,
        shards={"drawn": shards},
    )
    output = job.artifact(str(root))
    runtime = RuntimeConfig(
        root=str(root), data=str(root), workers=workers, loader_processes=processes
    )
    train(job, output, runtime)
    return json.loads(output.read_bytes("history.json"))


def assert_alike(one, other) -> None:
    assert len(one) == len(other) == CONFIG["steps"]
    for record, same in zip(one, other, strict=True):
        assert record["loss"] == pytest.approx(same["loss"], rel=1e-5)
        assert record["gradient_norm"] == pytest.approx(same["gradient_norm"], rel=1e-3)


def test_a_token_budget_changes_the_cut_and_not_the_gradient(tmp_path: Path) -> None:
    """The loss is divided by the tokens of the whole step, whatever passes they came in."""
    shards = write_shards(tmp_path)
    by_number = history(shards, tmp_path)
    by_tokens = history(shards, tmp_path, processes=1, max_tokens_per_micro_batch=BUDGET)
    assert_alike(by_number, by_tokens)
    packing = replace(DEBUG, packs=True)
    assert_alike(
        by_number, history(shards, tmp_path, learner=packing, max_tokens_per_micro_batch=BUDGET)
    )


def test_real_batches_keep_the_budget_and_differ_between_ranks(tmp_path: Path) -> None:
    sources = open_sources({"drawn": write_shards(tmp_path)}, MIX)
    config = TrainConfig(**CONFIG)
    collator = DEBUG.build(None, seed=0).collator
    packing = replace(DEBUG, packs=True).build(None, seed=0).collator
    cut = {
        "batch_size": 7,
        "micro_batch_size": 4,
        "max_tokens": BUDGET,
        "world_size": 2,
        "prefetch_steps": 0,
    }
    plan = make_plan(sources, MIX, config)
    ranks = [
        list(Loader(plan, sources, collator=collator, rank=rank, **cut).steps(0, 3))
        for rank in range(2)
    ]
    counts = [[len(data.micro_batches) for data in steps] for steps in ranks]
    assert any(one != other for one, other in zip(*counts, strict=True))  # fillers are needed
    for data in (data for steps in ranks for data in steps):
        assert data.num_tokens == sum(int(m.batch.attention_mask.sum()) for m in data.micro_batches)
        for micro in data.micro_batches:
            rows, columns = micro.batch.input_ids.shape
            assert rows == 1 or rows * columns <= BUDGET
    packed = Loader(plan, sources, collator=packing, **cut).load(0)
    assert [m.batch.input_ids.shape[0] for m in packed.micro_batches] == [1] * len(
        packed.micro_batches
    )
    assert len(packed.micro_batches) <= counts[0][0]
    assert batch_of(collator, [example(0)]).input_ids.shape[1] < BUDGET / 2


def test_a_run_goes_on_with_its_own_data_only(tmp_path: Path) -> None:
    """Both plans are named when the shards changed under a run."""
    shards = write_stub_shards(tmp_path)
    job = stub_job(shards, steps=2, warmup_steps=0)
    output = job.artifact(str(tmp_path))
    runtime = RuntimeConfig(root=str(tmp_path), data=str(tmp_path), workers=0)
    before = make_plan(open_sources(job.shards, job.mix), job.mix, job.config).fingerprint
    train(job, output, runtime)
    Path(output.path, "manifest.json").unlink()
    files = shards.manifest()["files"]
    files["detection-00001.tar"]["rows"] -= 1
    shards.commit({"files": files})
    after = make_plan(open_sources(job.shards, job.mix), job.mix, job.config).fingerprint
    with pytest.raises(
        SettingError, match=f"follows plan {before}, the data give {after}: resume with"
    ):
        train(job, output, runtime)


@pytest.mark.cluster
def test_two_workers_with_loader_processes_equal_one(tmp_path: Path) -> None:
    """Ranks have different numbers of passes, and fill up to the same."""
    shards = write_shards(tmp_path)
    alone = history(shards, tmp_path)
    together = history(shards, tmp_path, workers=2, processes=1, max_tokens_per_micro_batch=BUDGET)
    assert_alike(alone, together)
