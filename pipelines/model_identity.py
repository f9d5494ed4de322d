"""Which model a run holds, whoever trained it: how imported ones are named and told apart."""

import re

from pipelines.artifacts import Artifact
from pipelines.fingerprints import fingerprint

VERSION = 1
"""Raised when the same folder would give another model."""
PREFIX = "imported-"
"""Start of the names of such runs; the rest is the folder's."""
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.=+-]+")


def imported_run(root: str, name: str, digest: str) -> Artifact:
    """Return the artifact that a folder becomes.

    Args:
        root: Where artifacts lie.
        name: What people call the folder; other signs than those of names become dashes.
        digest: Digest of its content (`pipelines.proposals.detector_inputs.content_digest`).
    """
    key = fingerprint(kind="runs", version=VERSION, config={}, inputs={"checkpoint": digest})
    short = _NOT_IN_NAMES.sub("-", name).strip("-.") or "model"
    return Artifact(root=root, kind="runs", name=f"{PREFIX}{short}", fingerprint=key)


def run_key(run: Artifact) -> str:
    """Return the name of a run among the inputs of what is made from it.

    That of an imported model is the same for all: two people's folders of one content are one.
    """
    return "runs/imported" if run.name.startswith(PREFIX) else f"runs/{run.name}"
