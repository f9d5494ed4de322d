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
from typing import Any

from pipelines.progress import duration
from pipelines.train_job import TrainJob

_FOLLOW_EVERY_S = 0.2


class Follower:
    """Takes the reports of a run on the driver."""

    def __init__(
        self,
        job: TrainJob,
        log: Callable[[list[dict[str, float]]], None],
        validate: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """log: takes the records of the steps, in order. validate: takes each report, too."""
        self._job, self._log, self._validate = job, log, validate
        self._record: dict[str, float] = {}
        self.stopped_at: int | None = None
        """Step of the last checkpoint of a run that was told to stop and did."""

    def receive(self, report: dict[str, Any]) -> None:
        """Handle one report."""
        self._log(report["records"])
        for message in report["messages"]:
            print(f"train {self._job.name}: {message}", file=sys.stderr, flush=True)
        self._record = (report["records"] or [self._record])[-1]
        step, steps, rate = report["step"], self._job.config.steps, report["rate"]
        if report["stopped"]:
            self.stopped_at = step
        if self._validate is not None:
            self._validate(report)
        if not rate:
            return
        loss, lr = self._record.get("loss", math.nan), self._job.config.schedule(step - 1)
        left = duration((steps - step) * self._job.config.batch_size / rate)
        print(
            f"train {self._job.name}: step {step}/{steps}, loss {loss:.4f}, "
            f"lr {lr * self._job.config.learning_rate:.2e}, {rate:.1f} samples/s, "
            f"data wait {report['wait']:.0%}, {left} left",
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
