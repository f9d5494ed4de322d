"""New models on published weights: what lies in the folders is what is in the model, or it is
refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.davit import checkpoint_filter_fn

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.sizes import SIZES, debug
from fo1_model.vlms import VLM_FAMILIES, VLMFamily
from fo1_model.vlms.folder_config import folder_config
from fo1_model.vlms.published import check_published, published_model
from tests.fo1_model.small_families import small_tokenizer
from tests.fo1_model.small_published import text_logits, write_florence, write_small_vlm, write_vlm

QWEN_3B: dict[str, Any] = {  # config.json of Qwen/Qwen2.5-VL-3B-Instruct, the older, flat form
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    write_vlm(tmp_path / "vlm")
    write_florence(tmp_path / "florence")
    return {"vlm": tmp_path / "vlm", "auxiliary": tmp_path / "florence"}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.mark.parametrize("layout", ["older", "present", "several_files"])
def test_the_towers_are_the_folders(layout: str, tmp_path: Path) -> None:
    vlm = write_vlm(
        tmp_path / "vlm", **({"max_shard_size": "100KB"} if layout == "several_files" else {})
    )
    names = {name for file in (tmp_path / "vlm").glob("*.safetensors") for name in load_file(file)}
    assert "visual.patch_embed.proj.weight" in names, "transformers writes the older names"
    assert (len(list((tmp_path / "vlm").glob("*.safetensors"))) > 1) == (layout == "several_files")
    if layout == "present":
        state = {
            name: value for name, value in vlm.state_dict().items() if name != "lm_head.weight"
        }
        assert "model.visual.patch_embed.proj.weight" in state
        save_file(state, tmp_path / "vlm" / "model.safetensors", metadata={"format": "pt"})
    tower = write_florence(tmp_path / "florence")
    model, processor = published_model(
        debug(), 3, {"vlm": tmp_path / "vlm", "auxiliary": tmp_path / "florence"}
    )
    assert not model.training
    assert same(model.vlm.state_dict(), vlm.state_dict())
    assert model.vlm.lm_head.weight is model.vlm.get_input_embeddings().weight
    # timm's own conversion is the reference
    timm_names = {name: value.float() for name, value in checkpoint_filter_fn(tower, None).items()}
    assert same(model.auxiliary.model.state_dict(), timm_names)
    used = model.vlm.get_input_embeddings().weight[: min(processor.token_ids.new)]
    assert (model.new_rows.weight.mean(0) - used.mean(0)).abs().max() < 0.1 * used.std()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_rest_is_fresh_and_seeded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*_: Any) -> None:
        raise AssertionError("the VLM is made a second time")

    monkeypatch.setattr(VLMFamily, "build", twice)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (published_model(debug(), seed, folders)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected), "the global generator moved"
    assert same(first.state_dict(), again.state_dict())
    assert same(first.vlm.state_dict(), other.vlm.state_dict())
    for name, value in first.region_encoder.state_dict().items():
        assert value.std() == 0 or not torch.equal(
            value, other.region_encoder.state_dict()[name]
        ), name
    assert not torch.equal(first.new_rows.weight, other.new_rows.weight)


def test_half_precision_is_read_as_it_is(tmp_path: Path) -> None:
    """bfloat16 weights stay what they are, and in float32 they are the same numbers."""
    vlm = write_vlm(tmp_path / "vlm", dtype=torch.bfloat16)
    tower = write_florence(tmp_path / "florence")
    folders = {"vlm": tmp_path / "vlm", "auxiliary": tmp_path / "florence"}
    half, _ = published_model(debug(), 0, folders, dtype=torch.bfloat16)
    full, _ = published_model(debug(), 0, folders)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert same(half.vlm.state_dict(), vlm.state_dict())
    assert torch.equal(
        half.auxiliary.model.stem.conv.weight, tower["vision_tower.convs.0.proj.weight"].bfloat16()
    )
    assert same(half.state_dict(), full.bfloat16().state_dict())
    assert half.vlm.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("family", VLM_FAMILIES)
def test_every_family_answers_text_as_its_folder_does(family: str, tmp_path: Path) -> None:
    """Bit by bit, also after the model was saved as ours; names are those of the makers' files."""
    theirs = write_small_vlm(family, tmp_path / "vlm")
    write_florence(tmp_path / "florence")
    config = folder_config(tmp_path / "vlm", tmp_path / "florence", debug())
    assert config.vlm.family == family
    model, processor = published_model(
        config, 0, {"vlm": tmp_path / "vlm", "auxiliary": tmp_path / "florence"}
    )
    tokenizer = small_tokenizer(family)
    assert processor.family.image_gap == config.image_gap
    assert set(tokenizer.get_vocab()) <= set(processor.tokenizer.get_vocab())
    assert same(model.vlm.state_dict(), theirs.state_dict())
    ids = torch.tensor([tokenizer.encode("Please detect red circle in this image.<|im_end|>")])
    with torch.no_grad():
        expected = (
            type(theirs)
            .from_pretrained(tmp_path / "vlm")(input_ids=ids, attention_mask=torch.ones_like(ids))
            .logits
        )
    assert expected.std() > 0.01
    save_model(model, processor, tmp_path / "ours")
    for own in (model, load_model(tmp_path / "ours")[0]):
        assert torch.equal(text_logits(own, ids)[..., : expected.shape[-1]], expected.float())
        assert not torch.isinf(text_logits(own, ids)).any()


