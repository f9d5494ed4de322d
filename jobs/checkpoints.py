"""Finished runs as checkpoints: follow one back to its detector, evaluate it, ask it."""

from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dataset_builders import BuildOptions
from fo1_model.detectors.configs import from_canonical, leaves, name_of, with_selection
from jobs.chain.chain import Chain
from jobs.chain.data_steps import existing
from jobs.chain.evaluation_steps import evaluation_steps
from jobs.command.flags import runtime_of
from jobs.detector_arguments import DetectorChoice, parse_detector
from jobs.find_artifacts import find_run
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.recipe import Recipe
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.shards.rejection import RejectionConfig

if TYPE_CHECKING:
    import numpy as np

    from fo1_model.detectors import Detector


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Arguments of ``fo1 evaluate BENCHMARK``."""

    checkpoint: str
    """Finished run by name, NAME/FINGERPRINT or folder."""
    detector: str | None = None
    """Detector of the proposals instead of the one that the run was trained with."""
    proposals: int | None = None
    """Most boxes an image; none: as the run was trained."""
    constraint: Literal["none", "grammar", "names"] = "none"
    """What answers may say: anything, what reads cleanly, or only names that were asked for."""
    score: Literal["proposal", "model", "product"] = "proposal"
    """Score of a named region: the proposal's, the model's probability, or their product."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Arguments of ``fo1 predict``."""

    checkpoint: str
    """Finished run by name, NAME/FINGERPRINT or folder."""
    image: str
    """File of the image."""
    query: str
    """Names with semicolons between them, or a whole question that ends in ? or a full stop."""
    boxes: str | None = None
    """Boxes x1,y1,x2,y2;... in pixels of the image, instead of the detector's."""
    out: str = "answer.png"
    """File of the annotated image."""


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


def evaluation_of_checkpoint(benchmark: str, words: list[str], runtime: RuntimeConfig) -> Chain:
    """Return the steps from a benchmark's annotations to the answers of one run.

    Args:
        benchmark: Name in BENCHMARKS.
        words: `EvaluateArguments` as ``name=value`` words.
        runtime: Where and how wide.

    Raises:
        SettingError: For words that cannot be, or a detector that manifests do not tell.
    """
    given = EvaluateArguments(**parse_arguments(EvaluateArguments, words))
    run = find_run(given.checkpoint, runtime)
    return _evaluation_chain(benchmark, run, given, runtime)


def predict(words: list[str], flags: Namespace) -> None:
    """Ask a run one question about one image; print the answer, write the annotated image.

    Args:
        words: `PredictArguments` as ``name=value`` words.
        flags: Flags of the command.

    Raises:
        SettingError: For words that cannot be, or a detector that cannot look at a new image.
    """
    from dataset_builders.images import BadImage, decode_image
    from fo1_model.checkpoint import load_model
    from pipelines.reports.answer_image import predict_image, question_for

    given = PredictArguments(**parse_arguments(PredictArguments, words))
    runtime = runtime_of(flags)
    run = find_run(given.checkpoint, runtime)
    if not Path(given.image).is_file():
        raise SettingError(f"image={given.image}: there is no such file")
    try:
        image = decode_image(Path(given.image).read_bytes())
    except BadImage as error:
        raise SettingError(f"image={given.image}: {error}") from error
    boxes = None if given.boxes is None else _boxes(given.boxes)
    detector = _detector_behind(run, given, runtime) if boxes is None else None
    question = given.query
    if not question.endswith(("?", ".")):
        question = question_for(question.split(";"))
    model, processor = load_model(run.uri("export"))
    answer = predict_image(model, processor, image, question, boxes=boxes, detector=detector)
    answer.annotated.save(given.out)
    print(f"question: {question}\nanswer:   {answer.answer.text}")
    for region in answer.answer.parsed.regions:
        box = ", ".join(f"{value:.1f}" for value in answer.boxes[region])
        print(f"  region {region}: [{box}]")
    print(f"image:    {given.out}")


