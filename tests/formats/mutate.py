"""Annotation files taken apart, changed at random and put together again: nothing may get lost."""

import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCALARS: tuple[Any, ...] = (
    None, True, -1, 0, 7, 10**30, 0.5, 1e30, -1e30, float("nan"), float("inf"),
    "", " ", "cat", "7", "../../etc/passwd", "/etc/passwd", "a.jpg", "<region3>", "</ground>",
    "<image>", "<|im_end|>", "a\u202eb", "\ud800", "x" * 30_000, "é猫", [], {}, [1, 2, 3, 4],
    [1e30, 0, 5, 5], [5, 5, -3, 9],
    [[0, 0, 9, 9]],
    ["a", ["b"]], {"a": 1},
)  # fmt: skip


def mutate_value(value: Any, rng: random.Random) -> Any:
    """The value with one thing in it changed, somewhere: replaced, dropped, repeated or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.12:
            return {k: v for k, v in value.items() if k != key}
        changed = dict(value)
        changed[key] = rng.choice(SCALARS) if kind < 0.35 else mutate_value(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.08:
            return value[:at] + value[at + 1 :]
        if kind < 0.16:
            return [*value[: at + 1], value[at], *value[at + 1 :]]
        return [*value[:at], mutate_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(SCALARS)


def mutate_record(document: Any, rng: random.Random) -> Any:
    """The document with one of its records changed; now and then something else is changed."""
    members = document.items() if isinstance(document, dict) else ()
    lists = {key: value for key, value in members if isinstance(value, list) and value}
    if rng.random() < 0.12 or not (lists or (isinstance(document, list) and document)):
        return mutate_value(document, rng)
    if lists:
        key = rng.choice(sorted(lists))
        return {**document, key: mutate_record(document[key], rng)}
    at = rng.randrange(len(document))
    return [*document[:at], mutate_value(document[at], rng), *document[at + 1 :]]


def _json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(mutate_record(json.loads(data), rng)).encode()


def _jsonl(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutate_value(json.loads(lines[at]), rng)).encode()
    return b"\n".join(lines) + b"\n"


def _text(data: bytes, rng: random.Random) -> bytes:
    """Lines of a text file: bytes changed, cut, repeated, put in."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    kind = rng.random()
    place = rng.randrange(len(line) + 1)
    if kind < 0.25:
        line = (
            line[:place]
            + rng.choice([b"\xff", b"\x00", b",", b"nan", b"1e30", b"<region1>", b"-"])
            + line[place:]
        )
    elif kind < 0.5:
        line = line[:place]
    elif kind < 0.75:
        cells = line.split(b",")
        cells[rng.randrange(len(cells))] = rng.choice(
            [b"", b"x", b"-5", b"1e30", b"nan", b"999999999999999999999"]
        )
        line = b",".join(cells)
    else:
        lines.insert(at, line)
    lines[at] = line
    return b"\n".join(lines)


def _tsv(data: bytes, rng: random.Random) -> bytes:
    """A line ``key <tab> JSON``: the JSON, or the key, is changed."""
    lines = data.split(b"\n")
    full = [i for i, line in enumerate(lines) if b"\t" in line]
    at = rng.choice(full)
    key, _, cell = lines[at].partition(b"\t")
    if rng.random() < 0.2:
        key = rng.choice([b"", b"x", b"-1", b"99999999999", b"1e9"])
    else:
        try:
            cell = json.dumps(mutate_value(json.loads(cell), rng)).encode()
        except ValueError:  # base64, not JSON
            cell = cell[: rng.randrange(len(cell))]
    lines[at] = key + b"\t" + cell
    return b"\n".join(lines)


def _pickle(data: bytes, rng: random.Random) -> bytes:
    return pickle.dumps(mutate_record(pickle.loads(data), rng), protocol=2)


def _parquet(data: bytes, rng: random.Random) -> bytes:
    """One cell, or part of one, changed where its type allows it; other types: a wrong file."""
    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    at = rng.randrange(len(rows))
    for _ in range(20):
        changed = [*rows[:at], mutate_value(rows[at], rng), *rows[at + 1 :]]
        try:
            made = pa.Table.from_pylist(changed, schema=table.schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            continue
        sink = io.BytesIO()
        pq.write_table(made, sink, row_group_size=max(1, len(rows) // 2))
        return sink.getvalue()
    return data


def _tar(data: bytes, rng: random.Random) -> bytes:
    """One JSON member changed, or a member's name."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=sink, mode="w") as new:
        members = [(info, old.extractfile(info)) for info in old]
        contents = [(info, stream.read() if stream else b"") for info, stream in members]
        chosen = rng.randrange(len(contents))
        for number, (info, content) in enumerate(contents):
            changed = content
            if number == chosen and content[:1] == b"{":  # JSON: a renamed member may not be
                changed = _json(content, rng)
            elif number == chosen and rng.random() < 0.5:
                info.name = rng.choice(["../evil.jpg", "/etc/evil.jpg", "x.json", info.name])
            info.size = len(changed)
            new.addfile(info, io.BytesIO(changed))
    return sink.getvalue()


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "jsonl": _jsonl, "text": _text, "tsv": _tsv, "pickle": _pickle,
    "parquet": _parquet, "tar": _tar,
}  # fmt: skip


def mutate_file(path: Path, kind: str, rng: random.Random) -> None:
    """Change a file in one to three places."""
    data = path.read_bytes()
    for _ in range(rng.randint(1, 3)):
        data = KINDS[kind](data, rng)
    path.write_bytes(data)
