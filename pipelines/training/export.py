"""Model folders of a run: how they are written, copied, and read from any storage."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.artifacts import Artifact
from pipelines.fingerprints import json_bytes
from pipelines.storage import filesystem_of, local_folder
from pipelines.training.job import TrainJob
from pipelines.training.trainees import Trainee

OUTCOME = "outcome.json"
"""File of a run that says which steps were skipped, and at its end which step was exported."""


@contextlib.contextmanager
def local_export(run: Artifact | None) -> Iterator[Path | None]:
    """Yield the model folder of a run as a local folder; None without a run."""
    if run is None:
        yield None
        return
    with local_folder(run.uri("export")) as folder:
        yield folder


def write_export(export: Callable[[Path], None], uri: str) -> None:
    """Write what `export` puts into a folder to `uri`, replacing what is there.

    Args:
        export: Writes a model into a local folder.
        uri: Path or URI of the folder to write.
    """
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        filesystem, path = _empty(uri)
        local = pafs.LocalFileSystem()
        pafs.copy_files(folder, path, source_filesystem=local, destination_filesystem=filesystem)


def build_trainee(job: TrainJob) -> Trainee:
    """Return what a job trains, as it is before the first step."""
    config = job.config
    with local_export(job.parent) as parent:
        return job.learner.build(
            parent, job.weight_paths, seed=config.seed, precision=config.precision
        )


def write_start(job: TrainJob, output: Artifact) -> None:
    """Write what a run of no steps leaves: the model as its learner makes it."""
    write_export(build_trainee(job).export, output.uri("export"))
    output.write_bytes(OUTCOME, json_bytes({"skipped_steps": []}))
    output.write_bytes("history.json", json_bytes([]))


def copy_export(source: str, uri: str) -> None:
    """Copy a model folder of the same storage to `uri`, replacing what is there."""
    filesystem, path = filesystem_of(source)
    _, target = _empty(uri)
    pafs.copy_files(path, target, source_filesystem=filesystem, destination_filesystem=filesystem)


def _empty(uri: str) -> tuple[pafs.FileSystem, str]:
    """Make an empty folder at `uri`; return its filesystem and path."""
    filesystem, path = filesystem_of(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        # Or files of the old model that the new one does not have would stay.
        filesystem.delete_dir(path)
    filesystem.create_dir(path)
    return filesystem, path
