"""What a detector needs beside its config: a run of ours, weights of others, annotated objects, a box file.

A **supply** is given for each leaf of a detector config (`fo1_model.detectors.leaves`), in its order, and
enters fingerprints by its content: an artifact by its fingerprint, a path by the digest of what lies there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fo1_model.detectors import DetectorConfig, Leaf, leaves
from pipelines.artifacts import Artifact
from pipelines.fingerprints import file_digest

Supply = Artifact | str | None
"""Samples or a run; the path of weights or of a box file; None for a detector that needs nothing."""
_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".pth", ".pt", ".bin"}
"""Files of a folder of weights that count: weights, configs, tokenizers."""


def check_supplies(detector: DetectorConfig, supplies: Sequence[Supply]) -> None:
    """Raise ValueError, naming the detector and what it needs, when the supplies are not that."""
    parts = leaves(detector)
    if len(parts) != len(supplies):
        raise ValueError(f"supplies: {len(supplies)} given for {len(parts)} detectors")
    for leaf, supply in zip(parts, supplies, strict=True):
        kind = supply.kind if isinstance(supply, Artifact) else type(supply).__name__
        if kind not in _KINDS[leaf.needs]:
            raise ValueError(
                f"{type(leaf).__name__} needs {_NEEDED[leaf.needs]}; {supply!r} was given"
            )
        if isinstance(supply, str) and not Path(supply).exists():
            raise ValueError(
                f"{type(leaf).__name__}: there is nothing at {supply}; give {_NEEDED[leaf.needs]}"
            )


def supplied_inputs(
    detector: DetectorConfig, supplies: Sequence[Supply], digest_cache: str | Path
) -> dict[str, str]:
    """Identity of the supplies, by name: ``runs/opn``, ``samples/coco``, ``weights``, ``boxes``.

    In a union weights are numbered by their member: ``weights.1``; so is the second of two runs of one name.
    Raises ValueError as `check_supplies`.
    """
    check_supplies(detector, supplies)
    inputs = {}
    for number, (leaf, supply) in enumerate(zip(leaves(detector), supplies, strict=True)):
        if isinstance(supply, Artifact):
            key = f"{supply.kind}/{supply.name}"
            inputs[f"{key}.{number}" if key in inputs else key] = supply.fingerprint
        elif supply is not None:
            key = leaf.needs if len(supplies) == 1 else f"{leaf.needs}.{number}"
            inputs[key] = content_digest(Path(supply), digest_cache)
    return inputs


def checkpoints(
    detector: DetectorConfig, supplies: Sequence[Supply]
) -> str | tuple[str | None, ...] | None:
    """Paths to load weights from, as `fo1_model.detectors.build_detector` takes them."""
    paths = tuple(_checkpoint(leaf, s) for leaf, s in zip(leaves(detector), supplies, strict=True))
    return paths[0] if len(paths) == 1 else paths


def supply_for(detector: DetectorConfig, supplies: Sequence[Supply], need: str) -> Supply:
    """The supply of the leaf with this need; None when there is none."""
    parts = zip(leaves(detector), supplies, strict=True)
    return next((supply for leaf, supply in parts if leaf.needs == need), None)


def find_weights(name: str, field: str = "weights") -> str:
    """Local path of weights: a folder or file as it is, or a model of the hub (``PekingU/rtdetr_r18vd``) that
    is in this machine's cache. The network is not asked: a plan must not fetch gigabytes.

    field: what the user calls it. Raises ValueError when there is no such path and the cache lacks the model.
    """
    if Path(name).exists():
        return str(Path(name).absolute())
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{field}={name}: there is no such folder or file")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, local_files_only=True)
    except (OSError, ValueError) as error:  # not there, or no name
        raise ValueError(
            f"{field}={name}: there is no such folder, and no such model in the Hugging Face cache of this "
            f"machine; fetch it with `hf download {name}`, or give a folder"
        ) from error


def content_digest(path: Path, digest_cache: str | Path) -> str:
    """16 hexadecimal digits of what a file, or a folder of weights, holds; names below the folder count."""
    if path.is_file():
        return file_digest(path, digest_cache)[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in _SUFFIXES)
    if not files:
        raise ValueError(f"{path}: the folder holds no weights ({', '.join(sorted(_SUFFIXES))})")
    whole = hashlib.sha256()
    for file in files:
        whole.update(
            f"{file.relative_to(path).as_posix()}\0{file_digest(file, digest_cache)}\n".encode()
        )
    return whole.hexdigest()[:16]


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
