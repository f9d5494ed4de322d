"""What a run was made from, by manifests alone: its detector and how its questions were built."""

from dataclasses import replace

from dataset_builders import BuildOptions
from fo1_model.detectors.configs import from_canonical, leaves, name_of, with_selection
from jobs.checkpoints.find import Checkpoint
from jobs.detector_arguments import DetectorChoice, parse_detector
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.model_identity import PREFIX
from pipelines.shards.rejection import RejectionConfig


def lineage(run: Artifact) -> DetectorChoice:
    """Return the detector whose proposals a run of the region-token model was trained on.

    It is read from the manifests of what the run was made from.

    Raises:
        SettingError: For a run that was not trained on proposals.
    """
    for shards in _inputs(run, "shards"):
        for proposals in _inputs(shards, "proposals"):
            trained = _inputs(proposals, "runs")
            config = from_canonical(proposals.manifest()["config"]["detector"])
            needs = [leaf.needs for leaf in leaves(config)]
            # Of a union of two runs the manifest does not tell which is whose: the user has to.
            ours = trained[0].path if trained and needs.count("run") == 1 else None
            sources = tuple(ours if need == "run" else None for need in needs)
            return DetectorChoice(config=config, sources=sources)
    raise SettingError(
        f"runs/{run.name} was not trained on proposals; name a stage 1 or stage 2 run"
    )


def detector_for(
    found: Checkpoint, named: str | None, proposals: int | None = None
) -> DetectorChoice:
    """Return the detector that a person named, else the one that a checkpoint was trained with.

    Of a named one, NMS and number of boxes are those of the training where nothing is said; not the
    floor, since scores of two detectors do not compare. OPN is the run "opn".

    Args:
        found: The checkpoint.
        named: Detector in words (`jobs.detector_arguments`); None for its own.
        proposals: Most boxes an image; None as it was trained, or as the detector has it.

    Raises:
        SettingError: Nothing is named, and manifests tell none.
    """
    run = found if isinstance(found, Artifact) and not found.name.startswith(PREFIX) else None
    behind = lineage(run) if run else None
    if named is not None:
        kept = behind.config.selection if behind else None
        usual = {"nms_iou": kept.nms_iou, "max_boxes": kept.max_boxes} if kept else {}
        chosen = parse_detector(named, usual)
        pairs = zip(leaves(chosen.config), chosen.sources, strict=True)
        sources = tuple(s or ("opn" if leaf.needs == "run" else None) for leaf, s in pairs)
        chosen = replace(chosen, sources=sources)
    elif behind is not None:
        chosen = behind
    else:
        raise SettingError(
            f"checkpoint={found.name.removeprefix(PREFIX)} is a model folder, and no manifest "
            "tells which detector it was trained with: say detector=NAME, see fo1 list detectors"
        )
    if proposals is None:
        return chosen
    return replace(chosen, config=with_selection(chosen.config, max_boxes=proposals))


def check_found(choice: DetectorChoice, checkpoint: str, fix: str) -> None:
    """Raise SettingError when manifests do not tell the weights or boxes behind a run."""
    for leaf, source in zip(leaves(choice.config), choice.sources, strict=True):
        if leaf.needs in ("run", "weights", "boxes") and source is None:
            raise SettingError(
                f"{checkpoint} was trained on boxes of {name_of(leaf)}, and manifests hold no "
                f"path: {fix}"
            )


def options_of(run: Artifact | None) -> BuildOptions:
    """Return how the samples that a run was trained on were built: it is asked in the same way."""
    for shards in _inputs(run, "shards") if run else ():
        for samples in _inputs(shards, "samples"):
            described = samples.manifest()["config"]["options"]
            return BuildOptions(**{k: v for k, v in described.items() if k != "type"})
    return BuildOptions()


def rejection_of(run: Artifact | None) -> RejectionConfig:
    """Return how the rejection samples that a run was trained on were composed."""
    for shards in _inputs(run, "shards") if run else ():
        if described := shards.manifest()["config"].get("rejection"):
            return RejectionConfig(**{k: v for k, v in described.items() if k != "type"})
    return RejectionConfig()


def _inputs(artifact: Artifact, kind: str) -> list[Artifact]:
    """Return the inputs of one kind that a manifest names, where they are still there."""
    found = []
    for named, key in artifact.manifest()["inputs"].items():
        of_kind, _, name = named.partition("/")
        if of_kind == kind:
            found.append(Artifact(root=artifact.root, kind=kind, name=name, fingerprint=key))
    return [item for item in found if item.status() == "done"]
