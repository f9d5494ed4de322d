"""From stored predictions to figures: joins answers with what was asked and with the truth of the samples.

The only reader of artifacts on the way; the figures themselves are pure functions in `pipelines.evaluation.metrics`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataset_builders.records import Sample, sample_from_row
from fo1_model import grammar
from pipelines.artifacts import Artifact
from pipelines.evaluation.metrics.cases import Answer, Case, Scene, Target, as_boxes
from pipelines.evaluation.metrics.proposals import BUDGETS, Proposed, proposal_figures
from pipelines.evaluation.metrics.summary import DETECTION, summarise
from pipelines.schemas import RegionExample, proposals_by_image
from pipelines.shards import rejection
from pipelines.shards.tar_format import ShardSet, decode_member


def evaluate(
    predictions: Artifact, shards: Artifact, samples: Artifact, *, coco: bool = False
) -> tuple[dict[str, float], list[Case]]:
    """Compute the figures of one set of predictions; return them with the judged cases.

    coco: add COCO AP. Its protocol asks every picture for every name: raises ValueError naming a picture
    when one was asked for less, since the figure would then be another one under the same name.
    """
    cases = load_cases(predictions, shards, samples)
    if not coco:
        return summarise(cases), cases
    scenes, names = load_scenes(samples)
    return _with_coco(cases, scenes, names), cases


def evaluate_slice(
    examples: Sequence[RegionExample],
    rows: Sequence[Mapping[str, Any]],
    samples: Artifact,
    *,
    coco: bool,
) -> dict[str, float]:
    """Compute the figures of some questions of a benchmark, and of their pictures alone.

    rows: the answer to each (`PREDICTION_SCHEMA`). samples: what all its questions were made from. coco: as
    for `evaluate`.
    """
    wanted = {_sample_id(example) for example in examples}
    facts = {
        sample.sample_id: sample for sample in load_samples(samples) if sample.sample_id in wanted
    }
    cases = [
        make_case(example, row, facts.get(_sample_id(example)))
        for example, row in zip(examples, rows, strict=True)
    ]
    if not coco:
        return summarise(cases)
    scenes, names = load_scenes(samples)
    pictures = {case.image_id for case in cases}
    return _with_coco(cases, [scene for scene in scenes if scene.image_id in pictures], names)


def _with_coco(
    cases: Sequence[Case], scenes: Sequence[Scene], names: Sequence[str]
) -> dict[str, float]:
    for case in cases:
        if case.task == DETECTION and set(case.asked or ()) != set(names):
            raise ValueError(
                f"coco=True: picture {case.image_id} was asked for {len(case.asked or ())} of {len(names)} "
                "names; use a benchmark that asks for all of them"
            )
    return summarise(cases, scenes=scenes, names=names)


def evaluate_proposals(
    proposals: Artifact, samples: Artifact, *, budgets: Sequence[int] = BUDGETS
) -> dict[str, float]:
    """Compute the recall of a detector on the pictures of `samples`, and oracle_ap of a perfect reader.

    Of samples over several image sources, only the pictures that the proposals are of.
    """
    scenes, names = load_scenes(samples, proposals.name.partition("/")[0])
    found = load_proposals(proposals, {scene.image_id for scene in scenes})
    return proposal_figures(scenes, found, names, budgets)


def load_cases(predictions: Artifact, shards: Artifact, samples: Artifact) -> list[Case]:
    """Join every question of the predicted tasks with its answer and its truth.

    Raises RuntimeError naming a sample when a question has no answer, or an answer no question.
    """
    facts = {sample.sample_id: sample for sample in load_samples(samples)}
    answered = {row["sample_id"]: row for row in _rows(predictions)}
    cases = []
    for example, _ in read_examples(shards, predictions.manifest()["config"]["tasks"]):
        row = answered.pop(example.sample_id, None)
        if row is None:
            raise RuntimeError(
                f"sample {example.sample_id} has no prediction in {predictions.path}"
            )
        cases.append(make_case(example, row, facts.get(_sample_id(example))))
    if answered:
        raise RuntimeError(f"prediction of sample {min(answered)} has no question in {shards.path}")
    return cases


def make_case(example: RegionExample, row: Mapping[str, Any], sample: Sample | None) -> Case:
    """Put question, answer (a row of `PREDICTION_SCHEMA`) and truth together.

    sample: what the example was made from; without it crowds and the names asked stay unknown.
    """
    grounded = [t for t in example.targets if t["boxes"] or t["regions"]]
    plain = [t["text"] for t in example.targets if not (t["boxes"] or t["regions"])]
    ignored: dict[str, list] = defaultdict(list)
    for item in sample.objects if sample else ():
        if item.ignore:
            ignored[item.label].append(item.box)
    return Case(
        sample_id=example.sample_id,
        image_id=example.image_id,
        task=example.task,
        targets=tuple(
            Target(text=t["text"], regions=tuple(t["regions"]), boxes=as_boxes(t["boxes"]))
            for t in grounded
        ),
        answers=_answers(row),
        text=row["text"],
        reference=plain[0] if plain else _plain_text(sample),
        problem=row["problem"],
        asked=_asked(example, sample),
        ignored={label: as_boxes(boxes) for label, boxes in ignored.items()},
    )


def load_scenes(
    samples: Artifact, image_source: str | None = None
) -> tuple[list[Scene], list[str]]:
    """Return the true objects of every picture, and all names, present or known to be absent.

    image_source: only pictures of this one; None takes all. Windows into pictures are left out, and texts
    without one. Every sample of a picture lists all its objects, so any of them will do.
    """
    scenes: dict[str, Scene] = {}
    names: set[str] = set()
    for sample in load_samples(samples):
        if sample.window or not sample.image_uri or image_source not in (None, sample.image_source):
            continue
        names.update(item.label for item in sample.objects)
        names.update(sample.absent_labels or ())
        scenes[sample.image_id] = Scene(
            image_id=sample.image_id,
            boxes=as_boxes([item.box for item in sample.objects]),
            labels=tuple(item.label for item in sample.objects),
            ignore=tuple(item.ignore for item in sample.objects),
        )
    return [scenes[image_id] for image_id in sorted(scenes)], sorted(names)


def load_samples(samples: Artifact) -> Iterator[Sample]:
    """Yield the samples of an artifact, bucket by bucket."""
    for row in _rows(samples):
        yield sample_from_row(row)


def load_proposals(proposals: Artifact, image_ids: Collection[str]) -> list[Proposed]:
    """Return the proposals of some pictures; a picture without a row has none."""
    found = []
    for bucket in range(proposals.manifest()["buckets"]):
        rows = proposals_by_image(proposals.read_table(f"part-{bucket:05d}.parquet"))
        found += [
            Proposed(image_id=image_id, boxes=row["boxes"], scores=row["scores"])
            for image_id, row in rows.items()
            if image_id in image_ids
        ]
    return found


def grounded_text(phrases: Iterable[tuple[str, Sequence[int], int]]) -> str:
    """Write true phrases in the region language, a line each: (phrase, its regions, number of true boxes)."""
    lines = []
    for phrase, regions, num_boxes in phrases:
        uncovered = num_boxes - len(regions)
        named = grammar.render([(phrase or None, regions)]) if regions else phrase
        lines.append(f"{named} ({uncovered} without a proposal)" if uncovered > 0 else named)
    return "\n".join(lines)


def read_examples(shards: Artifact, tasks: Sequence[str]) -> Iterator[tuple[RegionExample, bytes]]:
    """Yield every example of some tasks with the bytes of its picture, in stored order."""
    for task in tasks:
        source = ShardSet(shards, task)
        for name, count in source.shards:
            for row in range(count):
                yield decode_member(source.read(name, row))


def _sample_id(example: RegionExample) -> str:
    """The sample that an example was made from."""
    return example.sample_id.removesuffix(f"/{rejection.TASK}")


def _rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    for bucket in range(artifact.manifest()["buckets"]):
        yield from artifact.read_table(f"part-{bucket:05d}.parquet").to_pylist()


def _answers(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    place = {region: index for index, region in enumerate(row["regions"])}
    boxes, scores = as_boxes(row["boxes"]), np.asarray(row["scores"], dtype=np.float32)
    phrases = [(phrase["text"], phrase["regions"]) for phrase in row["phrases"]]
    bare = sorted(set(row["regions"]) - {region for _, regions in phrases for region in regions})
    if bare:
        phrases.append(("", bare))  # mentioned outside any phrase
    return tuple(
        Answer(
            text=text,
            regions=tuple(sorted(regions)),
            boxes=boxes[[place[region] for region in sorted(regions)]],
            scores=scores[[place[region] for region in sorted(regions)]],
        )
        for text, regions in phrases
    )


def _plain_text(sample: Sample | None) -> str:
    """Return what the true answer says outside its grounded phrases."""
    parts = sample.turns[-1].parts if sample else ()
    return "".join(part.text or "" for part in parts if not part.objects)


def _asked(example: RegionExample, sample: Sample | None) -> tuple[str, ...] | None:
    """Return the known names that the last question holds; None when absence is not known."""
    if sample is None or sample.absent_labels is None:
        return None
    questions = [message["content"] for message in example.messages if message["role"] == "user"]
    known = {item.label for item in sample.objects} | set(sample.absent_labels)
    if not known or not questions:
        return ()
    # Longest first, so that "hot dog" is not read as "dog".
    pattern = "|".join(
        re.escape(name) for name in sorted(known, key=lambda name: (-len(name), name))
    )
    return tuple(dict.fromkeys(re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", questions[-1])))
