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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fo1_model.config import is_unset

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
            if not is_unset(value, f)
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

    def read() -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
    return remembered_digest(key, stat.st_mtime, read, cache_dir)


def remembered_digest(
    key: str, changed_at: float, read: Callable[[], str], cache_dir: Path | str
) -> str:
    """Return a digest that was read once, or read it now.

    Args:
        key: What the digest depends on: name, size and time of a file.
        changed_at: When the file was changed, seconds since the epoch.
        read: Reads the file and returns its digest.
        cache_dir: Local folder that remembers digests.
    """
    cached = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()}.sha256"
    if cached.exists():
        return cached.read_text().strip()
    digest = read()
    # A file changed just now is not remembered: a second change could leave size and time equal.
    if time.time() - changed_at > _RACY_SECONDS:
        cached.parent.mkdir(parents=True, exist_ok=True)
        beside = cached.with_suffix(f".{os.getpid()}.{uuid.uuid4().hex}")
        beside.write_text(digest)
        beside.replace(cached)
    return digest
