"""A finished run's model as a folder elsewhere: what ``fo1 export`` does."""

from pathlib import Path
from typing import Literal

from jobs.arguments import parse_arguments
from jobs.releases import export_run
from jobs.runs import find_run
from pipelines.cluster import RuntimeConfig


def export(words: list[str], runtime: RuntimeConfig) -> None:
    """Write the model of a run: as it is, in Hugging Face's layout, or as the released code reads it.

    ValueError when OUT is there already.
    """

    def arguments(*, layout: Literal["hf", "release"] = "hf", dtype: str = "stored") -> tuple[str, str]:
        return layout, dtype

    folders = [word for word in words if "=" not in word]
    layout, dtype = arguments(**parse_arguments(arguments, [word for word in words if "=" in word]))
    if len(folders) != 2:
        raise ValueError("write fo1 export RUN OUT [layout=hf or release] [dtype=float32 or bfloat16]")
    if layout == "release":
        export_run([*folders, f"dtype={dtype}"], runtime)
        return
    if dtype != "stored":
        raise ValueError(f"dtype={dtype}: layout=hf keeps the weights as they are stored; leave it out")
    _copy(find_run(folders[0], runtime).uri("export"), Path(folders[1]))


def _copy(uri: str, out: Path) -> None:
    import pyarrow.fs as pafs

    from pipelines.artifacts import filesystem_of

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    filesystem, path = filesystem_of(uri)
    pafs.copy_files(path, str(out.absolute()), source_filesystem=filesystem)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")
