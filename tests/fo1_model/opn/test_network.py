"""OPN against transformers' own decoder, in and out of training, through save and load."""

import dataclasses

import pytest
import torch

from fo1_model.errors import SettingError
from fo1_model.opn.config import OPN_SIZES, OPNConfig
from fo1_model.opn.criterion import OPNCriterion
from fo1_model.opn.network import OPN, load_opn, new_opn, save_opn
from fo1_model.opn.targets import Letterbox, OPNBatch

TINY = OPN_SIZES["tiny"]()


def pixels(batch: int = 2, side: int = 128) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model() -> OPN:
    return new_opn(dataclasses.replace(TINY, normalization="batch"), seed=1)


@pytest.mark.parametrize("training", [False, True])
def test_equals_the_library_decoder_plus_the_bias(model: OPN, training: bool) -> None:
    """The loop gives what OmDetTurboDecoder.forward gives for one class and one task token."""
    model.train(training)
    prompts = torch.tensor([1, 0])
    outputs = model(pixels(), prompts)
    maps = model.encoder(list(model.backbone(pixels())), return_dict=True).extracted_states
    reference = model.decoder(
        maps,
        class_features=model.object_prompts[prompts].unsqueeze(0),
        task_features=model.task_prompts[prompts].unsqueeze(0),
        task_mask=torch.ones(2, 1, dtype=torch.int64),
        return_dict=True,
    )
    layers = slice(None) if training else slice(-1, None)
    torch.testing.assert_close(outputs.boxes[layers], reference.decoder_coords)
    expected = reference.decoder_classes.squeeze(-1) + model.logit_bias
    torch.testing.assert_close(outputs.logits[layers], expected)
    torch.testing.assert_close(outputs.encoder_boxes, reference.encoder_coord_logits)
    expected = reference.encoder_class_logits.squeeze(-1) + model.logit_bias
    torch.testing.assert_close(outputs.encoder_logits, expected)


def test_shapes_and_ranges(model: OPN) -> None:
    outputs = model.eval()(pixels())
    assert outputs.logits.shape == (2, 2, 50)
    assert outputs.boxes.shape == (2, 2, 50, 4)
    assert outputs.encoder_boxes.shape == (2, 50, 4)
    assert ((outputs.boxes >= 0) & (outputs.boxes <= 1)).all()
    assert outputs.noised_logits is None


def test_few_positions_clamp_the_queries(model: OPN) -> None:
    """A 32 px square has 16 + 4 + 1 = 21 positions, fewer than 50 queries."""
    outputs = model.eval()(pixels(side=32))
    assert outputs.logits.shape == (2, 2, 21)
    assert torch.isfinite(outputs.boxes).all()


def test_border_positions_without_an_anchor_come_last() -> None:
    """At 512 px the stride-8 grid has centres at 1/128 of the side: OmDet-Turbo has no anchor."""
    model = new_opn(dataclasses.replace(TINY, num_queries=10_000), seed=0).eval()
    features = torch.randn(1, 64 * 64 + 32 * 32 + 16 * 16, 64)
    shapes = [(64, 64), (32, 32), (16, 16)]
    _, box_logits, _ = model._select(features, shapes, torch.zeros(1, dtype=torch.int64))
    assert torch.isfinite(box_logits).all()
    unanchored = (box_logits[0].abs() > 10).any(-1)
    assert unanchored.sum() == 4 * 63  # the border of the finest grid
    assert unanchored[-4 * 63 :].all()


def test_prompts_choose_per_image(model: OPN) -> None:
    model.eval()
    both = model(pixels(), torch.tensor([0, 1]))
    coarse = model(pixels(), torch.tensor([0, 0]))
    torch.testing.assert_close(both.logits[:, 0], coarse.logits[:, 0])
    assert not torch.allclose(both.logits[:, 1], coarse.logits[:, 1])


def test_anchors_cached_in_inference_mode_serve_training() -> None:
    model = new_opn(TINY, seed=0)
    with torch.inference_mode():
        model.eval()(pixels(1))
    model.train()(pixels()).logits.sum().backward()
    assert model.logit_bias.grad is not None


def test_denoising_queries_are_hidden_from_the_real_ones() -> None:
    """Noised ground truth must not reach the proposals; equal seeds repeat the noise."""
    model = new_opn(dataclasses.replace(TINY, denoising_groups=2), seed=0).train()
    one = (torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.zeros(0, 4))
    first, other = model(pixels(), None, one, (5, 6)), model(pixels(), None, one, (7, 6))
    torch.testing.assert_close(first.logits, model(pixels()).logits)
    assert first.noised_boxes is not None
    assert first.noised_boxes.shape == (2, 2, 4, 4)  # 2 groups of a near and a far copy
    assert [len(p) for p in first.noised_positives] == [2, 0]
    torch.testing.assert_close(model(pixels(), None, one, (5, 6)).noised_boxes, first.noised_boxes)
    assert not torch.allclose(other.noised_boxes, first.noised_boxes)
    assert model.eval()(pixels(), None, one, (5, 6)).noised_boxes is None
    with pytest.raises(ValueError, match="seed"):
        model.train()(pixels(), None, one)


def test_denoising_queries_send_no_gradient_through_the_proposals() -> None:
    """Exact where values are too small to see a leak: neither directly nor by the task token."""
    model = new_opn(dataclasses.replace(TINY, denoising_groups=2), seed=0).train()
    outputs = model(pixels(1), None, (torch.tensor([[0.5, 0.5, 0.2, 0.2]]),), (5,))
    [gradient] = torch.autograd.grad(outputs.logits.sum(), model.noised_query, retain_graph=True)
    assert (gradient == 0).all()
    [gradient] = torch.autograd.grad(outputs.noised_logits.sum(), model.noised_query)
    assert (gradient != 0).any()


