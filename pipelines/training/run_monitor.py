"""The driver's view of a run: takes the workers' reports, shows how far it is, hands records on."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.progress import duration, is_shown
from pipelines.training.job import TrainJob
from pipelines.training.tracking_queue import Log

_LOOK_EVERY_S = 0.2
logger = logging.getLogger("pipelines")


class RunMonitor:
    """What takes the reports of one run on the driver."""

    def __init__(
        self, job: TrainJob, log: Log, validate: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Take the reports of `job`.

        Args:
            job: What is trained.
            log: Where the run is logged; its calls must not block (`TrackingQueue`).
            validate: Takes each report too; None where the run is not validated.
        """
        self._job, self._log, self._validate = job, log, validate
        self._record: dict[str, float] = {}
        self.stopped_at: int | None = None
        """Step of the last checkpoint of a run that was told to stop and did."""

    def receive(self, report: dict[str, Any]) -> None:
        """Handle one report, as `pipelines.training.loop` makes it."""
        self._log.log(report["records"])
        if "checkpoint" in report:
            self._log.link("checkpoint", report["checkpoint"])
        for message in report["messages"]:
            logger.warning("train %s: %s", self._job.name, message)
        self._record = (report["records"] or [self._record])[-1]
        if report["stopped"]:
            self.stopped_at = report["step"]
        if self._validate is not None:
            self._validate(report)
        if report["speed"]:
            self._log.log_speed(report["step"], report["speed"])
            self._show_progress(report["step"], report["speed"])

    def _show_progress(self, step: int, speed: dict[str, float]) -> None:
        if not is_shown():
            return
        config = self._job.config
        loss, lr = self._record.get("loss", math.nan), config.schedule(step - 1)
        left = duration((config.steps - step) * speed["step_seconds"])
        used = f", MFU {speed['flop_utilisation']:.1%}" if "flop_utilisation" in speed else ""
        print(
            f"train {self._job.name}: step {step}/{config.steps}, loss {loss:.4f}, "
            f"lr {lr * config.learning_rate:.2e}, {speed['samples_per_second']:.1f} samples/s, "
            f"{speed['tokens_per_second']:.0f} tokens/s{used}, "
            f"data wait {speed['data_wait_share']:.0%}, {left} left",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def report_file(self, stop: threading.Event, on_stop: Callable[[], None]) -> Iterator[Path]:
        """Yield a file whose lines are received by a thread of its own until the end of the block.

        What a report raises is logged at once, and has the run stopped, for it would be raised at
        its end anyway: after the block, unless that ended with an exception of its own.

        Args:
            stop: Once it is set, `on_stop` is called in that thread.
            on_stop: Tells the workers to stop; called again while it raises.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reports.jsonl")
            path.touch()
            listener = _Listener(path, self.receive, stop, on_stop, self._job.name)
            thread = threading.Thread(target=listener.run, name="listener", daemon=True)
            thread.start()
            try:
                yield path
            finally:
                listener.ended.set()
                thread.join()
            if listener.failure is not None:
                raise listener.failure


class _Listener:
    """The loop of the thread that reads reports and passes a stop on. It never raises."""

    def __init__(
        self,
        path: Path,
        receive: Callable[[dict[str, Any]], None],
        stop: threading.Event,
        on_stop: Callable[[], None],
        name: str,
    ) -> None:
        self._path, self._receive, self._stop, self._on_stop = path, receive, stop, on_stop
        self._name = name
        self._passed_on = False
        self._warned: set[str] = set()
        self.ended = threading.Event()
        self.failure: Exception | None = None
        """The first that a report raised."""

    def run(self) -> None:
        with self._path.open(encoding="utf-8") as stream:
            text = ""
            while True:
                is_last = self.ended.wait(_LOOK_EVERY_S)
                self._pass_stop_on()
                text += stream.read()
                # The last piece is a line that is still being written.
                *lines, text = text.split("\n")
                for line in lines:
                    self._take(line)
                if is_last:
                    return

    def _take(self, line: str) -> None:
        try:
            self._receive(json.loads(line))
        except Exception as error:  # raised again by the driver, when the workers are done
            self._warn("a report cannot be handled, the run is stopped", error)
            self.failure = self.failure or error

    def _pass_stop_on(self) -> None:
        if self._passed_on or not (self._stop.is_set() or self.failure):
            return
        try:
            self._on_stop()
        except Exception as error:  # such as a storage that is slow: tried at the next look
            self._warn("the workers cannot be told to stop yet", error)
        else:
            self._passed_on = True

    def _warn(self, what: str, error: Exception) -> None:
        """Say once a kind of error that it happened."""
        kind = type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("train %s: %s (%s: %s)", self._name, what, kind, error)
