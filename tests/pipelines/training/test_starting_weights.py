"""Training on published weights, through the real loop: what is frozen stays theirs to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.davit import checkpoint_filter_fn

from fo1_model.checkpoint import ASSETS, BASES, load_base, load_model
from fo1_model.sizes import SIZES
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.train_config import TrainConfig
from pipelines.training.driver import train
from pipelines.training.job import TrainJob, Weights
from pipelines.training.learners import FO1Learner, OPNLearner
from tests.fo1_model.small_published import text_logits, write_florence, write_vlm
from tests.pipelines.training.test_learners import DEBUG, write_shards

ONE_STEP = TrainConfig(steps=1, batch_size=2, learning_rate=1e-2, weight_decay=0.1)
TEXT = "Please detect red circle in this image.<|im_end|>"


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path), data=str(tmp_path), workers=0)


def job_of(root: Path, learner: Any, config: TrainConfig = ONE_STEP, **weights: Path) -> TrainJob:
    return TrainJob(
        name="stage1",
        learner=learner,
        config=config,
        mix={"drawn/detection": 1.0},
        shards={"drawn": write_shards(root)},
        weights={part: Weights(path=str(path), digest="0" * 16) for part, path in weights.items()},
    )


def trained(job: TrainJob, runtime: RuntimeConfig) -> Path:
    output = job.artifact(runtime.root)
    assert train(job, output, runtime)["metrics"]["loss"] > 0
    return Path(output.path, "export")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stage_one_leaves_published_towers_as_they_are(
    precision: str, tmp_path: Path, runtime: RuntimeConfig
) -> None:
    """Both towers equal the folders', and text is answered as transformers does from them."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    theirs = write_vlm(tmp_path / "vlm", dtype=torch.bfloat16)
    tower = checkpoint_filter_fn(write_florence(tmp_path / "florence"), None)
    config = replace(ONE_STEP, precision=precision)
    job = job_of(tmp_path, DEBUG, config, vlm=tmp_path / "vlm", auxiliary=tmp_path / "florence")
    model, processor = load_model(trained(job, runtime), dtype=None)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.vlm.state_dict()[name], value.to(dtype)), name
    for name, value in model.auxiliary.model.state_dict().items():
        assert torch.equal(value, tower[name].to(dtype)), name
    ids = torch.tensor([processor.tokenizer.encode(TEXT)])
    own = text_logits(model, ids)
    loaded = type(theirs).from_pretrained(tmp_path / "vlm", dtype=dtype)
    with torch.no_grad():
        expected = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    new = list(processor.token_ids.new)
    assert torch.equal(
        model.without_new_tokens(own), expected.index_fill(-1, torch.tensor(new), -torch.inf)
    )
    start = DEBUG.build(None, job.weight_paths, seed=0).module
    assert not torch.equal(model.new_rows.weight.float(), start.new_rows.weight.to(dtype).float())


@pytest.mark.skipif(not (ASSETS / BASES["tiny"]).is_file(), reason="no pretrained tiny base")
def test_stage_one_leaves_the_tiny_base_s_text_as_it_is(
    tmp_path: Path, runtime: RuntimeConfig
) -> None:
    learner = FO1Learner(stage="stage1", model=SIZES["tiny"](), base="tiny")
    model, processor = load_model(trained(job_of(tmp_path, learner), runtime))
    base, _ = load_base("tiny")
    ids = torch.tensor([processor.tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected = base.vlm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    new = torch.tensor(processor.token_ids.new)
    own = text_logits(model, ids)
    known = [row for row in range(expected.shape[-1]) if row not in set(new.tolist())]
    assert torch.equal(own[..., known], expected[..., known])
    assert not torch.equal(own[..., new], text_logits(base, ids)[..., new]), (
        "the new rows did not train"
    )


def test_a_folder_of_another_size_is_refused_before_anything_starts(
    tmp_path: Path, runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vlm(tmp_path / "vlm")
    write_florence(tmp_path / "florence")
    tiny = FO1Learner(stage="stage1", model=SIZES["tiny"]())
    job = job_of(tmp_path, tiny, vlm=tmp_path / "vlm", auxiliary=tmp_path / "florence")
    output = job.artifact(runtime.root)
    monkeypatch.setattr(
        "pipelines.training.driver._run_here", lambda *_: pytest.fail("it was started")
    )
    with pytest.raises(
        ValueError, match=r"^vlm=.*text_config\.\w+=\d+, the size asked for \d+; give the VLM"
    ):
        train(job, output, runtime)
    assert output.status() == "missing"


def test_weights_count_by_part_and_content(tmp_path: Path) -> None:
    def job(**weights: tuple[str, str]) -> TrainJob:
        return replace(
            job_of(tmp_path, DEBUG),
            weights={p: Weights(path=f, digest=d) for p, (f, d) in weights.items()},
        )

    one = job(vlm=("/a", "1"), auxiliary=("/b", "2"))
    assert one.inputs() == job_of(tmp_path, DEBUG).inputs() | {
        "weights/vlm": "1",
        "weights/auxiliary": "2",
    }
    keys = [
        made.artifact("/r").fingerprint
        for made in (
            one,
            job(auxiliary=("/moved", "2"), vlm=("/too", "1")),
            job(vlm=("/a", "2"), auxiliary=("/b", "1")),
            job(),
        )
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert job(vlm=("/a", "1")).inputs().keys() >= {"weights/vlm"}, "the other tower is drawn"
    with pytest.raises(
        SettingError, match="stage1: weights of others are given for auxiliary; give vlm too"
    ):
        job(auxiliary=("/a", "1"))
    with pytest.raises(SettingError, match="given for auxiliary, vlm; it takes none"):
        replace(
            one,
            learner=FO1Learner(stage="stage2"),
            parent=Artifact(root="/r", kind="runs", name="stage1", fingerprint="0" * 16),
        )


def test_opn_starts_from_an_omdet_turbo_of_its_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fo1_model.opn import warm_start
    from fo1_model.opn.config import OPN_SIZES
    from fo1_model.opn.network import new_opn

    sizes = OPN_SIZES["tiny"]()
    found = new_opn(sizes, 9)
    monkeypatch.setattr(warm_start, "warm_start_config", lambda folder: sizes)
    monkeypatch.setattr(
        warm_start, "warm_start", lambda folder: found if folder == tmp_path else None
    )
    learner = OPNLearner(network=sizes, warm_start=True)
    assert learner.build(None, {"omdet": tmp_path}, seed=0).module is found
    with pytest.raises(SettingError, match="has other sizes than the run"):
        replace(learner, network=replace(sizes, num_queries=7)).check_weights({"omdet": tmp_path})
