"""The calls to the tracking server: made in order by a thread of their own, and again if they fail.

A tracking server may refuse a call or leave it unanswered for minutes. Nothing of a run waits for
it: whoever has something to log puts it into the queue and goes on. A call that fails is warned of
at once, stays at the head of the queue, and is tried again. What is still there when the run is
over gets a last grace period and is then reported; it is never an error of the run.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

RETRY_EVERY_S = 5.0
"""Seconds between two tries of a call that fails. ours"""
END_GRACE_S = 60.0
"""Seconds that the end of a finished run waits for a server on which no call succeeds. ours"""
STOP_GRACE_S = 10.0
"""The same for a run that was told to stop or failed: its machine may be about to go. ours"""

Status = Literal["FINISHED", "FAILED", "KILLED"]
logger = logging.getLogger("pipelines")


class Log(Protocol):
    """Where a run is logged: what a run needs of `pipelines.training.mlflow_tracking.Tracker`."""

    def log(self, records: Iterable[Mapping[str, float]]) -> None:
        """Log the records of steps, in order."""

    def log_speed(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log how fast the steps up to `step` were."""

    def log_at(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step that come after it."""

    def link(self, name: str, uri: str) -> None:
        """Say where something of the run lies."""

    def speed(self) -> list[dict[str, float]]:
        """Return every report of speed that was logged: ``step`` and metrics by name."""

    def finish(self, status: Status) -> None:
        """End the run."""


class TrackingQueue:
    """A `Log` whose calls return at once."""

    def __init__(self, log: Log, name: str) -> None:
        """Start the thread that makes the calls.

        Args:
            log: Makes the calls; it is used by that thread alone.
            name: Name of the run in the lines of the program's log.
        """
        self._log, self._name = log, name
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._num_done = 0
        self._closed = False
        self._speed: list[dict[str, float]] | None = None
        self._warned: set[str] = set()
        # A daemon: a call that hangs in the server's client must not keep the process from ending.
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def log(self, records: Iterable[Mapping[str, float]]) -> None:
        """Log the records of steps, in order."""
        self._put("log", list(records))

    def log_speed(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log how fast the steps up to `step` were."""
        self._put("log_speed", step, dict(metrics))

    def log_at(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step that come after it."""
        self._put("log_at", step, dict(metrics))

    def link(self, name: str, uri: str) -> None:
        """Say where something of the run lies."""
        self._put("link", name, uri)

    def speed(self) -> list[dict[str, float]]:
        """Return every report of speed that was logged: ``step`` and metrics by name.

        Where the server does not answer within `END_GRACE_S`, those that it did not take.
        """
        self._put("speed")
        if self._drain(END_GRACE_S) and self._speed is not None:
            return self._speed
        with self._changed:
            unsent = [arguments for call, arguments in self._waiting if call == "log_speed"]
        return [{"step": step, **metrics} for step, metrics in unsent]

    def finish(self, status: Status) -> None:
        """End the run and the thread; report what the server did not take."""
        self._put("finish", status)
        self._drain(END_GRACE_S if status == "FINISHED" else STOP_GRACE_S)
        with self._changed:
            self._closed = True
            unsent = list(self._waiting)
            self._changed.notify_all()
        if not unsent:
            return
        steps = [
            int(record["step"])
            for call, (*given,) in unsent
            if call == "log"
            for record in given[0]
        ]
        held = f", with the records of steps {min(steps)} to {max(steps)}" if steps else ""
        later = (
            "the run's own files hold its records and metrics"
            if status == "FINISHED"
            else "the start that goes on sends the records again"
        )
        logger.warning(
            "train %s: the tracking server did not take %d calls%s; %s",
            self._name,
            len(unsent),
            held,
            later,
        )

    def _put(self, call: str, *arguments: Any) -> None:
        with self._changed:
            self._waiting.append((call, arguments))
            self._changed.notify_all()

    def _drain(self, grace_s: float) -> bool:
        """Wait until every call is made; False when none succeeds for `grace_s` seconds."""
        with self._changed:
            while self._waiting:
                done = self._num_done
                if not self._changed.wait_for(lambda: self._num_done > done, grace_s):  # noqa: B023
                    return False
            return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                call, arguments = self._waiting[0]
            try:
                answer = getattr(self._log, call)(*arguments)
            except Exception as error:  # whatever a client raises, the run must not notice
                self._warn(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, RETRY_EVERY_S)
                continue
            with self._changed:
                if call == "speed":
                    self._speed = answer
                # Only now: a call that was cut off is made again, and the log knows what it has.
                self._waiting.popleft()
                self._num_done += 1
                self._changed.notify_all()

    def _warn(self, error: Exception) -> None:
        """Say once a kind of error that it happened."""
        kind = f"{type(error).__name__} {getattr(error, 'error_code', '')}"
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(
                "train %s: the tracking server fails (%s: %s); the run goes on, and what it did "
                "not take is sent later",
                self._name,
                type(error).__name__,
                error,
            )
