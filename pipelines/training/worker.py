"""One rank as the training loop sees it, the rank of a run without Ray, and the notice to stop.

Checkpoints of both kinds of run lie under ``train/`` of the artifact, in folders
``checkpoint_STEP``: those of Ray Train in a folder of its run's name, with the list of what is
committed beside them, those of a run without Ray in ``local``. Either kind goes on from the
other's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from pipelines.artifacts import Artifact
from pipelines.storage import is_uri

LOCAL = "local"
"""Name of the folder of the checkpoints of a run without Ray."""


class Notice(IntEnum):
    """What a run is told from outside; of several, the largest counts."""

    NONE = 0
    SAVE = 1
    """A machine will be taken away: checkpoint now and go on.

    Ray Train restarts the run when the machine is gone.
    """
    STOP = 2
    """Checkpoint now and end."""


class Worker(Protocol):
    """One rank, as the loop sees it."""

    rank: int
    """Number of this rank, from 0."""
    world_size: int
    """Number of ranks."""

    def restored(self) -> contextlib.AbstractContextManager[Path | None]:
        """Yield the local folder of the last committed checkpoint, or None."""

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        """Send rank 0's report to the driver, and with it the folder of a checkpoint.

        The folder is the worker's from then on, which removes it. The checkpoint before is
        committed when the call returns. Every rank calls it, equally often.
        """

    def settle(self) -> None:
        """Return when the last checkpoint is committed; every rank calls it."""

    def noticed(self) -> bool:
        """Return whether `notice` cannot wait for the next report.

        It costs nothing, and ranks may differ.
        """

    def notice(self) -> Notice:
        """Return what this rank was told; every rank calls it after the same step."""


class LocalWorker:
    """The only rank of a run without Ray; its checkpoints are renamed when they are complete."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        output: Artifact,
        receive: Callable[[dict[str, Any]], None],
        *,
        keep_last: int,
        stop: threading.Event,
    ) -> None:
        """Write checkpoints of `output`.

        Args:
            output: The run's artifact.
            receive: Takes the reports.
            keep_last: Checkpoints that stay.
            stop: Set from outside.
        """
        self._output, self._folder = output, Path(output.path, "train", LOCAL)
        self._receive, self._keep_last, self._stop = receive, keep_last, stop

    @contextlib.contextmanager
    def restored(self) -> Iterator[Path | None]:
        """Yield the newest committed checkpoint of either kind of run, or None."""
        yield newest([committed_here(self._output), committed_by_ray(self._output)])

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        """Receive a report; its checkpoint is committed when the call returns."""
        if checkpoint is not None:
            arriving = self._folder / f"arriving_{report['step']:09d}"
            arrived = self._folder / checkpoint_name(report["step"])
            for folder in (arriving, arrived):  # of a run that was killed here, or went back
                shutil.rmtree(folder, ignore_errors=True)
            # Copied beside and renamed: a folder of this name is always complete.
            shutil.copytree(checkpoint, arriving)
            arriving.rename(arrived)
            shutil.rmtree(checkpoint)
            kept = sorted(self._folder.glob("checkpoint_*"))[-self._keep_last :]
            for folder in set(self._folder.iterdir()) - set(kept):
                shutil.rmtree(folder, ignore_errors=True)
            report = {**report, "checkpoint": str(arrived)}
        self._receive(report)

    def settle(self) -> None:
        """Return at once: nothing is under way."""

    def noticed(self) -> bool:
        """Return whether the run is to stop."""
        return self._stop.is_set()

    def notice(self) -> Notice:
        """Return the notice to stop once it was given."""
        return Notice.STOP if self._stop.is_set() else Notice.NONE


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder; names sort by step."""
    return f"checkpoint_{step:09d}"


def committed_here(output: Artifact) -> Path | None:
    """Return the newest checkpoint of a run without Ray, or None."""
    if is_uri(output.root):  # such a run is always on Ray
        return None
    return newest(list(Path(output.path, "train", LOCAL).glob("checkpoint_*")))


def committed_by_ray(output: Artifact) -> Path | None:
    """Return the newest checkpoint that Ray Train committed under a local root, or None.

    A folder alone may be an upload that was cut off; the list that Ray Train keeps names the
    committed one.
    """
    found = []
    for file in Path(output.path, "train").glob("*/checkpoint_manager_snapshot.json"):
        latest = json.loads(file.read_text(encoding="utf-8")).get("latest_checkpoint_result")
        if latest is not None:
            found.append(file.parent / latest["checkpoint_dir_name"])
    return newest(found)


def newest(checkpoints: list[Path | None]) -> Path | None:
    """Return the one of the latest step; None where there is none."""
    return max(
        (path for path in checkpoints if path is not None), key=lambda path: path.name, default=None
    )


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event instead of ending the process.

    Only the main thread may set a handler: in another thread nothing sets the event.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
