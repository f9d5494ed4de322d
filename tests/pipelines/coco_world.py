"""A dozen pictures in COCO's layout, and the three data steps over them, for tests of the pipeline.

Run as a script it makes them in processes of their own, which tests kill half-way.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from fo1_model.detectors import GroundTruthJitterConfig, leaves
from pipelines import samples
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.fingerprints import fingerprint
from pipelines.proposals import generate
from pipelines.shards import write
from pipelines.worker_pools import map_buckets

CATEGORIES = ("red square", "blue square", "red disc", "green disc")
SIZE = (96, 80)


def write_world(root: Path, num_images: int = 12, *, broken: bool = False) -> Path:
    """Write the dataset below root/coco. Image 1 has no boxes, image 2 a crowd region.

    broken: image 3 is cut short, image 4 is missing, image 5 has another size than annotated, one
    box is NaN.
    """
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    rng = np.random.default_rng(7)
    images, annotations = [], []
    for number in range(num_images):
        name = f"{number:06d}.jpg"
        pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        path = folder / "train2017" / name
        Image.fromarray(pixels).resize((48, 40) if broken and number == 5 else SIZE).save(
            path, quality=80
        )
        images.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for corner in range(0 if number == 1 else 3):
            x, y = 2 + 30 * corner + int(rng.integers(0, 6)), int(rng.integers(2, 40))
            annotations.append(
                _annotation(len(annotations), number, int(rng.integers(1, 4)), [x, y, 22, 24.5])
            )
    annotations.append(_annotation(len(annotations), 2, 4, [10, 60, 60, 18]) | {"iscrowd": 1})
    if broken:
        data = (folder / "train2017" / "000003.jpg").read_bytes()
        (folder / "train2017" / "000003.jpg").write_bytes(data[: len(data) // 2])
        (folder / "train2017" / "000004.jpg").unlink()
        annotations.append(_annotation(len(annotations), 6, 1, [float("nan"), 2, 3, 4]))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    return folder


def _annotation(number: int, image: int, category: int, bbox: list[float]) -> dict:
    area = bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    }


class Steps:
    """build, propose and shard over the world, each with its artifact."""

    def __init__(self, data: Path, root: Path, *, workers: int = 0, **runtime) -> None:
        self.folder = str(data / "coco")
        self.folders = DataFolders(str(data))
        self.cache = str(root / "digests")
        self.runtime = RuntimeConfig(
            root=str(root / "out"), data=str(data), workers=workers, **runtime
        )
        self.samples_config = samples.SamplesConfig(dataset="coco", options=BuildOptions())
        self.detector = GroundTruthJitterConfig(num_distractors=6, jitter=0.05, seed=3)
        self.box_file: str | None = None
        self.shards_config = write.ShardsConfig()

    def artifact(self, kind: str, name: str, module, config, inputs) -> Artifact:
        version = module.VERSION
        made = fingerprint(kind=kind, version=version, config=config, inputs=inputs)
        return Artifact(root=self.runtime.root, kind=kind, name=name, fingerprint=made)

    @property
    def samples(self) -> Artifact:
        inputs = samples.samples_inputs(self.samples_config, self.folders, self.cache)
        return self.artifact("samples", "coco", samples, self.samples_config, inputs)

    @property
    def proposals_config(self) -> generate.ProposalsConfig:
        return generate.ProposalsConfig(image_source="coco", detector=self.detector)

    @property
    def proposals_inputs(self) -> dict[str, str]:
        return generate.proposals_inputs(
            self.proposals_config, self.folders, self.cache, self.supplies
        )

    @property
    def supplies(self) -> tuple:
        needs = [leaf.needs for leaf in leaves(self.detector)]
        return tuple({"objects": self.samples, "boxes": self.box_file}.get(need) for need in needs)

    @property
    def proposals(self) -> Artifact:
        config = self.proposals_config
        return self.artifact("proposals", "coco/jitter", generate, config, self.proposals_inputs)

    @property
    def _shards_proposals(self) -> dict[str, Artifact]:
        return {} if self.shards_config.regions == "ground_truth" else {"coco": self.proposals}

    @property
    def shards(self) -> Artifact:
        return self.artifact("shards", "coco", write, self.shards_config, self.shards_inputs)

    @property
    def shards_inputs(self) -> dict[str, str]:
        return write.shards_inputs(self.samples, self._shards_proposals)

    def build(self) -> dict:
        inputs = samples.samples_inputs(self.samples_config, self.folders, self.cache)
        return samples.build_samples(
            self.samples_config,
            self.samples,
            folders=self.folders,
            runtime=self.runtime,
            inputs=inputs,
        )

    def propose(self) -> dict:
        return generate.propose(
            self.proposals_config,
            self.proposals,
            folders=self.folders,
            runtime=self.runtime,
            inputs=self.proposals_inputs,
            supplies=self.supplies,
        )

    def shard(self) -> dict:
        return write.write_shards(
            self.shards_config,
            self.samples,
            self._shards_proposals,
            self.shards,
            folders=self.folders,
            runtime=self.runtime,
            inputs=self.shards_inputs,
        )


def run_and_die(step: str, data: Path, root: Path, name: str) -> None:
    """Make one step, and SIGKILL this process when file `name` is written but not yet renamed."""
    rename = Path.replace

    def replace(self: Path, target: str | Path) -> Path:
        if str(target).endswith(name):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = replace
    getattr(Steps(data, root), step)()


class SlowShardWorker(write.ShardWorker):
    """Gives a test the time to kill something."""

    def __call__(self, bucket: int) -> dict:
        ledger = super().__call__(bucket)
        time.sleep(1.0)
        return ledger


def serve() -> None:
    """Do `run_and_die` for each line of standard input, in a fork of this process.

    Answers with the exit code. This process has torch in memory: importing it for each would be
    most of the test's time.
    """
    import fo1_model.detectors.known_boxes  # noqa: F401

    for line in sys.stdin:
        step, data, root, name = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run_and_die(step, Path(data), Path(root), name)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def shard_slowly(data: str, root: str, workers: str) -> None:
    """Make the shards slowly, for a test that kills this process from outside."""

    def map_slowly(worker: type, *args: Any, **options: Any) -> Iterator[dict]:
        return map_buckets(SlowShardWorker, *args, **options)

    write.map_buckets = map_slowly
    Steps(Path(data), Path(root), workers=int(workers)).shard()


if __name__ == "__main__":
    {"serve": serve, "shard_slowly": shard_slowly}[sys.argv[1]](*sys.argv[2:])
