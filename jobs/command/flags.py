"""Every flag of the command, declared once; `jobs.command.verbs` says which verb uses which.

The flags of `PLACES` and `WORKERS` say where and how wide things run. Every verb accepts them, so
that one set of flags can stand in a script before all of them; the help of a verb shows those it
uses.
"""

import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.cluster import RuntimeConfig

DEFAULT_ROOT = "fo1_data"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the command."""

    name: str
    """How it is written, such as ``--root``."""
    help: str
    """What it does, with its default."""
    metavar: str = ""
    """Word for its value; empty: it takes none."""
    read: Callable[[str], Any] = str
    """Makes the value from its text."""
    default: Any = None
    """Value where it is left out, unless its variable says otherwise."""
    variable: str = ""
    """Variable of the environment that stands for it."""

    @property
    def field(self) -> str:
        """Name of its value among the parsed flags."""
        return self.name.lstrip("-").replace("-", "_")

    def value(self) -> Any:
        """Return its value where it is left out."""
        return (os.environ.get(self.variable) if self.variable else None) or self.default


def _workers(text: str) -> int | None:
    return None if text == "auto" else int(text)


FLAGS: dict[str, Flag] = {
    "root": Flag(
        name="--root",
        metavar="URI",
        default=DEFAULT_ROOT,
        variable="FO1_ROOT",
        help=f"folder or URI of the artifacts (default: $FO1_ROOT or {DEFAULT_ROOT})",
    ),
    "data": Flag(
        name="--data",
        metavar="DIR",
        variable="FO1_DATA",
        help="folder of the datasets (default: $FO1_DATA or ROOT/datasets)",
    ),
    "address": Flag(
        name="--address",
        metavar="ADDR",
        help="address of a Ray cluster (default: start one on this machine)",
    ),
    "workers": Flag(
        name="--workers",
        metavar="N",
        read=_workers,
        default=2,
        help="processes a step; 0 = this process, without Ray; auto = all that the cluster holds "
        "(default: 2)",
    ),
    "gpus_per_worker": Flag(
        name="--gpus-per-worker",
        metavar="SHARE",
        read=float,
        help="GPUs of a worker, such as 0.25 for four detectors a GPU (default: 1 where there are "
        "any)",
    ),
    "loader_processes": Flag(
        name="--loader-processes",
        metavar="N",
        read=int,
        default=0,
        help="processes that decode and tokenise for each training worker (default: 0, a thread)",
    ),
    "max_reject_fraction": Flag(
        name="--max-reject-fraction",
        metavar="SHARE",
        read=float,
        default=0.2,
        help="a step fails when it rejects more of its rows (default: 0.2)",
    ),
    "mlflow": Flag(
        name="--mlflow",
        metavar="URI",
        variable="MLFLOW_TRACKING_URI",
        help="MLflow server (default: $MLFLOW_TRACKING_URI, or a database under ROOT)",
    ),
    "force": Flag(
        name="--force",
        default=False,
        help="make the verb's own artifacts anew, although they are done",
    ),
    "json": Flag(
        name="--json",
        default=False,
        help="print the same facts as JSON, and nothing else on standard output; the exit status "
        "is 0 when nothing is to do, 3 when something is",
    ),
    "dashboard": Flag(
        name="--address",
        metavar="URL",
        help="the dashboard of the cluster, such as http://HEAD:8265",
    ),
    "no_wait": Flag(name="--no-wait", default=False, help="return once the job is sent"),
    "verbose": Flag(
        name="--verbose",
        default=False,
        help="log everything, and show where an error was raised",
    ),
    "quiet": Flag(name="--quiet", default=False, help="warnings only, no progress lines"),
}
"""Flags by the names under which verbs list them."""

PLACES = ("root", "data")
"""Where things lie."""
WORKERS = ("address", "workers", "gpus_per_worker", "max_reject_fraction")
"""How wide a step runs."""
TRAINING = (*WORKERS, "loader_processes", "mlflow")
"""How wide a training runs, and where it is logged."""
ACCEPTED = (*PLACES, *TRAINING)
"""Flags that every verb accepts, used or not."""
SHOWN = ("verbose", "quiet")
"""What is shown; of every verb."""


def runtime_of(flags: Namespace) -> "RuntimeConfig":
    """Return where and how wide a verb runs."""
    from pipelines.cluster import RuntimeConfig
    from pipelines.storage import absolute_root, is_uri, join

    root = absolute_root(flags.root)
    return RuntimeConfig(
        root=root,
        data=flags.data or (None if is_uri(root) else join(root, "datasets")),
        address=flags.address,
        workers=flags.workers,
        gpus_per_worker=flags.gpus_per_worker,
        force=getattr(flags, "force", False),
        tracking_uri=flags.mlflow,
        max_reject_fraction=flags.max_reject_fraction,
        loader_processes=flags.loader_processes,
    )
