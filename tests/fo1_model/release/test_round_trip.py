"""A released folder through ours and back: every file as it came, where nothing trained."""

import filecmp
import json
import shutil
from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import load_file

from fo1_model.checkpoint import load_model, load_processor, save_model
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig
from fo1_model.processing import Processor
from fo1_model.release import export_release, load_release
from fo1_model.release.generation_settings import generation_config
from fo1_model.release.kept_files import files_of_weights
from fo1_model.weights import INDEX
from tests import SHARED
from tests.fo1_model.release.released_folder import (
    FULL_WIDTH,
    REGION_LANGUAGE,
    SPECIAL,
    Widths,
    shapes_of,
    write_released,
)

CASES = SHARED / "parity"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    write_released(folder)
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def there_and_back(released, tmp_path):
    save_model(*load_release(released), tmp_path / "own")
    model, processor = load_model(tmp_path / "own", dtype=None)
    export_release(model, processor, tmp_path / "back")
    return model, processor


def test_every_file_comes_back_byte_for_byte(released, tmp_path):
    there_and_back(released, tmp_path)
    before, after = contents(released), contents(tmp_path / "back")
    assert sorted(after) == sorted(before)
    assert [name for name in before if before[name] != after[name]] == []
    # straight back, without our folder between
    export_release(*load_release(released), tmp_path / "straight")
    assert contents(tmp_path / "straight") == before


def test_our_folder_holds_the_tokens_and_the_kept_files(released, tmp_path):
    there_and_back(released, tmp_path)
    processor = load_processor(tmp_path / "own")
    vocabulary = processor.tokenizer.get_vocab()
    added = json.loads((released / "added_tokens.json").read_text())
    assert list(added) == [*SPECIAL, *REGION_LANGUAGE]
    assert {token: vocabulary[token] for token in added} == added
    text = "the thin object <region7><|im_end|>"
    expected = load_release(released)[1].tokenizer.encode(text)
    assert processor.tokenizer.encode(text) == expected
    assert set(contents(tmp_path / "own" / "release")) == {
        name for name in contents(released) if not name.endswith(".safetensors")
    }
    # a second save, and one of another model over it, keep nothing of an earlier one
    own = tmp_path / "own"
    (own / "release" / "stale.json").write_text("{}")
    processor.release_files = {"LICENSE": b"theirs\n"}
    processor.save_pretrained(own)
    assert contents(own / "release") == {"LICENSE": b"theirs\n"}


@pytest.mark.parametrize("case", ["base", "region_norm"])
def test_the_recorded_layout_comes_back(case, tmp_path):
    if not (CASES / case).is_dir():
        pytest.skip(f"no golden case in {CASES / case}")
    there_and_back(CASES / case, tmp_path)
    before, after = contents(CASES / case), contents(tmp_path / "back")
    assert set(after) >= {"model.safetensors", "config.json", "tokens.json"}
    # what is no part of a model stays behind
    assert set(before) - set(after) == {"image.png", "inputs.safetensors", "outputs.safetensors"}
    assert [name for name in after if before.get(name) != after[name]] == []


def test_after_training_only_the_weights_are_others(released, tmp_path):
    model, processor = load_release(released)
    with torch.no_grad():
        model.region_encoder.connector[0].bias += 1
        model.new_rows.weight += 1
    save_model(model, processor, tmp_path / "own")
    export_release(*load_model(tmp_path / "own", dtype=None), tmp_path / "back")
    before, after = contents(released), contents(tmp_path / "back")
    changed = {name for name in before if before[name] != after.get(name)}
    assert {name for name in changed if not name.endswith(".safetensors")} == set()
    tensors = [{}, {}]
    for folder, found in zip((released, tmp_path / "back"), tensors, strict=True):
        for file in folder.glob("*.safetensors"):
            found.update(load_file(file))
    moved = {name for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])}
    assert moved == {"model.mm_projector_aux.0.bias", "model.embed_tokens.weight"}


def test_another_type_keeps_the_files_but_not_their_sizes(released, tmp_path):
    export_release(*load_release(released), tmp_path, dtype=torch.float32)
    written, kept = (json.loads((folder / INDEX).read_text()) for folder in (tmp_path, released))
    assert written["weight_map"] == kept["weight_map"]
    assert written["metadata"]["total_size"] == 2 * kept["metadata"]["total_size"]
    assert load_release(tmp_path)[0].model_config.connector.num_layers == 2


