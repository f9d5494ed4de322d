import numpy as np
import pytest
import torch
from PIL import Image

from fo1_model.auxiliary_tower import AuxiliaryTower, auxiliary_image, auxiliary_size
from fo1_model.config import AuxiliaryConfig
from fo1_model.sizes import SIZES

SMALL = {
    "depths": [1, 1, 2, 1],
    "embed_dims": [8, 12, 16, 24],
    "num_heads": [1, 2, 2, 3],
    "window_size": 4,
}


def config(resize: str = "dynamic", size: int = 64, drop_path: float = 0.0) -> AuxiliaryConfig:
    return AuxiliaryConfig(kwargs=SMALL, resize=resize, size=size, drop_path=drop_path)


@pytest.fixture(scope="module")
def tower() -> AuxiliaryTower:
    torch.manual_seed(0)
    return AuxiliaryTower(config()).eval()


@pytest.mark.parametrize(
    ("resize", "image", "expected"),
    [
        ("dynamic", (181, 133), (181, 133)),
        ("squash", (181, 133), (64, 64)),
        ("dynamic_square", (181, 133), (384, 384)),
        (
            "dynamic_square",
            (640, 480),
            (576, 576),
        ),  # 307200 px lies between 512^2 = 262144 and 576^2 = 331776
        ("dynamic_square", (2048, 2048), (2048, 2048)),
    ],
)
def test_input_sizes(resize: str, image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert auxiliary_size(*image, config(resize)) == expected


def test_pixels_by_hand() -> None:
    image = Image.new("RGB", (5, 3), (255, 0, 51))
    image.putpixel((4, 1), (0, 255, 0))
    pixels = auxiliary_image(image, config())
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 3, 5)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert pixels[:, 0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert pixels[1, 1, 4].item() == pytest.approx((1 - 0.456) / 0.224, rel=1e-6)


def test_squash_ignores_the_aspect() -> None:
    left_half_white = np.zeros((20, 100, 3), np.uint8)
    left_half_white[:, :50] = 255
    pixels = auxiliary_image(Image.fromarray(left_half_white), config("squash", 64))
    assert pixels.shape == (3, 64, 64)
    assert (pixels[0, :, :28] > 2.2).all()
    assert (pixels[0, :, 36:] < -2.1).all()


def test_resizing_is_bicubic() -> None:
    # Only a cubic filter overshoots at an edge.
    step = np.full((8, 8, 3), 100, np.uint8)
    step[:, 4:] = 150
    pixels = auxiliary_image(Image.fromarray(step), config("squash", 64))
    assert pixels[0].max() > (152 / 255 - 0.485) / 0.229
    assert pixels[0].min() < (98 / 255 - 0.485) / 0.229


def test_four_maps_that_know_their_scale(tower: AuxiliaryTower) -> None:
    # The tower sees 66x50 px of an image that is 132x200.
    maps = tower([torch.randn(3, 50, 66)], [(132, 200)])[0]
    assert [tuple(m.values.shape) for m in maps] == [
        (8, 13, 17),
        (12, 7, 9),
        (16, 4, 5),
        (24, 2, 3),
    ]
    assert [m.scale for m in maps] == [(0.5, 0.25)] * 4
    assert [m.stride for m in maps] == [4, 8, 16, 32]


def test_batching_changes_nothing(tower: AuxiliaryTower) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randn(3, h, w, generator=generator)
        for h, w in [(40, 56), (33, 30), (40, 56), (56, 40)]
    ]
    sizes = [(56, 40), (30, 33), (112, 80), (40, 56)]
    together = tower(images, sizes)
    for image, size, maps in zip(images, sizes, together, strict=True):
        alone = tower([image], [size])[0]
        for ours, expected in zip(maps, alone, strict=True):
            torch.testing.assert_close(ours.values, expected.values)
            assert ours.scale == expected.scale
    assert tower([], []) == []


def test_equal_sizes_share_one_call_and_nothing_is_padded(tower: AuxiliaryTower) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = tower.model.stem.register_forward_hook(
        lambda _, args, __: shapes.append(tuple(args[0].shape))
    )
    tower(
        [torch.zeros(3, 32, 40), torch.zeros(3, 40, 32), torch.zeros(3, 32, 40)],
        [(40, 32), (32, 40), (40, 32)],
    )
    hook.remove()
    assert shapes == [(2, 3, 32, 40), (1, 3, 40, 32)]


def test_the_released_tower() -> None:
    with torch.device("meta"):
        tower = AuxiliaryTower(SIZES["qwen2_5_vl_3b"]().auxiliary)
    assert len(tower.state_dict()) == 400
    assert sum(parameter.numel() for parameter in tower.parameters()) == 360_632_320
    rates = [
        half.drop_path1.drop_prob if hasattr(half.drop_path1, "drop_prob") else 0
        for stage in tower.model.stages
        for block in stage.blocks
        for half in block
    ]
    assert rates == pytest.approx([0.1 * k / 23 for k in range(24)])


def test_drop_path_acts_in_training_only() -> None:
    image = [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))]
    plain, dropping = AuxiliaryTower(config()), AuxiliaryTower(config(drop_path=0.9))
    dropping.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    reference = plain(image, [(32, 32)])[0][3].values
    assert not torch.allclose(dropping(image, [(32, 32)])[0][3].values, reference)
    torch.testing.assert_close(dropping.eval()(image, [(32, 32)])[0][3].values, reference)


def test_every_parameter_gets_the_same_gradient_with_checkpointing() -> None:
    torch.manual_seed(0)
    tower = AuxiliaryTower(config())
    image = [torch.randn(3, 32, 36)]
    gradients = []
    for enabled in (False, True):
        tower.set_gradient_checkpointing(enabled)
        tower.zero_grad()
        runs: list[int] = []
        hook = (
            tower.model.stages[2]
            .blocks[0][0]
            .register_forward_hook(lambda *_, runs=runs: runs.append(1))
        )
        sum(level.values.pow(3).sum() for level in tower(image, [(36, 32)])[0]).backward()
        hook.remove()
        assert len(runs) == 1 + enabled
        gradients.append({name: parameter.grad for name, parameter in tower.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_half_precision_and_hooks() -> None:
    tower = AuxiliaryTower(config()).bfloat16()
    calls: list[int] = []
    tower.register_forward_hook(lambda *_: calls.append(1))
    maps = tower([torch.randn(3, 32, 32)], [(32, 32)])[0]
    assert {m.values.dtype for m in maps} == {torch.bfloat16}
    assert calls == [1]
