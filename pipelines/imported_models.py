"""Models that others made, as runs of ours: a folder is read once and becomes an artifact.

From then on it is what a training left: it answers benchmarks, training goes on from it, it has a
run in MLflow, and every machine that sees the root sees it. Two layouts are read, our own and the
released checkpoint's, which is converted on the way. What identifies it is the content of the
folder and never its path, so its name is no part of what is made from it either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fo1_model.config import is_released
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.fingerprints import json_bytes
from pipelines.model_identity import VERSION
from pipelines.storage import local_folder
from pipelines.training.export import OUTCOME, write_export
from pipelines.training.job import SPEED_FILE
from pipelines.training.lineage import code_state

_NO_FILES = (".git", ".cache", "__pycache__")


def import_model(
    source: str, output: Artifact, digest: str, *, runtime: RuntimeConfig
) -> Mapping[str, Any]:
    """Make a run of ours from a model folder, unless it is there.

    Args:
        source: Path or URI of the folder, which has a ``config.json``.
        output: ``imported_run`` of it.
        digest: Digest of its content.
        runtime: Where, and whether to start anew.

    Returns:
        The manifest of `output`.

    Raises:
        SettingError: As `fo1_model.release.load_release`, for a released folder.
    """
    if output.status() == "done" and not runtime.force:
        return output.manifest()
    with local_folder(source) as folder:
        if runtime.force:
            output.delete()
        write_export(partial(_write_model, folder), output.uri("export"))
    # What a page asks of every run; this one took no step of ours.
    output.write_bytes(OUTCOME, json_bytes({"skipped_steps": []}))
    for name in ("history.json", SPEED_FILE):
        output.write_bytes(name, json_bytes([]))
    config: dict[str, Any] = {"mix": {}}
    inputs = {"checkpoint": digest}
    _track(output, config, inputs, runtime)
    return output.commit(
        {"version": VERSION, "config": config, "inputs": inputs, "ledger": {"steps": 0}}
    )


def _write_model(folder: Path, target: Path) -> None:
    """Write the model of a folder as one of our folders: as it is, or converted."""
    if not is_released(json.loads((folder / "config.json").read_bytes())):
        ignored = shutil.ignore_patterns(*_NO_FILES)
        shutil.copytree(folder, target, ignore=ignored, dirs_exist_ok=True)
        return
    from fo1_model.checkpoint import save_model
    from fo1_model.release import load_release

    save_model(*load_release(folder), target)


def _track(
    output: Artifact, config: Mapping[str, Any], inputs: Mapping[str, str], runtime: RuntimeConfig
) -> None:
    """Make the MLflow run that metrics of this model's answers are logged to."""
    from pipelines.training.driver import EXPERIMENT
    from pipelines.training.mlflow_tracking import Tracker
    from pipelines.training.tracking_queue import TrackingQueue

    tags = {f"code.{name}": value for name, value in code_state().items()}
    tracker = Tracker(
        output,
        uri=runtime.tracking_uri,
        experiment=EXPERIMENT,
        params=config,
        inputs=inputs,
        tags=tags,
    )
    tracking = TrackingQueue(tracker, output.name)
    tracking.link("export", output.uri("export"))
    tracking.finish("FINISHED")
