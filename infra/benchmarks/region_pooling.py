"""Time and peak extra memory of exact region pooling against resize, concatenate and RoIAlign.

    python infra/benchmarks/region_pooling.py > infra/benchmarks/reports/DATE-region-pooling.md
    python infra/benchmarks/region_pooling.py --device cuda

One image, DaViT's four maps as float32 noise, boxes with sides log-uniform from 12 px to the
image's. The reference is the release's way: maps resized to the finest grid, concatenated, RoIAlign
7x7 with adaptive sampling, mean. Every measurement comes from a process of its own with one thread.
Time is CPU time, or on a GPU wall time. Memory is the growth of the highest resident size above
what the inputs take (Linux), or on a GPU that of torch's allocations.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIANTS = ("fast", "reference")
PASSES = ("forward", "forward and backward")
STRIDES = (4, 8, 16, 32)
RELEASE: dict[str, Any] = {"output_size": 7, "aligned": False, "sampling_ratio": -1}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant at one size in this process: seconds and extra bytes.

    The pooled features go to a file.
    """
    import numpy as np
    import torch

    torch.set_num_threads(1)
    side, backward = given.sides[0], given.measure[1] == PASSES[1]
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(dim, math.ceil(side / stride), math.ceil(side / stride), generator=generator)
        for dim, stride in zip(given.dims, STRIDES, strict=True)
    ]
    levels = [level.to(given.device).requires_grad_(backward) for level in levels]
    boxes = random_boxes(given.boxes, side, generator).to(given.device) / STRIDES[0]
    pool = pooling(given.measure[0])

    def run(levels: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
        for level in levels:
            level.grad = None
        start = clock(given.device)
        pooled = pool(levels, boxes)
        if backward:
            pooled.sum().backward()
        return clock(given.device) - start, pooled.detach()

    # What is set up at the first call is nobody's cost.
    run([level.detach()[:, :8, :8].clone().requires_grad_(backward) for level in levels])
    extra = extra_memory(given.device)
    first, pooled = run(levels)
    grown = extra()
    np.save(given.result, pooled.cpu().numpy())
    # A run of seconds is its own warm-up.
    times = [first] if first > 2 else [run(levels)[0] for _ in range(given.repeats)]
    return {"seconds": statistics.median(times), "bytes": grown}


def pooling(variant: str) -> Callable[..., Any]:
    """Return the function that pools levels by boxes to float32[N, sum of channels].

    Boxes are in cells of the finest level.
    """
    import torch
    import torch.nn.functional as F

    from fo1_model.region_pooling import pool_levels, pool_regions_reference

    def fast(levels: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        return pool_levels(levels, boxes, grid_size=tuple(levels[0].shape[1:]), **RELEASE)

    def reference(levels: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        size = levels[0].shape[1:]
        resized = [
            F.interpolate(level[None], size=size, mode="bilinear")[0] for level in levels[1:]
        ]
        return pool_regions_reference(torch.cat([levels[0], *resized]), boxes, **RELEASE)

    return {"fast": fast, "reference": reference}[variant]


def random_boxes(count: int, side: int, generator: Any) -> Any:
    """Return float32[count, 4], xyxy in pixels, inside the image."""
    import torch

    sizes = 12 * (side / 12) ** torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (side - sizes)
    return torch.cat([corners, corners + sizes], dim=1)


def clock(device: str) -> float:
    """Return seconds: CPU time, or on a GPU wall time once its work is done."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def extra_memory(device: str) -> Callable[[], int]:
    """Start counting; what is returned gives the bytes by which the peak has since grown."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
        floor = resident("VmRSS")
        return lambda: resident("VmHWM") - floor
    import torch

    torch.cuda.reset_peak_memory_stats()
    floor = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - floor


def resident(field: str) -> int:
    """Return the bytes of a line of this process's status.

    The peak of getrusage may be that of the parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def in_own_process(
    given: argparse.Namespace, variant: str, what: str, side: int, result: Path
) -> dict:
    command = [sys.executable, __file__, "--measure", variant, what, "--result", str(result)]
    command += ["--sides", str(side), "--boxes", str(given.boxes), "--device", given.device]
    command += ["--repeats", str(given.repeats), "--dims", *map(str, given.dims)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def report(given: argparse.Namespace) -> str:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for side in given.sides:
            for what in PASSES:
                files = {variant: Path(folder, f"{variant}.npy") for variant in VARIANTS}
                fast, slow = (in_own_process(given, v, what, side, files[v]) for v in VARIANTS)
                difference = largest_difference(files["fast"], files["reference"])
                lines.append(
                    f"| {side} | {what} "
                    f"| {1e3 * slow['seconds']:.1f} | {1e3 * fast['seconds']:.1f} "
                    f"| {slow['seconds'] / fast['seconds']:.0f} | {slow['bytes'] / 2**20:.1f} "
                    f"| {fast['bytes'] / 2**20:.1f} | {slow['bytes'] / max(1, fast['bytes']):.0f} "
                    f"| {difference:.1e} |"
                )
                print(lines[-1], file=sys.stderr)
    return "\n".join([*heading(given), *lines])


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of two arrays of one shape, over the largest magnitude."""
    import numpy as np

    ours, reference = np.load(one), np.load(other)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def heading(given: argparse.Namespace) -> list[str]:
    dims = "/".join(map(str, given.dims))
    clocked = "CPU time" if given.device == "cpu" else "wall time"
    columns = [
        "side px",
        "pass",
        "reference ms",
        "fast ms",
        "time ratio",
        "reference MiB",
        "fast MiB",
    ]
    columns += ["memory ratio", "largest difference"]
    return [
        f"# Region pooling, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
        "",
        f"{machine(given.device)}.",
        f"One image, {given.boxes} boxes, float32 maps of {dims} channels at strides 4/8/16/32.",
        "Command:",
        "",
        f"    python infra/benchmarks/region_pooling.py {' '.join(given.words)}".rstrip(),
        "",
        "Reference: resize to stride 4, concatenate, RoIAlign 7x7 (adaptive sampling), mean.",
        f"One thread, a process for each measurement. Time: {clocked}. Memory: growth of the peak",
        "above the inputs; with backward it includes the maps' gradients, which both ways need.",
        "Difference: over the largest value.",
        "",
        f"| {' | '.join(columns)} |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]


def machine(device: str) -> str:
    import torch

    accelerator = "no GPU used" if device == "cpu" else torch.cuda.get_device_name()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {platform.machine()}, {accelerator}, {versions}"


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[768, 1024, 1536], help="of square images, px"
    )
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument(
        "--dims", type=int, nargs=4, default=[256, 512, 1024, 2048], help="channels, fine to coarse"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed runs of what takes under two seconds"
    )
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "PASS"), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    given.words = words
    return given


def main(words: list[str]) -> None:
    given = arguments(words)
    print(json.dumps(measure(given)) if given.measure else report(given))


if __name__ == "__main__":
    main(sys.argv[1:])
