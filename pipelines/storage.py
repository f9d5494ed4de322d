"""Roots and filesystems: a local folder, or a URI of an object store. Names are joined here alone.

A **place** is a local path, with any character that a path can have, or a URI of another machine's
storage. ``file://`` URIs are local paths. A URI may have a query (``s3://bucket/prefix?region=...``
or pyarrow's ``endpoint_override``), which stays behind whatever is joined to its path, and holds no
secret: who may read a store is a matter of the machine's environment.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.errors import SettingError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATH_SIGNS = "/%:=+@,;!$&'()*~"
"""Signs that the path of a URI may have as they are."""
_SECRETS = ("key", "secret", "token", "password", "credential", "signature")
"""Parts of the names of query fields that hold a secret."""


def is_uri(place: str) -> bool:
    """Return whether a place is a URI and no local path."""
    return bool(_SCHEME.match(place))


def absolute_root(root: str, field: str = "root") -> str:
    """Return the root without a trailing slash, a local one as an absolute path.

    Absolute, because workers run in another directory than the command.

    Args:
        root: Folder or URI.
        field: What the user calls it, for the message.

    Raises:
        SettingError: The root is empty, a URI with a secret in it, or one with a fragment.
    """
    if not root:
        raise SettingError(
            f"{field}='' is empty: name a folder or a URI such as s3://bucket/prefix"
        )
    if not is_uri(root):
        return str(Path(root).expanduser().absolute())
    check_no_secret(root, field)
    parts = urlsplit(root)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise SettingError(
                f"{field}={root!r}: write file:///absolute/path, with %23 for # and %3F for ?"
            )
        return str(Path(unquote(parts.path)).absolute())
    if "#" in root:
        raise SettingError(f"{field}={root!r}: a URI of a store has no part behind #; write %23")
    # A blank, say, is no sign of a URI: what people type is quoted as stores want it.
    path = quote(parts.path.rstrip("/"), safe=_PATH_SIGNS)
    return urlunsplit((*parts[:2], path, parts.query, ""))


def check_no_secret(uri: str, field: str) -> None:
    """Refuse a URI that holds a password or a key: it would be printed, stored and sent around.

    Raises:
        SettingError: Without the secret in its message.
    """
    parts = urlsplit(uri)
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secret = [name for name in named if any(word in name.lower() for word in _SECRETS)]
    # abfs://container@account names a place, and no secret.
    password = ":" in parts.netloc.rpartition("@")[0]
    if password or secret:
        what = "a password" if password else ", ".join(secret)
        raise SettingError(
            f"{field}: the URI holds {what}; give {public_uri(uri)} and leave secrets to the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role)"
        )


def public_uri(uri: str) -> str:
    """Return a path or URI without what may be secret in one: user, password and query."""
    if not is_uri(uri):
        return uri
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def join(place: str, *names: str) -> str:
    """Return the place of a file or folder below another; a query stays at the end.

    Args:
        place: As `absolute_root` returns it.
        names: Relative, may have slashes; signs that mean something in a URI are quoted there.
    """
    if not is_uri(place):
        return "/".join((place, *names))
    parts = urlsplit(place)
    path = "/".join((parts.path, *(quote(name, safe="/=+@,") for name in names)))
    return urlunsplit((*parts[:2], path, parts.query, ""))


def split(place: str, count: int) -> tuple[str, ...]:
    """Return the place that is `count` levels above, then the names between, as `join` takes them.

    Where there are fewer levels the first is the place itself, and no name follows.
    """
    query = ""
    if is_uri(place):
        parts = urlsplit(place)
        place, query = urlunsplit((*parts[:3], "", "")), parts.query
    above, *names = place.rsplit("/", count)
    if len(names) < count or (is_uri(place) and above.count("/") < 2):
        return (place,)
    if is_uri(place):
        above, names = above + (f"?{query}" if query else ""), [unquote(name) for name in names]
    return above, *names


def filesystem_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a local path or a URI, and the path within it.

    A scheme that pyarrow does not know goes to fsspec.

    Raises:
        SettingError: Neither knows the scheme, or a package for it is missing.
    """
    if not is_uri(uri):
        return pafs.LocalFileSystem(), uri
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise SettingError(
                f"{public_uri(uri)} cannot be opened ({error}): use a folder, or a URI such as "
                "s3://bucket/prefix or gs://bucket/prefix"
            ) from error
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def is_file(place: str) -> bool:
    """Return whether there is a file at a place."""
    filesystem, path = filesystem_of(place)
    return filesystem.get_file_info(path).type == pafs.FileType.File


def read_file(place: str) -> bytes:
    """Return the content of a file; FileNotFoundError when it is not there."""
    filesystem, path = filesystem_of(place)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def write_file(place: str, data: bytes) -> str:
    """Write a file, making its folder; return its place."""
    filesystem, path = filesystem_of(place)
    filesystem.create_dir(path.rpartition("/")[0])
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)
    return place


@contextlib.contextmanager
def local_folder(place: str) -> Iterator[Path]:
    """Yield a folder itself where it is local, else a copy for the time of the block."""
    filesystem, path = filesystem_of(place)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(path, folder, source_filesystem=filesystem)
        yield Path(folder)


def check_writable(root: str) -> None:
    """Write an empty file under the root and remove it.

    Raises:
        SettingError: Nothing can be written there; the message has the cause.
    """
    # Only a write tells: permissions, quotas and read-only mounts each lie in their own way.
    place = join(absolute_root(root), f".writable-{uuid.uuid4().hex}")
    try:
        write_file(place, b"")
        filesystem, path = filesystem_of(place)
        filesystem.delete_file(path)
    except OSError as error:
        raise SettingError(
            f"root={public_uri(root)!r} cannot be written ({error}): choose another --root"
        ) from error
