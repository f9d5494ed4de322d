"""The ``fo1`` command: ``fo1 VERB [RECIPE] [name=value ...] [flags]``, the same as ``python -m jobs``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from jobs.command import verbs
from jobs.submit import submit

VERBS: dict[str, tuple[str, Callable[[list[str], verbs.Options], None]]] = {
    "list": (
        "what there is: recipes with their arguments, datasets, detectors, mixes, benchmarks",
        verbs.list_all,
    ),
    "plan": ("RECIPE: each artifact, done or not, and the command that makes it", verbs.plan),
    "build": ("RECIPE: samples of every dataset that the recipe uses", verbs.build),
    "propose": ("RECIPE: proposals of its detector for every image source", verbs.propose),
    "shard": ("RECIPE: training and evaluation shards", verbs.shard),
    "inspect": (
        "RECIPE [dataset=NAME]: a page of pictures, conversations and statistics",
        verbs.inspect,
    ),
    "train": ("RECIPE: its training runs", verbs.train),
    "evaluate": (
        "RECIPE, or BENCHMARK checkpoint=RUN: predictions, metrics, report",
        verbs.evaluate,
    ),
    "predict": (
        "checkpoint=RUN image=a.jpg query='red cup' [boxes=...]: answer and annotated picture",
        verbs.predict,
    ),
    "import-release": (
        "PATH OUT: the released checkpoint as a model folder of ours",
        verbs.import_release,
    ),
    "export": (
        "RUN_OR_FOLDER OUT [layout=hf or release]: a model in a folder of its own",
        verbs.export,
    ),
    "proposals": (
        "diff A B | import FILE source=NAME | list: caches compared, made of boxes from elsewhere, listed",
        verbs.proposals,
    ),
    "experiment": (
        "ablations [name=value ...]: stage 2 in the settings of the paper's tables 8 and 9, one table",
        verbs.experiment,
    ),
    "run": ("RECIPE: all of the above that is not done, in order", verbs.run),
    "submit": (
        "--address URL -- VERB ...: the same on a cluster, see fo1 submit --help",
        verbs.submit,
    ),
}

EXAMPLES = """examples:
  fo1 list                                   fo1 plan stage2 detector=ground_truth_jitter
  fo1 run stage2 steps=200                   fo1 evaluate drawn_val checkpoint=stage2
  fo1 run coco_sample coco_root=DIR          fo1 predict checkpoint=stage2 image=a.jpg query='red circle'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; a wrong setting prints one line and returns 2, a failed step prints one and returns 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["submit"]:  # its flags are its own, and its words another command
            return submit(argv[1:])
        verb, words, options = parse(argv)
        VERBS[verb][1](words, options)
    except ValueError as error:
        return _fail(error, 2)
    except verbs.STEP_FAILURES as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("fo1: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> tuple[str, list[str], verbs.Options]:
    """The verb, its words, and the flags. Exits with status 2, as argparse does, for what is none of them."""
    arguments = _parser().parse_intermixed_args(argv)
    root = arguments.root
    options = verbs.Options(
        root=root,
        data=arguments.data or f"{root.rstrip('/')}/datasets",
        address=arguments.address,
        workers=arguments.workers,
        gpus_per_worker=arguments.gpus_per_worker,
        force=arguments.force,
        tracking_uri=arguments.mlflow,
        max_reject_fraction=arguments.max_reject_fraction,
        loader_processes=arguments.loader_processes,
    )
    return arguments.verb, arguments.words, options


def _fail(error: Exception, status: int) -> int:
    if os.environ.get("FO1_TRACEBACK"):
        raise error
    print(f"fo1: {error}", file=sys.stderr)
    return status


def _workers(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, VERBS))
    table = "\n".join(f"  {name:<{width}}  {text}" for name, (text, _) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="fo1",
        description="VLM-FO1 as a pipeline: datasets -> proposals -> shards -> training -> evaluation.",
        epilog=f"verbs:\n{table}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do, see below")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="a recipe, then name=value arguments"
    )
    parser.add_argument(
        "--root",
        default=os.environ.get("FO1_ROOT", "fo1_data"),
        help="folder or URI of the artifacts (default: $FO1_ROOT or fo1_data)",
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("FO1_DATA"),
        help="folder of the datasets (default: $FO1_DATA or ROOT/datasets)",
    )
    parser.add_argument(
        "--address", help="address of a Ray cluster (default: start one on this machine)"
    )
    parser.add_argument(
        "--mlflow",
        metavar="URI",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="MLflow server (default: $MLFLOW_TRACKING_URI, or a database under ROOT)",
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        default=2,
        help="processes a step; 0 = this process, without Ray; auto = all that the cluster holds",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        metavar="SHARE",
        help="GPUs of a worker, such as 0.25 for four detectors a GPU (default: 1 where there are any)",
    )
    parser.add_argument(
        "--max-reject-fraction",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="a step fails when it rejects more of its rows (default: 0.2)",
    )
    parser.add_argument(
        "--loader-processes",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode and tokenise for each training worker (default: 0, a thread)",
    )
    parser.add_argument("--force", action="store_true", help="make the verb's own artifacts anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
