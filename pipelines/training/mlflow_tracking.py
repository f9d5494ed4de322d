"""MLflow, and nothing else: one run per training artifact, owned by the driver.

The driver creates the run, keeps its id in ``mlflow_run.json`` inside the artifact, reopens it
when it is started again, and ends it. Workers know nothing of MLflow: they report records, and the
driver logs them, each step once even if a step was computed twice. Without a server the database
is ``<root>/mlflow.db``.

Logged are the hashed description of the run as parameters; the fingerprints of what it was made
from, all the way up, and of the code as tags; its data as MLflow inputs; where its last checkpoint
and its export lie; and metrics by step: what the history holds, and apart from it how fast the run
was (``speed/``). A tracking URI may hold a password; it is never logged or stored.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

# Read by MLflow at import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.fingerprints import json_bytes
from pipelines.storage import is_uri, join, public_uri
from pipelines.train_config import VALIDATION

RUN_FILE = "mlflow_run.json"
"""File of a run with its id in MLflow."""
STEP_KEY = "loss"
"""Metric that every record has; its last step says which records are in."""
SPEED = "speed/"
"""Prefix of the names of metrics of speed."""
SPEED_KEY = f"{SPEED}step_seconds"
"""Metric that every report of speed has; its last step says which reports are in."""
# What MLflow's servers take in one call.
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_TAGS_PER_CALL = 100
_PARAM_CHARACTERS = 6000
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
"""Characters that MLflow refuses in a name, such as the brackets of our tokens."""


class Tracker:
    """One MLflow run. A call may block for minutes: a run makes them through a `TrackingQueue`."""

    def __init__(
        self,
        output: Artifact,
        *,
        uri: str | None,
        experiment: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Create the run of `output`, or open it again.

        Args:
            output: The run's artifact.
            uri: A tracking server or database; None for ``<root>/mlflow.db``.
            experiment: Name of the MLflow experiment.
            params: The description that is hashed.
            inputs: Fingerprint of each input, by name.
            tags: Others, said anew each time that the run is opened.

        Raises:
            SettingError: There is no `uri` and the root is not a local folder.
        """
        # A new database would tell each of its migrations.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri or local_uri(output.root))
        self.run_id = self._open(output) or self._create(output, experiment)
        self._describe(output, params, inputs, tags or {})
        self._client.update_run(self.run_id, status="RUNNING")
        self._last_steps = {key: self._last_step(key) for key in (STEP_KEY, SPEED_KEY)}
        self._logged_at: dict[str, set[int]] = {}

    def log(self, records: Iterable[Mapping[str, float]]) -> None:
        """Log the records of steps that are not logged yet.

        Args:
            records: In the order of their ``step``; every other value is a metric, and `STEP_KEY`
                is among them.
        """
        self._log(records, STEP_KEY)

    def log_speed(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log how fast the steps up to `step` were.

        Nothing is logged when a report of that step or a later one is in: steps that were done
        again after a restart count once.

        Args:
            step: Steps done.
            metrics: Of `pipelines.training.throughput`, by name.
        """
        self._log(
            [{"step": step, **{f"{SPEED}{name}": value for name, value in metrics.items()}}],
            SPEED_KEY,
        )

    def speed(self) -> list[dict[str, float]]:
        """Return every report of speed, before restarts too: ``step`` and metrics by name."""
        by_step: dict[int, dict[str, float]] = {}
        for key in sorted(self._client.get_run(self.run_id).data.metrics):
            if key.startswith(SPEED):
                for metric in self._client.get_metric_history(self.run_id, key):
                    by_step.setdefault(metric.step, {"step": metric.step})[key[len(SPEED) :]] = (
                        metric.value
                    )
        return [by_step[step] for step in sorted(by_step)]

    def link(self, name: str, uri: str) -> None:
        """Say in a tag where something of the run lies, without password and query of a URI."""
        self._client.set_tag(self.run_id, name, public_uri(uri))

    def _log(self, records: Iterable[Mapping[str, float]], step_key: str) -> None:
        """Log records whose step is after the last one that has `step_key`."""
        now = int(time.time() * 1000)
        metrics: list[Metric] = []
        for record in records:
            step = int(record["step"])
            if step <= self._last_steps[step_key]:
                continue
            named = {
                _metric_name(key): float(value) for key, value in record.items() if key != "step"
            }
            new = [Metric(name, value, now, step) for name, value in named.items()]
            if len(metrics) + len(new) > _METRICS_PER_CALL:
                self._send(metrics, step_key)
                metrics = []
            metrics += new
        if metrics:
            self._send(metrics, step_key)

    def log_at(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one step that come after it; those that are logged are not repeated."""
        now = int(time.time() * 1000)
        new = []
        for name, value in metrics.items():
            key = _metric_name(name)
            if key not in self._logged_at:
                known = self._client.get_metric_history(self.run_id, key)
                self._logged_at[key] = {metric.step for metric in known}
            if step not in self._logged_at[key]:
                new.append(Metric(key, float(value), now, step))
        if new:
            self._client.log_batch(self.run_id, metrics=new)
        for metric in new:  # only now: a call that failed is made again
            self._logged_at[metric.key].add(step)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status)

    def _send(self, metrics: list[Metric], step_key: str) -> None:
        # One call is one transaction and ends at a whole step: killed here, a run resumes after it.
        self._client.log_batch(self.run_id, metrics=metrics)
        self._last_steps[step_key] = metrics[-1].step

    def _last_step(self, key: str) -> int:
        history = self._client.get_metric_history(self.run_id, key)
        return max((metric.step for metric in history), default=-1)

    def _open(self, output: Artifact) -> str | None:
        if not output.exists(RUN_FILE):
            return None
        run_id: str = json.loads(output.read_bytes(RUN_FILE))["run_id"]
        try:
            return self._client.get_run(run_id).info.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the database was removed, or another server is used now

    def _create(self, output: Artifact, experiment: str) -> str:
        run = self._client.create_run(
            self._experiment(output.root, experiment),
            run_name=f"{output.name}-{output.fingerprint}",
        )
        run_id: str = run.info.run_id
        output.write_bytes(RUN_FILE, json_bytes({"run_id": run_id}))
        return run_id

    def _describe(
        self,
        output: Artifact,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Log parameters, tags and inputs; saying the same again changes nothing."""
        all_tags = {"fingerprint": output.fingerprint, "artifact": f"{output.kind}/{output.name}"}
        all_tags |= {f"input.{name}": fingerprint for name, fingerprint in inputs.items()}
        named = [
            RunTag(_NOT_IN_NAMES.sub("_", key), value)
            for key, value in (all_tags | dict(tags)).items()
        ]
        for start in range(0, len(named), _TAGS_PER_CALL):
            self._client.log_batch(self.run_id, tags=named[start : start + _TAGS_PER_CALL])
        flat = [
            Param(_NOT_IN_NAMES.sub("_", key), value[:_PARAM_CHARACTERS])
            for key, value in flatten(params).items()
        ]
        for start in range(0, len(flat), _PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=flat[start : start + _PARAMS_PER_CALL])
        datasets = [
            DatasetInput(
                Dataset(
                    name=name,
                    digest=fingerprint,
                    source_type="artifact",
                    source=f"{name}/{fingerprint}",
                ),
                tags=[InputTag("mlflow.data.context", _context(name))],
            )
            for name, fingerprint in inputs.items()
        ]
        if datasets:
            self._client.log_inputs(self.run_id, datasets)

    def _experiment(self, root: str, name: str) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return existing.experiment_id
        # Without a location, artifacts would land in the working directory of who logs them first.
        location = (
            join(root, "mlflow-artifacts", name)
            if is_uri(root)
            else Path(root, "mlflow-artifacts", name).as_uri()
        )
        return self._client.create_experiment(name, artifact_location=location)


def log_metrics(run: Artifact, metrics: Mapping[str, float], *, uri: str | None) -> None:
    """Log metrics of an evaluation to the MLflow run of a training artifact.

    Known values are not repeated. A run that another tracking store holds is left alone.

    Args:
        run: The training artifact.
        metrics: By name.
        uri: As for `Tracker`.
    """
    client = MlflowClient(tracking_uri=uri or local_uri(run.root))
    run_id: str = json.loads(run.read_bytes(RUN_FILE))["run_id"]
    try:
        known = client.get_run(run_id).data.metrics
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    now = int(time.time() * 1000)
    named = {_metric_name(name): float(value) for name, value in metrics.items()}
    new = [Metric(name, value, now, 0) for name, value in named.items() if known.get(name) != value]
    if new:
        client.log_batch(run_id, metrics=new)


def _context(name: str) -> str:
    """Return what an input is to the run."""
    return "validation" if name.startswith(VALIDATION) else "train"


def _metric_name(name: str) -> str:
    """Return a name that MLflow takes: letters, digits and _-. :/ only, so not "ar@100"."""
    return _NOT_IN_NAMES.sub("_", name.replace("@", "_at_"))


def local_uri(root: str) -> str:
    """Return the tracking URI of the database under a local root.

    Raises:
        SettingError: The root is in an object store.
    """
    if is_uri(root):
        raise SettingError(
            f"root={root!r} cannot hold a database: give tracking_uri, an MLflow server's address"
        )
    Path(root).mkdir(parents=True, exist_ok=True)
    file = join(root, "mlflow.db")
    if not re.search(r"[%?#]", file):
        return f"sqlite:///{file}"
    # SQLAlchemy ends the path at "?"; a file URI, which SQLite decodes itself, has no such sign.
    return f"sqlite:///file:{quote(file)}?uri=true"


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings as ``outer.inner`` -> text; lists and scalars as JSON."""
    if not isinstance(value, Mapping):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
