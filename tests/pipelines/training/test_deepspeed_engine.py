"""DeepSpeed behind `Engine`: equal to plain torch, saves what trains, resumes exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.utils import apply_to_tensors_only
from torch import nn

from pipelines.loading.collators import batch_of
from pipelines.loading.loader import MicroBatch, StepData
from pipelines.train_config import TrainConfig
from pipelines.training.deepspeed_engine import Engine, deepspeed_config
from pipelines.training.run_state import RunState
from pipelines.training.train_step import take_step
from tests.pipelines.group_worker import on_ranks
from tests.pipelines.training.stub_learner import StubLearner, StubModule, StubTrainee
from tests.pipelines.training.test_learners import DEBUG, example


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
        made.module,
        made.parameter_groups(settings),
        settings,
        num_micro_batches=2,
        micro_batch_size=2,
    )


def batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return [
        (
            100 * torch.rand(2, 4, generator=generator),
            torch.randint(0, 2, (2,), generator=generator),
        )
        for _ in range(2)
    ]


def advance(made: Engine, steps: range, settings: TrainConfig) -> list[float]:
    losses = []
    for step in steps:
        made.set_learning_rate(settings.schedule(step))
        total = 0.0
        for number, (inputs, labels) in enumerate(batches(step)):
            loss = nn.functional.cross_entropy(made(inputs), labels, reduction="sum") / 4
            made.backward(loss)
            total += float(loss.detach())
            if number == 0:
                made.micro_step()
        assert made.finish_step()
        losses.append(total)
    return losses


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_equals_plain_torch() -> None:
    """Accumulation, clipping, two groups, schedule: the same numbers as a loop by hand."""
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
            (
                nn.functional.cross_entropy(plain.module(inputs), labels, reduction="sum") / 4
            ).backward()
        norm = nn.utils.clip_grad_norm_(plain.module.parameters(), 0.01)
        optimizer.step()
    assert made.gradient_norm() == pytest.approx(float(norm), rel=1e-5)
    for name, value in weights(plain.module).items():
        if (
            name != "idle"
        ):  # without a gradient plain AdamW skips it; sharded AdamW decays it like the rest
            torch.testing.assert_close(weights(made.module)[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stages_agree(stage: int) -> None:
    reference, other = config(zero_stage=2), config(zero_stage=stage)
    assert advance(engine(other), range(5), other) == advance(
        engine(reference), range(5), reference
    )


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


def test_refuses_a_checkpoint_of_another_freezing(tmp_path: Path) -> None:
    settings = config()
    engine(settings).save(tmp_path, {"step": 1})
    made = trainee()
    groups = made.parameter_groups(settings)
    made.module.frozen.requires_grad_(True)
    groups.append({"name": "more", "params": list(made.module.frozen.parameters()), "lr": 1e-3})
    other = Engine(made.module, groups, settings, num_micro_batches=2, micro_batch_size=2)
    with pytest.raises(ValueError, match=r"frozen then: frozen\.bias"):
        other.load(tmp_path)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("poisoned", [True, False], ids=["not finite", "finite"])
def test_a_step_left_out_leaves_no_trace(stage: int, poisoned: bool) -> None:
    """Of its gradients and moments: the steps after it are those of a run that never saw it."""
    settings = config(zero_stage=stage, weight_decay=0.1)
    made, clean = engine(settings), engine(settings)
    for steps, discards in ((range(3), False), (range(3, 4), True), (range(4, 7), False)):
        if not discards:
            assert advance(made, steps, settings) == advance(clean, steps, settings)
            continue
        for number, (inputs, labels) in enumerate(batches(3)):
            factor = float("nan") if poisoned and number == 0 else 1.0
            made.backward(
                nn.functional.cross_entropy(made(inputs * factor), labels, reduction="sum") / 4
            )
            if number == 0:
                made.micro_step()
        assert not made.finish_step(discard=not poisoned)
    for name, value in weights(clean.module).items():
        assert torch.equal(weights(made.module)[name], value), name


def test_gradient_norm_is_known_at_every_stage() -> None:
    norms = []
    for stage in (0, 1, 2, 3):
        settings = config(zero_stage=stage)
        made = engine(settings)
        advance(made, range(3), settings)
        norms.append(made.gradient_norm())
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-6)
    assert norms[0] > 0.01


def test_an_optimizer_in_main_memory_does_the_same() -> None:
    """Nothing is compiled for it, and where main memory is the only one nothing changes."""
    here, there = config(), config(offload_optimizer=True)
    assert advance(engine(there), range(5), there) == advance(engine(here), range(5), here)


# On several ranks.

VARIANTS = [*((stage, "fp32") for stage in (0, 1, 2, 3)), *((stage, "bf16") for stage in (1, 2, 3))]


def _losses(made: Engine, steps: range, settings: TrainConfig) -> list[float]:
    """Of the whole batch of 12, a share of which this rank has."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in steps:
        made.set_learning_rate(settings.schedule(step))
        generator = torch.Generator().manual_seed(step)
        inputs = 100 * torch.rand(12, 4, generator=generator)
        labels = torch.randint(0, 2, (12,), generator=generator)[rank::world_size]
        logits = made(inputs[rank::world_size].to(next(made.module.parameters()).dtype)).float()
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / 12
        made.backward(loss)
        assert made.finish_step()
        total = loss.detach().double()
        dist.all_reduce(total)
        losses.append(float(total))
    return losses


