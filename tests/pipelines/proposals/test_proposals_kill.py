"""Proposals on two nodes: an actor, a node and the driver are killed, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.pipelines.coco_world import Steps, write_world
from tests.pipelines.proposals import slow_proposals
from tests.pipelines.shards.test_kill import content, stamps

NUM_IMAGES = 260
"""In 8 buckets: two or three slices each."""


def calls(root: Path) -> list[tuple[int, tuple[int, int]]]:
    """(process, slice) of every slice that was looked at, in order."""
    log = root / "calls.log"
    rows = (
        [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
        if log.exists()
        else []
    )
    return [(pid, (bucket, start)) for pid, bucket, start in rows]


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, "the driver ended before the kill"
        assert time.monotonic() < end, "the run did not get there in time"
        time.sleep(0.05)


def start_driver(data: Path, root: Path, address: str) -> subprocess.Popen:
    command = [sys.executable, slow_proposals.__file__, str(data), str(root), address, "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (root / "driver.log").open("ab") as log:
        return subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs for workers, and two nodes of two CPUs."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27}
    )
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_an_actor_a_node_and_the_driver_are_killed(tmp_path: Path, cluster: Any) -> None:
    """One row an image, the bytes of an undisturbed run, and no finished bucket done again."""
    data = tmp_path / "data"
    write_world(data, num_images=NUM_IMAGES)
    whole = Steps(data, tmp_path / "whole")
    whole.build()
    whole.propose()
    root = tmp_path / "killed"
    steps = Steps(data, root)
    steps.build()
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=2**27) for _ in range(2)]

    driver = start_driver(data, root, cluster.address)
    try:
        wait_for(lambda: len(calls(root)) >= 2, driver)
        victim, seen = calls(root)[0][0], len(calls(root))
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(calls(root)) >= seen + 3, driver)
        assert victim not in {pid for pid, _ in calls(root)[seen + 1 :]}
        cluster.remove_node(nodes[1], allow_graceful=False)
        seen = len(calls(root))
        wait_for(
            lambda: len(calls(root)) >= seen + 2 and len(steps.proposals.finished()) >= 2, driver
        )
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    log = (root / "driver.log").read_text()[-3000:]
    assert steps.proposals.status() == "partial", log
    finished, kept, before = (
        set(steps.proposals.finished()),
        stamps(steps.proposals),
        len(calls(root)),
    )

    driver = start_driver(data, root, cluster.address)
    try:
        assert driver.wait(300) == 0, (root / "driver.log").read_text()[-3000:]
    finally:
        driver.kill()
    assert content(steps.proposals) == content(whole.proposals)
    assert steps.proposals.manifest()["ledger"]["rows_out"] == NUM_IMAGES
    assert {name: stamp for name, stamp in stamps(steps.proposals).items() if name in kept} == kept
    again = [bucket for _, (bucket, _) in calls(root)[before:]]
    assert again
    assert not set(again) & finished
