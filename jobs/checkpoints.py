"""Finished runs as checkpoints: find one, follow its lineage to its detector, evaluate it, ask it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dataset_builders import BuildOptions
from fo1_model.detectors.configs import from_canonical, leaves, name_of, with_selection
from jobs.chain import Chain, evaluation_steps, existing
from jobs.detector_arguments import DetectorChoice, parse_detector
from jobs.find_artifacts import find_run
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.recipe import Recipe
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.shards.rejection import RejectionConfig


def lineage(run: Artifact) -> DetectorChoice:
    """The detector whose proposals a run of the region-token model was trained on, read from the manifests of
    what it was made from.

    Raises ValueError for a run that was not trained on proposals.
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
    raise ValueError(f"runs/{run.name} was not trained on proposals; name a stage 1 or stage 2 run")


def evaluate_checkpoint(benchmark: str, words: list[str], runtime: RuntimeConfig) -> None:
    """One run on one benchmark, with the proposals it was trained on or those of another detector."""
    from jobs.command.verbs import execute
    from jobs.reports import report

    def arguments(
        *,
        checkpoint: str,
        detector: str | None = None,
        proposals: int | None = None,
        constraint: Literal["none", "grammar", "names"] = "none",
        score: Literal["proposal", "model", "product"] = "proposal",
    ) -> dict[str, Any]:
        """What ``fo1 evaluate BENCHMARK`` takes."""
        return {
            "checkpoint": checkpoint,
            "detector": detector,
            "proposals": proposals,
            "constraint": constraint,
            "score": score,
        }

    given = arguments(**parse_arguments(arguments, words))
    run = find_run(given["checkpoint"], runtime)
    made = _evaluation_chain(benchmark, run, given, runtime)
    execute([step for step in made.steps.values() if step.artifact.status() != "done"], runtime)
    report(made)


def predict_picture(words: list[str], runtime: RuntimeConfig) -> None:
    """Ask a run one question about one picture; print the answer, write the annotated picture."""
    import numpy as np

    from dataset_builders.images import decode_image
    from fo1_model.checkpoint import load_model
    from fo1_model.detectors import build_detector
    from pipelines.proposals.detector_inputs import checkpoints
    from pipelines.reports.answer_image import predict_image, question_for

    def arguments(
        *,
        checkpoint: str,
        image: str,
        query: str,
        boxes: str | None = None,
        out: str = "answer.png",
    ) -> dict[str, str | None]:
        """What ``fo1 predict`` takes."""
        return {
            "checkpoint": checkpoint,
            "image": image,
            "query": query,
            "boxes": boxes,
            "out": out,
        }

    given = arguments(**parse_arguments(arguments, words))
    run = find_run(str(given["checkpoint"]), runtime)
    if not Path(str(given["image"])).is_file():
        raise ValueError(f"image={given['image']}: there is no such file")
    picture = decode_image(Path(str(given["image"])).read_bytes())
    boxes, detector = None, None
    if given["boxes"] is not None:
        boxes = np.array(_boxes(given["boxes"]), dtype=np.float32).reshape(-1, 4)
    else:
        behind = lineage(run)
        _check_found(behind, str(given["checkpoint"]), "give boxes=x1,y1,x2,y2;...")
        if any(leaf.needs == "objects" for leaf in leaves(behind.config)):
            raise ValueError(
                f"{given['checkpoint']} was trained on annotated boxes; give boxes=x1,y1,x2,y2;..."
            )
        supplies = [find_run(source, runtime) if source else None for source in behind.sources]
        detector = build_detector(behind.config, checkpoints(behind.config, supplies))
    query = str(given["query"])
    question = query if query.endswith(("?", ".")) else question_for(query.split(";"))
    model, processor = load_model(run.uri("export"))
    answer = predict_image(model, processor, picture, question, boxes=boxes, detector=detector)
    answer.annotated.save(str(given["out"]))
    print(f"question: {question}\nanswer:   {answer.answer.text}")
    for region in answer.answer.parsed.regions:
        box = ", ".join(f"{value:.1f}" for value in answer.boxes[region])
        print(f"  region {region}: [{box}]")
    print(f"picture:  {given['out']}")


def _evaluation_chain(
    benchmark: str, run: Artifact, given: Mapping[str, Any], runtime: RuntimeConfig
) -> Chain:
    """The steps from a benchmark's annotations to the answers of an existing run. given: of the command."""
    behind = lineage(run)
    chosen = behind if given["detector"] is None else _other_detector(given["detector"], behind)
    _check_found(chosen, run.name, f"say detector={name_of(chosen.config)}:PATH")
    config = chosen.config
    if given["proposals"] is not None:
        config = with_selection(config, max_boxes=given["proposals"])
    made = Chain(
        recipe=Recipe(
            name=f"{benchmark}-{run.name}",
            detector=config,
            detector_sources=chosen.sources,
            options=_options(run),
            rejection=_rejection(run),
            constraint=given["constraint"],
            score=given["score"],
        ),
        runtime=runtime,
    )
    made.runs = [existing(run)]
    evaluation_steps(made, benchmark)
    return made


def _options(run: Artifact) -> BuildOptions:
    """How the samples that a run was trained on were built: it is asked in the same way."""
    for shards in _inputs(run, "shards"):
        for samples in _inputs(shards, "samples"):
            described = samples.manifest()["config"]["options"]
            return BuildOptions(**{k: v for k, v in described.items() if k != "type"})
    return BuildOptions()


def _rejection(run: Artifact) -> RejectionConfig:
    """How the rejection samples that a run was trained on were composed."""
    for shards in _inputs(run, "shards"):
        if described := shards.manifest()["config"].get("rejection"):
            return RejectionConfig(**{k: v for k, v in described.items() if k != "type"})
    return RejectionConfig()


def _other_detector(text: str, behind: DetectorChoice) -> DetectorChoice:
    """The detector that the user named. Where nothing is said, NMS and number of boxes are those that the run
    was trained with; not the floor, since scores of two detectors do not compare. OPN is the run "opn".
    """
    kept = behind.config.selection
    chosen = parse_detector(text, {"nms_iou": kept.nms_iou, "max_boxes": kept.max_boxes})
    pairs = zip(leaves(chosen.config), chosen.sources, strict=True)
    sources = tuple(source or ("opn" if leaf.needs == "run" else None) for leaf, source in pairs)
    return replace(chosen, sources=sources)


def _check_found(choice: DetectorChoice, checkpoint: str, fix: str) -> None:
    """Raises ValueError when the weights or boxes behind a run cannot be told from its manifests."""
    for leaf, source in zip(leaves(choice.config), choice.sources, strict=True):
        if leaf.needs in ("run", "weights", "boxes") and source is None:
            raise ValueError(
                f"{checkpoint} was trained on boxes of {name_of(leaf)}, and manifests hold no path: {fix}"
            )


def _inputs(artifact: Artifact, kind: str) -> list[Artifact]:
    """Inputs of one kind that an artifact's manifest names, where they are still there."""
    found = []
    for named, key in artifact.manifest()["inputs"].items():
        of_kind, _, name = named.partition("/")
        if of_kind == kind:
            found.append(Artifact(root=artifact.root, kind=kind, name=name, fingerprint=key))
    return [item for item in found if item.status() == "done"]


def _boxes(text: str) -> list[list[float]]:
    try:
        boxes = [[float(value) for value in box.split(",")] for box in text.split(";")]
    except ValueError:
        boxes = [[]]
    if any(len(box) != 4 for box in boxes):
        raise ValueError(f"boxes={text}: write x1,y1,x2,y2;x1,y1,x2,y2 in pixels of the picture")
    return boxes
