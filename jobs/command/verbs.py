"""What each verb of the command does: parse the recipe, walk its chain, say what happened."""

import shutil
import textwrap
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from dataset_builders import DATASETS, DatasetSpec
from jobs.chain import Chain, Step, chain
from jobs.recipes.arguments import describe_arguments, parse_arguments
from jobs.recipes.catalogue import RECIPES, find_recipe
from jobs.recipes.recipe import Recipe
from pipelines.cluster import RuntimeConfig
from pipelines.row_accounting import LedgerError
from pipelines.storage import check_writable

STEP_FAILURES: tuple[type[Exception], ...] = (LedgerError, OSError)
"""Failures of a step that a message explains; anything else is a defect and shows its traceback."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of the command."""

    root: str
    data: str
    address: str | None
    workers: int | None
    gpus_per_worker: float | None
    force: bool
    tracking_uri: str | None
    max_reject_fraction: float
    loader_processes: int

    def runtime(self, *, force: bool = False) -> RuntimeConfig:
        """Where things run; `force` only for the verb's own artifacts."""
        return RuntimeConfig(
            root=self.root,
            data=self.data,
            address=self.address,
            workers=self.workers,
            gpus_per_worker=self.gpus_per_worker,
            force=force,
            tracking_uri=self.tracking_uri,
            max_reject_fraction=self.max_reject_fraction,
            loader_processes=self.loader_processes,
        )


def list_all(words: list[str], options: Options) -> None:
    """Print every name that the other verbs understand, or those of one part, or one dataset."""
    parts: dict[str, Callable[[Options], None]] = {
        "recipes": _list_recipes,
        "sizes": _list_sizes,
        "datasets": _list_datasets,
        "detectors": _list_detectors,
        "mixes": _list_mixes,
        "benchmarks": _list_benchmarks,
        "exclude": _list_exclude,
    }
    if words[:1] == ["datasets"] and len(words) == 2:
        return _print_dataset(words[1])
    if len(words) > 1 or (words and words[0] not in parts):
        raise ValueError(
            f"list {' '.join(words)}: write fo1 list [{'|'.join(parts)}], or list datasets NAME"
        )
    for name in words or parts:
        parts[name](options)
    return None


def _list_recipes(_: Options) -> None:
    print("recipes (name, arguments with their defaults)")
    for name, recipe in RECIPES.items():
        print(
            f"  {name:<14}{(recipe.__doc__ or '').splitlines()[0]}\n{'':16}{describe_arguments(recipe)}"
        )
    print("  none: what fo1 list sizes says for the size")


def _list_sizes(_: Options) -> None:
    from jobs.recipes.settings import describe_sizes

    print(
        "sizes (what a recipe's argument is where it is left at none; whose values: jobs/recipes/settings.py)"
    )
    for line in describe_sizes():
        print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 16))


def _list_datasets(_: Options) -> None:
    print(
        "datasets (name, stages of the paper's mix, tasks, licence; more with: fo1 list datasets NAME)"
    )
    wide = max(map(len, DATASETS))
    for spec in DATASETS.values():
        print(f"  {spec.name:<{wide}}  {_stages(spec):<5} {', '.join(spec.tasks)}; {spec.licence}")


def _list_detectors(_: Options) -> None:
    from jobs.detector_arguments import describe_detectors

    print("detectors (detector=NAME[:SOURCE][,setting=value...]; a union: A+B)")
    for line in describe_detectors():
        print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent=" " * 26))


def _list_mixes(_: Options) -> None:
    from jobs.mixes import MIXES

    print("mixes (drop with NAME-part, weigh with NAME*part=2, keep only with NAME:part)")
    for name, mix in MIXES.items():
        listed = ", ".join(f"{source} {weight:.3g}" for source, weight in mix.items())
        print(
            textwrap.fill(
                f"{name:<14}{listed}", 110, initial_indent="  ", subsequent_indent=" " * 16
            )
        )


def _list_benchmarks(_: Options) -> None:
    from jobs.benchmarks import BENCHMARKS

    print("benchmarks")
    for name, benchmark in BENCHMARKS.items():
        protocol = " (COCO AP)" if benchmark.coco_ap else ""
        print(f"  {name:<16}{benchmark.dataset}: {', '.join(benchmark.tasks)}{protocol}")


