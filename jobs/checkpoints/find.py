"""A checkpoint by what a person calls it: a run, a folder, its URI, or a name on the hub."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fo1_model.config import MODEL_TYPE, is_released
from jobs.chain.chain import Chain, Step
from jobs.find_artifacts import find_run, finished
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.imported_models import import_model
from pipelines.model_identity import imported_run
from pipelines.proposals.detector_inputs import content_digest, find_weights
from pipelines.storage import absolute_root, is_file, is_uri, join, read_file, split

_RUN_NAME = re.compile(r"[A-Za-z0-9_.=+-]+(/[0-9a-f]{0,16})?")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model that no run of this root made: exported, somebody's, or the released one."""

    name: str
    """What it is called: the last part of its folder or hub name."""
    uri: str
    """Absolute path or URI of its folder."""


Checkpoint = Artifact | ModelFolder
"""A model that exists: the finished run that made it, or its folder."""


def find_checkpoint(
    text: str,
    runtime: RuntimeConfig,
    field: str = "checkpoint",
    *,
    kind: Literal["fo1", "opn"] = "fo1",
) -> Checkpoint:
    """Return the checkpoint that a person names.

    Args:
        text: Run by name, or NAME/FINGERPRINT or how that begins; folder or URI of a run, of what
            one exported, or of a model in our layout or the released one; a name of the Hugging
            Face hub that is in this machine's cache.
        runtime: Where the artifacts lie.
        field: What the user calls it, for messages.
        kind: Whose model a folder has to hold: the region-token model's, or the proposal network's.

    Raises:
        SettingError: There is none, more than one, or what is there is no model of ours.
    """
    if run := _run_at(text, field):
        return run
    if _RUN_NAME.fullmatch(text) and finished(runtime.root, "runs", text.partition("/")[0]):
        return find_run(text, runtime, field)
    if folder := _folder_of(text, field):
        config = _read_config(folder, f"{field}={text}")
        if kind == "fo1":
            _check_model(config, f"{field}={text}")
        return folder
    return find_run(text, runtime, field)  # which says what there is


def checkpoint_step(chain: Chain, found: Checkpoint) -> Step:
    """Return the step that makes a checkpoint a run of the chain's root.

    For a run there is nothing to do.
    """
    if isinstance(found, Artifact):
        return existing(found)
    digest = content_digest(found.uri, chain.digest_cache)
    output = imported_run(chain.runtime.root, found.name, digest)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return import_model(found.uri, output, digest, runtime=runtime)

    return chain.add("train", output, (), execute)


def existing(run: Artifact) -> Step:
    """Return a finished run as a step with nothing to do."""
    return Step(verb="train", artifact=run, inputs=(), execute=lambda _: run.manifest())


def model_uri(found: Checkpoint) -> str:
    """Return the path or URI of the folder that holds a checkpoint's model."""
    return found.uri("export") if isinstance(found, Artifact) else found.uri


def _run_at(text: str, field: str) -> Artifact | None:
    """Return the finished run whose folder, or whose exported folder, this is."""
    if not text or not (is_uri(text) or Path(text).is_dir()):
        return None
    where = absolute_root(text, field)
    export = split(where, 1)
    for folder in (where, *(export[:1] if export[-1] == "export" else ())):
        parts = split(folder, 3)
        if len(parts) == 4 and parts[1] == "runs" and is_file(join(folder, "manifest.json")):
            root, kind, name, key = parts
            return Artifact(root=root, kind=kind, name=name, fingerprint=key)
    return None


def _folder_of(text: str, field: str) -> ModelFolder | None:
    """Return the folder that a path, a URI or a hub name means; None where there is none."""
    if is_uri(text) or Path(text).is_dir():
        where = absolute_root(text, field)
        return ModelFolder(name=split(where, 1)[-1], uri=where)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        return None
    return ModelFolder(name=text.partition("/")[2], uri=_cached(text, field))


def _cached(name: str, field: str) -> str:
    """Return the folder in the cache of a hub name, or of another name of the same checkpoint."""
    try:
        return find_weights(name, field)
    except SettingError:
        # Here, because it brings torch along.
        from fo1_model.release.folder_names import other_names

        for other in other_names(name):
            with suppress(SettingError):
                return find_weights(other, field)
        raise


def _read_config(folder: ModelFolder, what: str) -> Mapping[str, Any]:
    """Return the ``config.json`` of a folder, of which every model has one."""
    uri = join(folder.uri, "config.json")
    if not is_file(uri):
        raise SettingError(f"{what}: {folder.uri} has no config.json, so it holds no model")
    try:
        config = json.loads(read_file(uri))
    except ValueError as error:
        raise SettingError(f"{what}: {uri} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise SettingError(f"{what}: {uri} holds {type(config).__name__}, not an object of fields")
    return config


def _check_model(config: Mapping[str, Any], what: str) -> None:
    """Refuse a model that is neither in our layout nor in the released one."""
    kind = config.get("model_type")
    if kind != MODEL_TYPE and not is_released(config):
        raise SettingError(
            f"{what}: config.json says model_type={kind!r}; a checkpoint is a model folder of ours "
            f"({MODEL_TYPE!r}) or the released layout. Training starts from a plain base with: "
            "fo1 train stage1 vlm=FOLDER"
        )
