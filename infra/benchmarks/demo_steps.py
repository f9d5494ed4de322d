"""Seconds and peak memory of each step of the demo, start-up apart from work.

    python infra/benchmarks/demo_steps.py ROOT [name=value ...] \\
        > infra/benchmarks/reports/DATE-demo-steps.md

Draws the world below ROOT and makes every artifact of `stage2` (arguments as for `fo1 run stage2`),
one after the other in one process, as `infra/demo.sh` does. Start-up is the time from the start of
a step to the first result of a worker (process start, imports, loading a model, first bucket or
training step); work is the rest. Memory is the proportional set size of this process and all below
it, sampled every two seconds.
"""

import argparse
import contextlib
import datetime
import io
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import psutil

from jobs.chain.recipe_chain import recipe_chain
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.stages import stage2
from pipelines import progress
from pipelines.cluster import RuntimeConfig, connect

SAMPLE_S = 2.0
"""Seconds between two looks at the memory."""


class Memory:
    """Highest memory of the process tree since the last reset, sampled in a thread."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self) -> None:
        self.peak = 0

    def _run(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(SAMPLE_S):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total)


class FirstResult:
    """When the first progress of a step was shown.

    Shown by `Progress.update`, or by the trainer's first line.
    """

    def __init__(self) -> None:
        self.at: float | None = None
        update = progress.Progress.update

        def noted(instance: progress.Progress, *args: int, **kwargs: int) -> None:
            self.note()
            update(instance, *args, **kwargs)

        progress.Progress.update = noted  # type: ignore[method-assign]

    def note(self) -> None:
        if self.at is None:
            self.at = time.perf_counter()


class Watch(io.TextIOBase):
    """A standard error that notes the first line about a training step."""

    def __init__(self, first: FirstResult, stream: TextIO) -> None:
        self._first, self._stream = first, stream

    def write(self, text: str) -> int:
        if ": step " in text:
            self._first.note()
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def timed(
    rows: list[tuple[str, float, float, float]], name: str, memory: Memory, first: FirstResult
) -> Iterator[None]:
    """Add the row of a step: name, seconds to its first result, seconds after, peak MiB."""
    memory.reset()
    first.at = None
    start = time.perf_counter()
    yield
    end = time.perf_counter()
    began = first.at or end
    rows.append((name, began - start, end - began, memory.peak / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--train", type=int, default=2400)
    parser.add_argument("--val", type=int, default=200)
    given = parser.parse_args()

    from dataset_builders.drawn_world.write import WorldSettings, write_world

    runtime = RuntimeConfig(root=given.root, data=f"{given.root}/datasets")
    memory, first = Memory(), FirstResult()
    rows: list[tuple[str, float, float, float]] = []
    with contextlib.redirect_stderr(Watch(first, sys.stderr)):
        with timed(rows, "draw the world", memory, first):
            write_world(
                Path(runtime.data, "drawn"), WorldSettings(train=given.train, val=given.val)
            )
        with timed(rows, "start Ray", memory, first):
            connect(runtime)
        for step in recipe_chain(
            stage2(**parse_arguments(stage2, given.arguments)), runtime
        ).steps.values():
            if step.artifact.status() != "done":
                with timed(rows, f"{step.verb} {step.artifact.name}", memory, first):
                    step.execute(runtime)
    print(table(rows, given.arguments))


def table(rows: list[tuple[str, float, float, float]], arguments: list[str]) -> str:
    """Return the report."""
    memory_gib = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}"
    startup, work = sum(row[1] for row in rows), sum(row[2] for row in rows)
    lines = [
        f"# Steps of the demo, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
        "",
        f"{machine}, no GPU, Python {platform.python_version()}. Command:",
        "",
        f"    python infra/benchmarks/demo_steps.py ROOT {' '.join(arguments)}".rstrip(),
        "",
        (
            "Start-up: until the first result of a worker. Memory: proportional set size of all "
            "processes."
        ),
        "",
        "| step | start-up s | work s | peak memory MiB |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {first:.1f} | {rest:.1f} | {peak:.0f} |"
            for name, first, rest, peak in rows
        ),
        f"| all | {startup:.1f} | {work:.1f} | {max(row[3] for row in rows):.0f} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
