"""Rows of one stream, sorted into buckets on local disk.

Memory stays the same however many rows there are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

SPILL_ROWS = 20_000
"""Rows kept in memory before they are appended to the bucket files; about 40 MB."""


class Spill:
    """Rows by kind and bucket, in memory up to a limit and beyond it in local JSON lines."""

    def __init__(self, folder: Path, buckets: Collection[int]) -> None:
        self._folder, self._buckets = folder, buckets
        self._lines: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._held = 0

    def add(self, kind: str, bucket: int, row: Mapping[str, Any]) -> None:
        """Keep a row of some kind, unless its bucket is none of ours."""
        if bucket not in self._buckets:  # a resumed run streams everything, but lacks only some
            return
        self._lines[kind, bucket].append(json.dumps(row))
        self._held += 1
        if self._held >= SPILL_ROWS:  # all files at once: one open a bucket for many rows
            for (name, number), lines in self._lines.items():
                with self._path(name, number).open("a", encoding="utf-8") as stream:
                    stream.writelines(f"{line}\n" for line in lines)
            self._lines.clear()
            self._held = 0

    def rows(self, kind: str, bucket: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of one kind and bucket, in the order they were added."""
        path = self._path(kind, bucket)
        if path.exists():
            with path.open(encoding="utf-8") as stream:
                yield from map(json.loads, stream)
        yield from map(json.loads, self._lines.get((kind, bucket), []))

    def _path(self, kind: str, bucket: int) -> Path:
        return self._folder / f"{kind}-{bucket:05d}.jsonl"