def test_where_the_decoder_loss_flows_in_training() -> None:
    """Not into the encoder's choice of boxes; from a layer's boxes into the layer before."""
    model = new_opn(TINY, seed=0).train()
    last_box = model(pixels(1)).boxes[-1].sum()
    heads = [model.decoder.encoder_bbox_head, model.decoder.decoder_bbox_head[0]]
    chosen, before = torch.autograd.grad(
        last_box, [head.layers[-1].bias for head in heads], allow_unused=True
    )
    assert chosen is None
    assert (before != 0).any()


def test_group_norm_keeps_images_apart() -> None:
    model = new_opn(dataclasses.replace(TINY, normalization="group"), seed=0).train()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    together = model(pixels())
    torch.testing.assert_close(model(pixels()[:1]).encoder_logits[0], together.encoder_logits[0])


def test_seed_fixes_the_weights_and_leaves_the_global_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, same, other = new_opn(TINY, 4), new_opn(TINY, 4), new_opn(TINY, 5)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.object_prompts, same.object_prompts)
    assert not torch.equal(one.object_prompts, other.object_prompts)


def test_save_and_load(model: OPN, tmp_path) -> None:
    save_opn(model, tmp_path / "a")
    loaded = load_opn(tmp_path / "a")
    assert loaded.config == model.config
    assert not loaded.training
    torch.testing.assert_close(loaded(pixels()).boxes, model.eval()(pixels()).boxes, rtol=0, atol=0)
    save_opn(loaded, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()
    (tmp_path / "b/config.json").unlink()
    with pytest.raises(SettingError, match=r"config\.json is missing"):
        load_opn(tmp_path / "b")


def test_broken_files_are_named(model: OPN, tmp_path) -> None:
    save_opn(model, tmp_path)
    other = dataclasses.replace(model.config, num_queries=7, hidden_dim=32)
    save_opn(new_opn(other, 0), tmp_path / "other")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(SettingError, match="holds no weights of its config") as caught:
        load_opn(tmp_path)
    assert str(weights) in str(caught.value)
    weights.write_bytes(b"no tensors")
    with pytest.raises(SettingError, match="holds no weights of its config"):
        load_opn(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SettingError, match="no OPN's config"):
        load_opn(tmp_path)


def test_hooks_fire(model: OPN) -> None:
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    model.eval()(pixels(1))
    handle.remove()
    assert seen == [1]


def test_config_round_trip_is_strict() -> None:
    values = TINY.to_dict()
    assert OPNConfig.from_dict(values) == TINY
    with pytest.raises(SettingError, match="unknown"):
        OPNConfig.from_dict(values | {"colour": 1})
    with pytest.raises(SettingError, match="missing"):
        OPNConfig.from_dict({k: v for k, v in values.items() if k != "hidden_dim"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 100),
        ("prompt_dim", 64),
        ("hidden_dim", 66),
        ("num_queries", 0),
        ("normalization", "layer"),
        ("backbone_layout", "nchw"),
        ("denoising_groups", -1),
        ("backbone_indices", (1, 2)),
    ],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(SettingError, match=field):
        dataclasses.replace(TINY, **{field: value})


def test_backbone_channels_are_checked() -> None:
    with pytest.raises(SettingError, match="backbone_channels"):
        OPN(dataclasses.replace(TINY, backbone_channels=(1, 2, 3)))


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 1.3), ("swin_tiny", 52.0), ("large", 220.0)]
)
def test_sizes_build_and_have_the_documented_parameters(size: str, millions: float) -> None:
    """Shapes only: nothing is allocated, and the forward at the size's resolution is empty."""
    config = OPN_SIZES[size]()
    with torch.device("meta"):
        model = OPN(config).eval()
        images = torch.zeros(1, 3, config.image_size, config.image_size)
        outputs = model(images, torch.zeros(1, dtype=torch.int64))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert outputs.boxes.shape == (config.num_decoder_layers, 1, config.num_queries, 4)


def small_swin() -> OPNConfig:
    """The Swin path (channels-last maps, LayerNorm on each) at a size a CPU test can afford."""
    return dataclasses.replace(
        OPN_SIZES["swin_tiny"](),
        image_size=224,
        hidden_dim=64,
        prompt_dim=32,
        feedforward_dim=64,
        num_decoder_layers=1,
        num_queries=20,
    )


def test_swin_builds_and_runs() -> None:
    outputs = new_opn(small_swin(), 0).eval()(pixels(1, 224))
    assert outputs.boxes.shape == (1, 1, 20, 4)


@pytest.mark.parametrize("config", [TINY, small_swin()], ids=["tiny", "swin"])
@pytest.mark.parametrize("num_boxes", [0, 2])
def test_every_parameter_has_a_gradient_on_every_batch(config: OPNConfig, num_boxes: int) -> None:
    """One prompt of two, with boxes and without: ranks reduce the same gradients in any case."""
    model = new_opn(config, seed=0).train()
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.2, 0.3]])[:num_boxes]
    side = config.image_size
    batch = OPNBatch(
        pixels=pixels(1, side),
        prompts=torch.tensor([1]),
        boxes=(boxes,),
        ignore_boxes=(torch.zeros(0, 4),),
        complete=(True,),
        letterboxes=(Letterbox(1.0, side),),
        seeds=(0,),
    )
    OPNCriterion()(model(batch.pixels, batch.prompts, batch.boxes, batch.seeds), batch)[
        0
    ].backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []
    for table in (model.object_prompts, model.task_prompts):
        assert table.grad is not None
        assert (table.grad[0] == 0).all()
        assert (table.grad[1] != 0).any()
