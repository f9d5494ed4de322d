"""A checkpoint by what a person calls it, and what is said of one that is none."""

import json

import pytest

from fo1_model.checkpoint import is_release
from jobs.checkpoints.find import ModelFolder, find_checkpoint
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError


@pytest.fixture
def runtime(tmp_path):
    return RuntimeConfig(root=str(tmp_path / "root"), data=None)


def folder(path, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("field", ["checkpoint", "start", "export", "opn"])
def test_a_refusal_has_the_word_that_was_written(field, runtime):
    with pytest.raises(SettingError, match=f"^{field}=nowhere: no finished run of that name"):
        find_checkpoint("nowhere", runtime, field)


def test_the_released_layout_is_told_in_one_way(runtime, tmp_path):
    """By what the release's loader itself needs, whatever the config calls the model."""
    released = folder(tmp_path / "a", model_type="renamed", mm_vision_tower_aux="davit-large.pth")
    assert is_release(released)
    assert find_checkpoint(str(released), runtime) == ModelFolder(name="a", uri=str(released))
    plain = folder(tmp_path / "b", model_type="qwen2_5_vl")
    assert not is_release(plain)
    with pytest.raises(SettingError, match="fo1 train stage1 vlm=FOLDER"):
        find_checkpoint(str(plain), runtime)
