"""``fo1 export`` as a user meets it."""

import pytest
import torch

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.config import debug
from fo1_model.release import export_release
from jobs.__main__ import main
from pipelines.artifacts import Artifact


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with one finished run, beside its model as the released code reads it."""
    folder = tmp_path_factory.mktemp("root")
    model = new_model(debug(), seed=0)
    run = Artifact(root=str(folder), kind="runs", name="stage2", fingerprint="0123456789abcdef")
    save_model(*model, run.uri("export"))
    run.commit({"buckets": 0})
    export_release(*model, folder / "released", dtype=torch.bfloat16)
    return folder


def same_files(first, second):
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_both_layouts(root, tmp_path, capsys):
    assert main(["export", "stage2", str(tmp_path / "own"), "--root", str(root)]) == 0
    assert "files, " in capsys.readouterr().out
    assert same_files(root / "runs" / "stage2" / "0123456789abcdef" / "export", tmp_path / "own")
    load_model(tmp_path / "own")
    words = ["export", "stage2", str(tmp_path / "out"), "layout=release", "dtype=bfloat16"]
    assert main([*words, "--root", str(root)]) == 0
    assert same_files(root / "released", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage2"], "write fo1 export RUN OUT"),
        (["nothing", "{tmp}/out"], "no finished run of that name"),
        (["stage2", "{root}/released"], "is there already; name a new folder"),
        (["stage2", "{tmp}/out", "layout=onnx"], "onnx"),
        (["stage2", "{tmp}/out", "dtype=float32"], "layout=hf keeps the weights as they are stored"),
        (["stage2", "{tmp}/out", "step=3"], "unknown argument 'step'"),
    ],
)
def test_wrong_words_get_one_line(words, message, root, tmp_path, capsys):
    words = [word.format(root=root, tmp=tmp_path) for word in words]
    assert main(["export", *words, "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
