"""Validation beside the training: the driver has each candidate evaluated where there is room.

The loop writes candidates (`pipelines.training.candidates`); one task a candidate loads it as any
model folder and evaluates it by held-out examples and by a slice of benchmarks. The metrics depend
on the weights alone, so it does not matter when a task runs, or whether it is done again after an
interruption. On another kind of device they may differ in their last bits.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pipelines.artifacts import Artifact
from pipelines.cluster import Pools, start_task
from pipelines.errors import SettingError
from pipelines.evaluation.score import evaluate_slice
from pipelines.loading.collators import Example
from pipelines.shards.tar_format import ShardSet, decode_member
from pipelines.storage import local_folder
from pipelines.train_config import VALIDATION, TrainConfig
from pipelines.training.candidates import (
    Candidates,
    Metrics,
    best_step,
    read_metrics,
    write_metrics,
)
from pipelines.training.job import Questions, TrainJob

if TYPE_CHECKING:
    from pipelines.training.evaluators import AnsweringEvaluator

BEHIND = 2
"""Number of waiting candidates that is worth a line in the log. ours"""
_LOOK_EVERY_S = 1.0
logger = logging.getLogger("pipelines")


def evaluate_candidate(job: TrainJob, output: Artifact, device: str, step: int) -> Metrics:
    """Return the metrics of the candidate of a step, on a device; a CPU is used by one thread."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)  # sums do not depend on a thread count
    with local_folder(Candidates(output).uri(step)) as folder:
        evaluator = job.learner.evaluator(folder, device)
    most = job.config.validation_examples
    metrics = evaluator.metrics(_spread(job.validation, most)) if job.validation else {}
    for name, asked in job.benchmarks.items():
        examples = list(_spread(_tasks(asked), most))
        # `TrainJob` has seen to it that a learner with benchmarks makes one that answers.
        rows = cast("AnsweringEvaluator", evaluator).answer(examples, asked.config)
        records = [example.record for example in examples]
        found = evaluate_slice(records, rows, asked.samples, coco=asked.coco)
        metrics |= {f"{name}.{metric}": value for metric, value in found.items()}
    return {
        f"{VALIDATION}{name}": float(value) if math.isfinite(value) else None
        for name, value in metrics.items()
    }


def check_tasks(job: TrainJob) -> None:
    """Refuse shards to evaluate candidates by that lack a task, naming those there are."""
    for sources in (job.validation, *map(_tasks, job.benchmarks.values())):
        for source, shards in sources.items():
            ShardSet(shards, source.split("/")[1])


