import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fo1_model import checkpoint
from fo1_model.checkpoint import (
    load_base,
    load_model,
    load_processor,
    new_model,
    read_model,
    save_model,
)
from fo1_model.errors import SettingError
from fo1_model.release import export_release, load_release
from fo1_model.sizes import SIZES, debug

ANSWER = "<ground>red circle</ground><objects><region0></objects>"


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_comes_back(model, processor, sample, folder):
    loaded, own = load_model(folder)
    assert own.token_ids == processor.token_ids
    assert own.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert loaded.model_config == model.model_config
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    batch = processor.collate([sample(84, 56, 3, ANSWER)])
    with torch.no_grad():
        assert torch.equal(loaded(batch).loss_sum, model(batch).loss_sum)
    text = f"{ANSWER} two words, 12 <|im_end|>"
    assert own.tokenizer.encode(text) == processor.tokenizer.encode(text)


def test_same_model_same_bytes(model, processor, folder, tmp_path):
    loaded, own = load_model(folder)
    save_model(loaded, own, tmp_path / "again")
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.json"))


def test_the_tied_head_is_not_stored_and_stays_tied(folder):
    assert "vlm.lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded, _ = load_model(folder)
    assert loaded.vlm.lm_head.weight is loaded.vlm.get_input_embeddings().weight


def test_an_untied_head_is_stored(tmp_path):
    config = debug()
    config.vlm.config["tie_word_embeddings"] = False
    model, processor = new_model(config, seed=0)
    save_model(model, processor, tmp_path)
    assert {"vlm.lm_head.weight", "new_output_rows.weight"} <= set(
        load_file(tmp_path / "model.safetensors")
    )
    loaded, _ = load_model(tmp_path)
    assert torch.equal(loaded.vlm.lm_head.weight, model.vlm.lm_head.weight)
    assert not torch.equal(loaded.vlm.lm_head.weight, loaded.vlm.get_input_embeddings().weight)


def test_dtype(folder):
    loaded, _ = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("new_rows.weight"), "1 weights are missing: new_rows.weight"),
        (
            lambda weights: weights.update(extra=torch.zeros(1)),
            "1 weights are not the model's: extra",
        ),
        (
            lambda weights: weights.update({"new_rows.weight": torch.zeros(2, 2)}),
            r"new_rows.weight is \[2, 2\]",
        ),
    ],
)
def test_damaged_weights_are_refused(folder, damage, message):
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(SettingError, match=message):
        load_model(folder)


def test_other_folders_are_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(SettingError, match="format 99"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (None, "is not a model folder: there is nothing; read are folders that save_model wrote"),
        ("notes.txt", r"it has no config\.json; read are"),
        ("export/config.json", "it has export, as a run has"),
        ("adapter_config.json", r"it has adapter_config\.json, as an adapter of peft has"),
    ],
)
def test_what_is_no_model_folder_is_told_by_its_files(file, told, tmp_path):
    if file:
        (tmp_path / "other" / file).parent.mkdir(parents=True)
        (tmp_path / "other" / file).write_text("{}")
    with pytest.raises(SettingError, match=told):
        load_model(tmp_path / "other")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(SettingError, match="it is a file"):
        load_model(tmp_path / "file")


def test_models_of_others_are_told_by_their_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(SettingError, match=r"model_type 'qwen2_5_vl'; read are .*'vlm_fo1'"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_releases_layout_is_read_as_it_is(model, processor, tmp_path, dtype):
    """By every reader: the whole, the model alone and the processor alone."""
    export_release(model.bfloat16(), processor, tmp_path)
    loaded, own = load_model(tmp_path, dtype=dtype)
    expected, _ = load_release(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype or torch.bfloat16}
    for other in (expected, read_model(tmp_path, dtype=dtype)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert own.token_ids == processor.token_ids == load_processor(tmp_path).token_ids
    assert load_processor(tmp_path).config == loaded.model_config


def test_new_models_are_seeded_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, _ = new_model(debug(), seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, _ = new_model(debug(), seed=1)
    other, _ = new_model(debug(), seed=2)
    state, same = first.state_dict(), again.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in state.items())
    assert not torch.equal(first.new_rows.weight, other.new_rows.weight)


def test_a_base_fills_its_parts_and_leaves_the_rest_fresh(model, monkeypatch, tmp_path):
    pretrained = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("vlm.", "auxiliary.")) and name != "vlm.lm_head.weight"
    }
    save_file(pretrained, tmp_path / "base.safetensors")
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path)
    monkeypatch.setattr(checkpoint, "BASES", {"debug": "base.safetensors"})
    loaded, processor = load_base("debug", seed=3)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pretrained.items())
    assert not torch.equal(
        loaded.region_encoder.connector[0].weight, model.region_encoder.connector[0].weight
    )
    # new rows start among the base's rows, whatever the base
    used = loaded.vlm.get_input_embeddings().weight[: min(processor.token_ids.new)]
    assert (loaded.new_rows.weight.mean(0) - used.mean(0)).abs().max() < 0.1 * used.std()

    save_file({**pretrained, "region_encoder.x": torch.zeros(1)}, tmp_path / "base.safetensors")
    with pytest.raises(SettingError, match=r"not the model's: region_encoder\.x"):
        load_base("debug")
    pretrained.popitem()
    save_file(pretrained, tmp_path / "base.safetensors")
    with pytest.raises(SettingError, match="the base weights: 1 weights are missing"):
        load_base("debug")


def test_sizes_without_a_base_are_named():
    with pytest.raises(SettingError, match=r"'qwen2_5_vl_3b'; choose one of tiny"):
        load_base("qwen2_5_vl_3b")


@pytest.mark.skipif(
    not (checkpoint.ASSETS / "tiny_base.safetensors").is_file(), reason="no pretrained tiny base"
)
def test_the_tiny_base_fits_the_tiny_size():
    model, _ = load_base("tiny")
    assert model.model_config == SIZES["tiny"]()
