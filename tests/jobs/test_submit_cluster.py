"""`fo1 submit` to a Ray head on loopback, with a token: log, exit status, MLflow, refusals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from jobs.command.command_line import main

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="ray[default] is not installed"),
]
WORDS = ["stage1", "size=debug", "detector=ground_truth_jitter", "steps=2", "batch_size=4"]


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of head and client: a token, this Python first on the path, no other cluster's address."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "FO1_"))
    }
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "token-of-a-test-0123456789abcdef0123456789abcdef",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "http://127.0.0.1:1",  # what is said on the command line must win over it
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """The dashboard's address of a head with four logical CPUs, in a process group of its own."""
    gcs, dashboard, agent, client = free_ports(4)
    folder = tempfile.mkdtemp(prefix="fo1-", dir="/tmp")  # short: sockets lie in it
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
    ]
    command += [
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    command += [
        f"--ray-client-server-port={client}",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir={folder}",
    ]
    command += [
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        f"--object-store-memory={256 * 2**20}",
    ]
    kept = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with Path(folder, "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=kept, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for_dashboard(
            address, process, Path(folder, "head.log"), environment["RAY_AUTH_TOKEN"]
        )
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_dashboard(address: str, process: subprocess.Popen, log: Path, token: str) -> None:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).read()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


def submit(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", "submit", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shards(head: str, drawn_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a root in which everything but the run is made."""
    root = tmp_path_factory.mktemp("cluster") / "root"
    flags = ["--root", str(root), "--data", str(drawn_world)]
    for verb in ("build", "propose", "shard"):
        assert main([verb, *WORDS, *flags, "--workers", "0"]) == 0
    return flags


def test_stage1_on_a_cluster(head: str, shards: list[str], environment: dict[str, str]) -> None:
    ran = submit(["--address", head, "--", "train", *WORDS, *shards, "--workers", "1"], environment)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "job fo1-train-stage1-" in ran.stdout
    assert "step 2/2, loss " in ran.stdout, "the log of the job is shown here"
    assert "SUCCEEDED" in ran.stdout

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{shards[1]}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    named = {run.info.run_name.split("-")[0]: run for run in runs}
    assert named.keys() == {"start", "stage1"}
    run = named["stage1"]
    assert run.data.metrics["loss"] > 0


def test_a_job_that_fails_there_fails_here(
    head: str, environment: dict[str, str], tmp_path: Path, drawn_world: Path
) -> None:
    """The shards of this root are not made, which only the cluster can know."""
    flags = ["--root", str(tmp_path), "--data", str(drawn_world), "--workers", "1"]
    ran = submit(["--address", head, "--", "train", *WORDS, *flags], environment)
    assert ran.returncode == 2, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "make it with: fo1 " in ran.stdout
    assert "FAILED" in ran.stdout

    refused = submit(
        ["--address", head, "--", "train", *WORDS, *flags],
        environment | {"RAY_AUTH_TOKEN": "of-another-cluster-0123"},
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("fo1: http://127.0.0.1")
    assert "Traceback" not in refused.stderr