def rename(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    tower = {name: value for name, value in tensors.items() if name.startswith("vision_tower.")}
    return {prefix + name.removeprefix("vision_tower."): value for name, value in tower.items()}


@pytest.mark.parametrize("form", ["file", "torch_file", "torch_folder", "release", "timm"])
def test_other_forms_of_the_same_tower(form: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["auxiliary"] / "model.safetensors")
    path = tmp_path / "other"
    if form == "file":
        path = folders["auxiliary"] / "model.safetensors"
    elif form == "torch_file":
        path = tmp_path / "davit-large.pth"
        torch.save(rename(tensors, ""), path)
    else:
        path.mkdir()
    if form == "torch_folder":
        torch.save(tensors, path / "pytorch_model.bin")
    elif form == "release":
        released = rename(tensors, "model.vision_tower_aux.image_tower.")
        save_file({**released, "model.norm.weight": torch.ones(2)}, path / "model.safetensors")
    elif form == "timm":
        head = {"head.norm.weight": torch.ones(40), "head.norm.bias": torch.ones(40)}
        save_file({**checkpoint_filter_fn(tensors, None), **head}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"architecture": "davit_huge_fl"}))
    one, other = (
        published_model(debug(), 0, {**folders, "auxiliary": tower})[0]
        for tower in (folders["auxiliary"], path)
    )
    assert same(one.state_dict(), other.state_dict())


def test_a_model_without_the_tower_needs_no_folder_for_it(folders: dict[str, Path]) -> None:
    config = replace(debug(), region=replace(debug().region, features="primary"))
    model, _ = published_model(config, 0, {"vlm": folders["vlm"]})
    assert model.auxiliary is None


