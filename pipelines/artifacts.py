"""Artifacts: folders with a fingerprint, written bucket by bucket, whose manifest is written last.

Layout of one artifact, the same on a disk and in an object store::

    <root>/<kind>/<name>/<fingerprint>/
        part-00003.parquet ...   the files of bucket 3 (names belong to the step that writes them)
        buckets/00003.json       marker of bucket 3, written last: ledger, bytes and sha256 of files
        manifest.json            everything about the artifact; exists only when it is complete

A file is written beside its final place and renamed, so a reader never sees half of one; an object
store shows an object only when it is complete, so there it is written in place. Nothing here reads
a clock, a host name or a worker count: the same inputs give the same bytes.

Manifest: ``{kind, name, fingerprint, version, config, inputs: {name: fingerprint}, ledger,
buckets, files}``, the ledger being the sum over the buckets (`pipelines.row_accounting`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.errors import SettingError
from pipelines.fingerprints import canonical, fingerprint, json_bytes
from pipelines.row_accounting import add_ledgers, check_rejects, reconcile
from pipelines.storage import absolute_root, check_writable, filesystem_of, join

KINDS = ("samples", "proposals", "shards", "runs", "predictions")
"""Kinds of artifacts; each is made from those before it."""
Content = bytes | Sequence[bytes]
"""Content of a file: its bytes, or the pieces that make them up."""
Status = Literal["done", "partial", "stale", "missing"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]*(/[A-Za-z0-9][A-Za-z0-9_.=+-]*)?")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_PARTIAL = ".partial"
_REJECTS = {
    "samples": "rejects-*.parquet",
    "proposals": "rejects-*.parquet and the rows of part-*.parquet whose status is not ok",
    "shards": "rejects-*.parquet",
}
"""Files of rejected rows by kind; runs and predictions reject none."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One folder of results: where it is and which fingerprint it has.

    Making an instance reads nothing from storage.
    """

    root: str
    """Folder or URI (``s3://bucket/prefix``, ``gs://...``) that holds a project's artifacts."""
    kind: str
    """Kind of the artifact, one of ``KINDS``."""
    name: str
    """Name of what it is made of, at most one slash: ``drawn_train``, ``drawn_train/opn``."""
    fingerprint: str
    """Fingerprint, 16 hexadecimal digits (`pipelines.fingerprints.fingerprint`)."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"kind={self.kind!r} is no kind of artifact: use one of {', '.join(KINDS)}"
            )
        if not _NAME.fullmatch(self.name):
            raise SettingError(
                f"name={self.name!r}: use letters, digits, '_', '-', '.', and at most one '/'"
            )
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise ValueError(f"fingerprint={self.fingerprint!r} is not 16 hexadecimal digits")
        object.__setattr__(self, "root", absolute_root(self.root))

    @property
    def path(self) -> str:
        """Return the folder or URI of this artifact."""
        return join(self.root, self.kind, self.name, self.fingerprint)

    def uri(self, name: str) -> str:
        """Return the path or URI of the file or folder `name` inside the artifact."""
        return join(self.path, name)

    def status(self) -> Status:
        """Return what is there.

        Returns:
            ``done``, ``partial`` (started, not complete), ``stale`` (only another fingerprint is
            complete) or ``missing``.
        """
        if self.exists("manifest.json"):
            return "done"
        if self._listing():
            return "partial"
        return "stale" if self.other_fingerprints() else "missing"

    def other_fingerprints(self) -> list[str]:
        """Return the sorted fingerprints of other finished artifacts of this kind and name."""
        filesystem, path = filesystem_of(join(self.root, self.kind, self.name))
        selector = pafs.FileSelector(path, allow_not_found=True)
        names = [info.base_name for info in filesystem.get_file_info(selector)]
        candidates = sorted(n for n in names if _FINGERPRINT.fullmatch(n) and n != self.fingerprint)
        return [
            n
            for n in candidates
            if dataclasses.replace(self, fingerprint=n).exists("manifest.json")
        ]

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            FileNotFoundError: The artifact is not complete.
        """
        return json.loads(self.read_bytes("manifest.json"))

    def exists(self, name: str) -> bool:
        """Return whether the file or folder `name` is inside the artifact."""
        filesystem, path = filesystem_of(self.uri(name))
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def read_bytes(self, name: str) -> bytes:
        """Read the file `name`; FileNotFoundError when it is not there."""
        with self.open_input(name) as stream:
            return stream.read()

    def open_input(self, name: str) -> pa.NativeFile:
        """Open the file `name` for random access; FileNotFoundError when it is not there."""
        filesystem, path = filesystem_of(self.uri(name))
        return filesystem.open_input_file(path)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read the parquet file `name`, or some columns of it."""
        with self.open_input(name) as stream:
            return pq.read_table(stream, columns=columns)

    def write_bytes(self, name: str, data: Content) -> None:
        """Write the file `name`, given whole or in pieces; it appears whole or not at all."""
        pieces = [data] if isinstance(data, bytes) else data
        filesystem, path = filesystem_of(self.uri(name))
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(path) as stream:
                for piece in pieces:
                    stream.write(piece)
            return
        # A name of its own: a retried worker may write the same bucket at the same moment.
        beside = Path(self.path, _PARTIAL, f"{uuid.uuid4().hex}-{Path(name).name}")
        beside.parent.mkdir(parents=True, exist_ok=True)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb", buffering=1 << 20) as stream:
            stream.writelines(pieces)
        beside.replace(path)

    def finished(self) -> dict[int, dict[str, Any]]:
        """Return the markers of finished buckets, by bucket.

        A marker counts only if all its files are there with the sizes that it names.
        """
        sizes = self._listing()
        markers = {}
        for name in sorted(sizes):
            if name.startswith("buckets/") and name.endswith(".json"):
                marker = json.loads(self.read_bytes(name))
                if all(
                    sizes.get(file) == entry["bytes"] for file, entry in marker["files"].items()
                ):
                    markers[int(marker["bucket"])] = marker
        return markers

    def commit_bucket(
        self,
        bucket: int,
        files: Mapping[str, Content],
        ledger: Mapping[str, Any],
        *,
        rows: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Write the files of a bucket, then its marker.

        Args:
            bucket: Number of the bucket.
            files: Contents by name.
            ledger: Counters of the bucket (`pipelines.row_accounting`).
            rows: Number of rows of some of the files, kept beside their sizes for readers that
                plan ahead.

        Returns:
            The marker.

        Raises:
            UnbalancedLedgerError: The rows of the ledger do not add up.
        """
        reconcile(ledger, where=f"{self.kind}/{self.name} bucket {bucket}")
        entries: dict[str, dict[str, Any]] = {}
        # A thread is enough for both at once: hashing and writing release Python's lock.
        with ThreadPoolExecutor(max_workers=1) as thread:
            digests = {name: thread.submit(_size_and_digest, data) for name, data in files.items()}
            for name, data in files.items():
                self.write_bytes(name, data)
                size, digest = digests[name].result()
                entries[name] = {"bytes": size, "sha256": digest}
        for name, count in (rows or {}).items():
            entries[name]["rows"] = count
        marker = {"bucket": bucket, "ledger": dict(ledger), "files": entries}
        self.write_bytes(f"buckets/{bucket:05d}.json", json_bytes(marker))
        return marker

    def commit_buckets(
        self,
        *,
        version: int,
        config: Any,
        inputs: Mapping[str, str],
        num_buckets: int,
        ledger: Mapping[str, Any] | None = None,
        max_reject_fraction: float = 1.0,
    ) -> dict[str, Any]:
        """Gather the markers of all buckets into the manifest and write it last.

        Args:
            version: ``VERSION`` of the step's module.
            config: The step's config.
            inputs: Fingerprint or digest of each input, by name.
            num_buckets: Buckets that there must be.
            ledger: Counters of the step as a whole, added to those of its buckets.
            max_reject_fraction: Largest share of rejected rows.

        Returns:
            The manifest.

        Raises:
            LedgerError: More than `max_reject_fraction` of the rows were rejected. The buckets
                stay, so that a run with a looser limit does nothing twice.
            UnbalancedLedgerError: The rows of the summed ledger do not add up.
            RuntimeError: A bucket is missing.
        """
        markers = self.finished()
        missing = sorted(set(range(num_buckets)) - set(markers))
        if missing:
            raise RuntimeError(
                f"{self.path}: buckets {missing[:10]} are not finished; run the step again"
            )
        total = dict(ledger or {})
        files: dict[str, Any] = {}
        for bucket in range(num_buckets):
            total = add_ledgers(total, markers[bucket]["ledger"])
            files.update(markers[bucket]["files"])
        reconcile(total, where=f"{self.kind}/{self.name}")
        check_rejects(
            total,
            max_reject_fraction,
            where=f"{self.kind}/{self.name}",
            rejects_at=f"{self.path}/{_REJECTS.get(self.kind, '')}",
        )
        manifest = {"version": version, "config": canonical(config), "inputs": dict(inputs)}
        return self.commit({**manifest, "ledger": total, "buckets": num_buckets, "files": files})

    def commit(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, with kind, name and fingerprint added, and return it."""
        whole = {**manifest, "kind": self.kind, "name": self.name, "fingerprint": self.fingerprint}
        data = json_bytes(whole)
        # Before the manifest, for what killed workers left; after it, for what writing it made.
        self._delete_folder(_PARTIAL)
        self.write_bytes("manifest.json", data)
        self._delete_folder(_PARTIAL)
        return json.loads(data)

    def delete(self) -> None:
        """Remove the whole artifact, if it is there."""
        self._delete_folder("")

    def _delete_folder(self, name: str) -> None:
        filesystem, path = filesystem_of(self.uri(name).rstrip("/"))
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            filesystem.delete_dir(path)

    def _listing(self) -> dict[str, int]:
        """Return the sizes in bytes of all files, by path inside the artifact, in one request."""
        filesystem, path = filesystem_of(self.path)
        infos = filesystem.get_file_info(
            pafs.FileSelector(path, allow_not_found=True, recursive=True)
        )
        start = len(path.rstrip("/")) + 1
        return {
            i.path[start:]: i.size
            for i in infos
            if i.type == pafs.FileType.File and _PARTIAL not in i.path
        }


def _size_and_digest(data: Content) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for piece in [data] if isinstance(data, bytes) else data:
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def prepare(
    output: Artifact, *, version: int, config: Any, inputs: Mapping[str, str], force: bool = False
) -> dict[str, Any] | None:
    """Begin a step.

    Args:
        output: The artifact to make.
        version: ``VERSION`` of the step's module.
        config: The step's config.
        inputs: Fingerprint or digest of each input, by name.
        force: Delete what is there first.

    Returns:
        The manifest when there is nothing left to do, otherwise None.

    Raises:
        ValueError: Version, config and inputs do not give the fingerprint of `output`.
        SettingError: The root cannot be written.
    """
    expected = fingerprint(kind=output.kind, version=version, config=config, inputs=inputs)
    if output.fingerprint != expected:
        raise ValueError(
            f"output.fingerprint={output.fingerprint} of {output.kind}/{output.name}, but config "
            f"and inputs give {expected}: build the Artifact with pipelines.fingerprints"
        )
    if output.exists("manifest.json") and not force:
        return output.manifest()
    check_writable(output.root)
    if force:
        output.delete()
    return None


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the parquet file of a table; fixed options, so equal tables give equal bytes."""
    if table.num_rows == 0:  # most buckets of a small dataset are empty
        return _empty_parquet(table.schema.serialize().to_pybytes())
    return _parquet_bytes(table)


@lru_cache(64)
def _empty_parquet(schema: bytes) -> bytes:
    return _parquet_bytes(pa.ipc.read_schema(pa.py_buffer(schema)).empty_table())


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", row_group_size=4096, version="2.6", use_dictionary=True
    )
    return sink.getvalue().to_pybytes()
