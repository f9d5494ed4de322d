import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Tokenizer

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.config import AuxiliaryConfig, ConnectorConfig, ModelConfig, RegionConfig
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.release import export_release, load_release
from fo1_model.release.configs import config_of_release
from fo1_model.release.flat_config import release_of_config
from fo1_model.release.names import released_name
from fo1_model.sizes import SIZES, davit, debug, qwen2_5_vl
from fo1_model.stages import parameter_groups
from fo1_model.weights import weights_of

EXTRACTOR = "model.object_vp_extractor"
ANSWER = "<ground>red circle</ground><objects><region0></objects>"


def lively(config, dtype=torch.bfloat16):
    """A model whose every weight differs from every other, new rows included, and its processor."""
    model, processor = new_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in weights_of(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    for value in weights_of(model).values():
        value.data = value.data.to(dtype)
    return model, processor


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def small() -> ModelConfig:
    """A model that the release's own keys describe: the 3B one with every width cut."""
    text = {
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "fullatt_block_indexes": [0, 1],
    }
    kwargs = davit(depths=[1, 1, 2, 1], dims=[16, 32, 64, 128], heads=[1, 2, 4, 8], window=12)
    return ModelConfig(
        vlm=qwen2_5_vl(text=text, vision=vision, mrope_section=[2, 3, 3]),
        auxiliary=AuxiliaryConfig(kwargs=kwargs, resize="dynamic", drop_path=0.1),
        region=RegionConfig(pyramid_dim=16),
    )


def region(**changes):
    return replace(small(), region=replace(small().region, **changes))


def auxiliary(**changes):
    return replace(small(), auxiliary=replace(small().auxiliary, **changes))


def untied():
    config = small()
    config.vlm.config["tie_word_embeddings"] = False
    return config


VARIANTS = {
    "plain": small,
    "untied": untied,
    "no_pyramid": lambda: region(pyramid=False, pyramid_dim=512),
    "norms": lambda: region(region_norm=True),
    "fine_grid": lambda: region(roi_size=14),
    "auxiliary_frame": lambda: region(box_frame="auxiliary"),
    "hybrid_positions": lambda: region(map_embedding=True),
    "map_positions": lambda: region(map_embedding=True, box_embedding=False),
    "no_positions": lambda: region(box_embedding=False),
    "squash": lambda: auxiliary(resize="squash"),
    "dynamic_square": lambda: auxiliary(resize="dynamic_square"),
    "linear": lambda: replace(
        small(), connector=ConnectorConfig(num_layers=1), image_projector_layers=1
    ),
    "deep": lambda: replace(
        small(), connector=ConnectorConfig(num_layers=3), image_projector_layers=2
    ),
    "primary_only": lambda: replace(
        region(features="primary"), auxiliary=replace(small().auxiliary, keep_unread=True)
    ),
    "few_regions": lambda: replace(small(), num_region_tokens=7),
    "not_the_releases": debug,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_out_and_in_and_out_again(name, tmp_path):
    """Same tensors, same config, same answers; in one file and in many."""
    model, processor = lively(VARIANTS[name]())
    export_release(model, processor, tmp_path / "one")
    # Our own config goes along only where the release's keys do not say it all.
    assert ("fo1" in config_of(tmp_path / "one")) == (name == "not_the_releases")
    loaded, own = load_release(tmp_path / "one")
    state = loaded.state_dict()
    new_ids = list(processor.token_ids.new)
    for key, value in model.state_dict().items():
        if key in ("vlm.lm_head.weight", "vlm.model.language_model.embed_tokens.weight"):
            others = [row for row in range(len(value)) if row not in set(new_ids)]
            assert torch.equal(state[key][others], value[others])
            assert not torch.equal(state[key][new_ids], value[new_ids])
        else:
            assert torch.equal(state[key], value), key
    assert replace(loaded.model_config, release=None) == model.model_config
    assert own.tokenizer.get_vocab() == processor.tokenizer.get_vocab()

    export_release(loaded, own, tmp_path / "many", max_file_bytes=100_000)
    first, second = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert config_of(tmp_path / "one") == config_of(tmp_path / "many")
    again, _ = load_release(tmp_path / "many")
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


def test_new_rows_are_merged_where_their_tokens_are(tmp_path):
    model, processor = lively(untied(), torch.float32)
    export_release(model, processor, tmp_path)
    stored = tensors(tmp_path)
    ids = list(processor.token_ids.new)
    assert torch.equal(stored["model.embed_tokens.weight"][ids], model.new_rows.weight)
    assert torch.equal(stored["lm_head.weight"][ids], model.new_output_rows.weight)
    assert not any("new" in name for name in stored)


def test_import_keeps_the_logits_and_trains_the_copies_alone(tmp_path, sample, processor):
    model, _ = lively(small(), torch.float32)
    export_release(model, processor, tmp_path)
    loaded, own = load_release(tmp_path)
    batch = own.collate([sample(84, 56, 3, ANSWER)])
    # The plain matrix as the release uses it: embedding and head in one.
    matrix = tensors(tmp_path)["model.embed_tokens.weight"]
    ids = batch.input_ids
    assert torch.equal(loaded.embed_ids(ids), torch.nn.functional.embedding(ids, matrix))
    hidden = torch.randn(3, matrix.shape[1])
    torch.testing.assert_close(loaded.logits(hidden), hidden @ matrix.T)

    before = loaded.vlm.get_input_embeddings().weight.clone()
    optimizer = torch.optim.AdamW(parameter_groups(loaded, "stage1", 0.1, weight_decay=0.1))
    loaded(batch).loss_sum.backward()
    optimizer.step()
    assert torch.equal(loaded.vlm.get_input_embeddings().weight, before)
    assert not torch.equal(loaded.new_rows.weight, model.new_rows.weight)
    export_release(loaded, own, tmp_path / "trained")
    moved = (tensors(tmp_path / "trained")["model.embed_tokens.weight"] != matrix).any(dim=1)
    assert set(moved.nonzero().flatten().tolist()) <= set(own.token_ids.new)
    assert moved.any()


def test_through_our_own_folder_and_back(tmp_path):
    model, processor = lively(region(region_norm=True))
    export_release(model, processor, tmp_path / "released")
    save_model(*load_release(tmp_path / "released"), tmp_path / "own")
    loaded, own = load_model(tmp_path / "own", dtype=None)
    assert loaded.model_config.release == config_of(tmp_path / "released")
    export_release(loaded, own, tmp_path / "back")
    for file in sorted((tmp_path / "released").iterdir()):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name


def test_foreign_keys_of_a_config_survive(tmp_path):
    model, processor = lively(small())
    export_release(model, processor, tmp_path / "released")
    flat = {
        **config_of(tmp_path / "released"),
        "mm_of_theirs": [1, 2],
        "transformers_version": "4.50.1",
    }
    (tmp_path / "released" / "config.json").write_text(json.dumps(flat))
    loaded, own = load_release(tmp_path / "released")
    export_release(loaded, own, tmp_path / "back")
    assert config_of(tmp_path / "back") == flat


def test_types(tmp_path):
    model, processor = lively(small())
    export_release(model, processor, tmp_path / "half")
    wide = load_release(tmp_path / "half", dtype=torch.float32)[0]
    assert {value.dtype for value in wide.parameters()} == {torch.float32}
    half = FO1Model.from_release(tmp_path / "half")
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    # Angles of positions are computed from float32 frequencies whatever the type of the weights.
    assert {b.dtype for b in half.buffers() if b.is_floating_point()} == {torch.float32}
    export_release(wide, processor, tmp_path / "again", dtype=torch.bfloat16)
    first, second = tensors(tmp_path / "half"), tensors(tmp_path / "again")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_released_code_can_read_the_tokenizer(tmp_path):
    """It asks for the slow tokenizer of Qwen2: a vocabulary, merges and the added tokens."""
    model, processor = lively(small())
    export_release(model, processor, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    slow = Qwen2Tokenizer.from_pretrained(str(tmp_path))
    assert slow.get_vocab() == processor.tokenizer.get_vocab()
    assert slow.encode("<region3><ground>") == processor.tokenizer.encode("<region3><ground>")
    assert load_release(tmp_path)[1].token_ids == processor.token_ids


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    export_release(*lively(small()), folder)
    return folder


DAMAGES = [
    (
        lambda w, c: w.pop("model.mm_projector_aux.2.bias"),
        "1 weights are missing: model.mm_projector_aux.2.bias",
    ),
    (lambda w, c: w.update(extra=torch.zeros(1)), "1 weights are not the model's: extra"),
    (
        lambda w, c: w.update({"model.norm.weight": torch.zeros(2)}),
        r"model.norm.weight is \[2\], the model has \[32\]",
    ),
    (lambda w, c: w.pop("model.embed_tokens.weight"), "lacks model.embed_tokens.weight"),
    (
        lambda w, c: c.update(mm_region_feature_combination="mean"),
        "mm_region_feature_combination='mean'",
    ),
    (lambda w, c: c.update(mm_region_feature_combination="concat_sep_pos"), "'concat_sep_pos'"),
    (
        lambda w, c: c.update(mm_pos_embedding_strategy="learned"),
        "mm_pos_embedding_strategy='learned'",
    ),
    (lambda w, c: c.update(mm_projector_type="cabstract"), "mm_projector_type='cabstract'"),
    (lambda w, c: c.update(mm_projector_aux_type="identity"), "mm_projector_aux_type='identity'"),
    (lambda w, c: c.update(mm_vision_tower="clip-vit"), "mm_vision_tower='clip-vit'"),
    (lambda w, c: c.update(mm_vision_tower_aux="convnext"), "mm_vision_tower_aux='convnext'"),
    (
        lambda w, c: c.update(mm_use_vision_tower_region_feature=False),
        "mm_use_vision_tower_region_feature",
    ),
    (lambda w, c: c.update(aux_image_aspect_ratio="crop"), "'crop'"),
    (lambda w, c: c.pop("aux_image_aspect_ratio"), "lacks aux_image_aspect_ratio"),
    (lambda w, c: c.update(rope_scaling={"rope_type": "yarn"}), "rope_scaling"),
    (
        lambda w, c: w.update(
            {f"{EXTRACTOR}.vision_tower_region_feature_projector.0.weight": torch.zeros(1)}
        ),
        "vision_tower_region_feature_projector.0.weight",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_damage_is_named(damage, message, exported, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    weights, flat = tensors(tmp_path), config_of(tmp_path)
    damage(weights, flat)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(flat))
    with pytest.raises(SettingError, match=message):
        load_release(tmp_path)


def test_a_head_beside_a_tied_embedding(tmp_path):
    model, processor = lively(small())
    export_release(model, processor, tmp_path)
    weights = tensors(tmp_path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    assert load_release(tmp_path)[0].family.tied
    weights["lm_head.weight"][0] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        SettingError, match=r"tie_word_embeddings=True, but lm_head\.weight differs"
    ):
        load_release(tmp_path)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(SettingError, match=r"is not a released checkpoint: it has no config\.json"):
        load_release(tmp_path)
    model, processor = lively(small())
    save_model(model, processor, tmp_path / "own")
    with pytest.raises(SettingError, match=r"is not a released checkpoint: .*'vlm_fo1'"):
        load_release(tmp_path / "own")
    export_release(model, processor, tmp_path / "many", max_file_bytes=100_000)
    next((tmp_path / "many").glob("model-00002-*")).unlink()
    with pytest.raises(SettingError, match="lacks model-00002"):
        load_release(tmp_path / "many")
    (tmp_path / "many" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SettingError, match=r"index\.json is not JSON"):
        load_release(tmp_path / "many")


def test_an_index_and_its_files_must_agree(tmp_path):
    model, processor = lively(small())
    export_release(model, processor, tmp_path, max_file_bytes=100_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["invented"] = min(tmp_path.glob("*.safetensors")).name
    path.write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"as model\.safetensors\.index\.json lists it: .* invented"
    ):
        load_release(tmp_path)
    path.unlink()
    assert (
        load_release(tmp_path)[0].model_config.vlm == model.model_config.vlm
    )  # without an index: all that there is


def test_what_the_release_has_no_form_for():
    model, _ = lively(small())
    shapes = {
        released_name(name): tuple(v.shape)
        for name, v in weights_of(model).items()
        if "new_" not in name
    }
    with pytest.raises(SettingError, match="features='primary'"):
        release_of_config(region(features="primary"), shapes, {})
    with pytest.raises(SettingError, match="features='auxiliary'"):
        release_of_config(region(features="auxiliary"), shapes, {})
    other = replace(small(), vlm=replace(small().vlm, family="qwen2_vl"))
    with pytest.raises(SettingError, match="family='qwen2_vl'"):
        release_of_config(other, shapes, {})


def test_the_3b_model_has_the_releases_names_shapes_and_config():
    config = SIZES["qwen2_5_vl_3b"]()
    ids = lively(small())[0].token_ids
    with torch.device("meta"):
        model = FO1Model(FO1Config.of(config, replace(ids, new=tuple(range(151665, 151769)))))
    shapes = {
        released_name(k): tuple(v.shape) for k, v in weights_of(model).items() if "new_" not in k
    }
    assert len(shapes) == 1260  # tensors of the release
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 4_150_135_616
    flat = release_of_config(config, shapes, {})
    assert "fo1" not in flat  # the release's own keys say it all
    assert flat["mm_region_hidden_size"] == 5888
    assert flat["mm_projector_aux_type"] == "mlp2x_gelu"
    assert replace(config_of_release(flat, shapes, 100), release=None) == config
    for name, shape in {
        "model.vision_tower_aux.image_tower.convs.0.proj.weight": (256, 3, 7, 7),
        "model.vision_tower_aux.image_tower.convs.3.norm.weight": (1024,),
        "model.vision_tower_aux.image_tower.blocks.2.8.channel_block.channel_attn.fn.qkv.weight": (
            3072,
            1024,
        ),
        "model.vision_tower_aux.image_tower.blocks.0.0.spatial_block.window_attn.norm.bias": (256,),
        "model.vision_tower_aux.image_tower.blocks.0.0.spatial_block.conv2.fn.dw.weight": (
            256,
            1,
            3,
            3,
        ),
        "model.object_vp_extractor.simple_fpn.simfp_1.4.norm.weight": (512,),
        "model.mm_projector_aux.0.weight": (2048, 5888),
        "model.vision_tower.image_tower.merger.mlp.2.bias": (2048,),
        "model.layers.35.self_attn.k_proj.weight": (256, 2048),
    }.items():
        assert shapes[name] == shape