def _sharded(settings: TrainConfig) -> Engine:
    made = trainee()
    groups = made.parameter_groups(settings)
    return Engine(made.module, groups, settings, num_micro_batches=1, micro_batch_size=12)


def _clipped() -> dict[str, list[float]]:
    """Losses of ten steps of which each is clipped, by ZeRO stage."""
    found = {}
    for stage in (0, 1, 2, 3):
        settings = config(zero_stage=stage, gradient_clip=0.01)
        made = _sharded(settings)
        found[str(stage)] = _losses(made, range(10), settings)
        assert made.gradient_norm() > 0.02
    return found


LOGGED: dict[str, Any] = {"sources": ["drawn/detection"], "logs": True, "is_due": False}


class _Boundary(torch.autograd.Function):
    """Nothing but a node of the graph."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def _add_boundaries(module: nn.Module) -> None:
    """Put a node before and after every module, where ZeRO 3 has its own."""
    for part in module.modules():
        part.register_forward_pre_hook(
            lambda _, inputs: apply_to_tensors_only(_Boundary.apply, inputs)
        )
        part.register_forward_hook(
            lambda _, __, output: apply_to_tensors_only(_Boundary.apply, output)
        )


def _fo1() -> dict[str, list[float]]:
    """Losses of ten steps of the debug model's second stage, by ZeRO stage, on unlike ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    found = {}
    for name, stage in {"0": 0, "1": 1, "2": 2, "3": 3, "0 with boundaries": 0}.items():
        settings = config(zero_stage=stage, batch_size=2, weight_decay=0.1, gradient_clip=1e6)
        trained = replace(DEBUG, stage="stage2").build(None, seed=0)
        if "boundaries" in name:
            _add_boundaries(trained.module)
        groups = trained.parameter_groups(settings)
        made = Engine(trained.module, groups, settings, num_micro_batches=1, micro_batch_size=1)
        trained.module.train()
        state, records = RunState(plan="p"), []
        for step in range(10):
            number = world_size * step + rank
            batch = batch_of(trained.collator, [example(number, boxes=number % 4)])
            micro = MicroBatch(
                batch=batch, weight=trained.collator.weigh(batch), sources=("drawn/detection",)
            )
            data = StepData(step=step, micro_batches=[micro], sample_ids=[], num_tokens=0)
            records.append(take_step(made, trained, data, settings, state, **LOGGED).record)
        assert max(record["gradient_norm"] for record in records) < 1e3
        found[name] = [record["loss"] for record in records]
    return found


