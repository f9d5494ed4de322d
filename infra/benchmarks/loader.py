"""Examples a second of the loader, against webdataset and against a bare read of the same tars.

    python infra/benchmarks/loader.py [--examples 2048] [--rounds 5] > REPORT.md

Shards of images of COCO's size (640 x 480 JPEG, about 150 kB) with sixty boxes and a question each
lie in the page cache, so what is compared is work, not a disk.

Without decoding: `tarfile` walks the tars and reads every member; webdataset yields the members of
each example; we find each position in the plan and read its members, in the plan's shuffled order,
which the other two do not have. With decoding: JPEG to RGB tensor, JSON to boxes and messages,
batches of 16; webdataset in a DataLoader of torch, we in `pipelines.loading.loader`. Best of
several alternating rounds, each over every example once; a pass with processes begins when its
first batch is there, for a run starts them once.
"""

import argparse
import datetime
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from pipelines.artifacts import Artifact
from pipelines.example_image import view
from pipelines.loading.collators import Example
from pipelines.loading.loader import Loader
from pipelines.loading.sample_plan import SamplePlan
from pipelines.schemas import RegionExample
from pipelines.shards.tar_format import ShardSet, TarWriter

BATCH = 16
PER_SHARD = 256
SIZE = (640, 480)
BOXES = 60
SOURCE = "coco/detection"


def jpeg(rng: np.random.Generator) -> bytes:
    """Return an image as large as COCO's, in pixels and in bytes."""
    coarse = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noisy).save(sink, "JPEG", quality=88)
    return sink.getvalue()


def record(number: int, rng: np.random.Generator) -> RegionExample:
    corners = rng.uniform(0, 400, (BOXES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 80, corners.shape)], 1).astype(
        np.float32
    )
    slots = "".join(f"<region{i}><regionfeat>" for i in range(BOXES))
    answer = "<ground>zebra</ground><objects><region3><region7></objects>"
    return RegionExample(
        sample_id=f"coco:detection:{number:08d}",
        dataset="coco",
        task="detection",
        image_id=str(number),
        width=SIZE[0],
        height=SIZE[1],
        boxes=boxes,
        scores=tuple(rng.uniform(0, 1, BOXES).tolist()),
        box_sources=("proposal",) * BOXES,
        messages=(
            {"role": "user", "content": f"<image>\n{slots}\nPlease detect zebra in this image."},
            {"role": "assistant", "content": answer},
        ),
        targets=({"text": "zebra", "regions": [3, 7], "boxes": boxes[[3, 7]].tolist()},),
    )


def write_shards(root: Path, number: int) -> Artifact:
    artifact = Artifact(root=str(root), kind="shards", name="coco", fingerprint="0" * 16)
    rng = np.random.default_rng(0)
    images = [jpeg(rng) for _ in range(64)]
    files = {}
    for shard, first in enumerate(range(0, number, PER_SHARD)):
        writer = TarWriter()
        for index in range(first, min(first + PER_SHARD, number)):
            writer.add(record(index, rng), images[index % len(images)])
        name = f"detection-{shard:05d}"
        tar, rows = writer.finish()
        artifact.write_bytes(f"{name}.tar", tar)
        artifact.write_bytes(f"{name}.index.parquet", rows)
        files[f"{name}.tar"] = {"rows": len(writer)}
    artifact.commit({"files": files})
    return artifact


def pixels(image: Image.Image) -> torch.Tensor:
    """Return the image as uint8[H, W, 3]."""
    return torch.from_numpy(np.array(image))


class Decoded:
    """A collator that decodes, and leaves out what models do with the result."""

    packs = False

    def encode(self, example: Example) -> tuple[torch.Tensor, torch.Tensor, str]:
        image, boxes = view(example.record, example.image)
        question = example.record.messages[0]["content"]
        return pixels(image), torch.from_numpy(boxes), question  # type: ignore[arg-type]

    def length(self, encoded: Any) -> int:  # noqa: ARG002
        return 1

    def collate(self, encoded: Sequence[Any]) -> list[Any]:
        return list(encoded)

    def weigh(self, batch: list[Any]) -> float:
        return len(batch)


