"""``fo1 import-release`` and ``fo1 export`` as a user meets them."""

from dataclasses import replace

import pytest
import torch

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.release import export_release
from fo1_model.sizes import debug
from jobs.command.command_line import main
from pipelines.artifacts import Artifact


@pytest.fixture(scope="module")
def model():
    return new_model(debug(), seed=0)


@pytest.fixture(scope="module")
def released(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    export_release(*model, folder, dtype=torch.bfloat16)
    return folder


def same_files(first, second):
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_in_and_out(released, tmp_path, capsys):
    own, out = tmp_path / "own", tmp_path / "out"
    assert main(["import-release", str(released), str(own)]) == 0
    assert capsys.readouterr().out.endswith(" parameters, bfloat16\n")
    assert {value.dtype for value in load_model(own, dtype=None)[0].parameters()} == {
        torch.bfloat16
    }
    assert main(["export", str(own), str(out), "layout=release"]) == 0
    assert "will not take out" in capsys.readouterr().out
    assert same_files(released, out)
    assert main(["import-release", str(released), str(tmp_path / "wide"), "dtype=float32"]) == 0
    words = [
        "export",
        str(tmp_path / "wide"),
        str(tmp_path / "back"),
        "layout=release",
        "dtype=bfloat16",
    ]
    assert main(words) == 0
    assert same_files(released, tmp_path / "back")


def test_a_name_that_the_released_loader_takes(released, tmp_path, capsys):
    assert main(["import-release", str(released), str(tmp_path / "own"), "shortest_edge=512"]) == 0
    assert load_model(tmp_path / "own")[0].model_config.shortest_edge == 512
    out = tmp_path / "VLM-FO1_Qwen2.5-VL_mine"
    capsys.readouterr()
    assert main(["export", str(tmp_path / "own"), str(out), "layout=release"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "VLM-FO1_Qwen2.5-VL_mine is one it takes" in said[1]


def test_another_chat_form_than_the_release_s_is_said_and_kept(tmp_path, capsys):
    own, out = tmp_path / "own", tmp_path / "out"
    save_model(*new_model(replace(debug(), image_gap=""), seed=0), own)
    assert main(["export", str(own), str(out), "layout=release"]) == 0
    assert "plain question; this model was trained with '' there" in capsys.readouterr().out
    assert load_model(out)[1].config.image_gap == ""


@pytest.fixture(scope="module")
def root(model, tmp_path_factory):
    """A root with one finished run."""
    folder = tmp_path_factory.mktemp("root")
    run = Artifact(root=str(folder), kind="runs", name="stage2", fingerprint="0123456789abcdef")
    save_model(*model, run.uri("export"))
    run.commit({"buckets": 0})
    return folder


def test_a_finished_run_in_both_layouts(root, released, tmp_path, capsys):
    assert main(["export", "stage2", str(tmp_path / "own"), "--root", str(root)]) == 0
    assert "files, " in capsys.readouterr().out
    assert same_files(root / "runs" / "stage2" / "0123456789abcdef" / "export", tmp_path / "own")
    load_model(tmp_path / "own")
    words = ["export", "stage2", str(tmp_path / "out"), "layout=release", "dtype=bfloat16"]
    assert main([*words, "--root", str(root)]) == 0
    assert same_files(released, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import-release"], "write fo1 import-release PATH OUT"),
        (["import-release", "{released}"], "write fo1 import-release PATH OUT"),
        (["import-release", "{tmp}/nowhere", "{tmp}/out"], "is not a released checkpoint"),
        (["import-release", "{released}", "{released}"], "is there already; name a new folder"),
        (
            ["import-release", "{released}", "{tmp}/out", "dtype=int8"],
            "dtype=int8: choose one of stored",
        ),
        (["import-release", "{released}", "{tmp}/out", "type=float32"], "unknown argument 'type'"),
        (["export", "stage2"], "write fo1 export CHECKPOINT OUT"),
        (["export", "nothing", "{tmp}/out"], "no finished run of that name"),
        (["export", "stage2", "{released}"], "is there already; name a new folder"),
        (
            ["export", "stage2", "{tmp}/out", "layout=onnx"],
            "layout=onnx: choose one of hf, release",
        ),
        (["export", "stage2", "{tmp}/out", "step=3"], "unknown argument 'step'"),
    ],
)
def test_wrong_words_get_one_line(words, message, root, released, tmp_path, capsys):
    words = [word.format(released=released, tmp=tmp_path) for word in words]
    assert main([*words, "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
