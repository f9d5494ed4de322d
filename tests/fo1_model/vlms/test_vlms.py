from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from fo1_model.config import VLMConfig
from fo1_model.errors import SettingError
from fo1_model.sizes import debug
from fo1_model.vlms import VLM_FAMILIES, build_family
from tests.fo1_model.small_families import small_tokenizer, small_vlm


@pytest.fixture(scope="module")
def family():
    return build_family(debug().vlm)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
@pytest.mark.parametrize("grids", [[(4, 6)], [(10, 4), (2, 2)], [(4, 4), (4, 4), (6, 2)], []])
def test_positions_equal_transformers(name, grids):
    """``get_rope_index`` of transformers, which the model itself would use, is the reference."""
    family = build_family(small_vlm(name, small_tokenizer(name)))
    types: list[int] = [0, 0, 0]
    starts = []
    for grid in grids:
        starts.append(len(types))
        types += [1] * family.num_image_tokens(grid) + [0] * 5
    vlm = family.build().model
    grid_thw = torch.tensor([(1, *grid) for grid in grids]) if grids else None
    expected, _ = vlm.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.int64),
        mm_token_type_ids=torch.tensor([types]),
        image_grid_thw=grid_thw,
    )
    positions = family.positions(len(types), list(zip(starts, grids, strict=True)))
    assert torch.equal(positions, expected[:, 0])


@pytest.mark.parametrize(
    "name", ["internvl", "llava", "llava_next", "llava_onevision", "smolvlm", "idefics3"]
)
def test_other_families_count_tokens(name):
    family = build_family(small_vlm(name, small_tokenizer(name)))
    assert family.positions(5, [(1, (4, 4))]).tolist() == [[0, 1, 2, 3, 4]]
    plain = family.decoder_inputs(torch.zeros(2, 5, 32), torch.zeros(1, 2, 5, dtype=torch.int64))
    assert plain["position_ids"].shape == (2, 5)


def test_the_cache_has_the_layers_of_the_config(family):
    """A layer with a sliding window keeps its window alone."""
    assert [layer.is_sliding for layer in family.new_cache().layers] == [False, False]
    config = debug().vlm.config
    text = {
        **config["text_config"],
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    }
    sliding = build_family(VLMConfig(family="qwen2_5_vl", config={**config, "text_config": text}))
    assert [layer.is_sliding for layer in sliding.new_cache().layers] == [False, True]


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

    The vision tower is reduced to its patch embedding, so that nothing moves between patches; sizes
    are ragged against the 4x4-unit windows on both sides.
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
    # one patch: 3 channels x 2 frames x 196 pixels of a constant colour, by CLIP's mean and
    # deviation
    red, green = (1 - 0.48145466) / 0.26862954, (0 - 0.4578275) / 0.26130258
    assert torch.allclose(pixels[0, :392], torch.tensor(red), atol=1e-5)
    assert torch.allclose(pixels[0, 392:784], torch.tensor(green), atol=1e-5)


def test_qwen3_preprocessing_rounds_sides_to_32_and_fills_at_least_256_px_squared():
    family = build_family(small_vlm("qwen3_vl", small_tokenizer("qwen3_vl")))
    pixels, grid = family.preprocess(Image.new("RGB", (400, 100), (255, 0, 0)))
    # 100 x 400 has 40000 px; times 65536/40000 in area: 128 x 512, rounded up to multiples of 32
    assert grid == (8, 32)
    assert pixels.shape == (256, 3 * 2 * 16 * 16)
    assert torch.equal(pixels[0, :512], torch.ones(512))
    assert torch.equal(pixels[0, 512:], -torch.ones(1024))


def test_glm_preprocessing_counts_two_frames_of_an_image():
    family = build_family(small_vlm("glm4v", small_tokenizer("glm4v")))
    # 60 x 60: 2 x 56 x 56 = 6272 is under 12544, so sides become sqrt(12544 / 7200) x 60 = 79.2,
    # rounded up to 84
    pixels, grid = family.preprocess(Image.new("RGB", (60, 60), (255, 0, 0)))
    assert grid == (6, 6)
    assert pixels.shape == (36, 3 * 2 * 14 * 14)
    assert torch.allclose(pixels[0, :392], torch.tensor((1 - 0.48145466) / 0.26862954), atol=1e-5)


def test_qwen3_gives_deeper_layers_their_own_columns():
    """An image token is as wide as the decoder's input and the layers behind which features are
    added."""
    family = build_family(small_vlm("qwen3_vl", small_tokenizer("qwen3_vl")))
    vlm = family.build()
    pixels, grid = family.blank()
    tokens, _ = family.encode_images(vlm, pixels, [grid])
    assert tokens.shape == (4, 3 * 32)
    wide = torch.arange(2.0 * 5 * 96).view(2, 5, 96)
    inputs = family.decoder_inputs(wide, torch.zeros(3, 2, 5, dtype=torch.int64))
    assert torch.equal(inputs["inputs_embeds"], wide[..., :32])
    assert torch.equal(inputs["deepstack_visual_embeds"][1], wide[..., 64:].reshape(10, 32))
    assert inputs["visual_pos_masks"].all()
    assert "visual_pos_masks" not in family.decoder_inputs(wide[..., :32], torch.zeros(3, 2, 5))


