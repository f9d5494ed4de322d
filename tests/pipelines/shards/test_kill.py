"""Each data step, killed half-way and run again, ends in the bytes of an undisturbed run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.artifacts import Artifact
from tests.pipelines import coco_world
from tests.pipelines.coco_world import Steps, write_world

STEPS = ("build", "propose", "shard")
KIND = {"build": "samples", "propose": "proposals", "shard": "shards"}
# Step, the file in whose writing it is killed, and the buckets that are finished by then.
MOMENTS = [
    ("build", "part-00000.parquet", 0),
    ("build", "buckets/00003.json", 3),
    ("build", "manifest.json", 8),
    ("propose", "images-00002.parquet", 0),
    ("propose", "buckets/00003.json", 4),
    ("propose", "manifest.json", 8),
    ("shard", "rejects-00000.parquet", 0),
    ("shard", ".index.parquet", 1),
    ("shard", "buckets/00005.json", 5),
    ("shard", "manifest.json", 8),
]


def content(artifact: Artifact) -> dict[str, bytes]:
    files = sorted(Path(artifact.path).rglob("*"))
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in files if p.is_file()}


def stamps(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of a finished bucket, its marker included."""
    names = [name for marker in artifact.finished().values() for name in marker["files"]]
    names += [f"buckets/{bucket:05d}.json" for bucket in artifact.finished()]
    stats = {name: Path(artifact.uri(name)).stat() for name in names}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    write_world(data)
    return data


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    steps = Steps(world, tmp_path_factory.mktemp("undisturbed"))
    for step in STEPS:
        getattr(steps, step)()
    return steps


def steps_before(step: str, undisturbed: Steps, world: Path, root: Path) -> Steps:
    """Steps of a new root in which all that comes before `step` is done."""
    for before in STEPS[: STEPS.index(step)]:
        kind = f"out/{KIND[before]}"
        shutil.copytree(Path(undisturbed.cache).parent / kind, root / kind)
    return Steps(world, root)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    command = [sys.executable, coco_world.__file__, "serve"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize(("step", "name", "finished"), MOMENTS)
def test_killed_and_run_again(
    step: str,
    name: str,
    finished: int,
    world: Path,
    undisturbed: Steps,
    server: subprocess.Popen,
    tmp_path: Path,
) -> None:
    steps = steps_before(step, undisturbed, world, tmp_path)
    artifact = getattr(steps, KIND[step])
    server.stdin.write(json.dumps([step, str(world), str(tmp_path), name]) + "\n")
    server.stdin.flush()
    assert int(server.stdout.readline()) == -signal.SIGKILL
    assert artifact.status() in ("partial", "missing")
    assert len(artifact.finished()) == finished
    assert artifact.exists(".partial")
    kept = stamps(artifact)

    getattr(steps, step)()

    assert content(artifact) == content(getattr(undisturbed, KIND[step]))
    after = stamps(artifact)
    assert {kept_name: after[kept_name] for kept_name in kept} == kept
    assert len(after) > len(kept) or finished == 8


@pytest.mark.cluster
def test_driver_killed_while_ray_workers_write_shards(
    world: Path, undisturbed: Steps, tmp_path: Path
) -> None:
    steps_before("shard", undisturbed, world, tmp_path)
    steps = Steps(world, tmp_path, workers=2)
    command = [sys.executable, coco_world.__file__, "shard_slowly", str(world), str(tmp_path), "2"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 180
        while (
            len(steps.shards.finished()) < 3
            and driver.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        driver.kill()
        driver.wait()
    assert steps.shards.status() == "partial", (tmp_path / "log").read_text()[-2000:]
    time.sleep(3)  # the killed driver's workers end a moment after it
    kept = stamps(steps.shards)
    assert 3 <= len(steps.shards.finished()) < 8

    steps.shard()

    assert content(steps.shards) == content(undisturbed.shards)
    assert {name: stamp for name, stamp in stamps(steps.shards).items() if name in kept} == kept
