"""Fingerprints: the identity of a result is a hash of everything that can change it.

That is the version of the step's code, its config in one canonical form, and the fingerprints or
digests of its inputs. Where a step runs and with how many workers cannot change a result, so it
is not hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RACY_SECONDS = 2.0


def canonical(value: Any) -> Any:
    """Return a plain JSON value with the same meaning.

    A dataclass becomes its fields and, as ``type``, its name, because two detectors may have the
    same fields. A field that came later (metadata ``added``) is left out while it has its default,
    which means what was before it: so nothing that was made becomes stale.

    Raises:
        ValueError: The value, or a part of it, has no canonical form (a set, an object).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: canonical(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("added") and getattr(value, f.name) == f.default)
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        # 1 and "1" would be one key in JSON.
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"config holds a mapping whose keys are not all strings: {value!r}")
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f"config holds {value!r} of type {type(value).__name__}, which has no canonical form"
    )


def json_bytes(value: Any) -> bytes:
    """Return deterministic JSON: sorted keys, indented, UTF-8, a newline at the end.

    Raises:
        ValueError: The value holds NaN or an infinity, which JSON has no word for.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def fingerprint(*, kind: str, version: int, config: Any, inputs: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits: the start of the sha256 of what can change a result.

    Args:
        kind: Kind of the artifact, one of ``KINDS``.
        version: ``VERSION`` of the step's module.
        config: The step's config, a dataclass or a plain value.
        inputs: Fingerprint or digest of each input, by name; their order does not count.
    """
    content = {
        "kind": kind,
        "version": version,
        "config": canonical(config),
        "inputs": dict(inputs),
    }
    return hashlib.sha256(json_bytes(content)).hexdigest()[:16]


def file_digest(path: Path | str, cache_dir: Path | str) -> str:
    """Return the sha256 of a local file, remembered by (path, size, mtime_ns).

    Args:
        path: The file.
        cache_dir: Local folder that remembers digests, one small file each.
    """
    path = Path(path).absolute()
    stat = path.stat()
    key = hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    cached = Path(cache_dir) / f"{key}.sha256"
    if cached.exists():
        return cached.read_text().strip()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file changed just now is not remembered: a second change could leave size and time equal.
    if time.time() - stat.st_mtime > _RACY_SECONDS:
        cached.parent.mkdir(parents=True, exist_ok=True)
        beside = cached.with_suffix(f".{os.getpid()}.{uuid.uuid4().hex}")
        beside.write_text(digest)
        beside.replace(cached)
    return digest