def _list_exclude(options: Options) -> None:
    from dataset_builders import DataFolders
    from dataset_builders.benchmark_leakage import benchmark_lists

    print(
        "exclude (benchmarks whose images training leaves out, the files that list them; * found)"
    )
    folders = DataFolders(options.data)
    for name, item in benchmark_lists(folders).items():
        print(f"{' ' if item.missing(folders) else '*'} {name:<16}{', '.join(item.files)}")


def plan(words: list[str], options: Options) -> None:
    """Print each artifact of a recipe, its state, and the command that makes what is missing."""
    from jobs.plan_budget import budgets, published_budgets

    try:
        made, command = _chain(words, options)
    except (
        ValueError
    ):  # a dataset that is not there, say: what the mix amounts to is known all the same
        print(published_budgets(named_recipe(words)))
        raise
    print(plan_table(made, command))
    if table := budgets(made):
        print(f"\n{table}")


def build(words: list[str], options: Options) -> None:
    """Samples of every dataset that the recipe uses."""
    _run_verb("build", words, options)


def propose(words: list[str], options: Options) -> None:
    """Proposals for every image source that the recipe uses."""
    _run_verb("propose", words, options)


def shard(words: list[str], options: Options) -> None:
    """Training and evaluation shards."""
    made = _run_verb("shard", words, options)
    for note in made.notes:
        print(f"note: {note}")


def train(words: list[str], options: Options) -> None:
    """The recipe's training runs."""
    if words[:1] == ["tiny_base"]:
        from jobs.tiny_base import train_base

        train_base(words[1:], options.runtime(force=options.force))
        return
    _run_verb("train", words, options)


def evaluate(words: list[str], options: Options) -> None:
    """Predictions of the recipe's runs, or of one checkpoint on one benchmark; then figures and report."""
    from jobs.benchmarks import BENCHMARKS
    from jobs.checkpoints import evaluate_checkpoint
    from jobs.reports import report

    if words and words[0] in BENCHMARKS:
        return evaluate_checkpoint(words[0], words[1:], options.runtime(force=options.force))
    made = _run_verb("evaluate", words, options)
    return report(made)


def inspect(words: list[str], options: Options) -> None:
    """Write a page of pictures and statistics for each shard artifact of the recipe that is there."""
    from jobs.reports import inspect_pages

    dataset = next((word.partition("=")[2] for word in words if word.startswith("dataset=")), None)
    made, _ = _chain([word for word in words if not word.startswith("dataset=")], options)
    inspect_pages(made, dataset)


def predict(words: list[str], options: Options) -> None:
    """Answer one question about one picture."""
    from jobs.checkpoints import predict_picture

    predict_picture(words, options.runtime())


def experiment(words: list[str], options: Options) -> None:
    """A recipe in several settings, compared in one table."""
    from jobs.experiment import experiment as compare

    check_writable(options.root)
    compare(words, options.runtime())


def proposals(words: list[str], options: Options) -> None:
    """Caches of proposals: compare two, make one from a file, list them."""
    from jobs.proposal_caches import proposals as caches

    caches(words, options.runtime(force=options.force))


def import_release(words: list[str], _: Options) -> None:
    """The released checkpoint as a model folder of ours."""
    from jobs.import_export import import_release as import_folder

    import_folder(words)


def export(words: list[str], options: Options) -> None:
    """A model in a folder of its own, in Hugging Face's or the release's layout."""
    from jobs.import_export import export as export_model

    export_model(words, options.runtime())


def run(words: list[str], options: Options) -> None:
    """Everything of the recipe that is not done, in order; then the pages."""
    from jobs.reports import inspect_pages, report

    check_writable(options.root)
    made, command = _chain(words, options)
    print(plan_table(made, command))
    waiting = [
        step for step in made.steps.values() if options.force or step.artifact.status() != "done"
    ]
    execute(waiting, options.runtime(force=options.force))
    if waiting or not made.recipe.trainings:
        inspect_pages(made, None)
    if made.evaluated or made.proposed:
        report(made)


