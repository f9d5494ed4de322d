"""The whole chain under roots of every kind: signs in paths, file URIs, and a real object store."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest
from PIL import Image

from jobs.command.command_line import main
from pipelines.storage import filesystem_of, join
from tests.object_store import BUCKET, object_store

pytestmark = pytest.mark.slow
WORDS = ["stage1", "size=debug", "detector=ground_truth_jitter", "proposals=8", "steps=2"]
WORDS += ["batch_size=4", "validate_every=0"]
DIFFERS = {"speed.json", "mlflow_run.json"}
"""Files of a run that say how fast it was, and its id in MLflow."""


@pytest.fixture(scope="module")
def data(drawn_world):
    return ["--data", str(drawn_world)]


@pytest.fixture(scope="module")
def local(tmp_path_factory, data):
    """The root of a run on a disk, left alone."""
    root = tmp_path_factory.mktemp("local") / "root"
    assert main(["run", *WORDS, "--root", str(root), *data, "--workers", "0"]) == 0
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch, object_store(folder) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


def contents(root: str) -> dict[str, bytes]:
    """Every file of every artifact, by its path below the root, less what differs by nature."""
    filesystem, top = filesystem_of(root)
    found = {}
    for kind in ("samples", "proposals", "shards", "runs", "predictions"):
        for info in filesystem.get_file_info(pafs.FileSelector(f"{top}/{kind}", recursive=True)):
            name = info.path[len(top) + 1 :]
            counts = "/train/" not in name and info.base_name not in DIFFERS
            if info.type == pafs.FileType.File and counts:
                with filesystem.open_input_stream(info.path) as stream:
                    found[name] = stream.read()
    return found


def test_a_file_uri_and_signs_in_a_path_change_nothing(local, data, tmp_path, capsys):
    """A blank, a percent sign, a question mark, a hash, through a link, with a slash behind."""
    real = tmp_path / "a b%41"
    real.mkdir()
    (tmp_path / "link?#é").symlink_to(real)
    flags = [*data, "--workers", "0"]
    asked = ["run", *WORDS, "--root", f"{tmp_path / 'link?#é'}/root/", *flags]
    assert main(asked) == 0
    assert contents(str(real / "root")) == contents(str(local))
    assert (real / "root" / "mlflow.db").is_file()
    # MLflow makes a folder of the quoted name beside it, and leaves it empty.
    others = [path for path in tmp_path.iterdir() if path.name not in (real.name, "link?#é")]
    assert not any(path.is_file() for other in others for path in other.rglob("*"))
    # The same place as a URI: nothing is left to do.
    capsys.readouterr()
    assert main(["plan", *WORDS, "--root", f"{real.as_uri()}/root", *flags]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert all(line.startswith("done ") for line in lines)


@pytest.mark.chaos  # minutes: outside the default suite
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_chain_in_an_object_store_is_the_one_on_a_disk(
    store, local, data, tmp_path, capsys, drawn_world
):
    root = f"{store}/some where/root"
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    flags = ["--root", root, *data, "--mlflow", tracking]
    # One rank, as without Ray: of two the sums differ in their last bits.
    assert main(["run", *WORDS, *flags, "--workers", "1"]) == 0
    there = contents(join(store, "some where", "root"))
    assert there.keys() == contents(str(local)).keys()
    assert there == contents(str(local))
    said = capsys.readouterr().out
    assert "report: s3://fo1/some%20where/root/pages/stage1.html" in said

    # What reads a run: another detector's answers, one question, a folder of its own, pages.
    again = ["evaluate", "drawn_val", "checkpoint=stage1", "detector=ground_truth"]
    assert main([*again, *flags, "--workers", "2"]) == 0
    picture = next(Path(drawn_world, "drawn", "val").glob("*.jpg"))
    asked = [f"image={picture}", "query=red circle", "boxes=4,4,40,40", f"out={tmp_path / 'a.png'}"]
    assert main(["predict", "checkpoint=stage1", *asked, "--root", root]) == 0
    assert Image.open(tmp_path / "a.png").width >= 128
    assert main(["export", "stage1", str(tmp_path / "model"), "--root", root]) == 0
    assert main(["inspect", *WORDS, *flags, "--workers", "0"]) == 0

    # A model in the store is a checkpoint by its URI, for another root too.
    exported = [name.split("/export/")[0] for name in there if "/export/config.json" in name]
    run = next(name for name in exported if name.startswith("runs/stage1/"))
    uri = f"{root}/{run}/export"
    assert main(["predict", f"checkpoint={uri}", *asked, "--root", str(tmp_path / "other")]) == 0
    # Its figures go to the MLflow run of the model, which lies where the store's runs do.
    shared = ["--root", str(tmp_path / "other"), *data, "--workers", "0", "--mlflow", tracking]
    words = ["evaluate", "drawn_val", f"checkpoint={uri}", "detector=ground_truth", *shared]
    assert main(words) == 0


@pytest.mark.chaos  # minutes: outside the default suite
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_proposal_network_trained_in_a_store_proposes_from_there(store, data, tmp_path):
    flags = ["--root", f"{store}/opn", *data, "--mlflow", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    words = ["opn", "steps=6", "batch_size=4", "validate_every=0"]
    assert main(["run", *words, *flags, "--workers", "2"]) == 0
    asked = ["propose", "data", "mix=drawn_val", "detector=opn:opn", "proposals=5"]
    assert main([*asked, *flags, "--workers", "2"]) == 0
    _, path = filesystem_of(f"{store}/opn/proposals/drawn_val/opn")
    assert "opn" in path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "s3://bucket/a", "--data", "s3://bucket/data"], "builders read local files"),
        (["--root", "s3://bucket/a"], "say --data FOLDER"),
        (["--root", "s3://KEY:SECRET@bucket/a"], "the URI holds a password"),
        (["--root", "s3://bucket/a?access_key=K&secret_key=S"], "access_key, secret_key"),
        (["--root", "s3://bucket/a#b"], "write %23"),
        (["--root", "file://elsewhere/a"], "write file:///absolute/path"),
    ],
)
def test_wrong_places_are_refused_before_any_work(flags, message, capsys):
    assert main(["plan", "stage1", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "KEY:" not in said
    assert "=S" not in said
    assert said.count("\n") == 1
