"""The released checkpoint in and out: what ``fo1 import-release`` and ``fo1 export-release`` do."""

from pathlib import Path
from typing import Any

from jobs.arguments import parse_arguments
from jobs.checkpoints import find_run
from pipelines.cluster import RuntimeConfig


def import_folder(words: list[str]) -> None:
    """Read a released folder and write it as a model folder of ours, weights in their stored types."""
    from fo1_model.checkpoint import save_model
    from fo1_model.release import load_release

    (source, out), given = _words("import-release", "PATH OUT", words)
    model, processor = load_release(source, dtype=given)
    save_model(model, processor, out)
    print(_summary(model, out))


def export_run(words: list[str], runtime: RuntimeConfig) -> None:
    """Write a finished run, or a model folder of ours, as the released code reads it."""
    from fo1_model.checkpoint import load_model
    from fo1_model.release import export_release

    (source, out), given = _words("export-release", "RUN_OR_FOLDER OUT", words)
    folder = source if (Path(source) / "config.json").is_file() else find_run(source, runtime).uri("export")
    model, processor = load_model(folder, dtype=given)
    export_release(model, processor, out)
    print(_summary(model, out))


def _words(verb: str, names: str, words: list[str]) -> tuple[list[str], Any]:
    """The two folders and the type of the weights; the second folder must not be there, or be empty."""
    import torch

    folders = [word for word in words if "=" not in word]
    if len(folders) != 2:
        raise ValueError(f"write fo1 {verb} {names} [dtype=float32 or bfloat16]")

    def arguments(*, dtype: str = "stored") -> str:
        return dtype

    name = arguments(**parse_arguments(arguments, [word for word in words if "=" in word]))
    types = {"stored": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in types:
        raise ValueError(f"dtype={name}: choose one of {', '.join(types)}")
    out = Path(folders[1])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a new folder")
    return folders, types[name]


def _summary(model: Any, out: str) -> str:
    values = list(model.parameters())
    types = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in values}))
    return f"{out}: {sum(value.numel() for value in values):,} parameters, {types}"
