"""What one bucket of shards is collected into: a tar and an index a task, rejects, counters.

The counters are those of the ledger that `pipelines.shards.write` documents.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pyarrow as pa

from dataset_builders.records import REJECT_SCHEMA, Reject, reject_to_row
from pipelines.artifacts import Content, parquet_bytes
from pipelines.example_image import shrink
from pipelines.row_accounting import add_ledgers, entry
from pipelines.schemas import RegionExample
from pipelines.shards.tar_format import TarWriter

_TAGS = re.compile(r"<region(?:\d+|feat)>|</?(?:ground|objects)>")
_SIZES = ("text_chars", "region_tags", "pixels")


class BucketWriter:
    """The tars, rejects and counters of one bucket, in memory.

    Rows have one of two origins: ``samples``, or ``rejection`` for samples made of those.
    """

    def __init__(self, max_side_px: int | None = None) -> None:
        self._max_side_px = max_side_px
        self._tars: dict[str, TarWriter] = {}
        self._seen: set[object] = set()
        self._rejects: list[Reject] = []
        self._rows_in: Counter[str] = Counter()
        self._rows_out: Counter[str] = Counter()
        self._reasons: dict[str, list[str]] = {"samples": [], "rejection": []}
        zeros: dict[str, Any] = dict.fromkeys(("objects", "matched", "regions", "injected"), 0)
        by_task: dict[str, Any] = {name: {} for name in ("examples", *_SIZES, "regions_histogram")}
        self._counters = {**zeros, **by_task}

    def begin(self, origin: str, rows: int = 1) -> None:
        """Count rows in; `add` or `reject` must follow for each."""
        self._rows_in[origin] += rows

    def add(self, origin: str, example: RegionExample, image: bytes, rows: int = 1) -> None:
        """Write an example.

        Args:
            origin: ``samples`` or ``rejection``.
            example: The example.
            image: Bytes of its image file; empty for a conversation without image.
            rows: Rows that it was made of.
        """
        if self._max_side_px is not None and image:
            example, image = shrink(example, image, self._max_side_px)
        self._tars.setdefault(example.task, TarWriter()).add(example, image)
        self._rows_out[origin] += rows
        tens = len(example.boxes) // 10 * 10
        self.count(
            {
                "regions": len(example.boxes),
                "injected": sum(score is None for score in example.scores),
                "examples": {example.task: 1},
                **_size(example),
                "regions_histogram": {f"{tens:03d}-{tens + 9:03d}": 1},
            }
        )

    def reject(self, origin: str, reject: Reject) -> None:
        """Leave a row out, with its reason."""
        self._rejects.append(reject)
        self._reasons[origin].append(reject.reason)

    def is_new(self, view: object) -> bool:
        """Return whether an image or window comes for the first time."""
        new = view not in self._seen
        self._seen.add(view)
        return new

    def count(self, counters: dict[str, Any]) -> None:
        """Add to the counters of the ledger."""
        self._counters = add_ledgers(self._counters, counters)

    def ledger(self) -> dict[str, Any]:
        """Return the ledger of the bucket."""
        rows = {
            o: entry(self._rows_in[o], self._rows_out[o], reasons)
            for o, reasons in self._reasons.items()
        }
        return {**rows["samples"], "rejection": rows["rejection"], **self._counters}

    def files(self, bucket: int) -> tuple[dict[str, Content], dict[str, int]]:
        """Return the contents of the bucket's files by name, and the number of rows of some."""
        rejects = pa.Table.from_pylist(
            [reject_to_row(r) for r in self._rejects], schema=REJECT_SCHEMA
        )
        files: dict[str, Content] = {f"rejects-{bucket:05d}.parquet": parquet_bytes(rejects)}
        counts = {f"rejects-{bucket:05d}.parquet": len(self._rejects)}
        for task, tar in sorted(self._tars.items()):
            counts[f"{task}-{bucket:05d}.tar"] = len(tar)
            files[f"{task}-{bucket:05d}.tar"], files[f"{task}-{bucket:05d}.index.parquet"] = (
                tar.finish()
            )
        return files, counts


def _size(example: RegionExample) -> dict[str, dict[str, int]]:
    """Return what an example costs, by task: plain characters, region tags, pixels seen."""
    text = "".join(message["content"] for message in example.messages)
    plain, num_tags = _TAGS.subn("", text)
    x1, y1, x2, y2 = example.window or (0, 0, example.width, example.height)
    values = (len(plain), num_tags, (x2 - x1) * (y2 - y1))
    return {name: {example.task: value} for name, value in zip(_SIZES, values, strict=True)}