def evaluate_here(job: TrainJob, output: Artifact, step: int) -> Future[Metrics]:
    """Do `evaluate_candidate` in this process, before the call returns."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    done: Future[Metrics] = Future()
    try:
        done.set_result(evaluate_candidate(job, output, device, step))
    except Exception as error:  # told at the end, as that of a task elsewhere
        done.set_exception(error)
    return done


class Validator:
    """The driver's side: which candidates are evaluated, which are kept, which one is exported.

    Not for several threads at a time.
    """

    def __init__(
        self,
        job: TrainJob,
        output: Artifact,
        *,
        start: Callable[[int], Future[Metrics]],
        beside: int,
        after: int,
        log: Callable[[int, Mapping[str, float]], None],
        stop: threading.Event,
    ) -> None:
        """Take up what an earlier driver left.

        Args:
            job: What is trained.
            output: The run's artifact.
            start: Has the candidate of a step evaluated.
            beside: Most tasks at a time while the run trains.
            after: Most tasks at a time when it has ended.
            log: Takes the metrics of a step, possibly again after a restart.
            stop: Set from outside to end the run, and from here when it trains for nothing.
        """
        self._job, self._output, self._candidates = job, output, Candidates(output)
        self._start, self._beside, self._after = start, beside, after
        self._log, self._stop = log, stop
        self._evaluated = read_metrics(output)
        self._running: dict[int, Future[Metrics]] = {}
        self._failed: dict[int, BaseException] = {}
        self._refused: SettingError | None = None
        self._waiting: list[int] = []
        self._told = BEHIND - 1
        for step, metrics in self._evaluated.items():
            self._log_finite(step, metrics)
        self._candidates.prune(self._evaluated, self._kept())
        self._queue(self._candidates.complete())

    def receive(self, report: Mapping[str, Any]) -> None:
        """Take a report of the run: collect what was evaluated meanwhile, start what has room."""
        if report["candidate"] is not None:
            self._queue([report["candidate"]])
        self._advance(self._beside)
        if len(self._waiting) > self._told:  # said again only when more wait than ever
            self._told = len(self._waiting)
            room = (
                f"{self._beside} at a time"
                if self._beside
                else "no GPU is free until the training ends"
            )
            self._say(f"{self._told} candidates wait on disk to be evaluated, {room}")

    def finish(self) -> bool:
        """Evaluate what is left, now that the run has ended.

        Returns:
            Whether all is evaluated: False when the run was told to stop before.

        Raises:
            SettingError: There is no metric to choose the best by.
            RuntimeError: A candidate could not be evaluated; the message names its step.
        """
        self._queue(self._candidates.complete())
        self._advance(self._after)
        while self._running and not self._stop.is_set():
            first = concurrent.futures.FIRST_COMPLETED
            concurrent.futures.wait(self._running.values(), _LOOK_EVERY_S, return_when=first)
            self._advance(self._after)
        if self._refused is not None:
            raise self._refused
        for step, error in sorted(self._failed.items()):
            raise RuntimeError(
                f"the candidate of step {step} could not be evaluated: {_words(error)}; mend the "
                "cause and start the run again, which evaluates what is left"
            ) from error
        missing = sorted({*_steps(self._job.config)} - set(self._evaluated))
        if missing and not self._stop.is_set():
            raise RuntimeError(f"{self._output.path}: there is no candidate of step {missing[0]}")
        return not missing

    def publish(self) -> int:
        """Export the weights that the run keeps; return their step."""
        kept = self._kept()
        self._candidates.publish(kept)
        return kept

    def last_metrics(self) -> Metrics:
        """Return the metrics of the last step."""
        return self._evaluated[self._job.config.steps]

    def _kept(self) -> int:
        """Return the step whose weights are the run's, as far as is known."""
        config = self._job.config
        best = best_step(self._evaluated, config.keep_best) if config.keep_best else None
        return config.steps if best is None else best

    def _queue(self, steps: Iterable[int]) -> None:
        known = {*self._evaluated, *self._running, *self._failed, *self._waiting}
        self._waiting += [step for step in steps if step not in known]

    def _advance(self, most: int) -> None:
        """Take what is done and start what waits, up to `most` at a time."""
        self._collect()
        while self._waiting and len(self._running) < most and not self._stop.is_set():
            step = self._waiting.pop(0)
            self._running[step] = self._start(step)
            self._collect()  # in this process a task is done when it was started

    def _collect(self) -> None:
        for step in [step for step, task in self._running.items() if task.done()]:
            task = self._running.pop(step)
            error = task.exception()
            if error is None:
                self._take(step, task.result())
            else:
                self._failed[step] = error
                self._say(f"the candidate of step {step} could not be evaluated: {_words(error)}")

    def _take(self, step: int, metrics: Metrics) -> None:
        self._evaluated[step] = metrics
        # Before the candidate is pruned: a driver that dies between loses neither.
        write_metrics(self._output, self._evaluated)
        self._log_finite(step, metrics)
        try:
            kept = self._kept()
        except SettingError as error:  # the run would end without a choice: better now than then
            self._refused = error
            self._stop.set()
            return
        self._candidates.prune(self._evaluated, kept)

    def _log_finite(self, step: int, metrics: Metrics) -> None:
        self._log(step, {name: value for name, value in metrics.items() if value is not None})

    def _say(self, words: str) -> None:
        logger.warning("train %s: %s", self._job.name, words)


def make_validator(
    job: TrainJob,
    output: Artifact,
    pools: Pools | None,
    *,
    max_retries: int,
    log: Callable[[int, Mapping[str, float]], None],
    stop: threading.Event,
) -> Validator | None:
    """Return who has the candidates evaluated, where the run has any.

    Their tasks take what the training leaves: a CPU, which `pool_sizes` keeps free; where the
    training is on GPUs, GPUs alone, since a CPU would take hours, and with none left they wait
    until it ends.

    Args:
        job: What is trained.
        output: The run's artifact.
        pools: Of the training; None for one in this process.
        max_retries: Times that a task is done again because its process or node was lost.
        log: See `Validator`.
        stop: See `Validator`.
    """
    if not (job.config.validate_every and job.config.steps):
        return None
    if pools is None:
        here = partial(evaluate_here, job, output)
        return Validator(job, output, start=here, beside=1, after=1, log=log, stop=stop)
    spare = int(pools.free_gpus) if pools.num_gpus else 1
    device = "cuda" if pools.num_gpus else "cpu"
    task = partial(
        start_task,
        evaluate_candidate,
        job,
        output,
        device,
        num_gpus=pools.num_gpus,
        max_retries=max_retries,
    )
    return Validator(
        job, output, start=task, beside=spare, after=spare + pools.workers, log=log, stop=stop
    )


def _steps(config: TrainConfig) -> Iterator[int]:
    """Yield the steps after which there is a candidate."""
    yield from range(config.validate_every, config.steps, config.validate_every)
    yield config.steps


def _words(error: BaseException) -> str:
    """Return the error itself, without the story of the process in which Ray met it."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"


def _tasks(asked: Questions) -> dict[str, Artifact]:
    """Return the shards of the questions by ``dataset/task``."""
    return {f"questions/{task}": asked.shards for task in asked.config.tasks}


def _spread(shards: Mapping[str, Artifact], most: int) -> Iterator[Example]:
    """Yield examples of each source ``dataset/task``, at most so many, evenly over its shards."""
    for source, artifact in shards.items():
        opened = ShardSet(artifact, source.split("/")[1])
        every = [(name, row) for name, count in opened.shards for row in range(count)]
        # Spread evenly, instead of the first ones: neighbours in a shard are alike.
        for name, row in every[:: -(-len(every) // most)]:
            record, image = decode_member(opened.read(name, row))
            yield Example(record=record, image=image, seed=0)
