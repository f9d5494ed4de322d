"""The Hugging Face layout of our own folders, and transformers' auto classes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from fo1_model import hub
from fo1_model.checkpoint import load_model, save_model
from fo1_model.config import MODEL_TYPE
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.processing import Processor


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    state = second.state_dict()
    return all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_the_auto_classes_read_our_folder(model, processor, sample, folder):
    loaded, own = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(loaded, FO1Model)
    assert isinstance(own, Processor)
    assert not loaded.training
    assert same(model, loaded)
    assert own.token_ids == processor.token_ids
    answer = "<ground>red circle</ground><objects><region0></objects>"
    batch = own.collate([sample(84, 56, 3, answer)])
    with torch.no_grad():
        assert torch.equal(loaded(batch).loss_sum, model(batch).loss_sum)
    config = AutoConfig.from_pretrained(folder)
    assert (type(config), config.model_type) == (FO1Config, MODEL_TYPE)
    assert config.model == json.loads((folder / "config.json").read_text())["model"]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "bfloat16", "device_map": "cpu"}, torch.bfloat16),
        ({"torch_dtype": torch.float16}, torch.float16),
    ],
)
def test_types_through_the_auto_class(folder, given, expected):
    loaded = AutoModel.from_pretrained(folder, **given)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_what_is_no_type_is_refused(folder):
    for name in ("int", "nn", "bfloat17"):
        with pytest.raises(SettingError, match=f"dtype='{name}' is no floating torch dtype"):
            FO1Model.from_pretrained(folder, dtype=name)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"load_in_8bit": True, "nonsense": 3}, "load_in_8bit, nonsense is not known"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config is not known"),
        ({"use_safetensors": False}, "use_safetensors is not known"),
        # The auto class writes this one into the config, where nobody would read it.
        ({"format": 1}, "format differs from .*config.json"),
    ],
)
def test_unknown_options_are_refused(folder, given, named):
    with pytest.raises(SettingError, match=named):
        AutoModel.from_pretrained(folder, **given)


def test_the_attention_is_the_vlms(folder):
    for auto in (AutoModel, FO1Model):
        loaded = auto.from_pretrained(folder, attn_implementation="eager", low_cpu_mem_usage=True)
        assert loaded.vlm.config._attn_implementation == "eager"
        assert loaded.config.get_text_config()._attn_implementation == "eager"
    assert FO1Model.from_pretrained(folder).vlm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_the_auto_classes_of_what_generates_know_us(model, folder, auto):
    assert same(model, auto.from_pretrained(folder))


def test_a_model_is_made_from_its_config_alone(model, folder):
    fresh = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    assert isinstance(fresh, FO1Model)
    assert fresh.model_config == model.model_config
    assert fresh.dtype == torch.bfloat16
    with pytest.raises(SettingError, match="this FO1Config describes no model"):
        FO1Model(FO1Config())


def test_the_config_has_the_decoders_where_tools_look_for_it(model, folder):
    config = AutoConfig.from_pretrained(folder)
    text = model.model_config.vlm.config["text_config"]
    for one in (config, model.config):
        assert one.get_text_config().num_hidden_layers == text["num_hidden_layers"]
        assert one.text_config.hidden_size == model.family.hidden_size
        assert "_text_config" not in one.to_dict()
    assert model.config.text_config is model.vlm.config.get_text_config()
    assert model.config.model_config == model.model_config


def test_another_config_is_refused(folder):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(AutoModel.from_pretrained(folder, config=config), FO1Model)
    config.model = {**config.model, "num_region_tokens": 7}
    with pytest.raises(SettingError, match="model differs from"):
        AutoModel.from_pretrained(folder, config=config)


def test_options_about_repositories_and_subfolders_are_let_through(model, folder):
    about = {"trust_remote_code": True, "local_files_only": True, "revision": "main"}
    assert same(model, AutoModel.from_pretrained(folder, **about))
    assert same(model, AutoModel.from_pretrained(folder.parent, subfolder=folder.name))
    assert isinstance(AutoProcessor.from_pretrained(folder, **about), Processor)


def test_unknown_options_of_the_processor_are_refused(folder):
    with pytest.raises(SettingError, match=r"AutoProcessor.from_pretrained: nonsense is not known"):
        AutoProcessor.from_pretrained(folder, nonsense=3)


@pytest.mark.parametrize(
    "imports",
    [
        "import fo1_model.hub; from transformers import AutoConfig, AutoModel, AutoProcessor",
        "from transformers import AutoConfig, AutoModel, AutoProcessor; import fo1_model.hub",
    ],
)
def test_importing_the_hub_registers_whatever_the_order(imports, folder):
    code = (
        f"{imports}\nfolder = {str(folder)!r}\n"
        "classes = (AutoConfig, AutoModel, AutoProcessor)\n"
        "names = [type(c.from_pretrained(folder)).__name__ for c in classes]\n"
        "print(*names)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["FO1Config", "FO1Model", "Processor"]


def test_importing_the_package_imports_nothing_heavy_and_hooks_nothing():
    code = (
        "import sys; before = list(sys.meta_path); import fo1_model\n"
        "print({'torch', 'transformers', 'timm'} & set(sys.modules), sys.meta_path == before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set() True"


def test_registering_twice_changes_nothing(folder):
    hub.register()
    assert isinstance(AutoModel.from_pretrained(folder), FO1Model)


def test_model_and_processor_can_be_saved_apart(model, processor, folder, tmp_path):
    model.save_pretrained(tmp_path / "apart")
    assert same(model, FO1Model.from_pretrained(tmp_path / "apart"))
    with pytest.raises(SettingError, match="saved without its processor"):
        Processor.from_pretrained(tmp_path / "apart")
    processor.save_pretrained(tmp_path / "apart")
    for file in sorted(folder.iterdir()):
        assert (tmp_path / "apart" / file.name).read_bytes() == file.read_bytes(), file.name
    processor.save_pretrained(tmp_path / "alone")
    assert Processor.from_pretrained(tmp_path / "alone").token_ids == processor.token_ids


def test_a_large_model_is_sharded(model, processor, folder, tmp_path):
    save_model(model, processor, tmp_path / "many", max_file_bytes=200_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    whole = load_file(folder / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    for file in files:
        held = load_file(tmp_path / "many" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(held)
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 200_000
    assert same(model, AutoModel.from_pretrained(tmp_path / "many"))
    # Saved again in one file, nothing of the many is left to be read.
    save_model(model, processor, tmp_path / "many")
    assert {file.name for file in (tmp_path / "many").iterdir()} == {
        file.name for file in folder.iterdir()
    }


def test_loaded_weights_do_not_depend_on_the_file(model, folder):
    loaded, _ = load_model(folder)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:  # in place, as a copy onto it would
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


def test_types_are_kept_tensor_by_tensor(model, processor, folder, tmp_path):
    model.region_encoder.bfloat16()
    save_model(model, processor, tmp_path / "mixed")
    loaded, _ = load_model(tmp_path / "mixed", dtype=None)
    assert {p.dtype for p in loaded.region_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.vlm.parameters()} == {torch.float32}
    assert same(model, loaded)


def test_half_precision_keeps_the_buffers(folder):
    """Rounded to bfloat16, the frequencies of positions would turn far tokens by wrong angles."""
    whole, half = load_model(folder)[0], load_model(folder, dtype=torch.bfloat16)[0]
    buffers = dict(half.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    assert all(torch.equal(value, buffers[name]) for name, value in whole.named_buffers())


def test_another_tokenizer_is_refused(folder, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"] = [t for t in tokens["added_tokens"] if t["content"] != "<region1>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    assert "<region1>" in tokenizer.get_vocab()
    with pytest.raises(SettingError, match="other ids to the model's tokens"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"[]", r"config.json holds no object"),
        ("config.json", b"\xff\xfe", r"config.json is not JSON"),
        ("config.json", b'{"model_type": "vlm_fo1", "format": 2}', r"not written by save_model"),
        (
            "config.json",
            (
                b'{"model_type": "vlm_fo1", "format": 2, "model": 3, "token_ids": '
                b'{"image": 1, "region": 2, "new": [3]}}'
            ),
            r"ModelConfig must be an object",
        ),
        ("tokenizer.json", b"{}", r"tokenizer.json is no tokenizer"),
        ("model.safetensors.index.json", b"{}", r"has no weight_map"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(folder, file, content, message):
    (folder / file).write_bytes(content)
    with pytest.raises(SettingError, match=message):
        load_model(folder)
