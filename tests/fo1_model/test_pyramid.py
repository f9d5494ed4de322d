import pytest
import torch
import torch.nn.functional as F

from fo1_model.errors import SettingError
from fo1_model.pyramid import ChannelNorm, SimpleFP
from fo1_model.region_pooling import FeatureMap


def test_the_released_tensors() -> None:
    with torch.device("meta"):
        state = SimpleFP(1280, 512).state_dict()
    norm = {"weight": (512,), "bias": (512,)}
    convs = {
        "simfp_1.4": (512, 320, 1, 1),
        "simfp_1.5": (512, 512, 3, 3),
        "simfp_2.1": (512, 640, 1, 1),
        "simfp_2.2": (512, 512, 3, 3),
        "simfp_3.0": (512, 1280, 1, 1),
        "simfp_3.1": (512, 512, 3, 3),
        "simfp_4.1": (512, 1280, 1, 1),
        "simfp_4.2": (512, 512, 3, 3),
    }
    expected = {f"{name}.weight": shape for name, shape in convs.items()}
    expected |= {f"{name}.norm.{key}": shape for name in convs for key, shape in norm.items()}
    expected |= {
        "simfp_1.0.weight": (1280, 640, 2, 2),
        "simfp_1.0.bias": (640,),
        "simfp_1.1.weight": (640,),
        "simfp_1.1.bias": (640,),
        "simfp_1.3.weight": (640, 320, 2, 2),
        "simfp_1.3.bias": (320,),
        "simfp_2.0.weight": (1280, 640, 2, 2),
        "simfp_2.0.bias": (640,),
    }
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert sum(tensor.numel() for tensor in state.values()) == 18_623_296


def test_levels_know_their_scale() -> None:
    # 10x6 patches over a 300x120 image: a patch is 30x20 px, whatever the ViT saw.
    levels = SimpleFP(8, 4)(FeatureMap(torch.randn(8, 6, 10), (10 * 14 / 300, 6 * 14 / 120), 14))
    assert [tuple(level.values.shape) for level in levels] == [
        (4, 24, 40),
        (4, 12, 20),
        (4, 6, 10),
        (4, 3, 5),
    ]
    for level in levels:
        _, height, width = level.values.shape
        assert level.scale[0] / level.stride == pytest.approx(width / 300)
        assert level.scale[1] / level.stride == pytest.approx(height / 120)


def test_a_patch_stays_in_its_place_on_every_level() -> None:
    # Only the 3x3 convolutions look beyond a patch, by one cell of their level; simfp_4 merges 2x2
    # patches.
    torch.manual_seed(0)
    pyramid = SimpleFP(8, 4)
    values = torch.randn(8, 8, 8)
    changed = values.clone()
    changed[:, 4, 2] += 10
    pairs = zip(
        pyramid(FeatureMap(values, (1, 1), 14)),
        pyramid(FeatureMap(changed, (1, 1), 14)),
        strict=True,
    )
    rows, columns = [], []
    for before, after in pairs:
        moved = (before.values - after.values).abs().amax(0) > 1e-6
        rows.append((int(moved.any(1).nonzero().min()), int(moved.any(1).nonzero().max())))
        columns.append((int(moved.any(0).nonzero().min()), int(moved.any(0).nonzero().max())))
    assert rows == [(15, 20), (7, 10), (3, 5), (1, 3)]
    assert columns == [(7, 12), (3, 6), (1, 3), (0, 2)]


def test_the_finest_level_layer_by_layer() -> None:
    torch.manual_seed(0)
    pyramid = SimpleFP(8, 4)
    state = {name.removeprefix("simfp_1."): tensor for name, tensor in pyramid.state_dict().items()}
    values = torch.randn(8, 2, 4)
    x = F.conv_transpose2d(values[None], state["0.weight"], state["0.bias"], stride=2)
    x = F.gelu(pyramid.simfp_1[1](x))
    x = F.conv_transpose2d(x, state["3.weight"], state["3.bias"], stride=2)
    x = pyramid.simfp_1[4].norm(F.conv2d(x, state["4.weight"]))
    x = pyramid.simfp_1[5].norm(F.conv2d(x, state["5.weight"], padding=1))
    torch.testing.assert_close(pyramid(FeatureMap(values, (1, 1), 14))[0].values, x[0])


def test_channel_norm_by_hand() -> None:
    # Two channels +-v have variance v^2, so the result is v / sqrt(v^2 + 1e-6).
    norm = ChannelNorm(2)
    values = torch.tensor([[[[1e-3, 3.0]], [[-1e-3, -3.0]]]])
    expected = torch.tensor([[[[0.5**0.5, 1.0]], [[-(0.5**0.5), -1.0]]]])
    torch.testing.assert_close(norm(values), expected)


def test_every_parameter_gets_a_gradient_and_hooks_fire() -> None:
    pyramid = SimpleFP(8, 4)
    calls: list[str] = []
    for name, module in pyramid.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    levels = pyramid(FeatureMap(torch.randn(8, 4, 4), (1, 1), 14))
    assert set(calls) == {name for name, _ in pyramid.named_modules()}
    sum(level.values.square().sum() + level.values.pow(3).sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in pyramid.parameters())


def test_half_precision_runs_in_half_precision() -> None:
    levels = SimpleFP(8, 4).bfloat16()(FeatureMap(torch.randn(8, 4, 4).bfloat16(), (1, 1), 14))
    assert {level.values.dtype for level in levels} == {torch.bfloat16}


def test_an_odd_map_is_refused() -> None:
    with pytest.raises(ValueError, match="5x4"):
        SimpleFP(8, 4)(FeatureMap(torch.zeros(8, 5, 4), (1, 1), 14))


def test_a_width_that_cannot_be_halved_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="in_dim=10"):
        SimpleFP(10, 4)
