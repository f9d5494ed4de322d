"""Finished runs as checkpoints: find one, follow its lineage to its detector, evaluate it, ask it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs as pafs

from dataset_builders import DATASETS
from fo1_model.detectors.configs import DETECTORS, DetectorConfig, Selection
from jobs.arguments import parse_arguments
from jobs.benchmarks import BENCHMARKS
from jobs.recipes import Recipe
from jobs.steps import Chain, Evaluated, Step, build_step, predict_step, region_shards
from pipelines.artifacts import Artifact, filesystem_of
from pipelines.cluster import RuntimeConfig
from pipelines.rejection import RejectionConfig


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The detector whose proposals a run was trained on."""

    detector: DetectorConfig
    """Its config."""
    run: Artifact | None
    """The run that trained it, for a detector of ours."""


def find_run(checkpoint: str, runtime: RuntimeConfig) -> Artifact:
    """A finished run by name (``stage2``), name and fingerprint (``stage2/0123456789abcdef``) or folder.

    Raises ValueError when there is none, or more than one, naming them.
    """
    folder = Path(checkpoint)
    if (folder / "manifest.json").is_file():
        root, kind, name, key = folder.absolute().as_posix().rsplit("/", 3)
        return Artifact(root=root, kind=kind, name=name, fingerprint=key)
    name, _, key = checkpoint.partition("/")
    found = [run for run in finished(runtime.root, "runs", name) if run.fingerprint.startswith(key)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"checkpoint={checkpoint}: no finished run of that name under {runtime.root}/runs")
    known = ", ".join(f"{run.name}/{run.fingerprint}" for run in found)
    raise ValueError(f"checkpoint={checkpoint}: there are {len(found)} of them; name one of {known}")


def finished(root: str, kind: str, name: str) -> list[Artifact]:
    """Finished artifacts of one kind and name, by fingerprint."""
    filesystem, path = filesystem_of(f"{root}/{kind}/{name}")
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    keys = sorted(info.base_name for info in infos if len(info.base_name) == 16)
    artifacts = [Artifact(root=root, kind=kind, name=name, fingerprint=key) for key in keys]
    return [artifact for artifact in artifacts if artifact.status() == "done"]


def lineage(run: Artifact) -> Lineage:
    """The detector behind a run of the region-token model, read from the manifests of what it was made from.

    Raises ValueError for a run that was not trained on proposals.
    """
    for shards in _inputs(run, "shards"):
        for proposals in _inputs(shards, "proposals"):
            trained = _inputs(proposals, "runs")
            described = proposals.manifest()["config"]["detector"]
            return Lineage(detector=_detector(described), run=trained[0] if trained else None)
    raise ValueError(f"runs/{run.name} was not trained on proposals; name a stage 1 or stage 2 run")


def evaluate_checkpoint(benchmark: str, words: list[str], runtime: RuntimeConfig) -> None:
    """One run on one benchmark, with the proposals it was trained on or those of another detector."""
    from jobs.results import report
    from jobs.verbs import execute

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
    from pipelines.answering import predict_image, question_for

    def arguments(
        *, checkpoint: str, image: str, query: str, boxes: str | None = None, out: str = "answer.png"
    ) -> dict[str, str | None]:
        """What ``fo1 predict`` takes."""
        return {"checkpoint": checkpoint, "image": image, "query": query, "boxes": boxes, "out": out}

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
        if behind.detector.needs_objects:
            raise ValueError(
                f"{given['checkpoint']} was trained on annotated boxes; give boxes=x1,y1,x2,y2;..."
            )
        detector = build_detector(behind.detector, behind.run.uri("export") if behind.run else None)
    query = str(given["query"])
    question = query if query.endswith(("?", ".")) else question_for(query.split(";"))
    model, processor = load_model(run.uri("export"))
    answer = predict_image(model, processor, picture, question, boxes=boxes, detector=detector)
    answer.picture.save(str(given["out"]))
    print(f"question: {question}\nanswer:   {answer.answer.text}")
    for region in answer.answer.parsed.regions:
        box = ", ".join(f"{value:.1f}" for value in answer.boxes[region])
        print(f"  region {region}: [{box}]")
    print(f"picture:  {given['out']}")


def _evaluation_chain(
    benchmark: str, run: Artifact, given: Mapping[str, Any], runtime: RuntimeConfig
) -> Chain:
    """The steps from a benchmark's annotations to the answers of an existing run. given: of the command."""
    detector, max_boxes = given["detector"], given["proposals"]
    behind = lineage(run)
    chosen = behind.detector
    if detector is not None and detector not in DETECTORS:
        raise ValueError(f"detector={detector}: unknown; known: {', '.join(DETECTORS)}")
    kept = chosen.selection if max_boxes is None else replace(chosen.selection, max_boxes=max_boxes)
    chosen = replace(chosen, selection=kept) if detector is None else DETECTORS[detector](selection=kept)
    trained = behind.run
    if chosen.needs_checkpoint and trained is None:
        trained = find_run(str(detector), runtime)
    made = Chain(
        recipe=Recipe(
            name=f"{benchmark}-{run.name}",
            detector=chosen,
            rejection=_rejection(run),
            constraint=given["constraint"],
            score=given["score"],
        ),
        runtime=runtime,
    )
    made.runs = [_existing(run)]
    made.detector_run = _existing(trained) if trained and chosen.needs_checkpoint else None
    named, spec = BENCHMARKS[benchmark], DATASETS[BENCHMARKS[benchmark].dataset]
    truth = build_step(made, spec)
    questions = region_shards(made, spec, evaluation=True)
    predicted = predict_step(made, benchmark, named, questions, made.runs[0])
    made.evaluated = [
        Evaluated(
            benchmark=benchmark, run=made.runs[0], shards=questions, samples=truth, predictions=predicted
        )
    ]
    return made


def _rejection(run: Artifact) -> RejectionConfig:
    """How the rejection samples that a run was trained on were composed."""
    for shards in _inputs(run, "shards"):
        if described := shards.manifest()["config"].get("rejection"):
            return RejectionConfig(**{k: v for k, v in described.items() if k != "type"})
    return RejectionConfig()


def _existing(artifact: Artifact) -> Step:
    return Step(verb="train", artifact=artifact, inputs=(), execute=lambda _: artifact.manifest())


def _inputs(artifact: Artifact, kind: str) -> list[Artifact]:
    """Inputs of one kind that an artifact's manifest names, where they are still there."""
    found = []
    for named, key in artifact.manifest()["inputs"].items():
        of_kind, _, name = named.partition("/")
        if of_kind == kind:
            found.append(Artifact(root=artifact.root, kind=kind, name=name, fingerprint=key))
    return [item for item in found if item.status() == "done"]


def _detector(described: dict[str, Any]) -> DetectorConfig:
    """A detector config from its canonical form in a manifest."""
    kind = next((kind for kind in DETECTORS.values() if kind.__name__ == described["type"]), None)
    if kind is None:
        raise ValueError(f"detector {described['type']!r} of the manifest is not known to this version")
    values = {field.name: described[field.name] for field in fields(kind)}
    values["selection"] = Selection(**{k: v for k, v in described["selection"].items() if k != "type"})
    return kind(**values)


def _boxes(text: str) -> list[list[float]]:
    try:
        boxes = [[float(value) for value in box.split(",")] for box in text.split(";")]
    except ValueError:
        boxes = [[]]
    if any(len(box) != 4 for box in boxes):
        raise ValueError(f"boxes={text}: write x1,y1,x2,y2;x1,y1,x2,y2 in pixels of the picture")
    return boxes
