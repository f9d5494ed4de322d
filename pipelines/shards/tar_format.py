"""One shard: a tar of region examples and the index that finds each of them; writer and reader.

``detection-00003.tar`` is what ``tar xf`` and webdataset read::

    KEY.jpg     the original bytes of the image, never encoded again (the suffix follows the format)
    KEY.json    `RegionExample.to_json`

Members of a key are adjacent, owner and time are fixed, and keys have no dot, which is where
webdataset splits. A conversation without image is its ``KEY.json`` alone.
``detection-00003.index.parquet`` has a row an example (`INDEX_SCHEMA`), in the order of the tar.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import threading
from collections import OrderedDict
from typing import Any

import pyarrow as pa

from pipelines.artifacts import Artifact, parquet_bytes
from pipelines.errors import SettingError
from pipelines.schemas import RegionExample
from pipelines.storage import is_uri

INDEX_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_name", pa.string(), nullable=False),
        # Of the first byte of content, in the tar.
        pa.field("image_offset", pa.int64(), nullable=False),
        pa.field("image_size", pa.int64(), nullable=False),  # in bytes
        pa.field("json_name", pa.string(), nullable=False),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_size", pa.int64(), nullable=False),
    ]
)
OPEN_SHARDS = 16
"""Tars, with their indices, that a `ShardSet` keeps open.

They are as many as a plan shuffles together at most.
"""
_FORMATS = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"RIFF", "webp"),
)


def key_of(sample_id: str) -> str:
    """Return the member name of a sample without its suffix.

    It is readable, free of dots and slashes, and unique by a hash.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", sample_id)[:64]
    return f"{readable}-{hashlib.sha256(sample_id.encode()).hexdigest()[:12]}"


def image_suffix(data: bytes) -> str:
    """Return the suffix that the first bytes of an image file call for; ``img`` if unknown."""
    return next((suffix for magic, suffix in _FORMATS if data.startswith(magic)), "img")


