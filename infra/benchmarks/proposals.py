"""The proposal graph on Ray with one worker, against a hand-written loop over the same images.

    python infra/benchmarks/proposals.py [--images 192] [--rounds 3] > REPORT.md
    python infra/benchmarks/proposals.py --gpu [--images 4096] > REPORT.md

The loop is what one would write by hand: a `DataLoader` that decodes and letterboxes, the same
network in the same batches, the same selection; in a single process, and once more with a loader
process beside it. The graph is `pipelines.proposals.generate.propose`, bytes on disk and all. Both
see the same JPEG images of COCO's size (640 x 480, about 150 kB). The network costs about 100 ms an
image on one core: an OPN of the tiny size whose square is enlarged.

Images a second are those of the steady state, from the first slice that comes back to the last.
Start-up (a cluster, processes, imports, weights) is a column of its own, and so is what a row costs
beyond decoding: the graph against a bare loop with a detector that only makes up boxes. Rounds
alternate; the best of each counts.

--gpu: `swin_tiny` at 640 px in bfloat16, its decoding on helper processes, against an eager loop
with a DataLoader of as many processes; the share of the time in which the GPU was busy is sampled
by nvidia-smi.
"""

import argparse
import datetime
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from build_and_shard import made, table, write_images
from torch.utils.data import DataLoader, Dataset

from dataset_builders import DataFolders
from dataset_builders.images import decode_image
from fo1_model.detectors import (
    BoxFileConfig,
    Detector,
    DetectorConfig,
    DetectorInput,
    OPNDetectorConfig,
    Prepared,
    as_known,
    build_detector,
)
from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.network import new_opn, save_opn
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.proposals import generate
from pipelines.proposals.detector_inputs import Supply
from pipelines.proposals.workers import SLICE

CPU_SIDE_PX = 576
"""Square of the enlarged tiny OPN: about 100 ms an image on one core of 2025."""


class Images(Dataset):
    """The images of the hand-written loop, prepared for its detector."""

    def __init__(self, paths: list[Path], detector: Detector) -> None:
        self.paths, self.prepare = paths, detector.prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Prepared:
        path = self.paths[index]
        image = decode_image(path.read_bytes())
        return self.prepare(
            DetectorInput(image_id=path.stem, image=image, known=as_known([[9, 9, 99, 99]]))
        )


def loop_seconds(detector: Detector, paths: list[Path], loader_processes: int) -> tuple[float, int]:
    """Return the loop's seconds from its first batch to its last, and the images in them."""
    loader = DataLoader(
        Images(paths, detector),
        batch_size=SLICE,
        num_workers=loader_processes,
        collate_fn=list,
        multiprocessing_context="spawn" if loader_processes else None,
    )
    found, first = {}, 0.0
    for batch in loader:
        for item, detections in zip(batch, detector.detect(batch), strict=True):
            found[item.image_id] = (detections.boxes.tolist(), detections.scores.tolist())
        first = first or time.perf_counter()
    return time.perf_counter() - first, len(found) - SLICE


class Graph:
    """Runs of `propose` over the images, each into a new artifact."""

    def __init__(self, data: Path, root: Path, *, workers: int) -> None:
        self.data, self.root = data, root
        self.runtime = RuntimeConfig(root=str(root), data=str(data), workers=workers)
        self.samples: Artifact | None = None
        self.rounds = 0

    def seconds(
        self, detector: DetectorConfig, supplies: tuple[Supply, ...]
    ) -> tuple[float, int, float]:
        """Return seconds after the first slice, images in them, and seconds until that slice."""
        folders = DataFolders(str(self.data))
        config = generate.ProposalsConfig(image_source="coco", detector=detector)
        inputs = generate.proposals_inputs(config, folders, self.root / "digests", supplies)
        self.rounds += 1
        output = made("proposals", f"coco/{self.rounds}", generate, config, inputs, str(self.root))
        arrivals: list[tuple[float, int]] = []
        run_stages = generate.run_stages

        def timed(*args, **options) -> Iterator:
            for found in run_stages(*args, **options):
                arrivals.append((time.perf_counter(), found.num_rows))
                yield found

        generate.run_stages = timed
        start = time.perf_counter()
        try:
            generate.propose(
                config,
                output,
                folders=folders,
                runtime=self.runtime,
                inputs=inputs,
                supplies=supplies,
            )
        finally:
            generate.run_stages = run_stages
        first = arrivals[0][0]
        return time.perf_counter() - first, sum(rows for _, rows in arrivals[1:]), first - start


def best(
    measure: Callable[[], tuple[float, ...]], before: tuple[float, ...] | None
) -> tuple[float, ...]:
    """Return the faster of a new measurement (seconds, images, ...) and the one before."""
    new = measure()
    return new if before is None or new[1] / new[0] > before[1] / before[0] else before