def test_the_published_config_is_that_of_the_size(tmp_path: Path) -> None:
    """The next thing that is missed is the weights; one number off, and the field is named."""
    config = SIZES["qwen2_5_vl_3b"]()
    (tmp_path / "config.json").write_text(json.dumps(QWEN_3B))
    with pytest.raises(SettingError, match=r"holds no model\*\.safetensors"):
        check_published(config, {"vlm": tmp_path})
    for changes, words in (
        ({"hidden_size": 3584}, r"text_config\.hidden_size=3584, the size asked for 2048; give"),
        ({"rope_theta": 1e4}, r"rope_theta=10000"),
        (
            {"vision_config": QWEN_3B["vision_config"] | {"window_size": 56}},
            r"vision_config\.window_size=56",
        ),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"model_type": "qwen2_vl"}, "it is a 'qwen2_vl'; the size asked for needs a 'qwen2_5_vl'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(QWEN_3B | changes))
        with pytest.raises(SettingError, match=rf"^vlm=.*{words}"):
            check_published(config, {"vlm": tmp_path})


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Any:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            drop("model.layers.1.mlp.up_proj.weight"),
            r"1 weights are missing: .*layers\.1\.mlp\.up_proj",
        ),
        (put("model.layers.2.x", torch.ones(1)), r"1 weights are not the model's: .*layers\.2\.x"),
        (put("model.norm.weight", torch.ones(3)), r"norm\.weight is \[3\], the model has \[32\]"),
    ],
)
def test_a_damaged_vlm_is_refused(damage: Any, words: str, folders: dict[str, Path]) -> None:
    file = folders["vlm"] / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SettingError, match=rf"^vlm=.*{words}"):
        published_model(debug(), 0, folders)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            drop("vision_tower.convs.2.norm.bias"),
            r"Florence-2\): 1 weights are missing: .*convs\.2\.norm\.b",
        ),
        (
            put("vision_tower.blocks.9.x", torch.ones(1)),
            r"not the model's: vision_tower\.blocks\.9\.x",
        ),
        (put("vision_tower.convs.0.proj.bias", torch.ones(3)), r"convs\.0\.proj\.bias is \[3\]"),
        (
            drop("vision_tower.convs.0.proj.weight"),
            r"no DaViT .* it is 'florence2' with \d+ tensors",
        ),
    ],
)
def test_a_damaged_tower_is_refused_before_weights_are_read(
    damage: Any, words: str, folders: dict[str, Path]
) -> None:
    file = folders["auxiliary"] / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(SettingError, match=rf"^auxiliary=.*{words}"):
        check_published(debug(), folders)


def test_other_heads_than_the_size_s_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Shapes do not tell them."""
    for field, value in (
        ("num_heads", [2, 2, 2, 2]),
        ("num_groups", [1, 1, 1, 1]),
        ("window_size", 12),
    ):
        write_florence(tmp_path / field, **{field: value})
        with pytest.raises(SettingError, match=rf"vision_config\.{field}=.*the size asked for"):
            check_published(debug(), {**folders, "auxiliary": tmp_path / field})


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code of a file ran",))


def test_code_in_a_file_does_not_run(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    torch.save({"convs.0.proj.weight": Evil()}, tmp_path / "davit-large.pth")
    with pytest.raises(SettingError, match="not a file of plain tensors"):
        published_model(debug(), 0, {**folders, "auxiliary": tmp_path / "davit-large.pth"})
    vlm = folders["vlm"]
    (vlm / "model.safetensors").unlink()
    torch.save({"x": Evil()}, vlm / "pytorch_model.bin")
    with pytest.raises(SettingError, match=r"no model\*\.safetensors; pickles are not read"):
        published_model(debug(), 0, folders)
    assert "code of a file ran" not in capsys.readouterr().out


def test_folders_that_lack_something_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^vlm=.*nowhere: it has no config\.json"):
        check_published(debug(), {**folders, "vlm": tmp_path / "nowhere"})
    with pytest.raises(SettingError, match=r"^auxiliary=.*nowhere: there is no such"):
        check_published(debug(), {**folders, "auxiliary": tmp_path / "nowhere"})
    with pytest.raises(SettingError, match=r"^auxiliary=.*no DaViT .* it is 'qwen2_5_vl' with"):
        check_published(debug(), {**folders, "auxiliary": folders["vlm"]})
    (folders["vlm"] / "tokenizer.json").unlink()
    with pytest.raises(SettingError, match="no tokenizer"):
        check_published(debug(), folders)


def test_drawing_both_towers_is_as_before(folders: dict[str, Path]) -> None:
    """Without parts the constructor draws, in the order that seeds of today's runs rest on."""
    model, _ = new_model(debug(), 0)
    torch.manual_seed(0)
    again = FO1Model(FO1Config.of(debug(), model.token_ids))
    assert torch.equal(
        model.region_encoder.connector[0].weight, again.region_encoder.connector[0].weight
    )
