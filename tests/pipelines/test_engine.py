"""DeepSpeed behind `Engine`, in one process: equal to plain torch, saves what trains, resumes exactly."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from stub_learner import StubLearner, StubModule, StubTrainee
from torch import nn

from pipelines.engine import Engine, deepspeed_config
from pipelines.train_job import TrainConfig


@pytest.fixture(autouse=True)
def _process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def config(**changes) -> TrainConfig:
    values = {"steps": 10, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, **changes}
    return TrainConfig(**values)


def trainee(seed: int = 0) -> StubTrainee:
    torch.manual_seed(seed)
    return StubTrainee(StubModule(dropout=0.0), StubLearner())


def engine(settings: TrainConfig, seed: int = 0) -> Engine:
    made = trainee(seed)
    return Engine(
        made.module, made.parameter_groups(settings), settings, num_micro_batches=2, micro_batch_size=2
    )


def batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return [
        (100 * torch.rand(2, 4, generator=generator), torch.randint(0, 2, (2,), generator=generator))
        for _ in range(2)
    ]


def advance(made: Engine, steps: range, settings: TrainConfig) -> list[float]:
    losses = []
    for step in steps:
        made.set_learning_rate(settings.schedule(step))
        total = 0.0
        for inputs, labels in batches(step):
            loss = nn.functional.cross_entropy(made(inputs), labels, reduction="sum") / 4
            made.backward(loss)
            made.micro_step()
            total += float(loss.detach())
        losses.append(total)
    return losses


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_equals_plain_torch() -> None:
    """Accumulation, clipping, two groups, schedule: the same numbers as a loop written out by hand."""
    settings = config(gradient_clip=0.01, weight_decay=0.5)
    made = engine(settings)
    advance(made, range(6), settings)

    plain = trainee()
    optimizer = torch.optim.AdamW(plain.parameter_groups(settings))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(6):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * settings.schedule(step)
        optimizer.zero_grad()
        for inputs, labels in batches(step):
            (nn.functional.cross_entropy(plain.module(inputs), labels, reduction="sum") / 4).backward()
        norm = nn.utils.clip_grad_norm_(plain.module.parameters(), 0.01)
        optimizer.step()
    assert made.gradient_norm() == pytest.approx(float(norm), rel=1e-5)
    for name, value in weights(plain.module).items():
        if name != "idle":  # without a gradient plain AdamW skips it; sharded AdamW decays it like the rest
            torch.testing.assert_close(weights(made.module)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_agree(stage: int) -> None:
    reference, other = config(zero_stage=2), config(zero_stage=stage)
    assert advance(engine(other), range(5), other) == advance(engine(reference), range(5), reference)


def test_resumes_exactly_and_leaves_frozen_parameters_out(tmp_path: Path) -> None:
    settings = config()
    whole = engine(settings)
    losses = advance(whole, range(8), settings)

    first = engine(settings)
    advance(first, range(5), settings)
    first.save(tmp_path, {"step": 5})
    saved = torch.load(tmp_path / "state" / "mp_rank_00_model_states.pt", weights_only=False)
    assert "frozen.weight" not in saved["module"]
    assert {"head.weight", "hidden.weight", "scale"} <= set(saved["module"])

    second = engine(settings)
    with torch.no_grad():
        second.module.head.weight.zero_()
    assert second.load(tmp_path)["step"] == 5
    assert advance(second, range(5, 8), settings) == losses[5:]
    for name, value in weights(whole.module).items():
        assert torch.equal(weights(second.module)[name], value), name
    assert torch.equal(second.module.frozen.weight, trainee().module.frozen.weight)


def test_refuses_a_checkpoint_of_another_world_or_freezing(tmp_path: Path) -> None:
    settings = config()
    engine(settings).save(tmp_path, {"step": 1})
    made = trainee()
    groups = made.parameter_groups(settings)
    made.module.frozen.requires_grad_(True)
    groups.append({"name": "more", "params": list(made.module.frozen.parameters()), "lr": 1e-3})
    other = Engine(made.module, groups, settings, num_micro_batches=2, micro_batch_size=2)
    with pytest.raises(ValueError, match=r"frozen then: frozen\.bias"):
        other.load(tmp_path)
    file = tmp_path / "state.json"
    file.write_text(file.read_text().replace('"world_size": 1', '"world_size": 3'))
    with pytest.raises(
        ValueError, match="written by 3 workers and cannot be read by 1: resume with --workers 3"
    ):
        engine(settings).load(tmp_path)


def test_rates_of_groups_keep_their_proportion() -> None:
    made = engine(config())
    assert made.names == ["head", "rest"]
    assert made.set_learning_rate(0.5) == [5e-3, 2.5e-3]


def test_whole_parameters_under_zero_three() -> None:
    made = engine(config(zero_stage=3))
    with made.whole_parameters() as module:
        assert module.head.weight.shape == (2, 16)
        assert torch.equal(module.frozen.weight, trainee().module.frozen.weight)


def test_config_is_derived() -> None:
    made = deepspeed_config(config(precision="bf16", zero_stage=3, gradient_clip=0.3), 4, 2)
    assert made["bf16"]["enabled"] is True
    assert made["zero_optimization"]["stage"] == 3
    assert made["gradient_clipping"] == 0.3
    assert (made["gradient_accumulation_steps"], made["train_micro_batch_size_per_gpu"]) == (4, 2)
