"""The table of verbs. A new verb is a new entry here, and a function somewhere else.

Functions and arguments are named by dotted path, so that this table, and with it ``fo1 --help``,
imports nothing: the function is imported when its verb is run.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from jobs.command.flags import PLACES, TRAINING, WORKERS

RECIPES = "jobs.recipes.catalogue:RECIPES"
"""Where the named recipes are."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write a verb's words."""

    words: str
    """Words after the verb, as its help shows them."""
    summary: str
    """What it does, in one line."""
    first: str | tuple[str, ...] = ()
    """What the first word can be: names, or the dotted path of a table of them."""
    arguments: str = ""
    """Dotted path of the dataclass or function whose fields or arguments ``name=value`` words set.

    Empty where each of the names has arguments of its own, as recipes do, or where there are none.
    """


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One word of the command."""

    name: str
    """Word after ``fo1``."""
    summary: str
    """What it does, in one line."""
    forms: tuple[Form, ...]
    """Ways to write its words."""
    run: str
    """Dotted path of its function, called with the words and the parsed flags.

    It returns the exit status, or None for 0.
    """
    flags: tuple[str, ...] = ()
    """Flags that change what it does: names in `jobs.command.flags.FLAGS`."""
    examples: tuple[str, ...] = ()
    """Commands that work as they are."""
    more: str = ""
    """What else its help says."""
    sent: bool = False
    """Whether ``fo1 submit`` sends it: it works on artifacts alone."""


RECIPE = "RECIPE [name=value ...]"


def _recipe_form(summary: str, words: str = RECIPE) -> Form:
    return Form(words=words, summary=summary, first=RECIPES)


_VERBS = (
    Verb(
        name="list",
        summary="recipes with their arguments, sizes, datasets, detectors, mixes, benchmarks",
        forms=(
            Form(
                words="[recipes|sizes|datasets|detectors|mixes|benchmarks|exclude]",
                summary="every name that the other verbs understand, or those of one kind",
            ),
            Form(
                words="datasets NAME", summary="one dataset: its files, tasks, licence and source"
            ),
        ),
        run="jobs.command.listing:list_names",
        flags=PLACES[1:],
        examples=("fo1 list mixes", "fo1 list datasets coco_train"),
    ),
    Verb(
        name="plan",
        summary="each artifact of a recipe, done or not, and the command that makes it",
        forms=(_recipe_form("print the artifacts, then what each mix amounts to"),),
        run="jobs.command.plan:plan",
        flags=(*PLACES, "json"),
        examples=(
            "fo1 plan stage2 detector=ground_truth_jitter",
            "fo1 plan stage2 --json | jq -r '.artifacts[].command // empty'",
        ),
        more="Nothing is made. The exit status is 0; with --json it is 3 when something is to do.",
        sent=True,
    ),
    Verb(
        name="build",
        summary="samples of every dataset that a recipe uses",
        forms=(_recipe_form("make the samples"),),
        run="jobs.execution:build",
        flags=(*PLACES, *WORKERS, "force"),
        examples=("fo1 build stage1", "fo1 build data mix=coco_train"),
        sent=True,
    ),
    Verb(
        name="propose",
        summary="proposals of a recipe's detector for every image source",
        forms=(_recipe_form("make the proposals"),),
        run="jobs.execution:propose",
        flags=(*PLACES, *WORKERS, "force"),
        examples=(
            "fo1 propose stage1 detector=ground_truth_jitter",
            "fo1 propose stage1 size=paper mix=stage1 detector=upn:upn_large.pth",
        ),
        sent=True,
    ),
    Verb(
        name="shard",
        summary="training and evaluation shards of a recipe",
        forms=(_recipe_form("make the shards"),),
        run="jobs.execution:shard",
        flags=(*PLACES, *WORKERS, "force"),
        examples=("fo1 shard stage1", "fo1 shard data mix=coco_train exclude=none"),
        sent=True,
    ),
    Verb(
        name="inspect",
        summary="a page of images, conversations and statistics for each shard artifact",
        forms=(
            _recipe_form(
                "write a page for the shards that are done",
                "RECIPE [dataset=NAME] [name=value ...]",
            ),
        ),
        run="jobs.execution:inspect",
        flags=PLACES,
        examples=("fo1 inspect stage1", "fo1 inspect stage1 dataset=drawn_train"),
        more="dataset=NAME writes the pages of one dataset alone.",
    ),
    Verb(
        name="train",
        summary="the training runs of a recipe",
        forms=(
            _recipe_form("the runs that are not done"),
            Form(
                words="tiny_base [name=value ...]",
                summary="make the small pre-trained base that size=tiny starts from",
                first=("tiny_base",),
                arguments="pipelines.tiny_base.build:TinyBaseConfig",
            ),
        ),
        run="jobs.execution:train",
        flags=(*PLACES, *TRAINING, "force"),
        examples=("fo1 train stage1 steps=200", "fo1 train opn size=large --workers 8"),
        sent=True,
    ),
    Verb(
        name="evaluate",
        summary="predictions, metrics and report: of a recipe's runs, or of one on a benchmark",
        forms=(
            _recipe_form("every run of a recipe on its benchmarks"),
            Form(
                words="BENCHMARK checkpoint=CHECKPOINT [name=value ...]",
                summary="one run, model folder or released checkpoint on one benchmark",
                first="jobs.benchmarks:BENCHMARKS",
                arguments="jobs.checkpoints.evaluate:EvaluateArguments",
            ),
        ),
        run="jobs.execution:evaluate",
        flags=(*PLACES, *WORKERS, "mlflow", "force"),
        examples=(
            "fo1 evaluate stage2",
            "fo1 evaluate drawn_val checkpoint=stage2 detector=rt_detr_untrained",
            "fo1 evaluate coco_val checkpoint=VLM-FO1_Qwen2.5-VL-3B-v01 detector=upn:upn_large.pth",
        ),
        sent=True,
    ),
    Verb(
        name="predict",
        summary="the answer of a checkpoint about one image, and the annotated image",
        forms=(
            Form(
                words="checkpoint=CHECKPOINT image=a.jpg query='red cup' [name=value ...]",
                summary="ask one question",
                arguments="jobs.checkpoints.predict:PredictArguments",
            ),
        ),
        run="jobs.checkpoints.predict:predict",
        flags=PLACES[:1],
        examples=(
            "fo1 predict checkpoint=stage2 image=a.jpg query='red circle; blue square'",
            "fo1 predict checkpoint=FOLDER image=a.jpg query=dog boxes=10,20,110,220",
        ),
        more="A checkpoint is a run (its name, NAME/FINGERPRINT or folder), or a model in a "
        "folder, at a URI or in the Hugging Face cache, in our layout or as the authors released "
        "it. A run knows its detector; for a model folder say detector= or boxes=.",
    ),
    Verb(
        name="run",
        summary="everything of a recipe that is not done, in order",
        forms=(_recipe_form("build, propose, shard, train, evaluate; then the pages"),),
        run="jobs.execution:run",
        flags=(*PLACES, *TRAINING, "force"),
        examples=("fo1 run stage2 steps=200", "fo1 run coco_sample coco_root=DIR"),
        more="A second run goes on where the first one ended. --force makes all of it anew.",
        sent=True,
    ),
    Verb(
        name="experiment",
        summary="a recipe in several settings, compared in one table",
        forms=(
            Form(
                words="EXPERIMENT [name=value ...]",
                summary="run every setting; arguments are those of its recipe, for all settings",
                first="jobs.experiment:EXPERIMENTS",
            ),
        ),
        run="jobs.experiment:experiment",
        flags=(*PLACES, *TRAINING, "force"),
        examples=("fo1 experiment ablations size=debug detector=ground_truth_jitter",),
        more="What settings have in common is made once, with --force too.",
        sent=True,
    ),
    Verb(
        name="proposals",
        summary="caches of proposals: list them, compare two, make one from a file of boxes",
        forms=(
            Form(words="list", summary="a line for each finished cache", first=("list",)),
            Form(
                words="diff A B [name=value ...]",
                summary="compare two, each SOURCE/DETECTOR[/FINGERPRINT] or a folder",
                first=("diff",),
                arguments="jobs.proposal_caches:DiffArguments",
            ),
            Form(
                words="import FILE source=IMAGE_SOURCE [name=value ...]",
                summary="make one, which recipes find under detector=file:FILE",
                first=("import",),
                arguments="jobs.proposal_caches:ImportArguments",
            ),
        ),
        run="jobs.proposal_caches:proposals_verb",
        flags=(*PLACES, *WORKERS, "force"),
        examples=(
            "fo1 proposals list",
            "fo1 proposals diff drawn_val/opn drawn_val/rt_detr_untrained",
        ),
    ),
    Verb(
        name="import-release",
        summary="a released checkpoint as a model folder of ours",
        forms=(
            Form(
                words="PATH OUT [name=value ...]",
                summary="read the folder PATH, write the new folder OUT",
                arguments="jobs.checkpoints.import_export:ImportArguments",
            ),
        ),
        run="jobs.checkpoints.import_export:import_release",
        examples=("fo1 import-release VLM-FO1-3B-v01 fo1_3b dtype=bfloat16",),
    ),
    Verb(
        name="export",
        summary="a model in a folder of its own",
        forms=(
            Form(
                words="CHECKPOINT OUT [name=value ...]",
                summary="write the model of a run or a model folder into the new folder OUT",
                arguments="jobs.checkpoints.import_export:ExportArguments",
            ),
        ),
        run="jobs.checkpoints.import_export:export",
        flags=PLACES[:1],
        examples=("fo1 export stage2 my_model", "fo1 export stage2 my_model layout=release"),
    ),
    Verb(
        name="submit",
        summary="another command, on a Ray cluster",
        forms=(
            Form(
                words="--address URL [--no-wait] -- VERB RECIPE [name=value ...] [flags]",
                summary="send the command, follow its log, end with its exit status",
            ),
        ),
        run="jobs.submit:submit_verb",
        flags=("dashboard", "no_wait"),
        examples=(
            "fo1 submit --address http://HEAD:8265 -- train stage1 --root /mnt/fo1 --workers 8",
        ),
        more="What follows -- is checked here and run there, in a copy of this checkout "
        "(.rayignore says what stays). --root and --data are the cluster's: a URI, or a folder "
        "that all its machines share, at the same path; $FO1_ROOT and $FO1_DATA of this machine "
        "are sent along. $MLFLOW_TRACKING_URI is not, it may hold a password: the cluster's "
        "machines have their own.",
    ),
)
VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}
"""Verbs by name, in the order of the help."""


def shell_command(verb: str, words: Iterable[str]) -> str:
    """Return a command as a person can paste it into a shell: mixes may hold a ``*``."""
    return shlex.join(["fo1", verb, *words])


def sent_verbs() -> tuple[str, ...]:
    """Return the names of the verbs that ``fo1 submit`` sends."""
    return tuple(verb.name for verb in _VERBS if verb.sent)


def load(path: str) -> Any:
    """Return what a dotted path ``module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def function_of(verb: Verb) -> Callable[..., int | None]:
    """Return the function of a verb, importing it."""
    return load(verb.run)


def first_words(form: Form) -> Iterable[str]:
    """Return what the first word of a form can be, importing the table where there is one."""
    return load(form.first) if isinstance(form.first, str) else form.first
