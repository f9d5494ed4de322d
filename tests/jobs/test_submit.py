"""`fo1 submit` without a cluster: what is refused here, what is sent, how a job is followed."""

import shlex
import sys
import zipfile
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import submit as module
from jobs.command.command_line import main, parse
from tests import ROOT

ADDRESS = "http://head:8265"
TRAIN = ["train", "stage1", "size=debug", "--root", "/mnt/fo1"]
PASSWORD = "hunter2"


class Status(Enum):
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    def is_terminal(self) -> bool:
        return self is not Status.RUNNING


class Cluster:
    """Stands for Ray's client: a job whose log comes in the given connections: chunks, errors."""

    def __init__(
        self, *connections: list[Any], end: Status = Status.SUCCEEDED, code: int | None = 0
    ) -> None:
        self.connections = list(connections) or [[]]
        self.end, self.code = end, code
        self.sent: list[dict[str, Any]] = []

    def submit_job(self, **sent: Any) -> str:
        self.sent.append(sent)
        return sent["submission_id"]

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for item in self.connections.pop(0):
            if isinstance(item, BaseException):
                raise item
            yield item

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        status = Status.RUNNING if self.connections else self.end
        return SimpleNamespace(
            submission_id=submission_id,
            status=status,
            driver_exit_code=self.code,
            message="the job's message",
        )


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FO1_ROOT", "FO1_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "RECONNECT_AFTER_S", 0.0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return connect(Cluster(), monkeypatch)