class TarWriter:
    """One tar and its index, built in memory: a bucket's worth, some tens of MB.

    The tar is a list of pieces, headers and contents as they came, so that the bytes of images are
    copied by nobody before they are written; questions about one image share them.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, example: RegionExample, image: bytes) -> None:
        """Append an example.

        Args:
            example: The example.
            image: Bytes of its image file as stored; empty for a conversation without image.
        """
        key = key_of(example.sample_id)
        image_name, json_name = f"{key}.{image_suffix(image)}" if image else "", f"{key}.json"
        image_offset, image_size = self._member(image_name, image) if image else (0, 0)
        json_offset, json_size = self._member(json_name, example.to_json())
        self._rows.append(
            {
                "sample_id": example.sample_id,
                "image_name": image_name,
                "image_offset": image_offset,
                "image_size": image_size,
                "json_name": json_name,
                "json_offset": json_offset,
                "json_size": json_size,
            }
        )

    def finish(self) -> tuple[list[bytes], bytes]:
        """Close the tar.

        Returns:
            The pieces of the tar, and the bytes of its index.

        Raises:
            ValueError: A sample id came twice.
        """
        ids = [row["sample_id"] for row in self._rows]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"sample id {twice!r} comes twice in one shard")
        end = self._size + 2 * tarfile.BLOCKSIZE
        # As tarfile closes an archive.
        padding = bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE)
        return [*self._pieces, padding], parquet_bytes(
            pa.Table.from_pylist(self._rows, schema=INDEX_SCHEMA)
        )

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        info = tarfile.TarInfo(name)  # mtime 0, owner 0, mode 644
        info.size = len(data)
        # USTAR has one 512-byte header a member and nothing else, so contents are where we say.
        header = info.tobuf(tarfile.USTAR_FORMAT)
        offset = self._size + len(header)
        padding = bytes(-len(data) % tarfile.BLOCKSIZE)
        self._pieces += [header, data, padding]
        self._size = offset + len(data) + len(padding)
        return offset, len(data)


class ShardSet:
    """The shards of one task of an artifact, read example by example at byte offsets.

    Threads may share an instance; a pickled one opens its files anew.
    """

    def __init__(self, artifact: Artifact, task: str) -> None:
        """Read the manifest, and no shard yet.

        Raises:
            SettingError: The artifact has no shard of this task.
        """
        self.artifact, self.task = artifact, task
        name_of_task = re.compile(re.escape(task) + r"-\d+\.tar")
        files = artifact.manifest()["files"]
        self.shards: list[tuple[str, int]] = [
            (name, int(files[name]["rows"]))
            for name in sorted(files)
            if name_of_task.fullmatch(name)
        ]
        if not self.shards:
            have = ", ".join(tasks_of(artifact)) or "none at all"
            raise SettingError(f"{artifact.path} has no shards of task {task!r}; it has {have}")
        self._opened: OrderedDict[str, tuple[pa.NativeFile, dict[str, list[Any]]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.num_examples

    @property
    def num_examples(self) -> int:
        """Return the number of examples in all shards."""
        return sum(count for _, count in self.shards)

    @property
    def is_remote(self) -> bool:
        """Return whether the shards lie on object storage."""
        return is_uri(self.artifact.root)

    def read(self, shard: int | str, index: int) -> dict[str, bytes]:
        """Return the members of an example, contents by suffix.

        Args:
            shard: Position in `shards`, or the name there.
            index: Position in the shard.

        Raises:
            RuntimeError: The tar is shorter than its index says; the message names the sample.
        """
        name = self._name(shard)
        stream, columns = self._open(name)
        places = [
            tuple(columns[f"{kind}_{part}"][index] for part in ("name", "offset", "size"))
            for kind in ("image", "json")
            if columns[f"{kind}_name"][index]
        ]
        # Members of an example are neighbours: one read, which on object storage is one request.
        start = min(offset for _, offset, _ in places)
        data = stream.read_at(max(offset + size for _, offset, size in places) - start, start)
        members = {}
        for member, offset, size in places:
            content = data[offset - start : offset - start + size]
            if len(content) != size:
                raise RuntimeError(f"{columns['sample_id'][index]}: {name} ends inside {member}")
            members[member.rpartition(".")[2]] = content
        return members

    def sample_ids(self, shard: int | str) -> list[str]:
        """Return the sample ids of a shard in its order."""
        return list(self._open(self._name(shard))[1]["sample_id"])

    def _name(self, shard: int | str) -> str:
        return self.shards[shard][0] if isinstance(shard, int) else shard

    def _open(self, name: str) -> tuple[pa.NativeFile, dict[str, list[Any]]]:
        """Return the tar, and the columns of its index."""
        with self._lock:
            if name not in self._opened:
                index = self.artifact.read_table(name.replace(".tar", ".index.parquet")).to_pydict()
                self._opened[name] = (self.artifact.open_input(name), index)
            self._opened.move_to_end(name)
            opened = self._opened[name]
            while len(self._opened) > OPEN_SHARDS:
                self._opened.popitem(last=False)  # closed when its last reader lets go of it
            return opened

    def __getstate__(self) -> dict[str, Any]:
        return {"artifact": self.artifact, "task": self.task, "shards": self.shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opened=OrderedDict(), _lock=threading.Lock())


def tasks_of(artifact: Artifact) -> list[str]:
    """Return the tasks that a finished shards artifact has examples of, sorted."""
    names = (re.fullmatch(r"(.+)-\d+\.tar", name) for name in artifact.manifest()["files"])
    return sorted({match[1] for match in names if match})


def decode_member(members: dict[str, bytes]) -> tuple[RegionExample, bytes]:
    """Return the example and the image bytes of what `ShardSet.read` or webdataset gives.

    Args:
        members: Contents by suffix.

    Returns:
        The example, and the bytes of its image; none for a conversation without image.

    Raises:
        ValueError: There is no json, or more than one image.
    """
    images = [
        data for suffix, data in members.items() if suffix != "json" and not suffix.startswith("__")
    ]
    if len(images) > 1 or "json" not in members:
        raise ValueError(f"an example has a json and at most one image, this has {sorted(members)}")
    example = RegionExample.from_json(members["json"])
    if bool(images) != bool(example.width):
        raise ValueError(
            f"{example.sample_id}: {len(images)} images where one is {example.width} px wide"
        )
    return example, images[0] if images else b""