def _run_all(folder: Path) -> None:
    _run_variants(folder, False)
    found = (_clipped(), _fo1())
    if dist.get_rank() == 0:
        torch.save(found, folder / "others.pt")


def _run_variants(folder: Path, resumes: bool) -> None:
    found = {}
    for stage, precision in VARIANTS:
        settings = config(zero_stage=stage, precision=precision, weight_decay=0.5)
        made, checkpoint = _sharded(settings), folder / f"{stage}-{precision}"
        if resumes:
            made.load(checkpoint)
            losses = _losses(made, range(5, 10), settings)
        else:
            losses = _losses(made, range(5), settings)
            made.save(checkpoint, {"step": 5})
            losses += _losses(made, range(5, 10), settings)
        with made.whole_parameters() as module:
            found[f"{stage}-{precision}"] = (losses, weights(module))
    if dist.get_rank() == 0:
        torch.save(found, folder / f"found-{dist.get_world_size()}.pt")


Found = dict[str, tuple[list[float], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """Ten steps of every variant on two ranks, with a checkpoint after five."""
    folder = tmp_path_factory.mktemp("two")
    for stage, precision in VARIANTS:
        (folder / f"{stage}-{precision}").mkdir()
    on_ranks(2, _run_all, folder)
    return folder, torch.load(folder / "found-2.pt", weights_only=True)


def test_zero_stages_agree_to_the_last_digit_on_two_ranks(two_ranks: tuple[Path, Found]) -> None:
    _, found = two_ranks
    losses, reference = found["0-fp32"]
    assert len(losses) == 10
    for stage in (1, 2, 3):
        assert found[f"{stage}-fp32"][0] == losses
        for name, value in found[f"{stage}-fp32"][1].items():
            if name != "idle":  # sharded AdamW decays what has no gradient; plain AdamW leaves it
                assert torch.equal(value, reference[name]), (stage, name)


def test_zero_stages_agree_on_the_real_model(two_ranks: tuple[Path, Found]) -> None:
    """To the last digit. (With several passes a step, stage 2 adds up ranks first.)

    Stage 3 puts nodes around modules into the graph, also on one rank: gradients of a tensor's uses
    inside a module are then added up before those outside it, in another order than without. With
    such nodes stage 0 gives the very same losses, so sharding itself changes nothing.
    """
    _, found = torch.load(two_ranks[0] / "others.pt", weights_only=True)
    assert len(set(found["0"])) == 10
    assert found["0"] == found["1"] == found["2"]
    assert found["3"] == found["0 with boundaries"]
    assert found["3"] == pytest.approx(found["0"], rel=1e-5)


def test_where_clipping_acts_zero_stages_agree_up_to_rounding(
    two_ranks: tuple[Path, Found],
) -> None:
    """DeepSpeed sums the norm in float32 over what a rank holds, so in an order of the stage."""
    found, _ = torch.load(two_ranks[0] / "others.pt", weights_only=True)
    assert found["1"] == found["2"]
    for stage in ("0", "3"):
        assert found[stage] == pytest.approx(found["2"], rel=1e-6)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_checkpoint_of_two_ranks_goes_on_with_another_number(
    two_ranks: tuple[Path, Found], world_size: int
) -> None:
    """Weights, both moments, the step count, and the weight decay of each group."""
    folder, found = two_ranks
    on_ranks(world_size, _run_variants, folder, True)
    again: Found = torch.load(folder / f"found-{world_size}.pt", weights_only=True)
    for variant, (losses, final) in again.items():
        tolerance = 1e-5 if variant.endswith("fp32") else 2e-2
        assert losses == pytest.approx(found[variant][0][5:], rel=tolerance), variant
        for name, value in final.items():
            torch.testing.assert_close(
                value, found[variant][1][name], rtol=tolerance, atol=tolerance
            )
    assert not list(folder.glob("*/universal*"))


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