def decoded_member(members: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Do the same work on what webdataset gives."""
    value = json.loads(members["json"])
    boxes = torch.from_numpy(np.asarray(value["boxes"], np.float32))
    return (
        pixels(Image.open(io.BytesIO(members["jpg"])).convert("RGB")),
        boxes,
        value["messages"][0]["content"],
    )


class Readers:
    """Every way to go once over the shards; each yields numbers of examples as they arrive."""

    def __init__(self, artifact: Artifact, shuffle_shards: int) -> None:
        self.source = ShardSet(artifact, "detection")
        self.number = self.source.num_examples
        sizes = {SOURCE: [count for _, count in self.source.shards]}
        self.plan = SamplePlan(sizes, {SOURCE: 1.0}, seed=0, shuffle_shards=shuffle_shards)
        self.tars = [artifact.uri(name) for name, _ in self.source.shards]

    def bare(self) -> Iterator[int]:
        for path in self.tars:
            with tarfile.open(path) as tar:
                for member in tar:
                    tar.extractfile(member).read()  # type: ignore[union-attr]
                    yield member.name.endswith(".json")

    def web(self) -> Iterator[int]:
        for _ in self._web():
            yield 1

    def ours(self) -> Iterator[int]:
        for position in range(self.number):
            draw = self.plan[position]
            self.source.read(self.source.shards[draw.shard][0], draw.index)
            yield 1

    def web_decoded(self, processes: int) -> Iterator[int]:
        dataset = self._web().map(decoded_member).batched(BATCH, collation_fn=list)
        spawn = "spawn" if processes else None
        for batch in DataLoader(
            dataset, batch_size=None, num_workers=processes, multiprocessing_context=spawn
        ):
            yield len(batch)

    def ours_decoded(self, processes: int) -> Iterator[int]:
        loader = Loader(
            self.plan,
            {SOURCE: self.source},
            collator=Decoded(),
            batch_size=BATCH,
            micro_batch_size=BATCH,
            prefetch_steps=0,
            processes=processes,
        )
        for data in loader.steps(0, self.number // BATCH):
            yield sum(len(micro.batch) for micro in data.micro_batches)

    def _web(self) -> webdataset.WebDataset:
        # No cut of a batch at a worker's end: shards are split evenly over workers.
        return webdataset.WebDataset(self.tars, shardshuffle=False, empty_check=False)


def rate(read: Iterator[int], *, from_first: bool) -> float:
    """Return examples a second; `from_first`: of those after the first that arrives."""
    start, counted = time.perf_counter(), 0
    for number, arrived in enumerate(read):
        if from_first and number == 0:
            start = time.perf_counter()
        else:
            counted += arrived
    return counted / (time.perf_counter() - start)


def best(
    ways: dict[str, Callable[[], Iterator[int]]], rounds: int, *, from_first: bool
) -> dict[str, float]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(rate(way(), from_first=from_first))
    return {name: max(values) for name, values in rates.items()}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--shuffle-shards", type=int, default=4)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    print(f"# The loader ({datetime.date.today()})\n")
    cpu = platform.processor() or platform.machine()
    print(f"{os.cpu_count()} CPUs ({cpu}), Python {platform.python_version()}, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f} at the start.")
    with tempfile.TemporaryDirectory() as name:
        readers = Readers(write_shards(Path(name), options.examples), options.shuffle_shards)
        megabytes = sum(Path(path).stat().st_size for path in readers.tars) / 2**20
        print(
            f"{readers.number} examples in {len(readers.tars)} tars of {megabytes:.0f} MiB in all",
            end="; ",
        )
        print(
            f"{options.shuffle_shards} shards shuffled together; best of {options.rounds} rounds.\n"
        )
        print("## Without decoding, examples a second\n")
        ways = {"bare tar read": readers.bare, "webdataset": readers.web, "ours": readers.ours}
        found = best(ways, options.rounds, from_first=False)
        row = [f"{value:,.0f}" for value in found.values()]
        row += [
            f"**{found['ours'] / found[other]:.2f}**" for other in ("webdataset", "bare tar read")
        ]
        print(table([*found, "ours / webdataset", "ours / bare tar read"], [row]), flush=True)
        print("\n## With decoding, examples a second\n")
        rows = []
        for processes in options.processes:
            found = best(
                {
                    "webdataset": lambda n=processes: readers.web_decoded(n),  # type: ignore[misc]
                    "ours": lambda n=processes: readers.ours_decoded(n),  # type: ignore[misc]
                },
                options.rounds,
                from_first=processes > 0,
            )
            ratio = found["ours"] / found["webdataset"]
            rows.append(
                [str(processes), *(f"{v:,.0f}" for v in found.values()), f"**{ratio:.2f}**"]
            )
        print(table(["processes", "webdataset", "ours", "ours / webdataset"], rows))


if __name__ == "__main__":
    main()
