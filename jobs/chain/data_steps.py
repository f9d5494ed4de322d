"""Steps that make samples, proposals and shards."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dataset_builders import DATASETS, DatasetSpec, ImageSource
from fo1_model.detectors.configs import Leaf, leaves, name_of
from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain, Step
from jobs.checkpoints.find import ModelFolder, checkpoint_step, find_checkpoint
from jobs.mixes import datasets_of
from jobs.recipes.recipe import Recipe
from pipelines import samples
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.fingerprints import fingerprint
from pipelines.proposals import generate
from pipelines.proposals.detector_inputs import find_weights
from pipelines.shards import write
from pipelines.storage import is_uri


def build_step(chain: Chain, spec: DatasetSpec) -> Step:
    """Return the step that makes the samples of a dataset."""
    config = samples.SamplesConfig(dataset=spec.name, options=chain.recipe.options)
    inputs = samples.samples_inputs(config, chain.folders, chain.digest_cache)
    key = fingerprint(kind="samples", version=samples.VERSION, config=config, inputs=inputs)
    output = Artifact(root=chain.runtime.root, kind="samples", name=spec.name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return samples.build_samples(
            config, output, folders=chain.folders, runtime=runtime, inputs=inputs
        )

    return chain.add("build", output, (), execute)


def propose_steps(chain: Chain, spec: DatasetSpec) -> dict[str, Step]:
    """Return the steps of the recipe's detector on a dataset's images, by image source."""
    return {
        source.name: _propose_step(chain, source, spec) for source in spec.sources(chain.folders)
    }


def _propose_step(chain: Chain, source: ImageSource, spec: DatasetSpec) -> Step:
    config = generate.ProposalsConfig(image_source=source.name, detector=chain.recipe.detector)
    knows = any(leaf.needs == "objects" for leaf in leaves(config.detector))
    truth = build_step(chain, _truth_of(chain.recipe, source, spec)) if knows else None
    key = (source.name, truth.artifact.name if truth else "")
    if key not in chain.looked_at:
        chain.looked_at[key] = cache_step(chain, config, truth)
    return chain.looked_at[key]


def cache_step(chain: Chain, config: generate.ProposalsConfig, truth: Step | None = None) -> Step:
    """Return the step that makes proposals for the images of one source.

    Args:
        chain: Chain that the step is added to.
        config: Detector and image source.
        truth: Step of the samples whose objects the detector may see.
    """
    needed: list[Step] = [truth] if truth else []
    supplies = []
    for leaf, named in zip(leaves(config.detector), chain.recipe.detector_sources, strict=True):
        supply = _supply(chain, leaf, named, truth)
        if isinstance(supply, Step):
            needed.append(supply)
        supplies.append(supply.artifact if isinstance(supply, Step) else supply)
    inputs = generate.proposals_inputs(config, chain.folders, chain.digest_cache, supplies)
    key = fingerprint(kind="proposals", version=generate.VERSION, config=config, inputs=inputs)
    name = f"{config.image_source}/{name_of(config.detector)}"
    output = Artifact(root=chain.runtime.root, kind="proposals", name=name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return generate.propose(
            config, output, folders=chain.folders, runtime=runtime, inputs=inputs, supplies=supplies
        )

    return chain.add("propose", output, dict.fromkeys(needed), execute)


def _supply(chain: Chain, leaf: Leaf, named: str | None, truth: Step | None) -> Step | str | None:
    """Return what a detector needs beside its config: the step that makes it, or a path."""
    if leaf.needs == "objects":
        return truth
    if leaf.needs == "run" and named is None:
        if chain.detector_run is None:
            raise SettingError(
                "detector=opn: this recipe trains none; name a run of it: detector=opn:RUN"
            )
        return chain.detector_run
    if leaf.needs == "run":
        found = find_checkpoint(str(named), chain.runtime, "opn", kind="opn")
        if isinstance(found, ModelFolder) and not is_uri(found.uri):
            return found.uri
        return checkpoint_step(chain, found)
    return find_weights(named) if leaf.needs == "weights" and named else named


def _truth_of(recipe: Recipe, source: ImageSource, spec: DatasetSpec) -> DatasetSpec:
    """Return the dataset whose boxes a ground-truth detector gives.

    It is the recipe's first over the same images, so that datasets over them share one cache.
    """
    used = {name for training in recipe.trainings for name in datasets_of(training.mix)} | {
        *recipe.datasets
    }
    used |= {BENCHMARKS[name].dataset for name in recipe.benchmarks} | {spec.name}
    return next(
        s for s in DATASETS.values() if s.name in used and source in (*s.images, *s.optional_images)
    )


def box_shards(chain: Chain, spec: DatasetSpec, *, held_out: bool = False) -> Step:
    """Return the step of images with their annotated boxes: what a detector trains on.

    Args:
        chain: Chain that the step is added to.
        spec: Dataset.
        held_out: Whether the detector is only measured with them; benchmarks are not left out then.
    """
    config = write.ShardsConfig(
        regions="ground_truth",
        rejection=None,
        exclude=() if held_out else chain.exclusion.names_for(spec),
        max_side_px=chain.recipe.max_side_px,
    )
    return _shards(chain, spec, {}, config)


def region_shards(
    chain: Chain, spec: DatasetSpec, *, evaluation: bool, held_out: bool = False
) -> Step:
    """Return the step of conversations over proposals.

    Args:
        chain: Chain that the step is added to.
        spec: Dataset.
        evaluation: Whether they are questions of a benchmark: proposals in score order, no object
            injected, one question an example, original images.
        held_out: Whether they are for metrics during training; benchmarks are not left out then.
    """
    config = write.ShardsConfig(
        regions="proposals_scored" if evaluation else "proposals",
        assign=replace(
            chain.recipe.assign, match_iou=max(chain.recipe.assign.match_iou, spec.match_iou)
        ),
        rejection=chain.recipe.rejection,
        turns=1 if evaluation else chain.recipe.turns,
        exclude=() if evaluation or held_out else chain.exclusion.names_for(spec),
        max_side_px=None if evaluation else chain.recipe.max_side_px,
    )
    return _shards(chain, spec, propose_steps(chain, spec), config)


def _shards(
    chain: Chain, spec: DatasetSpec, found: Mapping[str, Step], config: write.ShardsConfig
) -> Step:
    truth = build_step(chain, spec)
    proposed = {source: step.artifact for source, step in found.items()}
    digests = chain.exclusion.digests(config.exclude)
    inputs = write.shards_inputs(truth.artifact, proposed, digests)
    key = fingerprint(kind="shards", version=write.VERSION, config=config, inputs=inputs)
    name = f"{spec.name}/{config.regions}"
    output = Artifact(root=chain.runtime.root, kind="shards", name=name, fingerprint=key)

    def execute(runtime: RuntimeConfig) -> Mapping[str, Any]:
        return write.write_shards(
            config,
            truth.artifact,
            proposed,
            output,
            folders=chain.folders,
            runtime=runtime,
            inputs=inputs,
            excluded=chain.exclusion.images(config.exclude),
        )

    return chain.add("shard", output, [truth, *found.values()], execute)
