"""FLOPs of a training step: against torch's counter of what runs, by hand, and the known GPUs."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop

from fo1_model import grammar
from fo1_model.acceleration import recompute
from fo1_model.checkpoint import new_model
from fo1_model.config import SIZES, TOWERS, RegionConfig, debug, tiny
from fo1_model.stages import STAGES, parameter_groups
from pipelines.training.flops import PEAK_FLOPS, peak_flops, peak_of, train_flops
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model


def per_group(*arguments, out_val):
    """torch counts the gradient of a grouped kernel as if each input channel met each output channel."""
    *shapes, groups, mask = arguments
    inputs, kernel = (
        conv_backward_flop(
            *shapes, groups, [mask[0] and first, mask[1] and not first, False], out_val=out_val
        )
        for first in (True, False)
    )
    return inputs + kernel // groups


per_group._get_raw = True


def counted(model, batch) -> int:
    """FLOPs that run, with attention as plain products, which torch counts one by one."""
    model.vlm.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    mapping = {torch.ops.aten.convolution_backward: per_group}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        model(batch).loss_sum.backward()
    return counter.get_total_flops()


def masked(model, batch, lengths) -> float:
    """FLOPs of the decoder's attention between tokens that do not see each other, gradients included."""
    text = model.config.vlm.config["text_config"]
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


@pytest.mark.parametrize("stage", sorted(STAGES))
@pytest.mark.parametrize("size", ["debug", "tiny"])
def test_what_runs_is_what_is_counted(size: str, stage: str) -> None:
    model, processor = new_model(SIZES[size](), seed=0)
    parameter_groups(model, stage, 1e-3)
    model.train()
    # Windows of the ViT are 8 x 8 patches of 14 px: 300 px have a window and a half. Neither picture fills
    # the windows of DaViT where it is not squashed.
    samples = [encoded(processor, 300, 200, 7), encoded(processor, 140, 224, 2)]
    for packs in (False, True):
        batch = processor.pack(samples) if packs else processor.collate(samples[:1])
        lengths = [len(sample.input_ids) for sample in (samples if packs else samples[:1])]
        runs = counted(model, batch) - masked(model, batch, lengths)
        assert train_flops(model, batch) == pytest.approx(runs, rel=1e-3)


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
    assert train_flops(model, batch) == pytest.approx(runs, rel=1e-3)


def test_padding_recomputation_and_pictures_that_are_not_there_do_not_count() -> None:
    model, processor = new_model(debug(), seed=0)
    parameter_groups(model, "stage2", 1e-3)
    short, long = encoded(processor, 70, 64, 1), encoded(processor, 70, 64, 1, "a red circle " * 30)
    apart = sum(train_flops(model, processor.collate([one])) for one in (short, long))
    assert train_flops(model, processor.collate([short, long])) == apart
    recompute(model, TOWERS)
    assert train_flops(model, processor.collate([short, long])) == apart
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    text = processor.collate([processor.encode(None, None, turns)])
    assert 0 < train_flops(model, text) < train_flops(model, processor.collate([short])) / 4


def test_the_decoder_by_hand() -> None:
    """Text alone through tiny: 4 layers of width 96, MLP of 192, all heads with keys of their own."""
    model, processor = new_model(tiny(), seed=0)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    batch = processor.collate([processor.encode(None, None, turns)])
    tokens, supervised = batch.input_ids.shape[1], int((batch.labels[:, 1:] >= 0).sum())
    matrices = 4 * (4 * 96 * 96 + 3 * 96 * 192)
    attention = 4 * (4 * 96 * tokens * (tokens + 1) // 2)
    head, new_rows = 1152 * 96, len(model.token_ids.new) * 96

    def flops(stage: str) -> float:
        parameter_groups(model, stage, 1e-3)
        return train_flops(model, batch)

    # Behind trained rows the frozen decoder costs two; the rows themselves train.
    frozen = (
        2 * (2 * matrices * tokens) + 3 * attention + 2 * supervised * (2 * head + 3 * new_rows)
    )
    trained = 3 * (2 * matrices * tokens) + 3 * attention + 2 * supervised * 3 * (head + new_rows)
    assert flops("stage1") == frozen
    assert flops("stage2") == trained
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert train_flops(model, batch) == 2 * matrices * tokens + attention + 2 * supervised * (
        head + new_rows
    )


def test_other_families_are_unknown() -> None:
    model, processor = small_model("qwen2_vl")
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A circle."}]
    assert train_flops(model, processor.collate([processor.encode(None, None, turns)])) is None


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
