"""Finished artifacts by the names that people give them."""

from pathlib import Path

import pyarrow.fs as pafs

from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.storage import filesystem_of


def find_run(checkpoint: str, runtime: RuntimeConfig) -> Artifact:
    """A finished run by name (``stage2``), name and fingerprint (``stage2/0123456789abcdef``) or folder.

    Raises ValueError when there is none, or more than one, naming them.
    """
    folder = Path(checkpoint)
    if (folder / "manifest.json").is_file():
        root, kind, name, key = folder.absolute().as_posix().rsplit("/", 3)
        return Artifact(root=root, kind=kind, name=name, fingerprint=key)
    name, _, key = checkpoint.partition("/")
    found = [run for run in finished(runtime.root, "runs", name) if run.fingerprint.startswith(key)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"checkpoint={checkpoint}: no finished run of that name under {runtime.root}/runs"
        )
    known = ", ".join(f"{run.name}/{run.fingerprint}" for run in found)
    raise ValueError(
        f"checkpoint={checkpoint}: there are {len(found)} of them; name one of {known}"
    )


def finished(root: str, kind: str, name: str) -> list[Artifact]:
    """Finished artifacts of one kind and name, by fingerprint."""
    filesystem, path = filesystem_of(f"{root}/{kind}/{name}")
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    keys = sorted(info.base_name for info in infos if len(info.base_name) == 16)
    artifacts = [Artifact(root=root, kind=kind, name=name, fingerprint=key) for key in keys]
    return [artifact for artifact in artifacts if artifact.status() == "done"]
