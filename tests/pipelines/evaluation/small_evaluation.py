"""A few drawn scenes with made-up proposals as finished artifacts, without worker or detector."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset_builders import DATASETS, BuildOptions, DataFolders
from dataset_builders.drawn_world.write import WorldSettings, write_world
from dataset_builders.images import bucket_of
from dataset_builders.records import (
    REJECT_SCHEMA,
    SAMPLE_SCHEMA,
    Reject,
    Sample,
    reject_to_row,
    sample_to_row,
)
from fo1_model import grammar
from pipelines.artifacts import Artifact, parquet_bytes
from pipelines.cluster import RuntimeConfig
from pipelines.fingerprints import fingerprint
from pipelines.row_accounting import entry
from pipelines.schemas import PREDICTION_SCHEMA, PROPOSALS_SCHEMA, RegionExample
from pipelines.shards.config import ShardsConfig
from pipelines.shards.write import VERSION, shards_inputs, write_shards


def samples_artifact(
    root: Path, world: Path, dataset: str, extra_rejects: tuple[Reject, ...] = ()
) -> Artifact:
    spec = DATASETS[dataset]
    found = list(spec.build(DataFolders(str(world.parent)), BuildOptions(absent_counts=0.0)))
    samples = [item for item in found if isinstance(item, Sample)]
    rejects = [item for item in found if isinstance(item, Reject)] + list(extra_rejects)
    artifact = Artifact(root=str(root), kind="samples", name=dataset, fingerprint="0" * 16)
    for bucket in range(spec.num_buckets):
        rows = [
            sample_to_row(sample, bucket=bucket)
            for sample in samples
            if bucket_of(sample.image_id, spec.num_buckets) == bucket
        ]
        lost = [reject_to_row(reject) for reject in rejects] if bucket == 0 else []
        files = {
            f"part-{bucket:05d}.parquet": parquet_bytes(
                pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
            ),
            f"rejects-{bucket:05d}.parquet": parquet_bytes(
                pa.Table.from_pylist(lost, schema=REJECT_SCHEMA)
            ),
        }
        artifact.commit_bucket(
            bucket,
            files,
            {
                "samples": entry(len(rows) + len(lost), len(rows), [row["reason"] for row in lost]),
                "tasks": dict(Counter(row["task"] for row in rows)),
            },
        )
    artifact.commit_buckets(version=1, config={"seed": 0}, inputs={}, num_buckets=spec.num_buckets)
    return artifact


def source_of(samples: Artifact) -> str:
    """Return the only image source of some samples."""
    (source,) = DATASETS[samples.name].images
    return source.name


def proposals_artifact(root: Path, samples: Artifact, *, broken: str | None = None) -> Artifact:
    """True boxes moved a little, with distractors; the image `broken` has a row without boxes."""
    artifact = Artifact(
        root=samples.root,
        kind="proposals",
        name=f"{source_of(samples)}/fabricated",
        fingerprint="1" * 16,
    )
    num_buckets = samples.manifest()["buckets"]
    for bucket in range(num_buckets):
        images = {
            row["image_id"]: row
            for row in samples.read_table(f"part-{bucket:05d}.parquet").to_pylist()
        }
        rows = [_proposals_row(images[image_id], image_id == broken) for image_id in sorted(images)]
        table = pa.Table.from_pylist(rows, schema=PROPOSALS_SCHEMA)
        lost = [row["status"] for row in rows if row["status"] != "ok"]
        ledger = entry(len(rows), len(rows) - len(lost), lost)
        artifact.commit_bucket(bucket, {f"part-{bucket:05d}.parquet": parquet_bytes(table)}, ledger)
    artifact.commit_buckets(
        version=1, config={"boxes": "fabricated"}, inputs={}, num_buckets=num_buckets
    )
    return artifact


def _proposals_row(sample: dict, broken: bool) -> dict:
    row = {name: sample[name] for name in ("image_id", "bucket", "width", "height")} | {
        "rotation": 1
    }
    if broken:
        return row | {
            "boxes": [],
            "scores": [],
            "status": "undecodable_image",
            "error": "cut <b>short</b>",
        }
    rng = np.random.default_rng(int(sample["image_id"]))
    true = np.array(
        [item["box"] for item in sample["objects"] if not item["ignore"]], np.float32
    ).reshape(-1, 4)
    start = rng.uniform(0, 80, (6, 2))
    stray = np.concatenate([start, start + rng.uniform(12, 45, (6, 2))], axis=1)
    boxes = np.concatenate([true + rng.uniform(-1, 1, true.shape), stray]).astype(np.float32)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, sample["width"])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, sample["height"])
    scores = np.concatenate([rng.uniform(0.5, 1, len(true)), rng.uniform(0.1, 0.6, 6)]).astype(
        np.float32
    )
    order = np.argsort(-scores, kind="stable")
    return row | {
        "boxes": boxes[order].tolist(),
        "scores": scores[order].tolist(),
        "status": "ok",
        "error": None,
    }


def shards_artifact(
    samples: Artifact, proposals: Artifact, world: Path, *, regions: str
) -> Artifact:
    config = ShardsConfig(regions=regions)
    found = {source_of(samples): proposals}
    inputs = shards_inputs(samples, found)
    mark = fingerprint(kind="shards", version=VERSION, config=config, inputs=inputs)
    artifact = Artifact(root=samples.root, kind="shards", name=samples.name, fingerprint=mark)
    runtime = RuntimeConfig(
        root=samples.root, data=str(world.parent), workers=0, max_reject_fraction=1.0
    )
    folders = DataFolders(str(world.parent))
    write_shards(config, samples, found, artifact, folders=folders, runtime=runtime, inputs=inputs)
    return artifact


def small_world(folder: Path, scenes: int = 10) -> Path:
    world = folder / "drawn"
    write_world(world, WorldSettings(train=0, val=scenes, seed=3))
    return world


def true_answer(example: RegionExample) -> str:
    """Return what a perfect model says, as far as the proposals allow."""
    grounded = [(t["text"], t["regions"]) for t in example.targets if t["regions"]]
    plain = [(t["text"], ()) for t in example.targets if not t["regions"] and not t["boxes"]]
    parts: list = []
    for part in [*grounded, *plain]:
        parts += [("\n", ())] if parts else []
        parts.append(part)
    text = grammar.render(parts)
    if example.task == "counting" and not plain:
        text += f"\nThere are {sum(len(t['boxes']) for t in example.targets)}."
    return text


def prediction_row(example: RegionExample, text: str) -> dict:
    parsed = grammar.parse(text, len(example.boxes))
    return {
        "sample_id": example.sample_id,
        "image_id": example.image_id,
        "task": example.task,
        "text": text,
        "phrases": [
            {"text": phrase, "regions": list(regions)} for phrase, regions in parsed.phrases
        ],
        "regions": list(parsed.regions),
        "boxes": [example.boxes[region].tolist() for region in parsed.regions],
        "scores": [example.scores[region] for region in parsed.regions],
        "region_logprobs": [-0.1] * len(parsed.regions),
        "problem": parsed.problem,
    }


def predictions_artifact(samples: Artifact, rows: list[dict], tasks: list[str]) -> Artifact:
    artifact = Artifact(
        root=samples.root, kind="predictions", name=samples.name, fingerprint="2" * 16
    )
    table = pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
    artifact.commit_bucket(
        0, {"part-00000.parquet": parquet_bytes(table)}, entry(len(rows), len(rows), [])
    )
    artifact.commit_buckets(version=1, config={"tasks": tasks}, inputs={}, num_buckets=1)
    return artifact
