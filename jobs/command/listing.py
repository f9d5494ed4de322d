"""``fo1 list``: every name that the other verbs understand."""

import shutil
import textwrap
from argparse import Namespace
from collections.abc import Callable

from dataset_builders import DATASETS, DataFolders, DatasetSpec
from jobs.command.suggestions import unknown
from jobs.mixes import GRAMMAR
from jobs.named_mixes import MIXES
from jobs.recipes.arguments import describe_arguments
from jobs.recipes.catalogue import RECIPES
from pipelines.errors import SettingError


def list_names(words: list[str], flags: Namespace) -> None:
    """Print every name that the other verbs understand, or those of one kind, or one dataset.

    Raises:
        SettingError: For a kind or a dataset that there is not.
    """
    if words[:1] == ["datasets"] and len(words) == 2:
        _print_dataset(words[1])
        return
    if words and words[0] not in KINDS:
        raise SettingError(f"list: {unknown('kind', words[0], KINDS)}")
    if len(words) > 1:
        raise SettingError(
            f"list {' '.join(words)}: write fo1 list [{'|'.join(KINDS)}], or list datasets NAME"
        )
    for name in words or KINDS:
        KINDS[name](flags)


def _list_recipes(_: Namespace) -> None:
    print("recipes (name, arguments with their defaults; what they mean: fo1 train RECIPE --help)")
    for name, recipe in RECIPES.items():
        print(f"  {name:<14}{(recipe.__doc__ or '').splitlines()[0]}")
        _print_wrapped(describe_arguments(recipe), " " * 16, " " * 16)
    print("  none: what fo1 list sizes says for the size")


def _list_sizes(_: Namespace) -> None:
    from jobs.recipes.settings import describe_sizes

    print("sizes (what a recipe's argument is where it is left at none; jobs/recipes/settings.py)")
    for line in describe_sizes():
        _print_wrapped(line, "  ", " " * 16)


def _list_datasets(_: Namespace) -> None:
    print(
        "datasets (name, stages of the paper's mix, tasks, licence; more: fo1 list datasets NAME)"
    )
    wide = max(map(len, DATASETS))
    for spec in DATASETS.values():
        print(f"  {spec.name:<{wide}}  {_stages(spec):<5} {', '.join(spec.tasks)}; {spec.licence}")


def _list_detectors(_: Namespace) -> None:
    from jobs.detector_arguments import describe_detectors

    print("detectors (detector=NAME[:SOURCE][,setting=value...]; a union: A+B)")
    for line in describe_detectors():
        _print_wrapped(line, "  ", " " * 26)


def _list_mixes(_: Namespace) -> None:
    print("mixes (name, sources with their weights), and what else mix=... can be:")
    for line in GRAMMAR:
        print(f"  {line}")
    for name, mix in MIXES.items():
        listed = ", ".join(f"{source} {weight:.3g}" for source, weight in mix.items())
        _print_wrapped(f"{name:<14}{listed}", "  ", " " * 16)


def _list_benchmarks(_: Namespace) -> None:
    from jobs.benchmarks import BENCHMARKS

    print("benchmarks")
    for name, benchmark in BENCHMARKS.items():
        protocol = " (COCO AP)" if benchmark.coco_ap else ""
        print(f"  {name:<16}{benchmark.dataset}: {', '.join(benchmark.tasks)}{protocol}")


def _list_exclude(flags: Namespace) -> None:
    from dataset_builders.benchmark_leakage import benchmark_lists
    from jobs.command.flags import runtime_of

    print(
        "exclude (benchmarks whose images training leaves out, the files that list them; * found)"
    )
    folders = DataFolders(runtime_of(flags).data_folder)
    for name, item in benchmark_lists(folders).items():
        print(f"{' ' if item.missing(folders) else '*'} {name:<16}{', '.join(item.files)}")


KINDS: dict[str, Callable[[Namespace], None]] = {
    "recipes": _list_recipes,
    "sizes": _list_sizes,
    "datasets": _list_datasets,
    "detectors": _list_detectors,
    "mixes": _list_mixes,
    "benchmarks": _list_benchmarks,
    "exclude": _list_exclude,
}
"""Second word of the command -> what prints the names of that kind."""


def _print_dataset(name: str) -> None:
    if name not in DATASETS:
        raise SettingError(unknown("dataset", name, DATASETS, lists="datasets"))
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


def _print_wrapped(text: str, first: str, rest: str) -> None:
    width = max(60, min(110, shutil.get_terminal_size((110, 24)).columns))
    print(
        textwrap.fill(
            text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        )
    )
