import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.available_cpus import available_cpus
from pipelines.cluster import LEAST_LOCAL_CPUS, Pools, RuntimeConfig, pool_sizes
from pipelines.errors import SettingError
from pipelines.progress import Progress, duration
from pipelines.worker_pools import map_buckets


def doubler() -> type:
    """Worker of the tests, which says what it was given.

    Made here, so that it is pickled by value: Ray's workers cannot import the modules of tests.
    """

    class Doubler:
        def __init__(self, factor: int, broken: int | None = None) -> None:
            self.factor, self.broken = factor, broken

        def __call__(self, bucket: int) -> dict:
            if bucket == self.broken:
                raise RuntimeError(f"sample x{bucket} is broken")
            threads = os.environ.get("OMP_NUM_THREADS")
            return {
                "rows_in": 10,
                "value": self.factor * bucket,
                "pid": os.getpid(),
                "threads": threads,
            }

    return Doubler


def runtime(workers: int) -> RuntimeConfig:
    return RuntimeConfig(root="/tmp/fo1", data="/tmp", workers=workers)


def test_inline_runs_here_in_order_and_lazily() -> None:
    ledgers = map_buckets(doubler(), {"factor": 2}, [3, 1], runtime=runtime(0), description="test")
    first = next(ledgers)
    assert first["bucket"] == 3
    assert first["value"] == 6
    assert first["pid"] == os.getpid()
    assert [ledger["bucket"] for ledger in ledgers] == [1]


def test_nothing_to_do_starts_nothing() -> None:
    assert list(map_buckets(doubler(), {}, [], runtime=runtime(2), description="test")) == []


def test_inline_does_not_import_ray() -> None:
    code = (
        "import sys; from pipelines.cluster import RuntimeConfig\n"
        "from pipelines.worker_pools import map_buckets\n"
        "import pipelines.shards.write, pipelines.samples\n"
        "class W:\n    def __call__(self, b): return {}\n"
        "runtime = RuntimeConfig(root='/tmp', data='/tmp', workers=0)\n"
        "list(map_buckets(W, {}, [1], runtime=runtime, description='t'))\n"
        "heavy = {'ray', 'torch', 'mlflow', 'webdataset'} & set(sys.modules)\n"
        "assert not heavy, sorted(heavy)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"gpus_per_worker": -0.5},
        {"max_reject_fraction": 1.5},
        {"root": ""},
        {"data": ""},
    ],
)
def test_wrong_settings_name_the_field(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        RuntimeConfig(**({"root": "/tmp", "data": "/tmp"} | wrong))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_log_prints_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress("propose coco", 10, stream=stream, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 2.0
        progress.update(1, rows=8, rejects=1)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "propose coco: 3/10 buckets, 24 rows, 4.0 rows/s, 3 rejected, 14s left",
        "propose coco: 6/10 buckets, 48 rows, 4.0 rows/s, 6 rejected, 8s left",
        "propose coco: 9/10 buckets, 72 rows, 4.0 rows/s, 9 rejected, 2s left",
        "propose coco: 10/10 buckets, 80 rows, 4.0 rows/s, 10 rejected, took 20s",
    ]


def test_progress_on_a_terminal_rewrites_its_line() -> None:
    now = [0.0]
    stream = Terminal()
    progress = Progress("build", None, unit="samples", stream=stream, clock=lambda: now[0])
    now[0] = 1.0
    progress.update(5)
    progress.close()
    assert (
        stream.getvalue()
        == "\rbuild: 5 samples, 5.0 samples/s\rbuild: 5 samples, 5.0 samples/s, took 1s\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (125, "2m05s"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "share", "expected"),
    [
        (4, 0, 2, None, (2, 0, 0.0)),
        (4, 0, None, None, (3, 0, 0.0)),  # one CPU is always left
        (16, 1, 1, None, (1, 14, 1.0)),
        (16, 2, None, 0.25, (8, 7, 0.25)),  # four a GPU
        (6, 2, None, 0.25, (4, 1, 0.25)),  # the CPUs are what is scarce: one for a helper, one left
        (16, 2, 3, 0.0, (3, 0, 0.0)),
    ],
)
def test_pools_follow_the_cluster(cpus, gpus, workers, share, expected) -> None:
    asked = RuntimeConfig(root="/tmp", data="/tmp", workers=workers, gpus_per_worker=share)
    found = pool_sizes({"CPU": cpus, "GPU": gpus}, asked, with_helpers=True)
    workers, helpers, share = expected
    left = gpus - workers * share
    assert found == Pools(
        workers=workers, helpers=helpers, num_gpus=share, free_gpus=pytest.approx(left)
    )


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "share", "message"),
    [
        (4, 0, 4, None, "--workers 3 or fewer"),
        (1, 0, 1, None, r"--workers 0 \(runs without Ray\)"),
        (16, 1, 2, None, "1 CPU and 1 GPUs each.*--workers 1 or fewer"),
        (16, 1, 5, 0.25, "--workers 4 or fewer"),
        (16, 0, 1, 0.5, "--gpus-per-worker 0"),
        (2, 1, 1, None, "2 CPUs beside them"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused(cpus, gpus, workers, share, message) -> None:
    asked = RuntimeConfig(root="/tmp", data="/tmp", workers=workers, gpus_per_worker=share)
    with pytest.raises(SettingError, match=message):
        pool_sizes({"CPU": cpus, "GPU": gpus}, asked, with_helpers=True)


@pytest.mark.cluster
def test_on_ray_every_bucket_once_errors_as_raised_and_impossible_pools_refused() -> None:
    ledgers = list(
        map_buckets(doubler(), {"factor": 3}, [4, 2, 7], runtime=runtime(2), description="test")
    )
    assert sorted((ledger["bucket"], ledger["value"]) for ledger in ledgers) == [
        (2, 6),
        (4, 12),
        (7, 21),
    ]
    assert os.getpid() not in {ledger["pid"] for ledger in ledgers}
    assert {ledger["threads"] for ledger in ledgers} == {"1"}
    assert os.environ["RAY_AUTH_MODE"] == "disabled"

    with pytest.raises(RuntimeError, match="sample x2 is broken"):
        list(
            map_buckets(
                doubler(), {"factor": 1, "broken": 2}, [2], runtime=runtime(1), description="test"
            )
        )

    cpus = max(LEAST_LOCAL_CPUS, available_cpus())
    with pytest.raises(SettingError, match=rf"workers={cpus} at 1 CPU each.*--workers {cpus - 1}"):
        map_buckets(doubler(), {"factor": 1}, [1], runtime=runtime(cpus), description="test")


@pytest.mark.cluster
def test_handlers_of_others_keep_their_level() -> None:
    """Ray Data's console is hushed; whoever listens to the same logger goes on hearing it."""
    mine, logger = logging.StreamHandler(), logging.getLogger("ray.data")
    logger.addHandler(mine)
    try:
        done = map_buckets(doubler(), {"factor": 1}, [1], runtime=runtime(1), description="test")
        assert len(list(done)) == 1
        levels = {type(handler).__name__: handler.level for handler in logger.handlers}
    finally:
        logger.removeHandler(mine)
    assert levels["PlainRayHandler"] == logging.CRITICAL
    assert levels["StreamHandler"] == logging.NOTSET