def connect(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(module, "_client", lambda _: made)
    return made


def sent_by(words: list[str], cluster: Cluster) -> dict[str, Any]:
    assert main(["submit", "--address", ADDRESS, "--no-wait", "--", *words]) == 0
    (sent,) = cluster.sent
    return sent


def test_the_same_words_are_sent(cluster: Cluster, capsys: pytest.CaptureFixture) -> None:
    words = [
        *TRAIN,
        "--workers",
        "8",
        "--gpus-per-worker",
        "1",
        "--mlflow",
        "http://mlflow:5000",
        "--force",
    ]
    words += ["mix=drawn_stage1*counting=2", "--max-reject-fraction", "0.5"]
    sent = sent_by(words, cluster)
    command = shlex.split(sent["entrypoint"])
    assert command[:3] == ["python", "-m", "jobs"]
    there, here = parse(command[3:]), parse(words)
    assert (there.verb.name, there.flags.address) == ("train", "auto")
    assert (there.verb, there.words) == (here.verb, here.words)
    assert (there.flags.workers, there.flags.root, there.flags.force) == (8, "/mnt/fo1", True)
    assert sent["metadata"] == {"words": shlex.join(words)}
    assert sent["runtime_env"] == {"working_dir": str(ROOT), "env_vars": {}}
    shown = capsys.readouterr().out
    assert f"ray job stop --address {ADDRESS} {sent['submission_id']}" in shown


def test_words_survive_the_shell(cluster: Cluster) -> None:
    root = "/mnt/my data; $(touch x)'s"
    sent = sent_by(["build", "stage1", "--root", root], cluster)
    assert parse(shlex.split(sent["entrypoint"])[3:]).flags.root == root


def test_submission_ids_are_readable_and_new(cluster: Cluster) -> None:
    for _ in range(2):
        main(["submit", "--address", ADDRESS, "--no-wait", "--", *TRAIN])
    first, second = (sent["submission_id"] for sent in cluster.sent)
    assert first != second
    assert first.rpartition("-")[0] == "fo1-train-stage1"
    assert len(first.rpartition("-")[2]) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "stage1", "size=debug"],
            "--root fo1_data would lie in the job's working directory",
        ),
        (["train", "stage1", "--root", "s3://b/fo1", "--data", "data"], "--data data would lie"),
        ([*TRAIN, "step=3"], "unknown argument 'step' of stage1; did you mean 'steps'?"),
        ([*TRAIN, "steps=many"], "steps=many: not a whole number"),
        ([*TRAIN, "mix=nothing"], "unknown mix 'nothing'"),
        ([*TRAIN, "mix=drawn_train/colour"], "drawn_train has no task 'colour'"),
        ([*TRAIN, "detector=yolo"], "yolo"),
        ([*TRAIN, "--address", "auto"], "--address belongs before the --"),
        (["train", "stage9", "--root", "/mnt/fo1"], "unknown recipe 'stage9'"),
        (["run", "--root", "/mnt/fo1"], "name a recipe first"),
        (["list"], "'list' runs on this machine only"),
        (["submit", "--root", "/mnt/fo1"], "'submit' runs on this machine only"),
        (
            ["evaluate", "drawn_vall", "checkpoint=x", "--root", "/mnt/fo1"],
            "unknown recipe or benchmark 'drawn_vall'; did you mean 'drawn_val'?",
        ),
        (
            ["experiment", "ablations", "step=3", "--root", "/mnt/fo1"],
            "unknown argument 'step' of stage2",
        ),
    ],
)
def test_what_would_fail_there_fails_here(
    words: list[str], message: str, cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    assert main(["submit", "--address", ADDRESS, "--", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("fo1: ")
    assert cluster.sent == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "stage1"], "unknown verb 'trian'; did you mean 'train'?"),
        ([*TRAIN, "--worker", "3"], "unknown flag --worker of train; did you mean '--workers'?"),
        ([], "name a verb"),
    ],
)
def test_what_the_parser_refuses_is_not_sent(
    words: list[str], message: str, cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    assert main(["submit", "--address", ADDRESS, "--", *words]) == 2
    assert message in capsys.readouterr().err
    assert cluster.sent == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (TRAIN, "submit takes no --root"),
        (["train", "stage1"], "'train' belongs behind --"),
        (["--root", "/mnt/fo1", "--", *TRAIN], "submit takes no --root"),
    ],
)
def test_flags_on_the_wrong_side_are_refused(
    words: list[str], message: str, cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    assert main(["submit", "--address", ADDRESS, *words]) == 2
    assert message in capsys.readouterr().err
    assert cluster.sent == []


def test_an_address_is_needed(cluster: Cluster, capsys: pytest.CaptureFixture) -> None:
    assert main(["submit", "--", *TRAIN]) == 2
    assert "submit: say where: --address" in capsys.readouterr().err


def test_submit_comes_first(capsys: pytest.CaptureFixture) -> None:
    assert main(["--root", "/mnt/fo1", "submit"]) == 2
    assert "submit comes first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, "--mlflow", f"http://me:{PASSWORD}@mlflow:5000"],
        [*TRAIN, "--mlflow", f"https://{PASSWORD}@mlflow"],
        [*TRAIN, f"--mlflow=postgresql+psycopg2://me:{PASSWORD}@db/mlflow"],
        [*TRAIN, "--mlflow", f"postgresql://db/mlflow?user=me&password={PASSWORD}"],
        ["build", "stage1", "--root", f"s3://key:{PASSWORD}@bucket/fo1"],
        ["build", "stage1", "--root", f"s3://bucket/fo1?secret_key={PASSWORD}"],
    ],
)
def test_passwords_are_neither_sent_nor_shown(
    words: list[str], cluster: Cluster, capsys: pytest.CaptureFixture
) -> None:
    assert main(["submit", "--address", ADDRESS, "--", *words]) == 2
    shown = capsys.readouterr()
    assert "hold a URI with a password" in shown.err
    assert PASSWORD not in shown.out + shown.err
    assert cluster.sent == []


def test_a_password_in_a_sent_variable_is_refused(monkeypatch, cluster, capsys) -> None:
    monkeypatch.setenv("FO1_ROOT", f"s3://key:{PASSWORD}@bucket")
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 2
    assert PASSWORD not in capsys.readouterr().err
    assert cluster.sent == []


@pytest.mark.parametrize(
    "root", ["s3://bucket/fo1", "gs://bucket/a@b", "abfs://box@account.dfs.example/fo1"]
)
def test_harmless_uris_are_sent(root: str, cluster: Cluster) -> None:
    assert sent_by(["build", "stage1", "--root", root, "--data", "/mnt/data"], cluster)


