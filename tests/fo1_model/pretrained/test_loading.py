"""Models over several devices, from repositories and into them, and what others' loops save."""

from pathlib import Path

import huggingface_hub
import pytest
import torch

from fo1_model.checkpoint import load_model, save_model
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig, generate
from fo1_model.model import FO1Model
from fo1_model.pretrained import loading
from fo1_model.processing import Processor
from fo1_model.release import export_release
from fo1_model.weights import weights_of
from tests.fo1_model.pretrained.conftest import regional

OTHER = "vlm.model.language_model.layers.1"


@pytest.fixture
def folder(model, processor, tmp_path):
    save_model(model, processor, tmp_path / "model")
    return tmp_path / "model"


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "device_map", ["auto", "cpu", {"": "cpu"}, torch.device("cpu"), "balanced"]
)
def test_the_whole_model_goes_to_one_device(model, folder, device_map):
    device = "cuda" if device_map in ("auto", "balanced") and torch.cuda.is_available() else "cpu"
    loaded = FO1Model.from_pretrained(folder, device_map=device_map)
    assert {value.device.type for value in loaded.state_dict().values()} == {device}
    assert {value.device.type for value in loaded.buffers()} == {device}
    own = loaded.state_dict()
    assert all(torch.equal(v, own[n].cpu()) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("device_map", "named"),
    [
        ("nowhere:7", "device_map='nowhere:7' is no device"),
        ({"": "cpu", "vlm": "there"}, "device_map='there' is no device"),
        ({"vlm": "cpu"}, r"device_map names no module of .*; it names vlm"),
    ],
)
def test_places_that_are_none_are_refused(folder, device_map, named):
    with pytest.raises(SettingError, match=named):
        FO1Model.from_pretrained(folder, device_map=device_map)


@pytest.mark.parametrize(
    ("dtype", "device_map"),
    [
        (None, {"": "cpu", OTHER: "disk"}),
        (None, {"": "disk", "auxiliary": "cpu"}),
        (torch.bfloat16, {"": "disk", "vlm.lm_head": "cpu", "region_encoder": "cpu"}),
    ],
)
def test_what_lies_on_disk_stays_in_its_file(processor, folder, dtype, device_map):
    """Answers, logits and what is saved again are those of the model in memory."""
    placed = FO1Model.from_pretrained(folder, dtype=dtype, device_map=device_map)
    whole = FO1Model.from_pretrained(folder, dtype=dtype)
    assert getattr(placed, OTHER.split(".")[0]) is placed.vlm
    assert placed.get_submodule(OTHER).mlp.up_proj.weight.device.type == "meta"
    assert placed.device.type == "cpu"
    inputs = processor(*regional([(84, 56, 2), (60, 84, 1)]))
    with torch.no_grad():
        assert torch.equal(placed(**inputs).logits, whole(**inputs).logits)
    rows = placed.generate(**inputs, max_new_tokens=3)
    assert torch.equal(rows, whole.generate(**inputs, max_new_tokens=3))
    messages, images, boxes = regional([(84, 56, 2)])
    sample = processor.encode(images, boxes, messages, for_generation=True)
    config = GenerationConfig(max_new_tokens=3)
    own = [generate(one, processor, [sample], config)[0].text for one in (placed, whole)]
    assert own[0] == own[1]
    placed.save_pretrained(folder.parent / "placed")
    whole.save_pretrained(folder.parent / "whole")
    assert files(folder.parent / "placed") == files(folder.parent / "whole")


