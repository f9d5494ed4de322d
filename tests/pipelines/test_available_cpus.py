"""CPUs that a container gives are counted, not those of the machine under it."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import available_cpus as module
from pipelines.available_cpus import available_cpus
from pipelines.cluster import LEAST_LOCAL_CPUS, RuntimeConfig, connect

pytestmark = pytest.mark.usefixtures("large_machine")


@pytest.fixture
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 CPUs, of which this process may run on 6."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))


def started_with(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What `connect` hands to Ray."""
    told: dict = {}
    ray = SimpleNamespace(is_initialized=lambda: False, init=told.update, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    connect(RuntimeConfig(root="/tmp/fo1", data="/tmp"))
    return told


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of control groups and the list of this process's groups."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


V1 = "11:cpuset:/\n4:cpu,cpuacct:/docker/ab12\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),  # whole CPUs only
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a CPU is still one process
        ("0::/\n", {"cpu.max": "max 100000\n"}, 6),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 6),  # more than the affinity
        ("0::/pod/box\n", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        ("0::/host/path\n", {"cpu.max": "400000 100000"}, 4),  # the path is that of the host
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (
            V1,
            {
                "cpu,cpuacct/docker/ab12/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/docker/ab12/cpu.cfs_period_us": "50000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        (V1, {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, 6),
        ("0::/\n", {"cpu.max": "nonsense"}, 6),
        ("0::/\n", {"cpu.max": "100000 0"}, 6),
        ("", {}, 6),
    ],
)
def test_affinity_and_quota(own: str, files: dict, expected: int, tmp_path: Path) -> None:
    assert available_cpus(*groups(tmp_path, own, files)) == expected


def test_a_machine_without_affinity_or_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cpus(tmp_path, tmp_path / "nowhere") == 64


def test_a_local_cluster_has_the_cpus_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_quotas", lambda *_: iter(()))
    assert started_with(monkeypatch)["num_cpus"] == 6


def test_a_local_cluster_keeps_to_the_quota_of_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_quotas", lambda *_: iter((5.0,)))
    assert started_with(monkeypatch)["num_cpus"] == 5
    monkeypatch.setattr(module, "_quotas", lambda *_: iter((1.5,)))
    assert started_with(monkeypatch)["num_cpus"] == LEAST_LOCAL_CPUS
