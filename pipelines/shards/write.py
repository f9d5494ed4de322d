"""Graph: samples and proposals of a bucket -> tars of region examples with an index.

The form of the tars is that of `pipelines.shards.tar_format`. Each bucket gives one tar a task, and
``rejects-00003.parquet``. The ledger of the manifest counts:

=====================  =============================================================================
(top level)            rows of samples
``rejection``          rows of the rejection examples made beside them
``rejection_quota``    how many of those were wanted and made, by style
``excluded``           rows left out, by the benchmark that their image belongs to
``examples``           what came out, by task
``regions``            all regions
``injected``           regions that no detector found
``text_chars``         characters of the conversations, by task
``region_tags``        tags of the region language, by task
``pixels``             pixels that the model sees, by task
``regions_histogram``  examples by tens of regions
``objects``            annotated objects, once an image or window
``matched``            those of them that a proposal matched: the recall of the proposals
=====================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset_builders import DataFolders
from dataset_builders.benchmark_leakage import Key
from pipelines.artifacts import Artifact, prepare
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.shards import rejection
from pipelines.shards.config import ShardsConfig
from pipelines.shards.worker import ShardWorker
from pipelines.worker_pools import map_buckets

VERSION = 5
"""Version of this step; it is raised when the same inputs would give other shards."""


def shards_inputs(
    samples: Artifact, proposals: Mapping[str, Artifact], excluded: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the identity of what shards are made from, by name.

    Args:
        samples: Samples of the dataset.
        proposals: Artifact of each image source.
        excluded: Digest of the images of each benchmark that is left out.
    """
    used = [samples, *proposals.values()]
    return {
        **{f"{artifact.kind}/{artifact.name}": artifact.fingerprint for artifact in used},
        **{f"exclude/{name}": digest for name, digest in (excluded or {}).items()},
    }


def write_shards(
    config: ShardsConfig,
    samples: Artifact,
    proposals: Mapping[str, Artifact],
    output: Artifact,
    *,
    folders: DataFolders,
    runtime: RuntimeConfig,
    inputs: Mapping[str, str],
    excluded: Mapping[Key, str] | None = None,
) -> dict[str, Any]:
    """Write the shards of a dataset; go on where a killed run stopped.

    Args:
        config: How samples become examples.
        samples: Samples of the dataset.
        proposals: Artifact of each image source of the dataset; none for ``ground_truth``.
        output: The artifact to make.
        folders: Where the datasets lie.
        runtime: Where it runs, how much may be rejected, whether to begin anew.
        inputs: What `shards_inputs` gave, and `output` has its fingerprint from.
        excluded: Benchmark of each image that is left out because of ``config.exclude``
            (`dataset_builders.benchmark_leakage.excluded_images`).

    Returns:
        The manifest.

    Raises:
        SettingError: The inputs are not complete or do not fit together; raised before any worker
            starts.
        LedgerError: More than ``runtime.max_reject_fraction`` of the rows were rejected.
    """
    if bool(proposals) == (config.regions == "ground_truth"):
        need = "takes no proposals" if proposals else "needs proposals"
        raise SettingError(
            f"regions={config.regions!r} {need}: change `regions` or the artifacts passed in"
        )
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    for artifact in (samples, *proposals.values()):
        if artifact.status() != "done":
            raise SettingError(f"{artifact.path} is {artifact.status()}: make it before its shards")
    num_buckets = int(samples.manifest()["buckets"])
    waiting = sorted(set(range(num_buckets)) - set(output.finished()))
    settings = {
        "config": config,
        "samples": samples,
        "proposals": dict(proposals),
        "output": output,
        "folders": folders,
        "excluded": dict(excluded or {}),
        "quotas": _quotas(config, samples, num_buckets),
    }
    for _ in map_buckets(
        ShardWorker, settings, waiting, runtime=runtime, description=f"shard {output.name}"
    ):
        pass  # every worker commits its buckets itself
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=num_buckets,
        max_reject_fraction=runtime.max_reject_fraction,
    )


def _quotas(config: ShardsConfig, samples: Artifact, num_buckets: int) -> list[int]:
    """Return the number of rejection samples that each bucket makes."""
    if config.rejection is None or config.regions == "ground_truth":
        return [0] * num_buckets
    markers = samples.finished()
    tasks = [markers[bucket]["ledger"]["tasks"] for bucket in range(num_buckets)]
    positives = [counts.get("detection", 0) for counts in tasks]
    negatives = [counts.get(rejection.TASK, 0) for counts in tasks]
    return rejection.quotas(positives, negatives, config.rejection.share)
