"""Several ranks as processes of one machine, without Ray: real collectives, started in seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipelines.artifacts import Artifact
from pipelines.training.job import TrainJob
from pipelines.training.worker import LocalWorker, checkpoint_name


def on_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> None:
    """Run ``function(*args)`` on ranks of one gloo group.

    An error or exit of one ends all and is raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world_size, f"{folder}/store", function, args), nprocs=world_size)


def _rank(
    rank: int, world_size: int, store: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    function(*args)
    os._exit(
        0
    )  # at a usual end gloo's threads may abort the process while another rank still works


def run_job(job: TrainJob, output: Artifact) -> None:
    """What `pipelines.training.driver` does on a rank, without its driver."""
    from pipelines.training.loop import run_worker

    run_worker(job, output, GroupWorker(output))


class GroupWorker(LocalWorker):
    """One rank of several, all with the same folder."""

    def __init__(self, output: Artifact) -> None:
        super().__init__(output, lambda _: None, keep_last=1, stop=threading.Event())
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def report(self, report: dict[str, Any], checkpoint: Path | None = None) -> None:
        if checkpoint is None:
            return
        arriving = self._folder / f"arriving_{report['step']:09d}"
        shutil.copytree(checkpoint, arriving, dirs_exist_ok=True)
        shutil.rmtree(checkpoint)
        dist.barrier()
        if self.rank == 0:
            arrived = self._folder / checkpoint_name(report["step"])
            arriving.rename(arrived)
            for folder in set(self._folder.iterdir()) - {arrived}:
                shutil.rmtree(folder)
        dist.barrier()
