"""Walking along a chain: what the verbs that make artifacts do, step by step."""

import shutil
import time
from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain, Step
from jobs.chain.recipe_chain import recipe_chain
from jobs.command.flags import runtime_of
from jobs.command.verbs import shell_command
from jobs.recipes.catalogue import named_recipe
from pipelines import progress
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.storage import check_writable

LONGEST_LINE = 100
"""Columns of the line that announces a step, at most."""


def build(words: list[str], flags: Namespace) -> None:
    """Make the samples of every dataset that the recipe uses."""
    run_verb("build", words, runtime_of(flags))


def propose(words: list[str], flags: Namespace) -> None:
    """Make the proposals for every image source that the recipe uses."""
    run_verb("propose", words, runtime_of(flags))


def shard(words: list[str], flags: Namespace) -> None:
    """Make the training and evaluation shards of the recipe."""
    for note in run_verb("shard", words, runtime_of(flags)).notes:
        print(f"note: {note}")


def train(words: list[str], flags: Namespace) -> None:
    """Make the training runs of the recipe, or the tiny base."""
    runtime = runtime_of(flags)
    if words[:1] == ["tiny_base"]:
        from jobs.tiny_base import train_base

        train_base(words[1:], runtime)
        return
    run_verb("train", words, runtime)


def evaluate(words: list[str], flags: Namespace) -> None:
    """Let the recipe's runs, or one checkpoint, answer benchmarks; print and write the report."""
    from jobs.checkpoints.evaluate import evaluation_of_checkpoint
    from jobs.reports import report

    runtime = runtime_of(flags)
    if words and words[0] in BENCHMARKS:
        chain = evaluation_of_checkpoint(words[0], words[1:], runtime)
        # Answers are the verb's own: made anew with --force. What they need is made where missing.
        steps = chain.steps.values()
        waiting = [s for s in steps if waits(s, runtime.force and s.verb == "evaluate")]
        execute(waiting, runtime, anew=[s for s in waiting if s.verb == "evaluate"])
    else:
        chain = run_verb("evaluate", words, runtime, others=list(BENCHMARKS))
    report(chain)


def inspect(words: list[str], flags: Namespace) -> None:
    """Write a page of images and statistics for each shard artifact of the recipe that is there."""
    from jobs.reports import inspect_pages

    dataset = next((word.partition("=")[2] for word in words if word.startswith("dataset=")), None)
    own = [word for word in words if not word.startswith("dataset=")]
    inspect_pages(recipe_chain(named_recipe(own), runtime_of(flags)), dataset)


def run(words: list[str], flags: Namespace) -> None:
    """Make everything of the recipe that is not done, in order; then the pages."""
    from jobs.command.plan import plan_table
    from jobs.reports import inspect_pages, report

    runtime = runtime_of(flags)
    recipe = named_recipe(words)  # first: a typo leaves no folder behind
    check_writable(runtime.root)
    chain = recipe_chain(recipe, runtime)
    print(plan_table(chain, words))
    waiting = [step for step in chain.steps.values() if waits(step, runtime.force)]
    execute(waiting, runtime, anew=waiting)
    if waiting or not chain.recipe.trainings:
        inspect_pages(chain, None)
    if chain.evaluated or chain.proposed:
        report(chain)


def run_verb(
    verb: str, words: list[str], runtime: RuntimeConfig, *, others: Sequence[str] = ()
) -> Chain:
    """Make a verb's artifacts of a recipe; what they read must be there.

    Args:
        verb: One of `jobs.chain.chain.VERBS`.
        words: The recipe, then ``name=value`` words.
        runtime: Where and how wide; with ``force`` the verb's own artifacts are made anew.
        others: See `find_recipe`.

    Raises:
        SettingError: When an input is not done, with the command that makes it.
    """
    recipe = named_recipe(words, others=others)  # first: a typo leaves no folder behind
    check_writable(runtime.root)
    chain = recipe_chain(recipe, runtime)
    own = [step for step in chain.steps.values() if step.verb == verb]
    waiting = [step for step in own if waits(step, runtime.force)]
    _check_inputs(waiting, verb, words)
    execute(waiting, runtime, anew=waiting)
    for step in own:
        print(f"{step.artifact.path}{'' if step in waiting else '  (was done)'}")
    return chain


def waits(step: Step, force: bool) -> bool:
    """Whether a step is to be run: it is not done, or has to be made anew."""
    return force or step.artifact.status() != "done"


def execute(
    waiting: Iterable[Step], runtime: RuntimeConfig, *, anew: Collection[Step] = ()
) -> None:
    """Make artifacts one after the other, each announced with its time.

    Args:
        waiting: Steps in an order in which they can run.
        runtime: Where and how wide.
        anew: Those of them that ``runtime.force`` is for; the others go on where they stopped.
    """
    waiting = list(waiting)
    width = min(LONGEST_LINE, shutil.get_terminal_size().columns)
    for number, step in enumerate(waiting, 1):
        title = f"[{number}/{len(waiting)}] {step.verb} {step.artifact.name} "
        _say(f"{title}{'-' * max(3, width - len(title))}")
        start = time.perf_counter()
        manifest = step.execute(replace(runtime, force=runtime.force and step in anew))
        _say(f"{_summary(manifest)} ({time.perf_counter() - start:.1f} s)")


def _say(line: str) -> None:
    """Print a line about how far the work is; with --quiet none."""
    if progress.is_shown():
        print(line, flush=True)


def _check_inputs(waiting: Collection[Step], verb: str, words: Sequence[str]) -> None:
    for step in waiting:
        for needed in step.inputs:
            if needed.artifact.status() != "done" and needed not in waiting:
                kind = f"{needed.artifact.kind}/{needed.artifact.name}"
                make = shell_command(needed.verb, words)
                raise SettingError(
                    f"{verb}: {step.artifact.name} needs {kind}, which is "
                    f"{needed.artifact.status()}; make it with: {make}   "
                    f"(or everything: {shell_command('run', words)})"
                )


def _summary(manifest: Mapping[str, Any]) -> str:
    ledger = manifest.get("ledger", {})
    if "rows_in" not in ledger:
        return "done"
    text = f"{ledger['rows_in']} rows in, {ledger['rows_out']} out, {ledger['rejects']} rejected"
    reasons = ", ".join(
        f"{reason} {count}" for reason, count in ledger["rejects_by_reason"].items()
    )
    return f"{text}: {reasons}" if reasons else text
