"""Candidates of a run: model folders that wait to be evaluated, and the metrics of those that were.

Below a run, while it goes on::

    candidates/step_000000200/        the model folder after step 200, as it would be exported
    candidates/step_000000200.json    written when the folder is complete
    validation.json                   one record for each evaluated step: ``step`` and the metrics

The training loop writes candidates while the driver, possibly after a restart, evaluates and
removes them. A step is in ``validation.json`` before its candidate is removed, and a step that is
there or whose candidate is complete is not written again: the metrics are always those of the
folder that was evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.fingerprints import json_bytes
from pipelines.storage import filesystem_of
from pipelines.train_config import best_rule
from pipelines.training.export import copy_export, write_export

FOLDER = "candidates"
METRICS_FILE = "validation.json"
_STORED = re.compile(r"step_(\d{9})(\.json)?")

Metrics = Mapping[str, float | None]
"""Metrics of held-out examples by name; None for one that is not finite."""


class Candidates:
    """The folder of candidates of one run."""

    def __init__(self, output: Artifact) -> None:
        self._output = output

    def write(self, step: int, export: Callable[[Path], None]) -> None:
        """Write the candidate of `step`, unless it is there or was evaluated.

        Args:
            step: Steps done.
            export: Writes the model into a folder.
        """
        # In this order: where the driver is removing the candidate, its metrics are there already.
        if self._output.exists(f"{_name(step)}.json") or step in read_metrics(self._output):
            return
        write_export(export, self.uri(step))
        self._output.write_bytes(f"{_name(step)}.json", json_bytes({"step": step}))

    def complete(self) -> list[int]:
        """Return the steps of the candidates that are complete, in order."""
        return sorted(step for step, is_marker in self._stored() if is_marker)

    def uri(self, step: int) -> str:
        """Return the path or URI of the model folder of a candidate."""
        return self._output.uri(_name(step))

    def prune(self, evaluated: Collection[int], kept: int) -> None:
        """Remove the candidates of evaluated steps but `kept`, and what a cut-off removal left."""
        # Markers first: a folder without one is incomplete, a marker without its folder would lie.
        for step, is_marker in sorted(self._stored(), key=lambda entry: not entry[1]):
            if step in evaluated and step != kept:
                filesystem, path = filesystem_of(self.uri(step))
                if is_marker:
                    filesystem.delete_file(f"{path}.json")
                else:
                    filesystem.delete_dir(path)

    def publish(self, step: int) -> None:
        """Make the candidate of `step` the export of the run."""
        copy_export(self.uri(step), self._output.uri("export"))

    def clear(self) -> None:
        """Remove all candidates, complete or not."""
        filesystem, path = filesystem_of(self._output.uri(FOLDER))
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)

    def _stored(self) -> list[tuple[int, bool]]:
        """Return the step of each entry of the folder, and whether it marks a complete one."""
        filesystem, path = filesystem_of(self._output.uri(FOLDER))
        # Entries of other names are what a write left that was cut off.
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        found = [_STORED.fullmatch(info.base_name) for info in infos]
        return [(int(match[1]), match[2] is not None) for match in found if match]


def read_metrics(output: Artifact) -> dict[int, Metrics]:
    """Return the metrics of the evaluated steps, in their order; none for a run without any."""
    if not output.exists(METRICS_FILE):
        return {}
    records = json.loads(output.read_bytes(METRICS_FILE))
    return {record["step"]: {k: v for k, v in record.items() if k != "step"} for record in records}


def write_metrics(output: Artifact, evaluated: Mapping[int, Metrics]) -> None:
    """Write the metrics of the evaluated steps."""
    records = [{"step": step, **evaluated[step]} for step in sorted(evaluated)]
    output.write_bytes(METRICS_FILE, json_bytes(records))


def best_step(evaluated: Mapping[int, Metrics], keep_best: str) -> int | None:
    """Return the step with the best value of a metric, of equals the first; None if none is finite.

    Args:
        evaluated: Metrics of the evaluated steps.
        keep_best: The metric and its direction, see ``TrainConfig.keep_best``.

    Raises:
        SettingError: A step has no metric of that name.
    """
    sign, name = best_rule(keep_best)
    best: tuple[float, int] | None = None
    for step, metrics in evaluated.items():
        if name not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise SettingError(f"TrainConfig.keep_best={keep_best!r}: held-out metrics are {known}")
        value = metrics[name]
        if value is not None:
            best = max(best or (sign * value, -step), (sign * value, -step))
    return None if best is None else -best[1]


def _name(step: int) -> str:
    return f"{FOLDER}/step_{step:09d}"
