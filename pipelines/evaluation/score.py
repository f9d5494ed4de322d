"""From stored artifacts to metrics: of a benchmark's predictions, of some questions, of a detector.

These three functions read artifacts; the metrics themselves are pure functions in
`pipelines.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.evaluation.joined_cases import load_cases, make_case, origin_of
from pipelines.evaluation.metrics.cases import Case, Scene
from pipelines.evaluation.metrics.proposals import BUDGETS, proposal_metrics
from pipelines.evaluation.metrics.summary import DETECTION, summarise
from pipelines.evaluation.stored_inputs import load_proposals, load_samples, load_scenes
from pipelines.schemas import RegionExample


def evaluate(
    predictions: Artifact, shards: Artifact, samples: Artifact, *, coco: bool = False
) -> tuple[dict[str, float], list[Case]]:
    """Compute the metrics of one set of predictions.

    Args:
        predictions: The finished answers.
        shards: What they answer.
        samples: What the shards were made from.
        coco: Whether to add COCO AP, whose protocol asks every image for every name.

    Returns:
        The metrics by name, and the judged cases.

    Raises:
        SettingError: With `coco`, an image was asked for some names only: AP would then be another
            metric under the same name.
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
    """Compute the metrics of some questions of a benchmark, and of their images alone.

    Args:
        examples: The questions.
        rows: The answer to each, in the same order (`PREDICTION_SCHEMA`).
        samples: What all questions of the benchmark were made from.
        coco: Whether to add COCO AP, as for `evaluate`.

    Returns:
        The metrics by name.
    """
    wanted = {origin_of(example) for example in examples}
    facts = {
        sample.sample_id: sample for sample in load_samples(samples) if sample.sample_id in wanted
    }
    cases = [
        make_case(example, row, facts.get(origin_of(example)))
        for example, row in zip(examples, rows, strict=True)
    ]
    if not coco:
        return summarise(cases)
    scenes, names = load_scenes(samples)
    # The objects of images that nobody asked about would count as missed.
    image_ids = {case.image_id for case in cases}
    return _with_coco(cases, [scene for scene in scenes if scene.image_id in image_ids], names)


def _with_coco(
    cases: Sequence[Case], scenes: Sequence[Scene], names: Sequence[str]
) -> dict[str, float]:
    """Compute all metrics with COCO's, once every detection question asks for all names."""
    for case in cases:
        if case.task == DETECTION and set(case.asked or ()) != set(names):
            raise SettingError(
                f"coco=True: image {case.image_id} was asked for {len(case.asked or ())} of "
                f"{len(names)} names; use a benchmark that asks for all of them"
            )
    return summarise(cases, scenes=scenes, names=names)


def evaluate_proposals(
    proposals: Artifact, samples: Artifact, *, budgets: Sequence[int] = BUDGETS
) -> dict[str, float]:
    """Compute the recall of a detector on labelled images, and oracle_ap of a perfect reader.

    Args:
        proposals: The detector's finished proposals.
        samples: Samples that state the truth. Of those over several image sources, only the images
            that the proposals are of count.
        budgets: Numbers of best boxes an image at which recall is given.

    Returns:
        The metrics of `proposal_metrics`.
    """
    scenes, names = load_scenes(samples, proposals.name.partition("/")[0])
    found = load_proposals(proposals, {scene.image_id for scene in scenes})
    return proposal_metrics(scenes, found, names, budgets)