def test_only_the_folders_of_the_environment_are_sent(monkeypatch, cluster, capsys) -> None:
    monkeypatch.setenv("FO1_ROOT", "s3://bucket/fo1")
    monkeypatch.setenv("FO1_DATA", "/mnt/data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@mlflow:5000")
    monkeypatch.setenv("HF_TOKEN", PASSWORD)
    sent = sent_by(["train", "stage1", "size=debug"], cluster)
    assert sent["runtime_env"]["env_vars"] == {
        "FO1_ROOT": "s3://bucket/fo1",
        "FO1_DATA": "/mnt/data",
    }
    shown = capsys.readouterr()
    assert PASSWORD not in repr(sent) + shown.out + shown.err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head:8265", "give the dashboard's"),
        ("ray://head:10001", "give the dashboard's"),
        ("auto", "give the dashboard's"),
        (f"http://me:{PASSWORD}@head:8265", "RAY_AUTH_TOKEN"),
    ],
)
def test_other_addresses_are_refused(address: str, message: str, cluster, capsys) -> None:
    assert main(["submit", "--address", address, "--", *TRAIN]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert PASSWORD not in shown


@pytest.mark.parametrize(
    ("end", "code", "status"),
    [
        (Status.SUCCEEDED, 0, 0),
        (Status.FAILED, 1, 1),
        (Status.FAILED, 2, 2),
        (Status.FAILED, None, 1),
        (Status.FAILED, 0, 1),
        (Status.STOPPED, None, 130),
    ],
)
def test_exit_status_is_the_jobs(
    end: Status, code: int | None, status: int, monkeypatch, capsys
) -> None:
    connect(Cluster(["a\n", "b\n"], end=end, code=code), monkeypatch)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == status
    shown = capsys.readouterr().out
    assert "a\nb\n" in shown
    assert end.value in shown
    assert ("the job's message" in shown) == (end is Status.FAILED and code is None)


def test_a_lost_connection_repeats_and_loses_no_line(monkeypatch, capsys) -> None:
    lost = RuntimeError("connection closed")
    whole = ["one\n", "two\n", "three\n", "four\n"]
    cut = [
        ["one\n", "tw", lost],
        [lost],
        ["one\ntwo\n", "three\n"],
        [OSError("away")],
        ["one\ntwo\nthr", "ee\nfour\n"],
    ]
    connect(Cluster(*cut), monkeypatch)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 0
    shown = capsys.readouterr().out
    assert "".join(whole) in shown
    assert shown.count("one") == shown.count("three") == 1


def test_a_cluster_that_stays_away_ends_the_following(monkeypatch, capsys) -> None:
    monkeypatch.setattr(module, "RECONNECTS", 3)
    made = connect(Cluster(["one\n"], *[[OSError("away")]] * 9), monkeypatch)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 1
    assert "may well go on" in capsys.readouterr().err
    assert len(made.connections) == 5


def test_ctrl_c_leaves_the_job_alone(monkeypatch, capsys) -> None:
    made = connect(Cluster(["one\n", KeyboardInterrupt()]), monkeypatch)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 130
    shown = capsys.readouterr().out
    assert "the job goes on" in shown
    assert f"ray job logs --follow --address {ADDRESS} {made.sent[0]['submission_id']}" in shown


def test_a_refused_job_is_one_line(monkeypatch, cluster, capsys) -> None:
    def refuse(**_: Any) -> str:
        raise RuntimeError("status code 500")

    monkeypatch.setattr(cluster, "submit_job", refuse)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 1
    assert capsys.readouterr().err == f"fo1: {ADDRESS} refused the job: status code 500\n"


def test_what_is_missing_is_named_with_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 2
    assert (
        "needs aiohttp, of the extra `cluster`: uv pip install -e '.[cluster]'"
        in capsys.readouterr().err
    )


def test_a_package_without_its_checkout_is_not_sent(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    assert main(["submit", "--address", ADDRESS, "--", *TRAIN]) == 2
    assert "sends the checkout" in capsys.readouterr().err


def test_what_is_uploaded(tmp_path: Path) -> None:
    """The packages whole, with the small base, and nothing that is big, made or secret."""
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    packages = ("dataset_builders", "fo1_model", "jobs", "pipelines")
    wanted = {"pyproject.toml"}
    for package in packages:
        for path in (module.CHECKOUT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(module.CHECKOUT)
                wanted.add(str(name))
                place(checkout / name)
    for name in ("pyproject.toml", ".rayignore"):
        place(checkout / name, (module.CHECKOUT / name).read_text())
    unwanted = [
        ".env",
        ".git/config",
        ".venv/bin/python",
        "fo1_data/runs/a/model.safetensors",
        "data/a.jpg",
    ]
    unwanted += [
        "shared/a.json",
        "model.safetensors",
        "jobs/notes.pem",
        "id.key",
        "aws_credentials.json",
        "mlflow.db",
    ]
    unwanted += [
        "jobs/__pycache__/a.pyc",
        "tests/test_a.py",
        "infra/Dockerfile",
        "a/b/shard.tar",
        "client_secret.json",
    ]
    for name in unwanted:
        place(checkout / name)
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=False)
    held = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert "fo1_model/assets/tiny_base.safetensors" in held
    assert held == wanted


def place(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