def test_llava_counts_tokens_by_hand():
    family = build_family(small_vlm("llava_onevision", small_tokenizer("llava_onevision")))
    # thumbnail 16; one tile, all image: 4 rows of 4 and a line break
    assert family.num_image_tokens((60, 60)) == 16 + 4 * 5
    # two tiles side by side: 4 rows of 8 and a line break
    assert family.num_image_tokens((60, 120)) == 16 + 4 * 9
    # three tiles are 12 columns, over sqrt(2 tiles) by 1.22: 4 / 1.22 = 3 rows of 12 / 1.22 = 9
    assert family.num_image_tokens((60, 180)) == 16 + 3 * 10
    # 60 x 90 in two tiles: scaled by 4/3 to 80 x 120, cut to 60 x 90 of 60 x 120: a column off
    # either side
    assert family.num_image_tokens((60, 90)) == 16 + 4 * 7


@settings(max_examples=60, deadline=None)
@given(st.integers(28, 2048), st.integers(28, 2048))
def test_llava_counts_tokens_as_its_processor_does(height, width):
    """The released setting: 27 x 27 cells a tile, 36 arrangements of tiles, shrunk above nine."""
    family = build_family(VLMConfig(family="llava_onevision", config={}))
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens, processor.vision_aspect_ratio = 27 * 27, "anyres_max_9"
    processor.image_processor = LlavaOnevisionImageProcessorPil()
    expected = processor._get_number_of_features(height, width, 384, 384)
    assert family.num_image_tokens((height, width)) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(28, 2048), st.integers(28, 2048))
def test_llava_next_counts_tokens_as_its_processor_does(height, width):
    """The released setting: 24 x 24 cells a tile, five arrangements of tiles."""
    family = build_family(VLMConfig(family="llava_next", config={}))
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    processor.patch_size, processor.num_additional_image_tokens = 14, 1
    processor.image_processor = LlavaNextImageProcessorPil()
    expected = processor._get_number_of_features(height, width, 336, 336) - 1  # class token
    assert family.num_image_tokens((height, width)) == expected


def test_square_families_cost_what_their_released_sizes_are_known_for():
    internvl = build_family(VLMConfig(family="internvl", config={}))
    assert internvl.num_image_tokens(internvl.blank()[1]) == 256
    llava = build_family(VLMConfig(family="llava", config={}))
    assert llava.num_image_tokens(llava.blank()[1]) == 576
    idefics = {"vision_config": {"image_size": 364, "patch_size": 14}}
    idefics3 = build_family(VLMConfig(family="idefics3", config=idefics))
    assert idefics3.num_image_tokens(idefics3.blank()[1]) == 169
    for side, patch, factor, tokens in [(512, 16, 4, 64), (384, 14, 3, 81)]:  # 256M and 2.2B
        config = {
            "vision_config": {"image_size": side, "patch_size": patch},
            "scale_factor": factor,
        }
        smolvlm = build_family(VLMConfig(family="smolvlm", config=config))
        assert smolvlm.num_image_tokens(smolvlm.blank()[1]) == tokens


def test_unknown_family_names_the_known_ones():
    with pytest.raises(SettingError, match=f"family='qwen9'.*{', '.join(VLM_FAMILIES)}"):
        build_family(replace(debug().vlm, family="qwen9"))


def test_widths_that_do_not_fit():
    config = debug().vlm.config
    config["vision_config"]["out_hidden_size"] = 48
    with pytest.raises(SettingError, match="out_hidden_size=48"):
        build_family(VLMConfig(config=config))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("internvl", {"vision_feature_layer": -2}, "vision_feature_layer=-2"),
        ("internvl", {"vision_config": {"image_size": [448, 224]}}, r"image_size.*must be square"),
        ("llava_onevision", {"vision_feature_layer": [-1, -2]}, "vision_feature_layer"),
        (
            "llava_onevision",
            {"image_grid_pinpoints": [[60, 90]]},
            r"\[60, 90\].*multiples of .*=60",
        ),
        ("llava_onevision", {"vision_feature_select_strategy": "default"}, "'default'.*'full'"),
        ("llava", {"text_config": {"model_type": "qwen2"}}, "'qwen2': the chat form.*mistral"),
        ("llava", {"vision_config": {"model_type": "siglip_vision_model"}}, "clip_vision_model"),
        ("llava", {"vision_feature_layer": -1}, "vision_feature_layer=-1"),
        ("llava_next", {"image_grid_pinpoints": [[60, 90]]}, r"\[60, 90\].*multiples of .*=60"),
    ],
)
def test_settings_without_a_known_map_are_refused(family, change, message):
    config = small_vlm(family, small_tokenizer(family))
    config.config.update(change)
    with pytest.raises(SettingError, match=message):
        build_family(config)
