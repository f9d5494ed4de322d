"""Experiments: a recipe in several settings, run one after the other over shared artifacts, in one table."""

from collections.abc import Mapping, Sequence

from jobs.benchmarks import BENCHMARKS
from jobs.chain import Chain, chain
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.catalogue import RECIPES
from jobs.reports import facts_of, log_answers, write_page
from pipelines.cluster import RuntimeConfig

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
"""Name -> recipe and, by the label of each row, the arguments that differ; the first row is the method. The
ablations are those of the paper's tables 8 and 9."""


def experiment(words: list[str], runtime: RuntimeConfig) -> None:
    """Run every setting of an experiment and print the last run's figures side by side, on a page too.

    words: the experiment, then arguments that all settings share. What two settings have in common (samples,
    proposals, shards, a first stage) is made once. Raises ValueError before any work for a wrong setting.
    """
    from jobs.command.verbs import execute
    from pipelines.evaluation.score import evaluate
    from pipelines.reports.evaluation_report import Result, make_report

    if not words or words[0] not in EXPERIMENTS:
        raise ValueError(f"experiment {' '.join(words[:1])}: name one of {', '.join(EXPERIMENTS)}")
    recipe_name, settings = EXPERIMENTS[words[0]]
    recipe = RECIPES[recipe_name]
    chains: dict[str, Chain] = {
        label: chain(recipe(**parse_arguments(recipe, [*words[1:], *own])), runtime)
        for label, own in settings.items()
    }
    results: list[Result] = []
    for number, (label, made) in enumerate(chains.items(), 1):
        print(f"({number}/{len(chains)}) {label}", flush=True)
        answers = [item.predictions for item in made.evaluated if item.run is made.runs[-1]]
        execute(
            [step for step in made.closure(answers) if step.artifact.status() != "done"], runtime
        )
        for item in made.evaluated:
            if item.run is made.runs[-1]:
                coco = BENCHMARKS[item.benchmark].coco_ap
                artifacts = (item.predictions.artifact, item.shards.artifact, item.samples.artifact)
                figures, _ = evaluate(*artifacts, coco=coco)
                log_answers(made, item, figures)
                results.append(Result(benchmark=item.benchmark, run=label, metrics=figures))
    runs = [facts_of(made.runs[-1], name=label) for label, made in chains.items()]
    page = make_report(f"VLM-FO1: {' '.join(words)}", results, runs=runs)
    first = next(iter(chains.values()))
    print(f"\n{page.text}\n\npage: {write_page(first, f'experiment-{words[0]}.html', page.html)}")
