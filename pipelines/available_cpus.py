"""How many CPUs this process may use: those of its container, not those of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where Linux mounts the control groups."""
OWN_GROUPS = Path("/proc/self/cgroup")
"""Lines ``ID:CONTROLLERS:PATH``: the groups of this process; version 2 has ID 0."""


def available_cpus(cgroup_root: Path = CGROUP_ROOT, own_groups: Path = OWN_GROUPS) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    That is the smallest of the CPUs that the scheduler may put it on (its affinity: cpusets,
    ``taskset``) and the CPU time that its control groups grant (``docker run --cpus``, the limit
    of a Kubernetes container), whole CPUs only.

    Args:
        cgroup_root: Folder where the control groups are mounted.
        own_groups: File that lists the groups of this process.
    """
    # macOS has neither affinity nor control groups.
    may_run_on = getattr(os, "sched_getaffinity", None)
    cpus = len(may_run_on(0)) if may_run_on else os.cpu_count() or 1
    quota = min(_quotas(cgroup_root, own_groups), default=math.inf)
    return max(1, int(min(cpus, quota)))


def _quotas(cgroup_root: Path, own_groups: Path) -> Iterator[float]:
    """Yield the CPUs that each control group above this process grants, where it sets a limit."""
    for folder in _group_folders(cgroup_root, own_groups):
        try:
            if (folder / "cpu.max").exists():  # version 2: "max 100000" or "150000 100000", in us
                quota, period = (folder / "cpu.max").read_text().split()
            else:  # version 1: -1 is no limit
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # a folder without limits, or a form of another kernel: no limit is known


def _group_folders(cgroup_root: Path, own_groups: Path) -> Iterator[Path]:
    """Yield the folders of this process's CPU groups, and of all groups around them.

    A limit may be set on any of them. In a container the path is often that of the host, where
    nothing is mounted; the container's own group is then the root of the mount.
    """
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            mounts = [cgroup_root, cgroup_root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroup_root / controllers, cgroup_root / "cpu"]
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            for group in (inside, *inside.parents):
                yield mount / group
