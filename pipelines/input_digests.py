"""Identity of files that artifacts are made from.

That is their content, or for huge ones their names and sizes. Digests are remembered in a local
folder, the cache: reading gigabytes of annotations for each plan would take minutes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from dataset_builders import DataFolders, DatasetSpec, ImageSource
from dataset_builders.benchmark_leakage import TWINS, benchmark_lists, excluded_images
from pipelines.fingerprints import file_digest


def content_digests(
    folders: DataFolders, names: Iterable[str], cache: str | Path
) -> dict[str, str]:
    """Return the sha256 of files, by name.

    Args:
        folders: Where the datasets lie.
        names: Names of files that are there, or patterns such as ``visdrone/annotations/*.txt``;
            a pattern gives one digest of all that it finds.
        cache: Local folder that remembers digests by (path, size, mtime).
    """
    digests = {}
    for name in names:
        if "*" in name:
            digests[name] = _pattern_digest(folders, name, Path(cache))
        else:
            digests[name] = file_digest(folders.path(name), cache)
    return digests


def size_digests(folders: DataFolders, patterns: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of the names and sizes of what each pattern finds, by pattern.

    It is meant for files too big to read for their identity.
    """
    digests = {}
    for pattern in patterns:
        found = [(name, folders.path(name).stat().st_size) for name in folders.matches(pattern)]
        digests[pattern] = hashlib.sha256(repr(found).encode()).hexdigest()
    return digests


def dataset_digests(spec: DatasetSpec, folders: DataFolders, cache: str | Path) -> dict[str, str]:
    """Return the identity of everything that the builder of a dataset reads, except images.

    A missing file is a wrong setting; the error shows the documented layout.
    """
    spec.check_files(folders)
    there = [name for name in spec.optional_files if folders.matches(name)]
    digests = content_digests(folders, (*spec.files, *there), cache) | size_digests(
        folders, spec.containers
    )
    if spec.optional_images:
        digests["image sources"] = ", ".join(source.name for source in spec.sources(folders))
    return digests


def image_list_digest(source: ImageSource, folders: DataFolders, cache: str | Path) -> str:
    """Return the sha256 of what `ImageSource.images` yields.

    It is remembered by the content of the files that the list is read from. A changed box leaves it
    as it was, so a detector that sees only pixels has nothing to do again.
    """
    listing = source.images(folders)  # raises when files are missing

    def compute() -> str:
        total = hashlib.sha256(str(source.num_buckets).encode())
        for item in listing:
            total.update(f"{item!r}\n".encode())
        return total.hexdigest()

    if not source.files:  # a list that is found by walking folders: nothing to remember it by
        return compute()
    state = [source.name, source.num_buckets, content_digests(folders, source.files, cache)]
    return _remembered(Path(cache), state, compute)


def excluded_digest(name: str, folders: DataFolders, cache: str | Path) -> str:
    """Return the sha256 of the images of one benchmark list, twins included.

    It is remembered by the content of the list's files.
    """
    files = [*benchmark_lists(folders)[name].files, *folders.matches(TWINS)]

    def compute() -> str:
        keys = sorted(excluded_images(folders, [name]))
        return hashlib.sha256(repr(keys).encode()).hexdigest()

    return _remembered(
        Path(cache), ["excluded", name, content_digests(folders, files, cache)], compute
    )


def _pattern_digest(folders: DataFolders, pattern: str, cache: Path) -> str:
    """Return the digest of the contents of many small files, remembered as one."""
    names = folders.matches(pattern)
    stats = [folders.path(name).stat() for name in names]
    state = [
        (name, stat.st_size, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)
    ]

    def compute() -> str:
        total = hashlib.sha256()
        for name in names:
            with folders.path(name).open("rb") as stream:
                total.update(
                    f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode()
                )
        return total.hexdigest()

    return _remembered(cache, [str(folders.root(pattern)), state], compute)


def _remembered(cache: Path, state: object, compute: Callable[[], str]) -> str:
    """Return what `compute` gives, kept in `cache` for the same state."""
    cached = cache / f"{hashlib.sha256(repr(state).encode()).hexdigest()}.digest"
    if not cached.exists():
        text = compute()
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Beside and renamed: two commands may compute the same digest at once.
        beside = cached.with_suffix(f".{uuid.uuid4().hex}")
        beside.write_text(text)
        beside.replace(cached)
    return cached.read_text()
