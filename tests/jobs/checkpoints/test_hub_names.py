"""The released checkpoint is found in the cache under whichever of its names it has there."""

import huggingface_hub
import pytest

from fo1_model.release.folder_names import NAMES
from jobs.checkpoints.find import ModelFolder, find_checkpoint
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from tests.fo1_model.release.released_folder import write_released


@pytest.mark.parametrize("asked", NAMES)
@pytest.mark.parametrize("cached", NAMES)
def test_either_name_finds_either(asked, cached, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / f"models--{cached.replace('/', '--')}"
    write_released(repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    runtime = RuntimeConfig(root=str(tmp_path / "root"), data=str(tmp_path))
    found = find_checkpoint(asked, runtime)
    assert isinstance(found, ModelFolder)
    assert found.uri == str(repository / "snapshots" / "0123abcd")
    with pytest.raises(SettingError, match="omlab/VLM-FO1-7B"):
        find_checkpoint("omlab/VLM-FO1-7B", runtime)


@pytest.mark.parametrize("asked", NAMES)
def test_without_any_the_message_has_the_name_that_was_asked_for(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SettingError, match=f"hf download {asked}"):
        find_checkpoint(asked, RuntimeConfig(root=str(tmp_path / "root"), data=str(tmp_path)))
