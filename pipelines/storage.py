"""Roots and filesystems: a local folder, or a URI of an object store."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.errors import SettingError


def absolute_root(root: str, field: str = "root") -> str:
    """Return the root without a trailing slash, a local one as an absolute path.

    Absolute, because workers run in another directory than the command.

    Args:
        root: Folder or URI.
        field: What the user calls it, for the message.

    Raises:
        SettingError: The root is empty.
    """
    if not root:
        raise SettingError(
            f"{field}='' is empty: name a folder or a URI such as s3://bucket/prefix"
        )
    return root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a local path or a URI, and the path within it.

    A scheme that pyarrow does not know goes to fsspec.

    Raises:
        SettingError: Neither knows the scheme, or a package for it is missing.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), uri
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise SettingError(
                f"{uri} cannot be opened ({error}): use a folder, or a URI such as "
                "s3://bucket/prefix or gs://bucket/prefix"
            ) from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def check_writable(root: str) -> None:
    """Write an empty file under the root and remove it.

    Raises:
        SettingError: Nothing can be written there; the message has the cause.
    """
    # Only a write tells: permissions, quotas and read-only mounts each lie in their own way.
    filesystem, path = filesystem_of(f"{absolute_root(root)}/.writable-{uuid.uuid4().hex}")
    try:
        filesystem.create_dir(str(Path(path).parent))
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"")
        filesystem.delete_file(path)
    except OSError as error:
        raise SettingError(
            f"root={root!r} cannot be written ({error}): choose another --root"
        ) from error