def compare(
    detector: Detector,
    paths: list[Path],
    graph: Graph,
    supplies: tuple[Supply, ...],
    rounds: int,
    loaders: int,
) -> list[list[str]]:
    """Return the report's rows: the loop alone, the loop with loader processes, the graph."""
    alone = beside = ours = None
    for _ in range(rounds):
        alone = best(lambda: loop_seconds(detector, paths, 0), alone)
        beside = best(lambda: loop_seconds(detector, paths, loaders), beside)
        config = detector.config  # type: ignore[attr-defined]
        ours = best(lambda c=config: graph.seconds(c, supplies), ours)  # type: ignore[misc]
    base = alone[1] / alone[0]
    rows = []
    for name, (seconds, images, *start) in (
        ("loop, one process", alone),
        (f"loop, {loaders} loader processes", beside),
        ("graph, one worker", ours),
    ):
        rate = images / seconds
        begin = f"{start[0]:.1f}" if start else "-"
        rows.append([name, f"{rate:.2f}", f"{1e3 / rate:.1f}", f"**{rate / base:.2f}**", begin])
    return rows


HEADER = ["", "images/s", "ms an image", "of the loop in one process", "start-up, s"]


def busy_shares(stop: threading.Event, shares: list[float]) -> None:
    """Sample how busy the first GPU is, five times a second."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    while not stop.wait(0.2):
        shown = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        shares += [float(value) / 100 for value in shown]


def gpu_report(folder: Path, paths: list[Path], rounds: int, size: str) -> str:
    """Compare the graph, decoding on helpers, with an eager loop: swin_tiny in bfloat16."""
    network = folder / "network"
    save_opn(new_opn(OPN_SIZES[size](), 0), network)
    config = OPNDetectorConfig(precision="bf16")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    graph = Graph(folder / "data", folder / "out", workers=1)
    detector = build_detector(config, str(network), device)
    loaders = max(1, (os.cpu_count() or 2) - 2)
    stop, shares = threading.Event(), []
    ours = None
    rows = compare(detector, paths, graph, (str(network),), rounds, loaders)
    if device == "cuda":
        sampler = threading.Thread(target=busy_shares, args=(stop, shares))
        sampler.start()
        ours = graph.seconds(config, (str(network),))
        stop.set()
        sampler.join()
    busy = f"{sum(shares) / len(shares):.0%}" if shares else "not measured"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    note = f"GPU busy during the graph, start-up included: {busy}" + (
        f" ({ours[2]:.0f} s of it)" if ours else ""
    )
    return f"`{size}`, bfloat16, {name}\n\n{table(HEADER, rows)}\n\n{note}"


def cpu_report(folder: Path, paths: list[Path], rounds: int, side: int) -> str:
    """Compare with a network of about 100 ms an image, then with a detector that costs nothing."""
    network = folder / "network"
    save_opn(new_opn(replace(OPN_SIZES["tiny"](), image_size=side), 0), network)
    graph = Graph(folder / "data", folder / "out", workers=1)
    heavy = build_detector(OPNDetectorConfig(), str(network))
    rows = compare(heavy, paths, graph, (str(network),), rounds, 1)
    boxes = folder / "boxes.jsonl"
    boxes.write_text(
        "".join(f'{{"image": "{p.name}", "boxes": [[9, 9, 99, 99]]}}\n' for p in paths)
    )
    free = compare(build_detector(BoxFileConfig()), paths, graph, (str(boxes),), rounds, 1)
    beyond = float(free[2][2]) - float(free[0][2])
    return (
        f"## A network of about 100 ms an image ({side} px)\n\n{table(HEADER, rows)}\n\n"
        f"## What a row costs: boxes from a file, images decoded\n\n{table(HEADER, free)}\n\n"
        f"Beyond the loop a row costs {beyond:.1f} ms, start-up apart."
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--side", type=int, default=CPU_SIDE_PX, help="square of the network on a CPU, px"
    )
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--size", default="swin_tiny", help="of the network on a GPU")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fo1-proposals-") as name:
        folder = Path(name)
        write_images(folder / "data", options.images)
        paths = sorted((folder / "data").rglob("*.jpg"))
        if options.gpu:
            text = gpu_report(folder, paths, options.rounds, options.size)
        else:
            text = cpu_report(folder, paths, options.rounds, options.side)
    cpu = platform.processor() or platform.machine()
    command = f"--gpu --images {options.images}" if options.gpu else f"--images {options.images}"
    print(f"# Proposals: the graph against a hand-written loop ({datetime.date.today()})\n")
    print(
        f"{os.cpu_count()} CPUs ({cpu}), Python {platform.python_version()}, "
        f"torch {torch.__version__}."
    )
    print(f"`python infra/benchmarks/proposals.py {command} --rounds {options.rounds}`\n\n{text}")


if __name__ == "__main__":
    main()