def test_a_strategy_places_modules_within_the_memory_given(folder):
    size = sum(v.nbytes for v in weights_of(FO1Model.from_pretrained(folder)).values())
    placed = FO1Model.from_pretrained(
        folder, device_map="sequential", max_memory={"cpu": size * 3 // 4}, offload_folder=None
    )
    assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    kept = [v.nbytes for v in placed.parameters() if v.device.type == "cpu"]
    assert 0 < sum(kept) <= size * 3 // 4


def test_a_released_checkpoint_goes_to_one_device(model, processor, tmp_path):
    export_release(model, processor, tmp_path)
    assert isinstance(FO1Model.from_pretrained(tmp_path, device_map="cpu"), FO1Model)
    with pytest.raises(SettingError, match="a released checkpoint goes to one device"):
        FO1Model.from_pretrained(tmp_path, device_map={"": "cpu", OTHER: "disk"})


def test_a_repository_is_read_from_its_local_copy(model, folder, monkeypatch):
    asked = []

    def download(name, *, allow_patterns, **given):
        asked.append((name, given))
        if name != "somebody/model":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such copy")
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    loaded = FO1Model.from_pretrained("somebody/model", revision="v1", trust_remote_code=True)
    assert asked == [("somebody/model", {"revision": "v1"})]
    assert torch.equal(loaded.new_rows.weight, model.new_rows.weight)
    with pytest.raises(SettingError, match="somebody/else is no folder, and no repository"):
        FO1Model.from_pretrained("somebody/else")
    with pytest.raises(SettingError, match="there is nothing"):
        FO1Model.from_pretrained(folder / "of" / "nobody")


def test_save_pretrained_writes_the_bytes_of_save_model(model, processor, folder, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    assert files(tmp_path / "saved") == files(folder)
    save_model(model, processor, tmp_path / "many", max_file_bytes=200_000)
    model.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    assert files(tmp_path / "saved") == files(tmp_path / "many")


def test_weights_that_others_gathered_are_saved(model, folder, tmp_path):
    """As an accelerator does: the whole state, repeated weights with it, from one process."""
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=state, is_main_process=True)
    loaded = FO1Model.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.new_rows.weight, model.new_rows.weight + 1)
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    state.pop("new_rows.weight")
    with pytest.raises(SettingError, match="the state dict: 1 weights are missing: new_rows"):
        model.save_pretrained(tmp_path / "other", state_dict=state)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"safe_serialization": False}, "weights are safetensors only"),
        ({"variant": "fp16"}, "variant is not known"),
    ],
)
def test_unknown_options_of_saving_are_refused(model, tmp_path, options, named):
    with pytest.raises(SettingError, match=named):
        model.save_pretrained(tmp_path, **options)


@pytest.mark.parametrize("by_saving", [False, True])
def test_push_to_hub_uploads_the_folder(model, folder, tmp_path, monkeypatch, by_saving):
    """Up to the commit everything is transformers' own; nothing leaves the machine."""
    sent = {}

    class Repository:
        repo_id = "somebody/model"

        def __getattr__(self, name):
            return lambda *given, **more: self

    def commit(self, working_dir, repo_id, **options):
        sent.update(files(Path(working_dir)), repo_id=repo_id, **options)

    monkeypatch.setattr("transformers.utils.hub.hf_api", Repository)
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card",
        lambda *_, **__: huggingface_hub.ModelCard("---\n---\nOurs."),
    )
    monkeypatch.setattr(FO1Model, "_upload_modified_files", commit)
    if by_saving:
        model.save_pretrained(tmp_path / "own", push_to_hub=True, repo_id="somebody/model")
        assert files(tmp_path / "own")["config.json"] == sent["config.json"]
    else:
        model.push_to_hub("somebody/model", commit_message="A model")
        assert sent["commit_message"] == "A model"
    stored = files(folder)
    assert sent["repo_id"] == "somebody/model"
    assert all(sent[name] == stored[name] for name in ("config.json", "model.safetensors"))


def test_generate_stops_as_the_folders_processor_says(processor, folder, tmp_path):
    for loaded in (FO1Model.from_pretrained(folder), load_model(folder)[0]):
        assert loaded.generation_config.eos_token_id == list(processor.stop_ids)
        assert loaded.generation_config.pad_token_id == processor.pad_id
    loaded.save_pretrained(tmp_path / "alone")
    alone = FO1Model.from_pretrained(tmp_path / "alone")
    assert alone.generation_config.eos_token_id is None
    alone.use_stops(Processor.from_pretrained(folder))
    assert alone.generation_config.eos_token_id == list(processor.stop_ids)
