"""Finished artifacts by the names that people give them."""

import pyarrow.fs as pafs

from jobs.command.suggestions import did_you_mean
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.storage import filesystem_of, join


def find_run(checkpoint: str, runtime: RuntimeConfig, field: str = "checkpoint") -> Artifact:
    """Return a finished run by name, or by name and fingerprint.

    Args:
        checkpoint: ``stage2``, ``stage2/0123456789abcdef`` (or how that begins).
        runtime: Where the artifacts lie.
        field: What the user calls it, for messages.

    Raises:
        SettingError: When there is none, or more than one, naming them.
    """
    name, _, key = checkpoint.partition("/")
    found = [run for run in finished(runtime.root, "runs", name) if run.fingerprint.startswith(key)]
    if len(found) == 1:
        return found[0]
    if not found:
        runs = [
            run for other in _names(runtime.root) for run in finished(runtime.root, "runs", other)
        ]
        there = list(dict.fromkeys(run.name for run in runs))
        hint = did_you_mean(name, there) or f"there is {', '.join(there) or 'none'}"
        raise SettingError(
            f"{field}={checkpoint}: no finished run of that name under {runtime.root}/runs, no "
            f"model folder and no model of this machine's Hugging Face cache; {hint}"
        )
    known = ", ".join(f"{run.name}/{run.fingerprint}" for run in found)
    raise SettingError(f"{field}={checkpoint}: there are {len(found)} of them; name one of {known}")


def finished(root: str, kind: str, name: str) -> list[Artifact]:
    """Return the finished artifacts of one kind and name, by fingerprint."""
    filesystem, path = filesystem_of(join(root, kind, name))
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    keys = sorted(info.base_name for info in infos if len(info.base_name) == 16)
    artifacts = [Artifact(root=root, kind=kind, name=name, fingerprint=key) for key in keys]
    return [artifact for artifact in artifacts if artifact.status() == "done"]


def _names(root: str) -> list[str]:
    """Return the names below ``runs/``, of finished and unfinished ones."""
    filesystem, path = filesystem_of(join(root, "runs"))
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)
