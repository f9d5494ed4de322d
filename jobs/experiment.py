"""Experiments: a recipe in several settings, over shared artifacts, in one table."""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from jobs.benchmarks import BENCHMARKS
from jobs.chain.chain import Chain
from jobs.chain.recipe_chain import recipe_chain
from jobs.command.flags import runtime_of
from jobs.command.suggestions import unknown
from jobs.execution import execute, waits
from jobs.recipes.catalogue import named_recipe
from jobs.reports import facts_of, log_answers, write_page
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.storage import check_writable

EXPERIMENTS: dict[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    "ablations": (
        "stage2",
        {
            "hybrid features, pyramid, primary tower frozen": (),
            "auxiliary features alone": ("region_features=auxiliary",),
            "primary features alone": ("region_features=primary",),
            "no pyramid": ("pyramid=false",),
            "primary tower trained": ("primary_vit=trained",),
        },
    ),
}
"""Name -> recipe and, by the label of each row, the arguments that differ.

The first row is the method. The ablations are those of the paper's tables 8 and 9.
"""


def recipe_of(name: str) -> str:
    """Return the name of the recipe that an experiment varies. SettingError for an unknown one."""
    if name not in EXPERIMENTS:
        raise SettingError(unknown("experiment", name, EXPERIMENTS))
    return EXPERIMENTS[name][0]


def experiment(words: list[str], flags: Namespace) -> None:
    """Run every setting of an experiment; print the last runs' metrics side by side, write a page.

    What two settings have in common (samples, proposals, shards, a first stage) is made once.

    Args:
        words: The experiment, then arguments that all settings share.
        flags: Flags of the command; with ``--force`` everything is made anew.

    Raises:
        SettingError: Before any work, for a wrong setting.
    """
    from pipelines.evaluation.score import evaluate
    from pipelines.reports.evaluation_report import Result, make_report

    if not words or "=" in words[0]:
        raise SettingError(f"experiment: name one of {', '.join(EXPERIMENTS)} first")
    recipe_name = recipe_of(words[0])
    runtime = runtime_of(flags)
    recipes = {
        label: named_recipe([recipe_name, *words[1:], *own])
        for label, own in EXPERIMENTS[words[0]][1].items()
    }
    check_writable(runtime.root)
    chains: dict[str, Chain] = {
        label: recipe_chain(recipe, runtime) for label, recipe in recipes.items()
    }
    results: list[Result] = []
    made: set[str] = set()
    for number, (label, chain) in enumerate(chains.items(), 1):
        print(f"({number}/{len(chains)}) {label}", flush=True)
        make_answers(chain, runtime, made)
        for item in chain.evaluated:
            if item.run is chain.runs[-1]:
                coco = BENCHMARKS[item.benchmark].coco_ap
                artifacts = (item.predictions.artifact, item.shards.artifact, item.samples.artifact)
                metrics, _ = evaluate(*artifacts, coco=coco)
                log_answers(chain, item, metrics)
                results.append(Result(benchmark=item.benchmark, run=label, metrics=metrics))
    runs = [facts_of(chain.runs[-1], name=label) for label, chain in chains.items()]
    page = make_report(f"VLM-FO1: {' '.join(words)}", results, runs=runs)
    first = next(iter(chains.values()))
    print(f"\n{page.text}\n\npage: {write_page(first, f'experiment-{words[0]}.html', page.html)}")


def make_answers(chain: Chain, runtime: RuntimeConfig, made: set[str]) -> None:
    """Make the answers of a chain's last run and all that they need, where they are not done.

    Args:
        chain: Chain of one setting.
        runtime: Where and how wide; with ``force`` what is done is made anew.
        made: Paths of artifacts that this command made already, added to: with ``force`` too, what
            settings share is made once.
    """
    wanted = [item.predictions for item in chain.evaluated if item.run is chain.runs[-1]]
    fresh = [step for step in chain.closure(wanted) if step.artifact.path not in made]
    waiting = [step for step in fresh if waits(step, runtime.force)]
    execute(waiting, runtime, anew=waiting)
    made |= {step.artifact.path for step in waiting}
