"""Proposals of the small world on a Ray cluster, slowly and with a log, for tests that kill things.

python slow_proposals.py DATA ROOT ADDRESS WORKERS
"""

import os
import sys
import time
from pathlib import Path

import pyarrow as pa

from pipelines.proposals import generate
from pipelines.proposals.workers import LoadAndDetectWorker, WorkerSettings
from tests.pipelines.coco_world import Steps

SECONDS = 1.0
"""That a slice takes at least: time to kill something."""


class SlowWorker(LoadAndDetectWorker):
    """Logs each slice with its process when it is done."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self._log = Path(settings.output.root).parent / "calls.log"

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """See `LoadAndDetectWorker`."""
        found = super().__call__(tasks)
        time.sleep(SECONDS)
        with self._log.open("a") as stream:
            for task in tasks.to_pylist():
                stream.write(f"{os.getpid()} {task['bucket']} {task['start']}\n")
        return found


def main(data: str, root: str, address: str, workers: str) -> None:
    """Make the proposals."""
    generate.LoadAndDetectWorker = SlowWorker
    Steps(Path(data), Path(root), workers=int(workers), address=address).propose()


if __name__ == "__main__":
    main(*sys.argv[1:])
