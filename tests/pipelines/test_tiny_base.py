"""The tiny base: its lists tell the truth, its start lays circuits, its recipe makes a file that loads."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fo1_model.checkpoint import ASSETS, BASES, new_model
from fo1_model.config import SIZES
from fo1_model.tiny_tokenizer import tiny_tokenizer, tokenizer_digest
from fo1_model.vlms import build_family
from pipelines.decoder_start import lay_out_lookup
from pipelines.lookup_lists import KINDS, LEVELS, ListWriter
from pipelines.tiny_base import FILE_NAME, METADATA, TinyBaseConfig, train_tiny_base
from pipelines.tiny_decoder import DecoderTraining, LookupConfig
from pipelines.tiny_towers import Picture, draw_pictures, patch_targets, region_targets, sample_regions

TOKENIZER = tiny_tokenizer()
SMOKE = TinyBaseConfig(
    pictures=24, held_out=20, auxiliary_steps=2, primary_steps=2, lookup_steps=3, refine_steps=2
)
SHIPPED = ASSETS / BASES["tiny"]


def read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA])


def picture(*objects: tuple[tuple[float, float, float, float], str, bool]) -> Picture:
    return Picture(
        pixels=np.zeros((56, 56, 3), np.uint8),
        boxes=np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        labels=tuple(label for _, label, _ in objects),
        crowd=np.array([crowd for _, _, crowd in objects], bool),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 3, 6, len(LEVELS) - 1])
def test_answers_name_exactly_the_keys_of_the_items_asked_for(kind, level):
    """Read the text back with a reader of its own and check every grounded phrase against the list."""
    writer, rng = ListWriter(TOKENIZER, 4), random.Random(7)
    for _ in range(30):
        item = writer.write(rng, level, kind)
        assert len(item.ids) == len(item.labels)
        assert all(label in (-100, token) for token, label in zip(item.ids, item.labels, strict=True))
        keys: dict[str, list[int]] = {}
        for slot in item.slots:
            if slot.words is not None:
                name = TOKENIZER.decode(slot.words).strip()
                keys.setdefault(name, []).append(item.ids[slot.position - 1])
        openers = [
            i for i, token in enumerate(item.ids) if token == TOKENIZER.encode("<|object_ref_start|>")[0]
        ]
        for start in openers:
            ids = item.ids[start : item.ids.index(TOKENIZER.encode("<|box_end|>")[0], start)]
            middle = ids.index(TOKENIZER.encode("<|box_start|>")[0])
            assert ids[middle + 1 :] == keys[TOKENIZER.decode(ids[1 : middle - 1])]
        assert openers or kind != "probe" or not keys


def test_absent_names_wait_until_look_up_works():
    writer, none = ListWriter(TOKENIZER, 4), TOKENIZER.encode("None")[0]
    rng = random.Random(1)
    with_items = [writer.write(rng, level, "short") for level in (3, 4) for _ in range(60)]
    with_items = [item for item in with_items if any(slot.words for slot in item.slots)]
    assert all(none not in item.labels for item in with_items)
    assert any(none in writer.write(rng, 6, "short").labels for _ in range(60))


def test_the_skeleton_looks_one_two_and_three_tokens_back_and_finds_equal_items():
    family = build_family(SIZES["tiny"]().vlm)
    torch.manual_seed(0)
    vlm = family.build()
    vlm.set_attn_implementation("eager")
    decoder = family.language_model(vlm)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    rotation = lay_out_lookup(decoder, seed=3)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(96), atol=1e-4, rtol=0)
    assert all(value.shape == before[name].shape for name, value in decoder.state_dict().items())
    embedded = torch.randn(1, 40, 96) * 96**-0.5
    positions = torch.arange(40).expand(3, 1, 40)
    attention = decoder(inputs_embeds=embedded, position_ids=positions, output_attentions=True).attentions
    for head, distance in ((0, 1), (1, 2), (2, 3), (3, 1)):
        assert attention[0][0, head].diagonal(-distance)[5:].mean() > 0.6


def test_a_decoder_of_another_form_is_refused():
    decoder = build_family(SIZES["debug"]().vlm)
    with pytest.raises(ValueError, match="4 heads"):
        lay_out_lookup(decoder.language_model(decoder.build()), seed=0)


def test_region_targets_by_hand():
    shown = picture(((0, 0, 20, 20), "blue square", False), ((30, 30, 50, 50), "red circle", True))
    regions = np.array(
        [[0, 0, 20, 20], [0, 0, 20, 10], [0, 0, 20, 6], [30, 30, 50, 50], [40, 0, 56, 16]], np.float32
    )
    # IoU 1; 0.5, between whole and part; 0.3, a part; a crowd; background.
    assert region_targets(shown, regions).tolist() == [
        [2, 1, 1],
        [2, 1, -1],
        [-1, -1, 0],
        [-1, -1, -1],
        [-1, -1, 0],
    ]
    assert region_targets(picture(), regions).tolist() == [[-1, -1, 0]] * 5


def test_patch_targets_by_hand():
    # Patches of 14 px: the box covers the centres of the two left ones of the first row.
    patches, tokens = patch_targets(picture(((0, 0, 28, 14), "green triangle", False)), 4, 4)
    assert patches.tolist() == [[6, 6, 0, 0], *[[0] * 4] * 3]
    assert tokens[0, 0].tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert tokens.sum() == 2


def test_sampled_regions_lie_in_the_picture_and_cover_its_objects():
    for shown in draw_pictures(5, 0, 20):
        regions = sample_regions(np.random.default_rng(0), shown, 16)
        height, width = shown.pixels.shape[:2]
        assert (regions[:, :2] >= 0).all()
        assert (regions[:, 2:] <= (width, height)).all()
        assert len(regions) >= 10


def test_the_recipe_makes_the_same_file_twice_and_a_model_loads_it(tmp_path):
    lines: list[str] = []
    figures = train_tiny_base(SMOKE, tmp_path / "a", log=lines.append)
    assert train_tiny_base(SMOKE, tmp_path / "b", log=lines.append) == figures
    first, second = ((tmp_path / name / FILE_NAME).read_bytes() for name in "ab")
    assert first == second
    assert any("look-up: 3/3 steps" in line and "0s left" in line for line in lines)
    model, _ = new_model(SIZES["tiny"](), 0, base=load_file(tmp_path / "a" / FILE_NAME))
    assert model.config == SIZES["tiny"]()
    metadata = read_metadata(tmp_path / "a" / FILE_NAME)
    assert metadata["recipe"]["lookup_steps"] == 3
    assert metadata["figures"] == figures
    assert metadata["tokenizer"] == tokenizer_digest()


def test_settings_are_checked_before_any_work():
    with pytest.raises(ValueError, match=r"lookup_steps=0"):
        TinyBaseConfig(lookup_steps=0)
    with pytest.raises(ValueError, match="'big'"):
        TinyBaseConfig(size="big")


@pytest.mark.slow
def test_look_up_in_two_items_is_learned_from_the_skeleton_at_once():
    """120 steps; without the skeleton the share of right keys is below one half after 400."""
    family = build_family(SIZES["tiny"]().vlm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pictures = list(draw_pictures(3, 0, 12))
        config = LookupConfig(
            steps=120, rate=1.5e-3, caption_share=0.0, promote_at=2.0, refine_steps=0, seed=0
        )
        training = DecoderTraining(config, family, family.build(), pictures, pictures)
        figures = training.run(lambda line: None)
        with torch.no_grad():
            right = training._forward(training._lists(0, "probe"))[1]
    assert figures["list_items"] == 2
    assert right["keys"] > 0.8


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no tiny base beside the code")
def test_the_shipped_base_is_what_the_code_expects():
    assert SHIPPED.stat().st_size <= 8 * 2**20
    metadata = read_metadata(SHIPPED)
    assert metadata["tokenizer"] == tokenizer_digest()
    assert metadata["config"] == SIZES["tiny"]().to_dict()
    figures = metadata["figures"]
    assert figures["colour"] > 0.97
    assert figures["shape"] > 0.8
    assert figures["list_keys"] > 0.7
