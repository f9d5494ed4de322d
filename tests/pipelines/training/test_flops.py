"""FLOPs of a training step: against a whole step that runs, by hand, and the known GPUs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fo1_model import grammar
from fo1_model.acceleration import recompute
from fo1_model.checkpoint import new_model
from fo1_model.config import TOWERS, LoraSettings, RegionConfig
from fo1_model.lora import add_adapters
from fo1_model.sizes import SIZES, debug, tiny
from fo1_model.stages import STAGES, parameter_groups
from fo1_model.vlms import VLM_FAMILIES
from pipelines.training import flops
from pipelines.training.flops import PEAK_FLOPS, peak_flops, peak_of, train_flops
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model
from tests.pipelines.training.qwen_flops import flops_by_hand

UNCOUNTED = {
    "qwen3_5": "layers of linear_attention",
    "qwen3_5_moe": "layers of linear_attention",
    "qwen3_vl_moe": "products of experts",
}
"""Family -> why its decoder is not counted."""


def counted(model, batch) -> int:
    """FLOPs that run, with attention as plain products, which torch counts one by one."""
    model.vlm.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    mapping = {torch.ops.aten.convolution_backward: flops._conv_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(batch).loss_sum.backward()
    return counter.get_total_flops()


def masked(model, batch, lengths) -> float:
    """FLOPs of the decoder's attention between tokens that do not see each other, gradients
    included."""
    text = model.model_config.vlm.config["text_config"]
    pairs = batch.input_ids.numel() * batch.input_ids.shape[1] - sum(
        n * (n + 1) // 2 for n in lengths
    )
    return 4 * pairs * text["hidden_size"] * text["num_hidden_layers"] * 3


def encoded(processor, width, height, count, answer="a red circle"):
    prompt = grammar.region_prompt(count) + "\n" if count else ""
    turns = [
        {"role": "user", "content": f"{grammar.IMAGE}\n{prompt}What is it?"},
        {"role": "assistant", "content": answer},
    ]
    boxes = some_boxes(count, width, height) if count else None
    return processor.encode(picture(width, height), boxes, turns)


PLAIN = sorted(stage for stage in STAGES if "adapters" not in STAGES[stage].parts)


@pytest.mark.parametrize("stage", PLAIN)
@pytest.mark.parametrize("size", ["debug", "tiny"])
def test_what_runs_is_what_is_counted(size: str, stage: str) -> None:
    model, processor = new_model(SIZES[size](), seed=0)
    parameter_groups(model, stage, 1e-3)
    model.train()
    # Windows of the ViT are 8 x 8 patches of 14 px: 300 px have a window and a half. Neither
    # picture fills the windows of DaViT where it is not squashed.
    samples = [encoded(processor, 300, 200, 7), encoded(processor, 140, 224, 2)]
    for packs in (False, True):
        batch = processor.pack(samples) if packs else processor.collate(samples[:1])
        lengths = [len(sample.input_ids) for sample in (samples if packs else samples[:1])]
        runs = counted(model, batch) - masked(model, batch, lengths)
        assert train_flops(model, batch) == pytest.approx(runs, rel=1e-9)
        assert train_flops(model, batch) == pytest.approx(flops_by_hand(model, batch), rel=1e-3)


@pytest.mark.parametrize(
    "region",
    [
        RegionConfig(features="primary", pyramid=True, pyramid_dim=16),
        RegionConfig(features="auxiliary"),
        RegionConfig(pyramid=False, region_norm=True),
    ],
)
def test_the_ablations_of_the_regions_are_counted(region: RegionConfig) -> None:
    config = replace(debug(), region=region, auxiliary=replace(debug().auxiliary, resize="dynamic"))
    model, processor = new_model(config, seed=0)
    parameter_groups(model, "stage2", 1e-3)
    model.train()
    sample = encoded(processor, 150, 100, 3)
    batch = processor.collate([sample])
    runs = counted(model, batch) - masked(model, batch, [len(sample.input_ids)])
    assert train_flops(model, batch) == pytest.approx(runs, rel=1e-9)
    assert train_flops(model, batch) == pytest.approx(flops_by_hand(model, batch), rel=1e-3)


def test_padding_recomputation_and_pictures_that_are_not_there_do_not_count() -> None:
    model, processor = new_model(debug(), seed=0)
    parameter_groups(model, "stage2", 1e-3)
    short, long = encoded(processor, 70, 64, 1), encoded(processor, 70, 64, 1, "a red circle " * 30)
    apart = sum(train_flops(model, processor.collate([one])) for one in (short, long))
    assert train_flops(model, processor.collate([short, long])) == pytest.approx(apart, rel=1e-12)
    recompute(model, TOWERS)
    assert train_flops(model, processor.collate([short, long])) == pytest.approx(apart, rel=1e-12)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    text = processor.collate([processor.encode(None, None, turns)])
    assert 0 < train_flops(model, text) < train_flops(model, processor.collate([short])) / 4


def test_the_decoder_by_hand() -> None:
    """Text alone through tiny: 4 layers of width 96, MLP of 192, a key head for each head."""
    model, processor = new_model(tiny(), seed=0)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    batch = processor.collate([processor.encode(None, None, turns)])
    tokens, supervised = batch.input_ids.shape[1], int((batch.labels[:, 1:] >= 0).sum())
    matrices = 4 * (4 * 96 * 96 + 3 * 96 * 192)
    attention = 4 * (4 * 96 * tokens * (tokens + 1) // 2)
    head, new_rows = 1152 * 96, len(model.token_ids.new) * 96

    def counts(stage: str) -> float:
        parameter_groups(model, stage, 1e-3)
        return train_flops(model, batch)

    # Behind trained rows the frozen decoder costs two; the rows themselves train.
    frozen = (
        2 * (2 * matrices * tokens) + 3 * attention + 2 * supervised * (2 * head + 3 * new_rows)
    )
    trained = 3 * (2 * matrices * tokens) + 3 * attention + 2 * supervised * 3 * (head + new_rows)
    assert counts("stage1") == pytest.approx(frozen, rel=1e-12)
    assert counts("stage2") == pytest.approx(trained, rel=1e-12)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    forward = 2 * matrices * tokens + attention + 2 * supervised * (head + new_rows)
    assert train_flops(model, batch) == pytest.approx(forward, rel=1e-12)


@pytest.mark.parametrize("stage", ["stage1", "stage2_primary"])
@pytest.mark.parametrize("family", sorted(VLM_FAMILIES))
def test_every_family_is_counted(family: str, stage: str, caplog) -> None:
    """To the FLOP, or not at all: never a wrong number."""
    model, processor = small_model(family)
    parameter_groups(model, stage, 1e-3)
    sample = encoded(processor, 90, 70, 3)
    batch = processor.collate([sample])
    got = train_flops(model, batch)
    if family in UNCOUNTED:
        assert got is None
        assert UNCOUNTED[family] in caplog.text
        assert train_flops(model, batch) is None
        assert caplog.text.count("FLOPs are not counted") == 1
        return
    runs = counted(model, batch) - masked(model, batch, [len(sample.input_ids)])
    assert got == pytest.approx(runs, rel=1e-9)


def test_a_model_with_adapters_is_not_counted(caplog) -> None:
    model, processor = new_model(debug(), seed=0)
    add_adapters(model, LoraSettings(rank=2, alpha=2.0), seed=0)
    parameter_groups(model, "stage2_lora", 1e-3)
    assert train_flops(model, processor.collate([encoded(processor, 70, 64, 1)])) is None
    assert "adapters" in caplog.text


def test_images_of_further_shapes_are_fitted_to_those_that_ran(monkeypatch) -> None:
    model, processor = new_model(tiny(), seed=0)
    parameter_groups(model, "stage1", 1e-3)
    measured = []
    measure = flops._Counter._measure
    monkeypatch.setattr(
        flops._Counter, "_measure", lambda *given: measured.append(given[2]) or measure(*given)
    )
    flops._counter.cache_clear()
    sizes = [(280, 210), (420, 280), (140, 224), (560, 420), (280, 280), (640, 480)]
    for width, height in [*sizes, (500, 375), (333, 500), (280, 210)]:
        batch = processor.collate([encoded(processor, width, height, 5)])
        assert train_flops(model, batch) == pytest.approx(flops_by_hand(model, batch), rel=0.01)
    assert len(measured) == flops._MOST_MEASURED == len(sizes)


def test_counting_moves_no_random_number_and_no_weight() -> None:
    model, processor = new_model(debug(), seed=0)
    parameter_groups(model, "stage2", 1e-3)
    batch = processor.collate([encoded(processor, 70, 64, 1)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flops._counter.cache_clear()
    state = torch.get_rng_state()
    train_flops(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cannot_be_counted_is_said_once_and_trains_on(monkeypatch, caplog) -> None:
    model, processor = new_model(debug(), seed=0)
    batch = processor.collate([encoded(processor, 70, 64, 1)])

    def fail(*_):
        raise RuntimeError("it looks at its weights")

    monkeypatch.setattr(flops._Counter, "count", fail)
    assert [train_flops(model, batch) for _ in range(3)] == [None] * 3
    assert caplog.text.count("FLOPs are not counted, qwen2_5_vl: it looks at its weights") == 1


def test_the_names_of_gpus() -> None:
    known = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA A10": 125e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "NVIDIA H200": 989e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
    }
    assert {name: peak_of(name) for name in known} == known
    for name in ("NVIDIA L40", "NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Tesla T4", ""):
        assert peak_of(name) is None
    assert set(PEAK_FLOPS.values()) == set(known.values())
    assert peak_flops(torch.device("cpu")) is None
