"""``fo1 import-release`` and ``fo1 export-release`` as a user meets them."""

import pytest
import torch

from fo1_model.checkpoint import load_model, new_model, save_model
from fo1_model.config import debug
from fo1_model.release import export_release
from jobs.__main__ import main
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
    assert {value.dtype for value in load_model(own, dtype=None)[0].parameters()} == {torch.bfloat16}
    assert main(["export-release", str(own), str(out)]) == 0
    assert same_files(released, out)
    assert main(["import-release", str(released), str(tmp_path / "wide"), "dtype=float32"]) == 0
    assert main(["export-release", str(tmp_path / "wide"), str(tmp_path / "back"), "dtype=bfloat16"]) == 0
    assert same_files(released, tmp_path / "back")


def test_a_finished_run_by_name(model, released, tmp_path):
    run = Artifact(root=str(tmp_path), kind="runs", name="stage2", fingerprint="0123456789abcdef")
    save_model(*model, run.uri("export"))
    run.commit({"buckets": 0})
    words = ["export-release", "stage2", str(tmp_path / "out"), "dtype=bfloat16", "--root", str(tmp_path)]
    assert main(words) == 0
    assert same_files(released, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import-release"], "write fo1 import-release PATH OUT"),
        (["import-release", "{released}"], "write fo1 import-release PATH OUT"),
        (["import-release", "{tmp}/nowhere", "{tmp}/out"], "is not a released checkpoint"),
        (["import-release", "{released}", "{released}"], "is there already; name a new folder"),
        (["import-release", "{released}", "{tmp}/out", "dtype=int8"], "dtype=int8: choose one of stored"),
        (["import-release", "{released}", "{tmp}/out", "type=float32"], "unknown argument 'type'"),
        (["export-release", "nothing", "{tmp}/out"], "no finished run of that name"),
        (["export-release", "{released}", "{tmp}/out"], "fo1 import-release reads the released checkpoint"),
    ],
)
def test_wrong_words_get_one_line(words, message, released, tmp_path, capsys):
    words = [word.format(released=released, tmp=tmp_path) for word in words]
    assert main([*words, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
