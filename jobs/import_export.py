"""Model folders in and out: what ``fo1 import-release`` and ``fo1 export`` do."""

from pathlib import Path
from typing import Any, Literal

from jobs.find_artifacts import find_run
from jobs.recipes.arguments import parse_arguments
from pipelines.cluster import RuntimeConfig

Dtype = Literal["stored", "float32", "bfloat16"]


def import_release(words: list[str]) -> None:
    """Read a released folder and write it as a model folder of ours, weights in their stored types."""
    from fo1_model.checkpoint import save_model
    from fo1_model.release import load_release

    def arguments(*, dtype: Dtype = "stored") -> Dtype:
        return dtype

    source, out, given = _words("import-release PATH OUT [dtype=...]", words)
    dtype = arguments(**parse_arguments(arguments, given))
    model, processor = load_release(source, dtype=_torch_type(dtype))
    save_model(model, processor, out)
    print(_summary(model, out))


def export(words: list[str], runtime: RuntimeConfig) -> None:
    """Write the model of a run, or of a model folder of ours, into a folder of its own.

    ``layout=hf`` is Hugging Face's, as runs have it; ``layout=release`` is what the released code reads.
    ValueError when OUT is there already.
    """
    from fo1_model.checkpoint import load_model
    from fo1_model.release import export_release

    def arguments(
        *, layout: Literal["hf", "release"] = "hf", dtype: Dtype = "stored"
    ) -> tuple[str, Dtype]:
        return layout, dtype

    source, out, given = _words(
        "export RUN_OR_FOLDER OUT [layout=hf or release] [dtype=...]", words
    )
    layout, dtype = arguments(**parse_arguments(arguments, given))
    folder = (
        source
        if (Path(source) / "config.json").is_file()
        else find_run(source, runtime).uri("export")
    )
    if layout == "hf":
        if dtype != "stored":
            raise ValueError(
                f"dtype={dtype}: layout=hf keeps the weights as they are stored; leave it out"
            )
        _copy(folder, Path(out))
        return
    model, processor = load_model(folder, dtype=_torch_type(dtype))
    export_release(model, processor, out)
    print(_summary(model, out))


def _words(usage: str, words: list[str]) -> tuple[str, str, list[str]]:
    """The two folders, of which the second must not be there or be empty, and the arguments."""
    folders = [word for word in words if "=" not in word]
    if len(folders) != 2:
        raise ValueError(f"write fo1 {usage}")
    source, out = folders
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ValueError(f"{out} is there already; name a new folder")
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
