"""Graph: evaluation shards -> model workers -> predictions by bucket.

Every example gives a row. An answer that cannot be read is a row with its problem, not a failure
and not a gap: metrics over fewer questions than were asked would not be those of the benchmark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataset_builders.tasks.prompts import JOINER, TEMPLATES
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.example_image import view
from pipelines.model_identity import run_key
from pipelines.row_accounting import entry
from pipelines.schemas import PREDICTION_SCHEMA, RegionExample
from pipelines.shards.tar_format import ShardSet, decode_member
from pipelines.shuffled_regions import derangement
from pipelines.storage import local_folder
from pipelines.worker_pools import map_buckets

if TYPE_CHECKING:  # the model is imported in the workers: `fo1 plan` reads only the config
    from fo1_model.batch import Encoded
    from fo1_model.generation import Answer
    from fo1_model.model import FO1Model
    from fo1_model.processing import Processor

VERSION = 1
"""Raised when the same inputs would give other predictions."""
EXPORT = "export"
"""Folder of a run that holds its model."""
CONSTRAINTS = ("none", "grammar", "names")
"""What `PredictConfig.constraint` can be."""
SCORES = ("proposal", "model", "product")
"""What `PredictConfig.score` can be."""
LISTING_TASKS = ("detection", "rejection")
"""Tasks whose questions list the names that an answer may ground."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How questions are answered."""

    tasks: tuple[str, ...]
    """Tasks of the shard artifact to answer, e.g. ("detection", "rejection")."""
    max_new_tokens: int = 256
    """Longest answer in tokens (release: 4096); an answer cut there has a problem."""
    batch_size: int = 16
    """Number of examples answered side by side."""
    shuffled_regions: bool = False
    """Control: every region shows another box of its image, so that choosing is mere chance."""
    constraint: str = "none"
    """What answers are held to.

    ``none`` (release); ``grammar``: answers that read cleanly; ``names``: moreover only phrases
    that the question asked for, in detection and rejection.
    """
    score: str = "proposal"
    """Score of a named region.

    The ``proposal``'s (release), the ``model``'s probability of its index token where it was first
    said, or their ``product``.
    """

    def __post_init__(self) -> None:
        if not self.tasks:
            raise SettingError(
                "PredictConfig.tasks=() asks nothing; name at least one task of the shards"
            )
        if self.batch_size < 1:
            raise SettingError(f"PredictConfig.batch_size={self.batch_size} must be at least 1")
        for name, value, known in (
            ("constraint", self.constraint, CONSTRAINTS),
            ("score", self.score, SCORES),
        ):
            if value not in known:
                raise SettingError(
                    f"PredictConfig.{name}={value!r} is not known; choose one of {', '.join(known)}"
                )


def predict_inputs(shards: Artifact, run: Artifact) -> dict[str, str]:
    """Return the fingerprints of what predictions are made from, by kind and name."""
    return {f"shards/{shards.name}": shards.fingerprint, run_key(run): run.fingerprint}


def predict(
    config: PredictConfig,
    shards: Artifact,
    run: Artifact,
    output: Artifact,
    *,
    runtime: RuntimeConfig,
) -> dict[str, Any]:
    """Answer the questions of `shards` with the model that `run` exported.

    Goes on where a killed run stopped.

    Args:
        config: How questions are answered, and which tasks.
        shards: The finished evaluation shards.
        run: The finished run whose exported model answers.
        output: Artifact to write.
        runtime: Workers, roots and whether to start anew.

    Returns:
        The manifest of `output`.

    Raises:
        SettingError: Shards or run are not finished, or the shards lack a task of the config;
            raised before any worker starts.
    """
    inputs = predict_inputs(shards, run)
    for artifact in (shards, run):
        if artifact.status() != "done":
            raise SettingError(
                f"{artifact.path} is {artifact.status()}; make it before predicting from it"
            )
    for task in config.tasks:
        ShardSet(shards, task)  # names the tasks there are, before any worker starts
    done = prepare(output, version=VERSION, config=config, inputs=inputs, force=runtime.force)
    if done is not None:
        return done
    # Predictions keep the buckets of the shards: each is answered and committed as a whole, which
    # is where a killed run goes on.
    num_buckets = shards.manifest()["buckets"]
    waiting = sorted(set(range(num_buckets)) - set(output.finished()))
    settings = {
        "config": config,
        "shards": shards,
        "model_folder": run.uri(EXPORT),
        "output": output,
    }
    for _ in map_buckets(
        PredictWorker, settings, waiting, runtime=runtime, description=f"predict {output.name}"
    ):
        pass  # every worker commits its buckets itself
    return output.commit_buckets(
        version=VERSION,
        config=config,
        inputs=inputs,
        num_buckets=num_buckets,
    )


