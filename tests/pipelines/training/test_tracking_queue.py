"""Calls to a tracking server that fails or hangs: nothing waits for them, and their order stays."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from pipelines.training import tracking_queue
from pipelines.training.tracking_queue import TrackingQueue


class Server:
    """A log that fails while it is told to, and notes what it took."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.taken: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if self.error is not None:
                raise self.error
            self.taken.append((name, *arguments))
            return [{"step": 1, "step_seconds": 0.5}] if name == "speed" else None

        return call


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_queue, "RETRY_EVERY_S", 0.02)
    monkeypatch.setattr(tracking_queue, "STOP_GRACE_S", 0.3)
    monkeypatch.setattr(tracking_queue, "END_GRACE_S", 0.3)


def open_queue(server: Any) -> TrackingQueue:
    return TrackingQueue(server, "stub")


def test_calls_are_made_in_order_after_failures_of_each_kind_were_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    queue = open_queue(server)
    for error in (OSError("refused"), KeyError("odd"), OSError("again")):
        server.error = error
        queue.log([{"step": len(caplog.records) + 1, "loss": 1.0}])
        time.sleep(0.1)
    queue.log_speed(3, {"step_seconds": 0.5})
    queue.log_at(2, {"validation/loss": 1.0})
    queue.link("export", "/runs/export")
    assert server.taken == []
    server.error = None
    assert queue.speed() == [{"step": 1, "step_seconds": 0.5}]
    queue.finish("FINISHED")
    assert [call[0] for call in server.taken] == [
        *("log", "log", "log", "log_speed", "log_at", "link", "speed", "finish")
    ]
    assert server.taken[-1] == ("finish", "FINISHED")
    told = [record.message for record in caplog.records]
    assert [("refused" in line, "odd" in line) for line in told] == [(True, False), (False, True)]


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_what_was_never_taken_is_reported(caplog: pytest.LogCaptureFixture, status: Any) -> None:
    server = Server()
    server.error = OSError("refused")
    queue = open_queue(server)
    queue.log([{"step": 4, "loss": 1.0}, {"step": 5, "loss": 1.0}])
    queue.log_speed(5, {"step_seconds": 0.5})
    assert queue.speed() == [{"step": 5, "step_seconds": 0.5}]
    queue.finish(status)
    line = caplog.records[-1]
    assert (line.name, line.levelno) == ("pipelines", logging.WARNING)
    assert "did not take 4 calls, with the records of steps 4 to 5; " in line.message
    assert ("sends the records again" in line.message) is (status == "KILLED")


def test_a_server_that_hangs_holds_nothing_up() -> None:
    answers = threading.Event()

    class Hanging(Server):
        def log(self, records: Any) -> None:
            answers.wait(60)

    began = time.monotonic()
    queue = open_queue(Hanging())
    for step in range(100):
        queue.log([{"step": step, "loss": 1.0}])
    assert time.monotonic() - began < 1
    queue.finish("KILLED")
    assert time.monotonic() - began < 5
    answers.set()


def test_a_slow_server_gets_all_the_time_that_it_needs() -> None:
    class Slow(Server):
        def log(self, records: Any) -> None:
            time.sleep(0.1)
            self.taken.append(records)

    server = Slow()
    queue = open_queue(server)
    for step in range(10):  # longer than the grace in all, shorter each
        queue.log([{"step": step, "loss": 1.0}])
    queue.finish("FINISHED")
    assert len(server.taken) == 11
