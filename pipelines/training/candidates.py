"""Candidates of a run: model folders that wait to be judged, and the figures of those that were.

Below a run, while it goes on::

    candidates/step_000000200/        the model folder after step 200, as it would be exported
    candidates/step_000000200.json    written when the folder is complete
    validation.json                   one record for each judged step: ``step`` and the figures

The training loop writes candidates and the driver judges and removes them, possibly after a restart, at the
same time. A step is in ``validation.json`` before its candidate is removed, and a step that is there or whose
candidate is complete is not written again: the figures are always those of the folder that was judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.artifacts import Artifact
from pipelines.fingerprints import json_bytes
from pipelines.storage import filesystem_of
from pipelines.train_config import best_rule
from pipelines.training.export import copy_export, write_export

FOLDER = "candidates"
FIGURES = "validation.json"
_STORED = re.compile(r"step_(\d{9})(\.json)?")

Figures = Mapping[str, float | None]
"""Held-out figures by name; None for one that is not finite."""


class Candidates:
    """The candidates of one run."""

    def __init__(self, output: Artifact) -> None:
        self._output = output

    def write(self, step: int, export: Callable[[Path], None]) -> None:
        """Write the candidate of `step`, unless it is there or was judged.

        export: writes the model into a folder.
        """
        # In this order: the driver may be removing the candidate, and then its figures are there already.
        if self._output.exists(f"{_name(step)}.json") or step in read_figures(self._output):
            return
        write_export(export, self.uri(step))
        self._output.write_bytes(f"{_name(step)}.json", json_bytes({"step": step}))

    def complete(self) -> list[int]:
        """Steps of the candidates that are complete, in order."""
        return sorted(step for step, is_marker in self._stored() if is_marker)

    def uri(self, step: int) -> str:
        """Path or URI of the model folder of a candidate."""
        return self._output.uri(_name(step))

    def prune(self, judged: Collection[int], kept: int) -> None:
        """Remove the candidates of judged steps but `kept`, also one whose removal was cut off."""
        for step, is_marker in sorted(self._stored(), key=lambda entry: not entry[1]):
            if step in judged and step != kept:
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
        """Step of each entry of the folder, and whether it is the file that says it is complete."""
        filesystem, path = filesystem_of(self._output.uri(FOLDER))
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        found = [_STORED.fullmatch(info.base_name) for info in infos]
        return [(int(match[1]), match[2] is not None) for match in found if match]


def read_figures(output: Artifact) -> dict[int, Figures]:
    """Figures of the judged steps, in their order; nothing for a run that has none."""
    if not output.exists(FIGURES):
        return {}
    records = json.loads(output.read_bytes(FIGURES))
    return {record["step"]: {k: v for k, v in record.items() if k != "step"} for record in records}


def write_figures(output: Artifact, judged: Mapping[int, Figures]) -> None:
    """Write the figures of the judged steps."""
    output.write_bytes(
        FIGURES, json_bytes([{"step": step, **judged[step]} for step in sorted(judged)])
    )


def best_step(judged: Mapping[int, Figures], keep_best: str) -> int | None:
    """Step with the best figure, of equals the first; None where none is finite.

    keep_best: see ``TrainConfig.keep_best``. ValueError when a step has no figure of that name.
    """
    sign, name = best_rule(keep_best)
    best: tuple[float, int] | None = None
    for step, figures in judged.items():
        if name not in figures:
            known = ", ".join(sorted(figures)) or "none"
            raise ValueError(f"TrainConfig.keep_best={keep_best!r}: held-out figures are {known}")
        value = figures[name]
        if value is not None:
            best = max(best or (sign * value, -step), (sign * value, -step))
    return None if best is None else -best[1]


def _name(step: int) -> str:
    return f"{FOLDER}/step_{step:09d}"