class PredictWorker:
    """A worker that holds one model and answers one bucket a call."""

    def __init__(
        self, config: PredictConfig, shards: Artifact, model_folder: str, output: Artifact
    ) -> None:
        import torch

        from fo1_model.checkpoint import load_model

        # The pool is the parallelism, and sums do not depend on a thread count.
        torch.set_num_threads(1)
        self.config = config
        self.output = output
        with local_folder(model_folder) as folder:
            self.model, self.processor = load_model(folder)
        self.sources = [ShardSet(shards, task) for task in config.tasks]

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Answer the bucket, commit its predictions and return its ledger."""
        examples = [
            decode_member(source.read(name, row))
            for source in self.sources
            for name, count in source.shards
            if bucket_of_shard(name) == bucket
            for row in range(count)
        ]
        rows = predict_examples(self.model, self.processor, examples, self.config)
        problems = sum(row["problem"] is not None for row in rows)
        ledger = {**entry(len(examples), len(rows), []), "problems": problems}
        table = pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
        self.output.commit_bucket(
            bucket, {f"part-{bucket:05d}.parquet": parquet_bytes(table)}, ledger
        )
        return ledger


def bucket_of_shard(name: str) -> int:
    """Return 3 for "detection-00003.tar"."""
    return int(name.rsplit("-", 1)[1].split(".", 1)[0])


def predict_examples(
    model: FO1Model,
    processor: Processor,
    examples: Sequence[tuple[RegionExample, bytes]],
    config: PredictConfig,
) -> list[dict[str, Any]]:
    """Answer the examples of a bucket.

    Args:
        model: The model.
        processor: Its processor.
        examples: Examples with the bytes of their images; empty bytes where there is no image.
        config: How questions are answered.

    Returns:
        One row of `PREDICTION_SCHEMA` for each example, in their order.
    """
    from fo1_model.generation import GenerationConfig, generate

    # Alike lengths side by side waste the least padding; the rows go back to their places.
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i][0].boxes), i))
    decoding = GenerationConfig(
        max_new_tokens=config.max_new_tokens, constrained=config.constraint != "none"
    )
    rows: list[dict[str, Any]] = [{}] * len(examples)
    for start in range(0, len(order), config.batch_size):
        chunk = order[start : start + config.batch_size]
        encoded = [
            encode_question(processor, *examples[i], shuffled=config.shuffled_regions)
            for i in chunk
        ]
        names = (
            [asked_names(examples[i][0]) for i in chunk] if config.constraint == "names" else None
        )
        answers = generate(model, processor, encoded, decoding, names=names)
        for i, answer in zip(chunk, answers, strict=True):
            rows[i] = prediction_row(examples[i][0], answer, config.score)
    return rows


def asked_names(example: RegionExample) -> tuple[str, ...] | None:
    """Return the names that the last question lists, read by its wording; None when it lists none.

    Raises:
        SettingError: The question of a task in `LISTING_TASKS` has none of the known wordings, as
            in shards made from somebody's own conversations.
    """
    if example.task not in LISTING_TASKS:
        return None
    question = [message["content"] for message in example.messages if message["role"] == "user"][-1]
    if any(question.endswith(wording.format("")) for wording in TEMPLATES["everything"]):
        return None
    for wording in TEMPLATES["detection"]:
        before, after = wording.split("{}")
        listed = re.search(rf"(?:^|\n){re.escape(before)}(.+){re.escape(after)}\Z", question)
        if listed:
            return tuple(listed.group(1).split(JOINER))
    raise SettingError(
        f"{example.sample_id}: no wording of detection fits the question {question!r}; "
        "predict with PredictConfig.constraint='grammar'"
    )


def encode_question(
    processor: Processor, example: RegionExample, image: bytes, *, shuffled: bool = False
) -> Encoded:
    """Encode an example up to its last question.

    Args:
        processor: The model's processor.
        example: The example; an answer at its end is left away.
        image: Bytes of its image; empty when it has none.
        shuffled: Whether regions show other boxes than they name (the control).

    Returns:
        The sequence, its image and boxes, ready for generation.
    """
    pixels, boxes = view(example, image)
    if shuffled:
        boxes = boxes[derangement(len(boxes), example.sample_id)]
    # Shards for training end with the answer, which the model must not see.
    messages = list(example.messages)
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return processor.encode(
        pixels, boxes, messages, for_generation=True, sample_id=example.sample_id
    )


def prediction_row(
    example: RegionExample, answer: Answer, score: str = "proposal"
) -> dict[str, Any]:
    """Return one row of `PREDICTION_SCHEMA`; boxes and scores are those of the regions named.

    Args:
        example: What was asked.
        answer: What the model said.
        score: Kind of score, as in `PredictConfig.score`.
    """
    named = list(answer.parsed.regions)
    problems = [answer.parsed.problem] if answer.parsed.problem else []
    if not answer.finished:
        problems.append("cut at the longest answer")
    return {
        "sample_id": example.sample_id,
        "image_id": example.image_id,
        "task": example.task,
        "text": answer.text,
        "phrases": [
            {"text": text, "regions": list(regions)} for text, regions in answer.parsed.phrases
        ],
        "regions": named,
        "boxes": [example.boxes[region].tolist() for region in named],
        "scores": [
            region_score(score, example.scores[region], logprob)
            for region, logprob in zip(named, answer.region_logprobs, strict=True)
        ],
        "region_logprobs": list(answer.region_logprobs),
        "problem": "; ".join(problems) or None,
    }


def region_score(score: str, proposal: float | None, logprob: float) -> float | None:
    """Return a region's score, of the kind of `PredictConfig.score`.

    Args:
        score: Kind of score.
        proposal: The detector's score; None for an annotated box, which then has no score but the
            model's.
        logprob: Natural logarithm of the model's probability of the region's index token.
    """
    if score == "model":
        return math.exp(logprob)
    return proposal if score == "proposal" or proposal is None else proposal * math.exp(logprob)
