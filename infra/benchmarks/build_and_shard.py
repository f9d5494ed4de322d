"""Building samples from a big COCO file, and writing shards, against the least that has to be done.

    python infra/benchmarks/build_and_shard.py [--annotations 1000000] [--images 512] > REPORT.md

Build: a generated COCO-form JSON is read into samples by the builder, in a process of its own:
samples a second and peak memory, for the whole file and for a tenth of it (memory should not grow
with the file).

Shards: images of COCO's size (640 x 480 JPEG, about 150 kB) with seven boxes and sixty proposals
each become shards on one worker, three questions an example as the recipes do it, and one. Beside
it, in the same process, a bare `tarfile` loop writes the very same members: it reads each image
from its file and takes the JSON from memory. Both write to the same disk; the best of several
alternating rounds counts. Time for making samples and proposals and for imports is not part of
either.
"""

import argparse
import datetime
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_builders import DATASETS, BuildOptions, DataFolders
from fo1_model.detectors import GroundTruthJitterConfig, Selection
from pipelines import samples
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.fingerprints import fingerprint
from pipelines.proposals import generate
from pipelines.shards import write
from pipelines.shards.tar_format import ShardSet, tasks_of
from pipelines.shards.worker import ShardWorker

BOXES = 7
SIZE = (640, 480)
NAMES = [f"thing {chr(97 + i // 10)}{i % 10}" for i in range(80)]


