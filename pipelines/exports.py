"""Model folders of a run: where they go, how one is read, and the best ones while the run goes on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.artifacts import Artifact, filesystem_of, json_bytes
from pipelines.learners import Trainee
from pipelines.train_job import TrainJob

BEST = "best"
"""Folder of the candidates: ``best/step_STEP``."""


@contextlib.contextmanager
def local_export(run: Artifact | None) -> Iterator[Path | None]:
    """The model folder of a run as a local folder; None without a run."""
    if run is None:
        yield None
        return
    filesystem, path = filesystem_of(run.uri("export"))
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(path, folder, source_filesystem=filesystem)
        yield Path(folder)


def write_export(export: Callable[[Path], None], uri: str) -> None:
    """Write what `export` puts into a folder to `uri`, replacing what is there."""
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        filesystem, path = _empty(uri)
        local = pafs.LocalFileSystem()
        pafs.copy_files(folder, path, source_filesystem=local, destination_filesystem=filesystem)


def build_trainee(job: TrainJob) -> Trainee:
    """What a job trains, as it is before the first step."""
    config = job.config
    with local_export(job.parent) as parent:
        return job.learner.build(parent, job.weight_paths, seed=config.seed, precision=config.precision)


def write_start(job: TrainJob, output: Artifact) -> None:
    """Write what a run of no steps leaves: the model as its learner makes it."""
    write_export(build_trainee(job).export, output.uri("export"))
    output.write_bytes("outcome.json", json_bytes({"exported_step": 0, "skipped_steps": []}))
    output.write_bytes("history.json", json_bytes([]))


class BestExports:
    """The best weights of a run, written when they are made and taken as its export at the end.

    A run may go back to its last committed checkpoint and forget the newest best ones. So a folder stays as
    long as the checkpoint before the last one names it.
    """

    def __init__(self, output: Artifact, saved: int | None) -> None:
        """saved: the best step in the checkpoint that the run goes on from."""
        self._output = output
        self._saved = {saved}

    def write(self, step: int, export: Callable[[Path], None]) -> None:
        """Keep the weights of `step`."""
        write_export(export, self._uri(step))

    def prune(self, best: int | None) -> None:
        """Remove what no committed checkpoint names. best: the best step in the checkpoint just written."""
        kept = {self._uri(step).rsplit("/", 1)[1] for step in (*self._saved, best) if step is not None}
        filesystem, path = filesystem_of(self._output.uri(BEST))
        for info in filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            if info.base_name not in kept:
                filesystem.delete_dir(info.path)
        self._saved = {best}

    def publish(self, step: int) -> None:
        """Make the weights of `step` the run's export."""
        filesystem, source = filesystem_of(self._uri(step))
        _, path = _empty(self._output.uri("export"))
        pafs.copy_files(source, path, source_filesystem=filesystem, destination_filesystem=filesystem)

    def _uri(self, step: int) -> str:
        return self._output.uri(f"{BEST}/step_{step:09d}")


def _empty(uri: str) -> tuple[pafs.FileSystem, str]:
    """An empty folder at `uri`."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
    filesystem.create_dir(path)
    return filesystem, path
