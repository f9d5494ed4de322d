"""What a run was made from beyond its direct inputs: every artifact upstream, and the code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipelines.artifacts import KINDS, Artifact

PACKAGE = "vlm-fo1-ray"
UNKNOWN = "unknown"
_GIT_TIMEOUT_S = 10.0


def upstream(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Return the fingerprint of each artifact and of all that they were made from.

    Inputs are followed through the manifests: shards to their samples and proposals, proposals to
    the run of their detector. Where a manifest is gone, its fingerprint is still known and the walk
    ends there.

    Returns:
        Fingerprints by ``KIND/NAME``. Two artifacts of one name are told apart by their
        fingerprint: the later one is ``KIND/NAME:FINGERPRINT``.
    """
    found: dict[str, str] = {}
    ahead = list(artifacts)
    while ahead:
        artifact = ahead.pop(0)
        key = f"{artifact.kind}/{artifact.name}"
        if found.get(key, artifact.fingerprint) != artifact.fingerprint:
            key = f"{key}:{artifact.fingerprint}"
        if key in found:  # reached on another way
            continue
        found[key] = artifact.fingerprint
        if not artifact.exists("manifest.json"):
            continue
        for name, fingerprint in artifact.manifest().get("inputs", {}).items():
            kind, _, rest = name.partition("/")
            if kind in KINDS and rest:
                ahead.append(
                    Artifact(root=artifact.root, kind=kind, name=rest, fingerprint=fingerprint)
                )
    return found


def code_state(folder: Path | None = None) -> dict[str, str]:
    """Return the state of the code that runs.

    Args:
        folder: Inside the checkout; None for that of this file.

    Returns:
        The package's ``version``, and of the git checkout it runs from ``commit`` and whether it
        was ``changed``. Outside a checkout, as on a cluster that got the files alone, commit and
        changed are `UNKNOWN`. Files that git does not track do not count as a change.
    """
    folder = folder or Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    changed = UNKNOWN if status is None else "yes" if status else "no"
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = UNKNOWN
    return {"version": installed, "commit": commit or UNKNOWN, "changed": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, without the last newline; None where there is no git or checkout."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no reason to fail a run for
    return said.stdout.strip()