def write_coco(folder: Path, num_annotations: int) -> Path:
    """Write a COCO-form file of so many annotations with polygons, as a stream."""
    path = folder / "coco" / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True)
    (folder / "coco" / "train2017").mkdir()
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        stream.write('{"info": {}, "images": [')
        for image in range(num_annotations // BOXES + 1):
            record = {
                "id": image,
                "file_name": f"{image:012d}.jpg",
                "width": SIZE[0],
                "height": SIZE[1],
                "license": 1,
            }
            stream.write((", " if image else "") + json.dumps(record))
        stream.write('], "annotations": [')
        for number in range(num_annotations):
            x, y, w, h = (
                round(float(v), 2) for v in rng.uniform((0, 0, 20, 20), (500, 360, 140, 120))
            )
            record = {
                "id": number,
                "image_id": number // BOXES,
                "category_id": int(rng.integers(1, 81)),
                "bbox": [x, y, w, h],
                "area": round(w * h, 2),
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            stream.write((", " if number else "") + json.dumps(record))
        stream.write('], "categories": ')
        stream.write(
            json.dumps([{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]) + "}"
        )
    return path


def measure_build(folder: Path) -> None:
    """Build, and print samples, seconds, peak memory in MiB and memory after imports.

    Runs in a process of its own, so that the peak is that of the build.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    number = sum(1 for _ in DATASETS["coco"].samples(DataFolders(str(folder)), BuildOptions()))
    seconds = time.perf_counter() - start
    print(number, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before)


def build_row(num_annotations: int) -> list[str]:
    """Return the report's row of a build of so many annotations."""
    with tempfile.TemporaryDirectory() as name:
        path = write_coco(Path(name), num_annotations)
        command = [sys.executable, __file__, "--measure-build", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        number, seconds, peak, before = map(float, done.stdout.split())
        return [
            f"{num_annotations:,}",
            f"{path.stat().st_size / 2**20:.0f}",
            f"{number:,.0f}",
            f"{seconds:.1f}",
            f"{number / seconds:,.0f}",
            f"{num_annotations / seconds:,.0f}",
            f"{peak - before:.0f}",
        ]


def write_images(folder: Path, number: int) -> None:
    """Write images as large as COCO's, in pixels and in bytes, with boxes in a COCO file."""
    write_coco(folder, number * BOXES - 1)
    rng = np.random.default_rng(1)
    for image in range(number):
        coarse = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)).astype(
            np.int16
        )
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "coco" / "train2017" / f"{image:012d}.jpg", quality=88)


def made(
    kind: str, name: str, module: object, config: object, inputs: dict[str, str], root: str
) -> Artifact:
    """Return an artifact of a step's module, config and inputs, not yet made."""
    version = module.VERSION  # type: ignore[attr-defined]
    key = fingerprint(kind=kind, version=version, config=config, inputs=inputs)
    return Artifact(root=root, kind=kind, name=name, fingerprint=key)


class Prepared:
    """Samples and proposals of the images, finished, so that only the shards are timed."""

    def __init__(self, data: Path, root: Path) -> None:
        self.folders, self.root = DataFolders(str(data)), str(root)
        runtime = RuntimeConfig(root=self.root, data=str(data), workers=0)
        config = samples.SamplesConfig(dataset="coco")
        inputs = samples.samples_inputs(config, self.folders, root / "digests")
        self.samples = made("samples", "coco", samples, config, inputs, self.root)
        samples.build_samples(
            config, self.samples, folders=self.folders, runtime=runtime, inputs=inputs
        )
        detector = GroundTruthJitterConfig(num_distractors=60, selection=Selection(max_boxes=60))
        found = generate.ProposalsConfig(image_source="coco", detector=detector)
        supplies = (self.samples,)
        inputs = generate.proposals_inputs(found, self.folders, root / "digests", supplies)
        self.proposals = made("proposals", "coco/jitter", generate, found, inputs, self.root)
        generate.propose(
            found,
            self.proposals,
            folders=self.folders,
            runtime=runtime,
            inputs=inputs,
            supplies=supplies,
        )

    def shards(self, config: write.ShardsConfig, number: int) -> tuple[float, Artifact]:
        """Return one worker's seconds for all buckets, and the artifact, which has no manifest."""
        inputs = {"round": str(number)}
        output = made("shards", "coco", write, config, inputs, self.root)
        num_buckets = int(self.samples.manifest()["buckets"])
        # Called as the job calls it, but without the graph: one worker in this process.
        quotas = write._quotas(config, self.samples, num_buckets)
        found = {"coco": self.proposals}
        start = time.perf_counter()
        worker = ShardWorker(config, self.samples, found, output, self.folders, {}, quotas)
        for bucket in range(num_buckets):
            worker(bucket)
        seconds = time.perf_counter() - start
        output.commit_buckets(
            version=write.VERSION, config=config, inputs=inputs, num_buckets=num_buckets
        )
        return seconds, output

    def members(self, output: Artifact) -> dict[str, list[tuple[str, Path, str, bytes]]]:
        """Return of each tar the image's name in it, its file, the JSON's name and its bytes."""
        listed: dict[str, list[tuple[str, Path, str, bytes]]] = {}
        for task in tasks_of(output):
            source = ShardSet(output, task)
            for name, count in source.shards:
                index = output.read_table(name.replace(".tar", ".index.parquet")).to_pylist()
                for row in range(count):
                    data = source.read(name, row)["json"]
                    file = self.folders.path(
                        f"coco/train2017/{int(json.loads(data)['image_id']):012d}.jpg"
                    )
                    names = index[row]["image_name"], file, index[row]["json_name"], data
                    listed.setdefault(name, []).append(names)
        return listed


def bare_loop(members: dict[str, list[tuple[str, Path, str, bytes]]], folder: Path) -> float:
    """Return the seconds that tarfile alone takes to write the same members."""
    folder.mkdir(parents=True)
    start = time.perf_counter()
    for name, listed in members.items():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image_name, file, json_name, data in listed:
                for member, content in ((image_name, file.read_bytes()), (json_name, data)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return time.perf_counter() - start


def shard_rows(num_images: int, rounds: int) -> list[list[str]]:
    """Return the report's rows of shards, for three questions an example and for one."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name) / "data", num_images)
        prepared = Prepared(Path(name) / "data", Path(name) / "root")
        for turns in (3, 1):
            config = write.ShardsConfig(turns=turns)
            ours, bare = [], []
            for number in range(rounds):
                seconds, output = prepared.shards(config, number)
                ours.append(seconds)
                members = prepared.members(output)
                bare.append(bare_loop(members, Path(name) / "bare" / f"{turns}-{number}"))
                megabytes = (
                    sum(entry["bytes"] for entry in output.manifest()["files"].values()) / 2**20
                )
                output.delete()
            examples = sum(map(len, members.values()))
            rows.append(
                [
                    str(turns),
                    str(len(members)),
                    f"{examples:,}",
                    f"{megabytes:.0f}",
                    f"{len(members) / min(ours):.1f}",
                    f"{len(members) / min(bare):.1f}",
                    f"{examples / min(ours):,.0f}",
                    f"{1e3 * (min(ours) - min(bare)) / examples:.2f}",
                    f"**{min(bare) / min(ours):.2f}**",
                ]
            )
    return rows


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a markdown table; all columns but the first are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure-build", type=Path)
    options = parser.parse_args(words)
    if options.measure_build is not None:
        measure_build(options.measure_build)
        return
    print(f"# Samples from a big COCO file, and shards ({datetime.date.today()})\n")
    cpu = platform.processor() or platform.machine()
    print(f"{os.cpu_count()} CPUs ({cpu}), Python {platform.python_version()}.")
    arguments = f"--annotations {options.annotations} --images {options.images}"
    print(f"`python infra/benchmarks/build_and_shard.py {arguments}`\n")
    print("## Build\n")
    header = [
        "annotations",
        "file, MiB",
        "samples",
        "s",
        "samples/s",
        "annotations/s",
        "memory beyond imports, MiB",
    ]
    print(
        table(
            header,
            [build_row(number) for number in (options.annotations // 10, options.annotations)],
        ),
        flush=True,
    )
    print("\n## Shards, one worker, against a bare `tarfile` loop over the same bytes\n")
    header = [
        "questions an example",
        "shards",
        "examples",
        "MiB",
        "shards/s",
        "bare shards/s",
        "examples/s",
    ]
    header += ["beyond bare, ms an example", "share of bare"]
    print(table(header, shard_rows(options.images, options.rounds)))


if __name__ == "__main__":
    main()