def test_a_config_that_has_changed_is_written_anew(released, tmp_path):
    model, processor = load_release(released, shortest_edge=1024)
    assert model.model_config.shortest_edge == processor.config.shortest_edge == 1024
    export_release(model, processor, tmp_path)
    before, after = contents(released), contents(tmp_path)
    assert [name for name in before if before[name] != after[name]] == ["config.json"]
    flat, written = json.loads(before["config.json"]), json.loads(after["config.json"])
    assert written.pop("fo1")["shortest_edge"] == 1024
    assert written == flat
    assert load_release(tmp_path)[0].model_config.shortest_edge == 1024


def test_a_tokenizer_that_has_grown_is_written_anew(released, tmp_path):
    model, processor = load_release(released)
    grown = Processor(replace(processor.config, num_region_tokens=110), processor.tokenizer)
    grown.release_files = processor.release_files
    export_release(model, grown, tmp_path)
    _, again = load_release(tmp_path)
    assert again.tokenizer.get_vocab() == grown.tokenizer.get_vocab()
    assert "<region109>" in again.tokenizer.get_vocab()
    after, before = contents(tmp_path), contents(released)
    assert "chat_template.json" not in after
    for name in ("generation_config.json", "preprocessor_config.json", "README.md"):
        assert after[name] == before[name]


def test_the_checkpoint_s_repetition_penalty(released, tmp_path):
    _, processor = there_and_back(released, tmp_path)
    for one in (processor, load_release(released)[1]):
        found = generation_config(one, max_new_tokens=7)
        # sampling, which the file asks for and the release does not do, is left out
        assert found == GenerationConfig(max_new_tokens=7, repetition_penalty=1.05)
    assert generation_config(processor, repetition_penalty=2.0).repetition_penalty == 2
    processor.release_files = {}
    assert generation_config(processor) == GenerationConfig()
    for content, message in ((b"[]", "cannot be read"), (b'{"repetition_penalty": -1}', "above 0")):
        processor.release_files = {"generation_config.json": content}
        with pytest.raises(SettingError, match=message):
            generation_config(processor)


def test_a_kept_index_decides_only_over_files_of_the_folder():
    def index(files):
        return {INDEX: json.dumps({"weight_map": files}).encode()}

    good = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert files_of_weights(index(good), {"a", "b"}) == good
    assert files_of_weights(index(good), {"a"}) is None
    assert files_of_weights({}, {"a"}) is None
    for bad in ("../model.safetensors", "/tmp/m.safetensors", "config.json", "x/y.safetensors"):
        assert files_of_weights(index({**good, "b": bad}), {"a", "b"}) is None


def test_a_folder_that_is_read_only_comes_back_writable(released, tmp_path):
    """A hub cache holds files nobody may write."""
    locked = tmp_path / "locked"
    shutil.copytree(released, locked)
    for file in locked.iterdir():
        file.chmod(0o444)
    there_and_back(locked, tmp_path)
    (tmp_path / "back" / "config.json").write_text("{}")


def test_the_written_folder_is_the_release_s():
    """Number of tensors and parameters of the released checkpoint, part by part."""
    shapes = shapes_of(Widths(rows=151936))
    parts = {
        "model.vision_tower.": (390, 668_684_288),
        "model.vision_tower_aux.": (400, 360_632_320),
        "model.object_vp_extractor.": (32, 18_623_296),
        "model.mm_projector_aux.": (4, 16_257_024),
        "model.": (1260, 4_150_135_616),
    }
    for prefix, expected in parts.items():
        sizes = [prod(shape) for name, shape in shapes.items() if name.startswith(prefix)]
        assert (len(sizes), sum(sizes)) == expected


@pytest.fixture
def roomy(tmp_path):
    """A folder that does not stay: pytest keeps those of its last runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_at_the_full_width_of_the_3b(roomy):
    """Two layers of each tower, 0.9 GB: every file comes back byte for byte."""
    write_released(roomy / "released", FULL_WIDTH)
    there_and_back(roomy / "released", roomy)
    files = sorted(file.name for file in (roomy / "released").iterdir())
    assert sorted(file.name for file in (roomy / "back").iterdir()) == files
    matching, *others = filecmp.cmpfiles(roomy / "released", roomy / "back", files, shallow=False)
    assert (matching, others) == (files, [[], []])