def _detector_behind(run: Artifact, given: PredictArguments, runtime: RuntimeConfig) -> "Detector":
    """Return the detector that a run was trained with, ready to look at a new image."""
    from fo1_model.detectors import build_detector
    from pipelines.proposals.detector_inputs import checkpoints

    behind = lineage(run)
    _check_found(behind, given.checkpoint, "give boxes=x1,y1,x2,y2;...")
    if any(leaf.needs == "objects" for leaf in leaves(behind.config)):
        raise SettingError(
            f"{given.checkpoint} was trained on annotated boxes; give boxes=x1,y1,x2,y2;..."
        )
    supplies = [find_run(source, runtime) if source else None for source in behind.sources]
    return build_detector(behind.config, checkpoints(behind.config, supplies))


def _evaluation_chain(
    benchmark: str, run: Artifact, given: EvaluateArguments, runtime: RuntimeConfig
) -> Chain:
    behind = lineage(run)
    chosen = behind if given.detector is None else _other_detector(given.detector, behind)
    _check_found(chosen, run.name, f"say detector={name_of(chosen.config)}:PATH")
    config = chosen.config
    if given.proposals is not None:
        config = with_selection(config, max_boxes=given.proposals)
    chain = Chain(
        recipe=Recipe(
            name=f"{benchmark}-{run.name}",
            detector=config,
            detector_sources=chosen.sources,
            options=_options(run),
            rejection=_rejection(run),
            constraint=given.constraint,
            score=given.score,
        ),
        runtime=runtime,
    )
    chain.runs = [existing(run)]
    evaluation_steps(chain, benchmark)
    return chain


def _options(run: Artifact) -> BuildOptions:
    """Return how the samples that a run was trained on were built: it is asked in the same way."""
    for shards in _inputs(run, "shards"):
        for samples in _inputs(shards, "samples"):
            described = samples.manifest()["config"]["options"]
            return BuildOptions(**{k: v for k, v in described.items() if k != "type"})
    return BuildOptions()


def _rejection(run: Artifact) -> RejectionConfig:
    """Return how the rejection samples that a run was trained on were composed."""
    for shards in _inputs(run, "shards"):
        if described := shards.manifest()["config"].get("rejection"):
            return RejectionConfig(**{k: v for k, v in described.items() if k != "type"})
    return RejectionConfig()


def _other_detector(text: str, behind: DetectorChoice) -> DetectorChoice:
    """Return the detector that the user named. OPN is the run "opn".

    Where nothing is said, NMS and number of boxes are those that the run was trained with; not the
    floor, since scores of two detectors do not compare.
    """
    kept = behind.config.selection
    chosen = parse_detector(text, {"nms_iou": kept.nms_iou, "max_boxes": kept.max_boxes})
    pairs = zip(leaves(chosen.config), chosen.sources, strict=True)
    sources = tuple(source or ("opn" if leaf.needs == "run" else None) for leaf, source in pairs)
    return replace(chosen, sources=sources)


def _check_found(choice: DetectorChoice, checkpoint: str, fix: str) -> None:
    """Raise SettingError when manifests do not tell the weights or boxes behind a run."""
    for leaf, source in zip(leaves(choice.config), choice.sources, strict=True):
        if leaf.needs in ("run", "weights", "boxes") and source is None:
            raise SettingError(
                f"{checkpoint} was trained on boxes of {name_of(leaf)}, and manifests hold no "
                f"path: {fix}"
            )


def _inputs(artifact: Artifact, kind: str) -> list[Artifact]:
    """Return the inputs of one kind that a manifest names, where they are still there."""
    found = []
    for named, key in artifact.manifest()["inputs"].items():
        of_kind, _, name = named.partition("/")
        if of_kind == kind:
            found.append(Artifact(root=artifact.root, kind=kind, name=name, fingerprint=key))
    return [item for item in found if item.status() == "done"]


def _boxes(text: str) -> "np.ndarray":
    """Return boxes float32[N, 4], xyxy in pixels of the image, from the words of the command."""
    import numpy as np

    try:
        boxes = [[float(value) for value in box.split(",")] for box in text.split(";")]
    except ValueError:
        boxes = [[]]
    if any(len(box) != 4 for box in boxes):
        raise SettingError(f"boxes={text}: write x1,y1,x2,y2;x1,y1,x2,y2 in pixels of the image")
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)
