import pytest

from fo1_model.release.folder_names import NAMES, name_note, suggested_name


def released_loader(path: str) -> str | None:
    """What vlm_fo1/model/builder.py does with a path, as of October 2025 and of 2026."""
    path = path.lower()
    if "vlm-fo1" not in path:
        return None
    if "qwen2.5-vl" in path or "qwen2_5_vl" in path:
        return "every version"
    return "newer versions" if "vlm-fo1-3b" in path else None


@pytest.mark.parametrize(
    ("name", "taken", "better"),
    [
        ("VLM-FO1_Qwen2.5-VL-3B-v01", "every version", None),
        ("my-vlm-fo1_qwen2_5_vl", "every version", None),
        ("VLM-FO1-3B-v01", "newer versions", "VLM-FO1_Qwen2.5-VL_3B-v01"),
        ("vlm-fo1-3b", "newer versions", "VLM-FO1_Qwen2.5-VL_3b"),
        ("my_model", None, "VLM-FO1_Qwen2.5-VL_my_model"),
        ("Qwen2.5-VL-3B", None, "VLM-FO1_Qwen2.5-VL_Qwen2.5-VL-3B"),
        ("vlm_fo1_qwen2.5-vl", None, "VLM-FO1_Qwen2.5-VL_vlm_fo1_qwen2.5-vl"),
        ("VLM-FO1", None, "VLM-FO1_Qwen2.5-VL"),
    ],
)
def test_the_note_says_what_the_released_loader_does(name, taken, better, tmp_path):
    assert released_loader(name) == taken
    note = name_note(tmp_path / name)
    assert ("will not take" in note) == (taken is None)
    assert ("only its newer versions take" in note) == (taken == "newer versions")
    assert name in note
    assert len(note.splitlines()) == 1
    if better is None:
        assert "rename" not in note
    else:
        assert suggested_name(name) == better
        assert f"rename it, for example to {better}" in note
        assert released_loader(better) == "every version"


def test_a_relative_name_is_the_folder_s_own(tmp_path, monkeypatch):
    folder = tmp_path / "VLM-FO1_Qwen2.5-VL-3B-v01"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "is one it takes" in name_note(".")


def test_both_names_of_the_release_are_taken_by_some_version():
    assert [released_loader(name) for name in NAMES] == ["newer versions", "every version"]