def submit(*_: Any) -> None:
    """Where it is not the first word; elsewhere the command hands the words on as they are."""
    raise ValueError("submit comes first: fo1 submit --address URL -- VERB RECIPE ...")


def plan_table(made: Chain, command: str) -> str:
    """One line an artifact: verb, name, fingerprint, state, and the command that makes it."""
    lines = []
    for step in made.steps.values():
        status = step.artifact.status()
        what = f"{step.artifact.kind}/{step.artifact.name}"
        make = "" if status == "done" else f"fo1 {step.verb} {command}"
        lines.append(f"{status:<8} {step.artifact.fingerprint}  {what:<44} {make}".rstrip())
    lines += (f"note: {note}" for note in made.notes)
    return "\n".join(lines)


def _print_dataset(name: str) -> None:

    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    spec = DATASETS[name]
    sources = [source.name for source in (*spec.images, *spec.optional_images)]
    print(f"{spec.name}\ntasks:   {', '.join(spec.tasks)}\nstages:  {_stages(spec)}")
    print(
        f"licence: {spec.licence}\nsource:  {spec.source}\nimages:  {', '.join(sources) or 'none'}"
    )
    print("layout below the data root (--data):")
    print("\n".join(f"  {line}" for line in spec.layout.splitlines()))


def _stages(spec: DatasetSpec) -> str:
    return ", ".join(map(str, spec.stages)) or "-"


def _chain(words: list[str], options: Options) -> tuple[Chain, str]:
    recipe = named_recipe(words)
    return chain(recipe, options.runtime()), " ".join(words)


def named_recipe(words: list[str]) -> Recipe:
    """The recipe that the words name, with their arguments. ValueError for what it does not take."""
    if not words or "=" in words[0]:
        raise ValueError(
            f"name a recipe first, one of {', '.join(RECIPES)}, or my_module:my_recipe"
        )
    recipe = find_recipe(words[0])
    return recipe(**parse_arguments(recipe, words[1:]))


def _run_verb(verb: str, words: list[str], options: Options) -> Chain:
    """Make the verb's artifacts of a recipe; what they read must be there."""
    check_writable(options.root)
    made, command = _chain(words, options)
    own = [step for step in made.steps.values() if step.verb == verb]
    waiting = [step for step in own if options.force or step.artifact.status() != "done"]
    _check_inputs(waiting, verb, command)
    execute(waiting, options.runtime(force=options.force))
    for step in own:
        print(f"{step.artifact.path}{'' if step in waiting else '  (was done)'}")
    return made


def _check_inputs(waiting: Collection[Step], verb: str, command: str) -> None:
    for step in waiting:
        for needed in step.inputs:
            if needed.artifact.status() != "done" and needed not in waiting:
                kind = f"{needed.artifact.kind}/{needed.artifact.name}"
                raise ValueError(
                    f"{verb}: {step.artifact.name} needs {kind}, which is {needed.artifact.status()}; "
                    f"make it with: fo1 {needed.verb} {command}   (or everything: fo1 run {command})"
                )


def execute(waiting: Iterable[Step], runtime: RuntimeConfig) -> None:
    """Make artifacts one after the other, each announced with its time."""
    waiting = list(waiting)
    width = min(100, shutil.get_terminal_size().columns)
    for number, step in enumerate(waiting, 1):
        title = f"[{number}/{len(waiting)}] {step.verb} {step.artifact.name} "
        print(f"{title}{'-' * max(3, width - len(title))}", flush=True)
        start = time.perf_counter()
        manifest = step.execute(runtime)
        print(f"{_summary(manifest)} ({time.perf_counter() - start:.1f} s)", flush=True)


def _summary(manifest: Any) -> str:
    ledger = manifest.get("ledger", {})
    if "rows_in" not in ledger:
        return "done"
    text = f"{ledger['rows_in']} rows in, {ledger['rows_out']} out, {ledger['rejects']} rejected"
    reasons = ", ".join(
        f"{reason} {count}" for reason, count in ledger["rejects_by_reason"].items()
    )
    return f"{text}: {reasons}" if reasons else text
