"""Stage 2 with adapters: what trains, what stays, what is stored; against peft on the base."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.config import LORA_TARGETS, LoraSettings
from fo1_model.lora import add_adapters, merged
from fo1_model.sizes import debug
from jobs.recipes.stages import stage2
from pipelines.errors import SETTING_ERRORS
from pipelines.loading.collators import batch_of
from pipelines.train_config import TrainConfig
from pipelines.training.deepspeed_engine import Engine
from pipelines.training.learners import FO1Learner
from tests.pipelines.training.test_learners import example

SETTINGS = LoraSettings(rank=4, alpha=6.0)
LORA = FO1Learner(stage="stage2_lora", lora=SETTINGS)


@pytest.fixture(autouse=True)
def _process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    torch.set_num_threads(1)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory) -> Path:
    """A stage 1 model with lively weights."""
    model, processor = new_model(debug(), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    folder = tmp_path_factory.mktemp("parent")
    save_model(model, processor, folder)
    return folder


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, **changes}
    return TrainConfig(**values)


def steps(engine: Engine, trainee: Any, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        batch = batch_of(trainee.collator, [example(2 * number), example(2 * number + 1)])
        engine.ends_step(True)
        loss = trainee.loss(engine, batch).total / trainee.collator.weigh(batch)
        engine.backward(loss)
        assert engine.finish_step()
        losses.append(float(loss.detach()))
    return losses


def engine_of(parent: Path, settings: TrainConfig) -> tuple[Engine, Any]:
    trainee: Any = LORA.build(parent, seed=5, precision=settings.precision)
    groups = trainee.parameter_groups(settings)
    return Engine(
        trainee.module, groups, settings, num_micro_batches=1, micro_batch_size=2
    ), trainee


def decoder_weights(module: Any) -> dict[str, torch.Tensor]:
    """The frozen weights of the VLM under the names of the plain one."""
    return {
        name.replace(".base_layer", ""): value.detach().clone()
        for name, value in module.vlm.named_parameters()
        if ".lora_" not in name
    }


def test_losses_are_those_of_peft_on_the_plain_base(parent: Path) -> None:
    """Same adapters, same text, same optimizer: new rows are held still and part of its matrix."""
    trainee: Any = LORA.build(parent, seed=5)
    model, processor = trainee.module, trainee.collator.processor
    groups = [g for g in trainee.parameter_groups(config()) if g["name"].startswith("adapters")]
    assert sum(len(group["params"]) for group in groups) == 2 * len(LORA_TARGETS) * 2

    start, _ = load_model(parent)
    with torch.no_grad():
        rows = torch.tensor(processor.token_ids.new)
        start.vlm.get_input_embeddings().weight[rows] = start.new_rows.weight
    plain = peft.get_peft_model(
        start.vlm,
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(LORA_TARGETS), task_type=None),
    )
    own = {name: value for name, value in model.vlm.named_parameters() if ".lora_" in name}
    theirs = {n: p for n, p in plain.named_parameters() if ".lora_" in n and "visual" not in n}
    assert {name.removeprefix("base_model.model.") for name in theirs} == own.keys()
    with torch.no_grad():
        for name, value in theirs.items():
            value.copy_(own[name.removeprefix("base_model.model.")])

    texts = ["Please detect a red circle.", "How many blue squares are there?"]
    encoded = [
        processor.encode(
            None,
            None,
            [{"role": "user", "content": text}, {"role": "assistant", "content": "There are 3."}],
        )
        for text in texts
    ]
    batch = processor.collate(encoded)
    ours = torch.optim.AdamW([p for group in groups for p in group["params"]], lr=1e-2)
    reference = torch.optim.AdamW(list(theirs.values()), lr=1e-2)
    for _ in range(4):
        output = model(batch)
        loss = output.loss_sum / output.num_tokens
        logits = plain(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.positions,
        ).logits
        expected = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100
        )
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-5)
        for optimizer, value in ((ours, loss), (reference, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for name, value in theirs.items():
        mine = own[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(mine, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("zero_stage", "precision"),
    [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")],
)
def test_the_base_stays_to_the_bit_and_a_restart_changes_nothing(
    parent: Path, tmp_path: Path, zero_stage: int, precision: str
) -> None:
    settings = config(zero_stage=zero_stage, precision=precision)
    engine, trainee = engine_of(parent, settings)
    with engine.whole_parameters() as module:
        before = decoder_weights(module)
    losses = steps(engine, trainee, range(2))
    engine.save(tmp_path / "state", {"step": 2})
    losses += steps(engine, trainee, range(2, 4))
    with engine.whole_parameters() as module:
        after = decoder_weights(module)
        whole = {name: value.clone() for name, value in module.state_dict().items()}
        adapters = [value for name, value in whole.items() if ".lora_B" in name]
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(float(value.abs().sum()) > 0 for value in adapters), "every adapter has learned"

    again, other = engine_of(parent, settings)
    assert again.load(tmp_path / "state") == {"step": 2}
    assert steps(again, other, range(2, 4)) == losses[2:]
    with again.whole_parameters() as module:
        assert all(torch.equal(whole[name], v) for name, v in module.state_dict().items())


@pytest.fixture(scope="module")
def trained(parent: Path) -> Any:
    """A trainee whose adapters say something."""
    trainee: Any = LORA.build(parent, seed=5)
    trainee.parameter_groups(config())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in trainee.module.named_parameters():
            if ".lora_B" in name:
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return trainee


def test_merged_answers_are_the_unmerged_ones(trained: Any, tmp_path: Path) -> None:
    trained.export(tmp_path)
    model, _ = load_model(tmp_path)
    batch = batch_of(trained.collator, [example(0), example(1)])
    trained.module.eval()
    with torch.no_grad():
        apart = trained.module(batch, return_logits=True).logits
        together = model(batch, return_logits=True).logits
        untrained = copy.deepcopy(trained.module)
        for name, value in untrained.named_parameters():
            if ".lora_B" in name:
                value.zero_()
        before = untrained(batch, return_logits=True).logits
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    assert (apart - before).abs().max() > 100 * (apart - together).abs().max()
    # What is stored is W + B A alpha / r, and nothing of it stays behind in the trainee.
    layer = trained.module.vlm.model.language_model.layers[0].self_attn.q_proj
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (6.0 / 4)
    stored = model.vlm.model.language_model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(stored, layer.base_layer.weight + delta, rtol=1e-6, atol=1e-7)
    assert type(layer).__module__.startswith("peft.")


def test_the_adapter_folder_is_peft_s(trained: Any, parent: Path, tmp_path: Path) -> None:
    trained.export(tmp_path)
    start, _ = load_model(parent)
    loaded = peft.PeftModel.from_pretrained(start.vlm, tmp_path / "adapter")
    ids = torch.arange(40).reshape(2, 20)
    trained.module.eval()
    with torch.no_grad():
        ours, theirs = trained.module.vlm(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_merging_leaves_the_trainee_as_it_was(trained: Any) -> None:
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    with merged(trained.module) as whole:
        assert not any(".lora_" in name for name in whole.state_dict())
    after = trained.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_fresh_adapters_depend_on_the_seed_alone(parent: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(99 + seed)  # the caller's state is neither read nor moved
        model = load_model(parent)[0]
        add_adapters(model, SETTINGS, seed)
        layer = model.vlm.model.language_model.layers[1].mlp.up_proj
        assert torch.equal(layer.lora_B["default"].weight.sum(), torch.tensor(0.0))
        return layer.lora_A["default"].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_wrong_adapters_are_refused_before_any_worker() -> None:
    given: dict[str, Any] = {"size": "debug", "start": "somewhere"}
    (training,) = stage2(**given, lora_rank=8).trainings
    assert training.learner == FO1Learner(
        stage="stage2_lora", lora=LoraSettings(rank=8, alpha=16.0)
    )
    (both,) = stage2(**given, lora_rank=8, lora_targets="q_proj", primary_vit="trained").trainings
    assert both.learner.stage == "stage2_primary_lora"
    for arguments, message in (
        ({"lora_alpha": 4.0}, "lora_alpha: there are no adapters; say lora_rank="),
        ({"lora_targets": "q_proj"}, "lora_targets: there are no adapters"),
        ({"lora_rank": 0}, "lora_rank=0 must be at least 1"),
        ({"lora_rank": 2, "lora_alpha": -1.0}, "lora_alpha=-1.0 must be above 0"),
        ({"lora_rank": 2, "lora_targets": "q_proj,,"}, "lora_targets=q_proj,,: name linear layers"),
    ):
        with pytest.raises(SETTING_ERRORS, match=message):
            stage2(**given, **arguments)
    wrong = replace(LORA, lora=LoraSettings(rank=2, alpha=2.0, targets=("q_proj", "qkv")))
    with pytest.raises(SETTING_ERRORS, match="no linear layer qkv; it has down_proj, gate_proj"):
        wrong.check_parent(lambda _: json.dumps({"model": debug().to_dict()}).encode())
    with pytest.raises(SETTING_ERRORS, match="adapters train in the stages stage2_lora"):
        FO1Learner(stage="stage2", lora=SETTINGS).check(has_parent=True)
