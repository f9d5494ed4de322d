"""The driver's view of a run: takes the workers' reports, prints lines, hands records on."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from pipelines.progress import duration
from pipelines.training.job import TrainJob

_FOLLOW_EVERY_S = 0.2


class Log(Protocol):
    """Where a run is logged: what the driver needs of `pipelines.training.mlflow_tracking.Tracker`."""

    def log(self, records: list[dict[str, float]]) -> None:
        """Log the records of steps, in order."""

    def log_speed(self, step: int, figures: dict[str, float]) -> None:
        """Log how fast the steps up to `step` were."""

    def link(self, name: str, uri: str) -> None:
        """Say where something of the run lies."""


class Follower:
    """Takes the reports of a run on the driver."""

    def __init__(
        self, job: TrainJob, log: Log, validate: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """log: of the run. validate: takes each report, too."""
        self._job, self._log, self._validate = job, log, validate
        self._record: dict[str, float] = {}
        self.stopped_at: int | None = None
        """Step of the last checkpoint of a run that was told to stop and did."""

    def receive(self, report: dict[str, Any]) -> None:
        """Handle one report."""
        self._log.log(report["records"])
        if "checkpoint" in report:
            self._log.link("checkpoint", report["checkpoint"])
        for message in report["messages"]:
            print(f"train {self._job.name}: {message}", file=sys.stderr, flush=True)
        self._record = (report["records"] or [self._record])[-1]
        step, steps, speed = report["step"], self._job.config.steps, report["speed"]
        if report["stopped"]:
            self.stopped_at = step
        if self._validate is not None:
            self._validate(report)
        if not speed:
            return
        self._log.log_speed(step, speed)
        loss, lr = self._record.get("loss", math.nan), self._job.config.schedule(step - 1)
        left = duration((steps - step) * speed["step_seconds"])
        used = f", MFU {speed['flop_utilisation']:.1%}" if "flop_utilisation" in speed else ""
        print(
            f"train {self._job.name}: step {step}/{steps}, loss {loss:.4f}, "
            f"lr {lr * self._job.config.learning_rate:.2e}, {speed['samples_per_second']:.1f} samples/s, "
            f"{speed['tokens_per_second']:.0f} tokens/s{used}, data wait {speed['data_wait_share']:.0%}, "
            f"{left} left",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def file(self, stop: threading.Event, on_stop: Callable[[], None]) -> Iterator[Path]:
        """A file whose lines are received, in a thread of its own, until the end of the block.

        stop: once it is set, `on_stop` is called in that thread, one time.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reports.jsonl")
            path.touch()
            ended = threading.Event()
            failures: list[BaseException] = []

            def run() -> None:
                try:
                    self._follow(path, ended, stop, on_stop)
                except Exception as error:  # raised again by the driver, when the workers are done
                    failures.append(error)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            try:
                yield path
            finally:
                ended.set()
                thread.join()
            if failures:
                raise failures[0]

    def _follow(
        self, path: Path, ended: threading.Event, stop: threading.Event, on_stop: Callable[[], None]
    ) -> None:
        told = False
        with path.open(encoding="utf-8") as stream:
            text = ""
            while True:
                is_last = ended.wait(_FOLLOW_EVERY_S)
                if stop.is_set() and not told:
                    on_stop()
                    told = True
                text += stream.read()
                *lines, text = text.split("\n")
                for line in lines:
                    self.receive(json.loads(line))
                if is_last:
                    return
