from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fo1_model.config import VLMConfig, debug
from fo1_model.vlms import build_family


@pytest.fixture(scope="module")
def family():
    return build_family(debug().vlm)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("grids", [[(4, 6)], [(10, 4), (2, 2)], [(4, 4), (4, 4), (6, 2)], []])
def test_positions_equal_transformers(family, grids):
    """``get_rope_index`` of transformers, which the model itself would use, is the reference."""
    types: list[int] = [0, 0, 0]
    starts = []
    for grid in grids:
        starts.append(len(types))
        types += [1] * family.num_image_tokens(grid) + [0] * 5
    vlm = family.build().model
    grid_thw = torch.tensor([(1, *grid) for grid in grids]) if grids else None
    expected, _ = vlm.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.int64), torch.tensor([types]), image_grid_thw=grid_thw
    )
    positions = family.positions(len(types), list(zip(starts, grids, strict=True)))
    assert torch.equal(positions, expected[:, 0])


def test_positions_by_hand(family):
    # two text tokens, an image of 2 x 3 merge units, two text tokens
    positions = family.positions(10, [(2, (4, 6))])
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_map_is_in_image_order(family):
    """A patch that differs from all others stands out at its own place of the map.

    The vision tower is reduced to its patch embedding, so that nothing moves between patches; sizes are
    ragged against the 4x4-unit windows on both sides.
    """
    vlm = family.build()
    vlm.model.visual.blocks = torch.nn.ModuleList()
    for row, column in [(0, 0), (3, 1), (9, 13), (8, 12), (4, 11)]:
        image = Image.new("RGB", (14 * 14, 10 * 14))
        image.paste((255, 255, 255), (column * 14, row * 14, column * 14 + 14, row * 14 + 14))
        pixels, grid = family.preprocess(image)
        assert grid == (10, 14)
        with torch.no_grad():
            _, maps = family.encode_images(vlm, pixels, [grid])
        different = (maps[0] - maps[0][:, 5:6, 5:6]).abs().sum(0) > 1e-3
        assert different.nonzero().tolist() == [[row, column]]


def test_packing_images_changes_nothing(family):
    vlm = family.build().double()
    inputs = [family.preprocess(picture(*size)) for size in [(130, 70), (60, 200), (56, 56)]]
    with torch.no_grad():
        tokens, maps = family.encode_images(
            vlm, torch.cat([pixels for pixels, _ in inputs]), [grid for _, grid in inputs]
        )
        alone = [family.encode_images(vlm, pixels, [grid]) for pixels, grid in inputs]
    torch.testing.assert_close(tokens, torch.cat([tokens for tokens, _ in alone]), rtol=0, atol=1e-12)
    for one, (_, (expected,)), (_, grid) in zip(maps, alone, inputs, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)
        assert tuple(one.shape) == (32, *grid)


def test_all_levels_end_with_the_last(family):
    config = debug().vlm.config
    config["vision_config"]["fullatt_block_indexes"] = [0, 1]
    family = build_family(VLMConfig(config=config))
    vlm = family.build()
    pixels, grid = family.preprocess(picture(112, 84))
    with torch.no_grad():
        _, (last,) = family.encode_images(vlm, pixels, [grid])
        _, (levels,) = family.encode_images(vlm, pixels, [grid], all_levels=True)
    assert levels.shape[0] == 2 * last.shape[0]
    assert torch.equal(levels[32:], last)
    assert not torch.allclose(levels[:32], last)


def test_preprocessing_rounds_sides_to_28_and_normalises(family):
    pixels, grid = family.preprocess(Image.new("RGB", (100, 60), (255, 0, 0)))
    assert grid == (4, 8)  # 60 -> 56, 100 -> 112
    assert pixels.shape == (32, 1176)
    # one patch: 3 channels x 2 frames x 196 pixels of a constant colour, by CLIP's mean and deviation
    red, green = (1 - 0.48145466) / 0.26862954, (0 - 0.4578275) / 0.26130258
    assert torch.allclose(pixels[0, :392], torch.tensor(red), atol=1e-5)
    assert torch.allclose(pixels[0, 392:784], torch.tensor(green), atol=1e-5)


def test_blank_is_an_image(family):
    pixels, grid = family.blank()
    assert len(pixels) == grid[0] * grid[1]
    family.encode_images(family.build(), pixels, [grid])


def test_unknown_family():
    with pytest.raises(ValueError, match=r"family='qwen9'.*qwen2_5_vl"):
        build_family(replace(debug().vlm, family="qwen9"))


def test_widths_that_do_not_fit():
    config = debug().vlm.config
    config["vision_config"]["out_hidden_size"] = 48
    with pytest.raises(ValueError, match="out_hidden_size=48"):
        build_family(VLMConfig(config=config))
