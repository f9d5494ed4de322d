"""What a detector needs beside its config.

That is a run of ours, weights of others, annotated objects, or a box file. Such a **supply** is
given for each leaf of a detector config (`fo1_model.detectors.leaves`), in its order, and enters
fingerprints by its content: an artifact by its fingerprint, a path by the digest of what lies
there.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from fo1_model.detectors import DetectorConfig, Leaf, leaves
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.fingerprints import file_digest, remembered_digest
from pipelines.model_identity import run_key
from pipelines.storage import filesystem_of, is_uri, local_folder

Supply = Artifact | str | None
"""Samples or a run; path of weights or of a box file; None for a detector that needs nothing."""
_BLOCK_BYTES = 8 * 1024**2
_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".pth", ".pt", ".bin"}
"""Suffixes of the files in a folder of weights that count: weights, configs, tokenizers."""


def check_supplies(detector: DetectorConfig, supplies: Sequence[Supply]) -> None:
    """Check that the supplies are what the detector needs.

    Args:
        detector: The detector, or a union of some.
        supplies: One for each of its leaves.

    Raises:
        SettingError: One is not; the message names the detector and what it needs.
    """
    parts = leaves(detector)
    if len(parts) != len(supplies):
        raise SettingError(f"supplies: {len(supplies)} given for {len(parts)} detectors")
    for leaf, supply in zip(parts, supplies, strict=True):
        kind = supply.kind if isinstance(supply, Artifact) else type(supply).__name__
        if kind not in _KINDS[leaf.needs]:
            raise SettingError(
                f"{type(leaf).__name__} needs {_NEEDED[leaf.needs]}; {supply!r} was given"
            )
        if isinstance(supply, str) and not Path(supply).exists():
            raise SettingError(
                f"{type(leaf).__name__}: there is nothing at {supply}; give {_NEEDED[leaf.needs]}"
            )


def supplied_inputs(
    detector: DetectorConfig, supplies: Sequence[Supply], digest_cache: str | Path
) -> dict[str, str]:
    """Return the identity of the supplies, by name.

    Names are ``runs/opn``, ``samples/coco``, ``weights``, ``boxes``. In a union weights are
    numbered by their member (``weights.1``); so is the second of two runs of one name.

    Args:
        detector: The detector, or a union of some.
        supplies: One for each of its leaves.
        digest_cache: Local folder that remembers file digests.

    Raises:
        SettingError: The supplies are not what the detector needs.
    """
    check_supplies(detector, supplies)
    inputs = {}
    for number, (leaf, supply) in enumerate(zip(leaves(detector), supplies, strict=True)):
        if isinstance(supply, Artifact):
            key = run_key(supply) if supply.kind == "runs" else f"{supply.kind}/{supply.name}"
            inputs[f"{key}.{number}" if key in inputs else key] = supply.fingerprint
        elif supply is not None:
            key = leaf.needs if len(supplies) == 1 else f"{leaf.needs}.{number}"
            inputs[key] = content_digest(Path(supply), digest_cache)
    return inputs


def checkpoints(
    detector: DetectorConfig, supplies: Sequence[Supply]
) -> str | tuple[str | None, ...] | None:
    """Return the paths of weights, as `fo1_model.detectors.build_detector` takes them."""
    paths = tuple(_checkpoint(leaf, s) for leaf, s in zip(leaves(detector), supplies, strict=True))
    return paths[0] if len(paths) == 1 else paths


def supply_for(detector: DetectorConfig, supplies: Sequence[Supply], need: str) -> Supply:
    """Return the supply of the first leaf with this need; None when there is none."""
    parts = zip(leaves(detector), supplies, strict=True)
    return next((supply for leaf, supply in parts if leaf.needs == need), None)


def find_weights(name: str, field: str = "weights") -> str:
    """Return the local path of weights.

    The network is not asked: a plan must not fetch gigabytes.

    Args:
        name: A folder or file, or a model of the hub (``PekingU/rtdetr_r18vd``) that is in this
            machine's cache.
        field: What the user calls it, for the message.

    Raises:
        SettingError: There is no such path, and the cache lacks the model.
    """
    if Path(name).exists():
        return str(Path(name).absolute())
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SettingError(f"{field}={name}: there is no such folder or file")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except (OSError, ValueError) as error:  # not there, or no name
        raise SettingError(
            f"{field}={name}: there is no such folder, and no such model in the Hugging Face cache "
            f"of this machine; fetch it with `hf download {name}`, or give a folder"
        ) from error


def content_digest(path: Path | str, digest_cache: str | Path) -> str:
    """Return 16 hexadecimal digits of what a file, or a folder of weights, holds.

    Args:
        path: The file, or the folder, or the URI of a folder; the names below it count, its own
            does not.
        digest_cache: Local folder that remembers file digests.

    Raises:
        SettingError: The folder holds no weights.
    """
    if is_uri(str(path)):
        digests = _stored_digests(str(path), digest_cache)
    elif (path := Path(path)).is_file():
        return file_digest(path, digest_cache)[:16]
    else:
        digests = {
            file.relative_to(path).as_posix(): file_digest(file, digest_cache)
            for file in path.rglob("*")
            if file.is_file() and file.suffix in _SUFFIXES
        }
    if not digests:
        raise SettingError(f"{path}: the folder holds no weights ({', '.join(sorted(_SUFFIXES))})")
    whole = hashlib.sha256()
    # In the order of their paths, part by part.
    for name in sorted(digests, key=lambda name: PurePosixPath(name)):
        whole.update(f"{name}\0{digests[name]}\n".encode())
    return whole.hexdigest()[:16]


def _stored_digests(uri: str, digest_cache: str | Path) -> dict[str, str]:
    """Return the sha256 of each file that counts below a URI, by its name there.

    They are read once and remembered by URI, size and time, as `file_digest` does.
    """
    filesystem, top = filesystem_of(uri)
    found = filesystem.get_file_info(pafs.FileSelector(top, allow_not_found=True, recursive=True))
    digests = {}
    for info in found:
        if info.type == pafs.FileType.File and Path(info.path).suffix in _SUFFIXES:
            name = info.path[len(top.rstrip("/")) + 1 :]
            key = f"{uri}|{name}|{info.size}|{info.mtime_ns}"
            read = partial(_stream_digest, filesystem, info.path)
            digests[name] = remembered_digest(key, info.mtime_ns / 1e9, read, digest_cache)
    return digests


def _stream_digest(filesystem: pafs.FileSystem, path: str) -> str:
    with filesystem.open_input_stream(path) as stream:
        content = hashlib.sha256()
        while block := stream.read(_BLOCK_BYTES):
            content.update(block)
    return content.hexdigest()


@contextlib.contextmanager
def local_checkpoints(
    paths: str | tuple[str | None, ...] | None,
) -> Iterator[str | tuple[str | None, ...] | None]:
    """Yield what `checkpoints` gives with local paths, for the time of the block.

    What lies in a store is copied; what is local stays where it is.
    """
    if paths is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        listed = (paths,) if isinstance(paths, str) else paths
        local = tuple(
            str(stack.enter_context(local_folder(path))) if path and is_uri(path) else path
            for path in listed
        )
        yield local[0] if isinstance(paths, str) else local


# By need of a leaf: what it may be given, as a kind of artifact or a type, and that in words.
_KINDS: dict[str, tuple[str, ...]] = {
    "nothing": ("NoneType",),
    "run": ("runs", "str"),
    "weights": ("str",),
    "objects": ("samples",),
    "boxes": ("str",),
}
_NEEDED = {
    "nothing": "nothing",
    "run": "a finished training run, or the folder it exported",
    "weights": "the folder or file of its weights",
    "objects": "samples with annotated objects",
    "boxes": "a file of boxes",
}


def _checkpoint(leaf: Leaf, supply: Supply) -> str | None:
    if leaf.needs not in ("run", "weights"):
        return None
    return supply.uri("export") if isinstance(supply, Artifact) else supply
