"""Model folders in and out: what ``fo1 import-release`` and ``fo1 export`` do."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.checkpoints.find import find_checkpoint, model_uri
from jobs.command.flags import runtime_of
from jobs.recipes.arguments import parse_arguments
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.storage import local_folder

Dtype = Literal["stored", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Arguments of ``fo1 import-release``."""

    dtype: Dtype = "stored"
    """Type of the weights that are written; stored: as the release has them."""
    shortest_edge: int | None = None
    """Short side in pixels that images are scaled to before the long one is capped at 2048, as the
    release's later demo does with 1024; left out: images stay as they are."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Arguments of ``fo1 export``."""

    layout: Literal["hf", "release"] = "hf"
    """Layout of the folder: Hugging Face's, as runs have it, or what the released code reads."""
    dtype: Dtype = "stored"
    """Type of the weights that are written; stored: as the model has them."""


def import_release(words: list[str], _: Namespace) -> None:
    """Read a released folder and write it as a model folder of ours.

    Raises:
        SettingError: For a folder that is no release, or an OUT that is there already.
    """
    from fo1_model.checkpoint import save_model
    from fo1_model.release import load_release

    source, out, settings = _words("import-release PATH OUT [dtype=...]", words)
    given = ImportArguments(**parse_arguments(ImportArguments, settings))
    model, processor = load_release(
        source, dtype=_torch_type(given.dtype), shortest_edge=given.shortest_edge
    )
    save_model(model, processor, out)
    print(_summary(model, out))


def export(words: list[str], flags: Namespace) -> None:
    """Write the model of a checkpoint into a folder of its own.

    Raises:
        SettingError: For a run that is not there, or an OUT that is there already.
    """
    from fo1_model.checkpoint import load_model, save_model
    from fo1_model.release import export_release
    from fo1_model.release.folder_names import name_note

    source, out, settings = _words(
        "export CHECKPOINT OUT [layout=hf or release] [dtype=...]", words
    )
    given = ExportArguments(**parse_arguments(ExportArguments, settings))
    found = find_checkpoint(source, runtime_of(flags), "export")
    uri = model_uri(found)
    if given.layout == "hf" and given.dtype == "stored" and isinstance(found, Artifact):
        _copy(uri, Path(out))
        return
    with local_folder(uri) as folder:
        model, processor = load_model(folder, dtype=_torch_type(given.dtype))
    write = export_release if given.layout == "release" else save_model
    write(model, processor, out)
    print(_summary(model, out))
    if given.layout == "release":
        print(name_note(out))
        if (gap := processor.config.image_gap) != "\n":
            print(
                "the released code's examples have a line break between an image and a plain "
                f"question; this model was trained with {gap!r} there"
            )


def _words(usage: str, words: list[str]) -> tuple[str, str, list[str]]:
    """Return the two folders, the second new or empty, and the words that are no folders."""
    folders = [word for word in words if "=" not in word]
    if len(folders) != 2:
        raise SettingError(f"write fo1 {usage}")
    source, out = folders
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise SettingError(f"{out} is there already; name a new folder")
    return source, out, [word for word in words if "=" in word]


def _torch_type(dtype: Dtype) -> Any:
    import torch

    return None if dtype == "stored" else getattr(torch, dtype)


def _copy(uri: str, out: Path) -> None:
    import pyarrow.fs as pafs

    from pipelines.storage import filesystem_of

    out.mkdir(parents=True, exist_ok=True)
    filesystem, path = filesystem_of(uri)
    pafs.copy_files(path, str(out.absolute()), source_filesystem=filesystem)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


def _summary(model: Any, out: str) -> str:
    values = list(model.parameters())
    types = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in values}))
    return f"{out}: {sum(value.numel() for value in values):,} parameters, {types}"
