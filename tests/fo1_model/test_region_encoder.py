import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from fo1_model.checkpoint import new_model
from fo1_model.config import ConnectorConfig, RegionConfig
from fo1_model.errors import SettingError
from fo1_model.region_encoder import RegionEncoder
from fo1_model.region_pooling import FeatureMap
from fo1_model.sizes import SIZES, debug
from fo1_model.stages import parameter_groups

DIMS = (4, 6, 8, 10)
HIDDEN = 12
WIDTH, HEIGHT = 181, 133
PATCH = 14


def maps(dims: tuple[int, ...] = DIMS) -> tuple[list[FeatureMap], FeatureMap]:
    """Maps of a 181x133 image: DaViT's at that size, the ViT's of the image resized to 168x140."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(34, 46), (17, 23), (9, 12), (5, 6)]
    auxiliary = [
        FeatureMap(torch.randn(dim, *size, generator=generator), (1, 1), 4 * 2**level)
        for level, (dim, size) in enumerate(zip(dims, sizes, strict=True))
    ]
    scale = (12 * PATCH / WIDTH, 10 * PATCH / HEIGHT)
    return auxiliary, FeatureMap(torch.randn(16, 10, 12, generator=generator), scale, PATCH)


BOXES = torch.tensor(
    [[3.0, 4.0, 60.0, 90.0], [100.5, 20.0, 101.0, 133.0], [0.0, 0.0, 181.0, 133.0]]
)


def encoder(num_layers: int = 2, dims: tuple[int, ...] = DIMS, **region: object) -> RegionEncoder:
    torch.manual_seed(1)
    return RegionEncoder(
        RegionConfig(**{"pyramid_dim": 5, **region}),
        ConnectorConfig(num_layers=num_layers),
        auxiliary_dims=dims,
        primary_dim=16,
        hidden_size=HIDDEN,
    )


def hybrid_by_the_book(module: RegionEncoder, dims: tuple[int, ...] = DIMS) -> torch.Tensor:
    """The feature before the connector as the release writes it: two frames, plain RoIAlign."""
    auxiliary, primary = maps(dims)
    settings = module.region
    size = auxiliary[0].values.shape[1:]
    values = [m.values for m in auxiliary]
    if settings.map_embedding:
        values = [v + map_positions(*v.shape) for v in values]
    fine = [F.interpolate(v[None], size=size, mode="bilinear", align_corners=False) for v in values]
    pooled_auxiliary = roi_align(
        torch.cat(fine, dim=1), [BOXES], settings.roi_size, 0.25, -1, settings.aligned
    )
    frame = (12 * PATCH, 10 * PATCH)
    primary_boxes = BOXES * torch.tensor([frame[0] / WIDTH, frame[1] / HEIGHT] * 2)
    values = primary.values[None]
    levels, strides = [values], [PATCH]
    if module.pyramid is not None:
        levels = [getattr(module.pyramid, f"simfp_{index}")(values) for index in (1, 2, 3, 4)]
        strides = [3.5, 7, 14, 28]
    pooled_primary = [
        roi_align(level, [primary_boxes], settings.roi_size, 1 / stride, -1, settings.aligned)
        for level, stride in zip(levels, strides, strict=True)
    ]
    parts = []
    if settings.features != "primary":
        parts.append(pooled_auxiliary.mean((2, 3)))
    if settings.features != "auxiliary":
        parts.append(torch.cat(pooled_primary, dim=1).mean((2, 3)))
    if settings.region_norm:
        parts = [F.layer_norm(part, part.shape[1:]) for part in parts]
    hybrid = torch.cat(parts, dim=1)
    if settings.box_embedding:
        boxes = primary_boxes
        if settings.box_frame == "auxiliary":
            frame, boxes = (4 * size[1], 4 * size[0]), BOXES
        hybrid = hybrid + torch.tensor(
            [embed(box, frame, hybrid.shape[1]) for box in boxes.tolist()]
        )
    return hybrid


def map_positions(channels: int, height: int, width: int) -> torch.Tensor:
    result = torch.zeros(channels, height, width)
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                half, within = divmod(c, channels // 2)
                value = (j / width) if half else (i / height)
                angle = 2 * math.pi * value / 10000 ** (2 * (within // 2 // 2) / (channels // 4))
                result[c, i, j] = math.cos(angle) if within % 2 else math.sin(angle)
    return result


def embed(box: list[float], frame: tuple[int, int], dim: int) -> list[float]:
    x0, x1, y0, y1 = box[0] / frame[0], box[2] / frame[0], box[1] / frame[1], box[3] / frame[1]
    result = []
    for value in ((y0 + y1) / 2, (x0 + x1) / 2, x1 - x0, y1 - y0):
        for k in range(dim // 4):
            angle = 2 * math.pi * value / 10000 ** (2 * (k // 2) / (dim // 4))
            result.append(math.cos(angle) if k % 2 else math.sin(angle))
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pyramid": False},
        {"features": "auxiliary"},
        {"features": "auxiliary", "box_frame": "auxiliary"},
        {"features": "primary"},
        {"features": "primary", "pyramid": False},
        {"box_frame": "auxiliary"},
        {"region_norm": True},
        {"box_embedding": False},
        {"aligned": True, "roi_size": 3},
        {"map_embedding": True, "dims": (4, 8, 8, 12)},
        {"map_embedding": True, "box_embedding": False, "region_norm": True, "dims": (8, 16, 4, 4)},
    ],
    ids=str,
)
def test_equals_the_release_written_out(settings: dict) -> None:
    module = encoder(**settings)
    dims = settings.get("dims", DIMS)
    auxiliary, primary = maps(dims)
    hybrid = module.hybrid_features(auxiliary, primary, BOXES)
    assert hybrid.shape == (3, module.hybrid_size)
    torch.testing.assert_close(hybrid, hybrid_by_the_book(module, dims), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(auxiliary, primary, BOXES), module.connector(hybrid))


def test_boxes_take_the_releases_way_through_both_frames() -> None:
    """186 px squashed to 768, patched to 196: a box as wide as the image spans 14 cells or more.

    In one multiplication it is 14 cells and 2 samples a bin; through the auxiliary frame, rounded
    on the way, it is above 14 and 3 samples.
    """
    generator = torch.Generator().manual_seed(3)
    auxiliary = [FeatureMap(torch.zeros(4, 192, 192), (768 / 186, 768 / 186), 4)]
    primary = FeatureMap(torch.randn(4, 14, 14, generator=generator), (196 / 186, 196 / 186), PATCH)
    module = RegionEncoder(
        RegionConfig(pyramid=False, box_embedding=False),
        ConnectorConfig(),
        auxiliary_dims=(4,),
        primary_dim=4,
        hidden_size=HIDDEN,
    )
    boxes = torch.tensor([[0.0, 0.0, 186.0, 186.0]])
    pooled = module.hybrid_features(auxiliary, primary, boxes)[:, 4:]

    def align(released: torch.Tensor) -> torch.Tensor:
        return roi_align(primary.values[None], [released], 7, 1 / PATCH).mean((2, 3))

    ratio = torch.tensor(196 / 768)
    through = align(torch.tensor([[0.0, 0.0, 768.0, 768.0]]) * ratio)
    direct = align(boxes * torch.tensor(196 / 186))
    assert (through - direct).abs().max() > 1e-3
    torch.testing.assert_close(pooled, through, rtol=0, atol=1e-6)


def test_a_map_embedding_needs_four_equal_blocks_and_the_auxiliary_maps() -> None:
    with pytest.raises(SettingError, match=r"multiples of 4, got \[4, 6, 8, 10\]"):
        encoder(map_embedding=True)
    with pytest.raises(SettingError, match="map_embedding=True"):
        RegionConfig(map_embedding=True, features="primary")


def test_the_released_widths() -> None:
    config = SIZES["qwen2_5_vl_3b"]()
    build = {"auxiliary_dims": config.auxiliary.dims, "hidden_size": 2048}
    with torch.device("meta"):
        module = RegionEncoder(config.region, config.connector, primary_dim=1280, **build)
        plain = RegionEncoder(
            dataclasses.replace(config.region, pyramid=False),
            config.connector,
            primary_dim=5120,
            **build,
        )
    assert module.hybrid_size == 5888
    assert plain.hybrid_size == 8960
    assert {name: tuple(value.shape) for name, value in module.connector.state_dict().items()} == {
        "0.weight": (2048, 5888),
        "0.bias": (2048,),
        "2.weight": (2048, 2048),
        "2.bias": (2048,),
    }
    assert sum(value.numel() for value in module.connector.parameters()) == 16_257_024


@pytest.mark.parametrize(
    ("num_layers", "names"), [(1, {"0"}), (2, {"0", "2"}), (3, {"0", "2", "4"})]
)
def test_connector_layers_and_their_initialisation(num_layers: int, names: set[str]) -> None:
    connector = encoder(num_layers).connector
    assert {name.split(".")[0] for name in connector.state_dict()} == names
    weights = torch.cat(
        [value.flatten() for name, value in connector.state_dict().items() if "weight" in name]
    )
    assert weights.std().item() == pytest.approx(0.02, rel=0.15)
    assert all(
        value.abs().max() == 0 for name, value in connector.state_dict().items() if "bias" in name
    )


def test_hooks_fire_on_the_module_and_everything_inside() -> None:
    module = encoder(region_norm=True)
    calls: list[str] = []
    for name, child in module.named_modules():
        child.register_forward_hook(lambda *_, name=name: calls.append(name))
    module(*maps(), BOXES)
    assert set(calls) == {name for name, _ in module.named_modules()}


def test_every_parameter_and_every_map_gets_a_gradient() -> None:
    module = encoder(region_norm=True)
    auxiliary, primary = maps()
    leaves = [m.values.requires_grad_() for m in (*auxiliary, primary)]
    module(auxiliary, primary, BOXES).pow(2).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in leaves)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_one_row_a_box_in_the_order_given() -> None:
    module = encoder()
    tokens = module(*maps(), BOXES)
    assert tokens.shape == (3, HIDDEN)
    torch.testing.assert_close(module(*maps(), BOXES[[2, 0]]), tokens[[2, 0]])


def test_no_boxes_give_no_rows_and_keep_the_graph() -> None:
    module = encoder(region_norm=True)
    tokens = module(*maps(), torch.zeros(0, 4))
    assert tokens.shape == (0, HIDDEN)
    tokens.sum().backward()


def test_boxes_are_not_changed() -> None:
    boxes = BOXES.clone()
    for frame in ("primary", "auxiliary"):
        encoder(box_frame=frame)(*maps(), boxes)
    assert torch.equal(boxes, BOXES)


def test_half_precision_pools_in_float32_and_connects_in_half() -> None:
    module = encoder(region_norm=True, pyramid=False).bfloat16()
    auxiliary, primary = maps()
    half = [m._replace(values=m.values.bfloat16()) for m in (*auxiliary, primary)]
    exact = [m._replace(values=m.values.float()) for m in half]
    reference = encoder(region_norm=True, pyramid=False)
    for context in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            hybrid = module.hybrid_features(half[:4], half[4], BOXES)
        assert hybrid.dtype == torch.float32
        torch.testing.assert_close(hybrid, reference.hybrid_features(exact[:4], exact[4], BOXES))
    assert module(half[:4], half[4], BOXES).dtype == torch.bfloat16


def test_the_primary_branch_alone_needs_no_auxiliary_maps() -> None:
    module = encoder(features="primary")
    assert module([], maps()[1], BOXES).shape == (3, HIDDEN)
    with pytest.raises(SettingError, match="box_frame"):
        encoder(features="primary", box_frame="auxiliary")


def test_a_width_without_four_equal_blocks_is_refused() -> None:
    build = {"auxiliary_dims": (4, 6, 8, 9), "primary_dim": 16, "hidden_size": HIDDEN}
    with pytest.raises(SettingError, match="multiple of 4, got 47"):
        RegionEncoder(RegionConfig(pyramid_dim=5), ConnectorConfig(), **build)
    RegionEncoder(RegionConfig(pyramid_dim=5, box_embedding=False), ConnectorConfig(), **build)


@pytest.mark.parametrize("kept", [False, True])
def test_a_model_of_the_primary_branch_has_no_idle_tower(kept: bool, sample) -> None:
    config = debug()
    config = dataclasses.replace(
        config,
        region=dataclasses.replace(config.region, features="primary"),
        auxiliary=dataclasses.replace(config.auxiliary, keep_unread=kept),
    )
    model, processor = new_model(config, seed=0)
    assert (model.auxiliary is not None) == kept
    groups = parameter_groups(model, "stage2", 1e-3)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert not any(
        id(p) in trained for name, p in model.named_parameters() if name.startswith("auxiliary")
    )
    model.train()(processor.collate([sample(84, 56, 2, "None")])).loss_sum.backward()
    assert all(p.grad is not None for group in groups for p in group["params"])
