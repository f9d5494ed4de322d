"""``fo1 submit``: the same words, checked here, run on a cluster through Ray's job API.

The words after ``--`` go through the parser and the recipe of the command itself, so that a typo fails here.
What is sent is this checkout without what ``.rayignore`` names, the words, and nothing of this machine's
environment but the folders `SENT_VARIABLES`. A job's words and variables are shown to everyone who sees the
cluster's dashboard: a password among them is refused. Secrets belong into the environment of the cluster's
machines (``infra/kuberay``). Ray takes its own token from ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or
``~/.ray/auth_token``; ``RAY_AUTH_MODE=disabled`` is for a cluster without one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CHECKOUT = Path(__file__).parents[1]
"""What a job runs in: the folder that holds the packages."""
SENT_VERBS = ("plan", "build", "propose", "shard", "train", "evaluate", "experiment", "run")
"""Verbs that work on artifacts alone, and so can run on another machine."""
SENT_VARIABLES = ("FO1_ROOT", "FO1_DATA")
"""Of this machine's environment, sent where they are set: the flags that they stand for are words too."""
NEEDED_MODULES = ("aiohttp", "pydantic", "requests")
"""What Ray's job client imports; the extra `cluster` brings them."""
STOPPED_STATUS = 130
"""Exit status of a job that was stopped, and of an interrupted follower: a shell's for Ctrl-C."""
RECONNECT_AFTER_S = 2.0
RECONNECTS = 30
"""Times in a row, without a new line of the log, that a lost connection is tried again: a minute."""
_CREDENTIALS = re.compile(
    r"://\S*:\S*@|\bhttps?://\S*@|[?&][^=\s&]*(?:password|secret|token|key)[^=\s&]*=", re.IGNORECASE
)
"""User and password in a URI, anything before the host of a web address, a secret among its parameters."""


def submit(words: Sequence[str]) -> int:
    """Send a job, follow its log, and return its exit status; with ``--no-wait``, 0 once it is sent.

    A stopped job gives `STOPPED_STATUS`. Ctrl-C ends the following, not the job. Raises ValueError for words
    that cannot be sent or would fail there, OSError when the cluster cannot be reached or refuses.
    """
    own, sent = _split(words)
    flags = _parser().parse_args(own)
    address = check_address(flags.address)
    check_words(sent)
    client = _client(address)
    submission_id = _name(sent)
    try:
        client.submit_job(
            entrypoint=entrypoint(sent),
            submission_id=submission_id,
            runtime_env={"working_dir": str(CHECKOUT), "env_vars": sent_environment()},
            metadata={"words": shlex.join(sent)},
        )
    except RuntimeError as error:
        raise OSError(f"{address} refused the job: {error}") from error
    follow_words = f"ray job logs --follow --address {address} {submission_id}"
    stop_words = f"ray job stop --address {address} {submission_id}"
    print(
        f"job {submission_id} on {address}\n  follow: {follow_words}\n  stop:   {stop_words}",
        flush=True,
    )
    if flags.no_wait:
        return 0
    import asyncio  # here: `fo1 --help` needs none of it

    try:
        return asyncio.run(_follow(client, submission_id))
    except KeyboardInterrupt:
        print(
            f"\nfo1: the job goes on.\n  follow: {follow_words}\n  stop:   {stop_words}", flush=True
        )
        return STOPPED_STATUS


def check_words(sent: Sequence[str]) -> None:
    """Parse a command as the cluster will. ValueError (or argparse's exit) for what would fail there."""
    from jobs.__main__ import parse  # here, because that module imports this one
    from jobs.benchmarks import BENCHMARKS
    from jobs.chain import check_names
    from jobs.command.verbs import named_recipe
    from jobs.experiment import EXPERIMENTS

    for text in (*sent, *sent_environment().values()):
        if _CREDENTIALS.search(text):
            raise ValueError(
                "submit: the words hold a URI with a password, which the cluster's dashboard would show; set "
                "MLFLOW_TRACKING_URI or the store's own variables in the environment of its machines"
            )
    verb, words, options = parse(sent)
    if verb not in SENT_VERBS:
        raise ValueError(
            f"submit: {verb!r} runs on this machine only; sent are {', '.join(SENT_VERBS)}"
        )
    if options.address is not None:
        raise ValueError("submit: --address belongs before the --; the job finds its own cluster")
    for flag, folder in (("--root", options.root), ("--data", options.data)):
        if "://" not in folder and not folder.startswith("/"):
            raise ValueError(
                f"submit: {flag} {folder} would lie in the job's working directory, which is deleted after "
                f"it: give a URI, or the absolute path of a folder that all machines of the cluster share"
            )
    options.runtime()
    recipes = [words]
    if verb == "evaluate" and words[:1] and words[0] in BENCHMARKS:
        recipes = []  # the run that it names is known on the cluster only
    elif verb == "experiment" and words[:1] and words[0] in EXPERIMENTS:
        name, settings = EXPERIMENTS[words[0]]
        recipes = [[name, *words[1:], *own] for own in settings.values()]
    for named in recipes:
        check_names(named_recipe(named))


def entrypoint(sent: Sequence[str]) -> str:
    """The shell command of the job. ``python`` is the one on the path of the head node's Ray."""
    return shlex.join(["python", "-m", "jobs", "--address", "auto", *sent])


def sent_environment() -> dict[str, str]:
    """Variables of this machine that the job gets."""
    return {name: os.environ[name] for name in SENT_VARIABLES if os.environ.get(name)}


def check_address(address: str) -> str:
    """The dashboard's address, without a slash at its end. ValueError for anything but http(s)://HOST."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"submit: --address {address}: give the dashboard's, such as http://HEAD:8265"
        )
    if "@" in parts.netloc:
        raise ValueError(
            "submit: --address holds a user or password: give Ray a token in RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of submit and, after the first ``--``, the command that is sent."""
    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fo1 submit",
        usage="fo1 submit --address URL [--no-wait] -- VERB RECIPE [name=value ...] [flags]",
        description="Run a command on a Ray cluster, follow its log, end with its exit status.",
        epilog=f"""What follows -- is checked here and run there, in a copy of this checkout (.rayignore says
        what stays). Verbs: {", ".join(SENT_VERBS)}. --root and --data are the cluster's: a URI, or a folder
        that all its machines share, at the same path; $FO1_ROOT and $FO1_DATA of this machine are sent along.
        $MLFLOW_TRACKING_URI is not, it may hold a password: the cluster's machines have their own.
        Example: fo1 submit --address http://HEAD:8265 -- train stage1 --root /mnt/fo1 --workers 8""",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address", required=True, metavar="URL", help="the dashboard: http://HEAD:8265"
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the job is sent")
    return parser


def _name(sent: Sequence[str]) -> str:
    """``fo1-train-stage1-1b9d6bcd``: readable, and never used before."""
    what = "-".join(re.sub(r"\W+", "-", word) for word in sent[:2] if not word.startswith("-"))
    return f"fo1-{what}-{uuid.uuid4().hex[:8]}"


def _client(address: str) -> JobSubmissionClient:
    if missing := [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"submit needs {', '.join(missing)}, of the extra `cluster`: uv pip install -e '.[cluster]'"
        )
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise ValueError(
            f"submit sends the checkout, and {CHECKOUT} is none: run fo1 from one (infra/setup.sh)"
        )
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Ray would let RAY_ADDRESS win over what was said here; this variable wins over that.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise PermissionError(f"{address}: {error}") from error
    except RuntimeError as error:  # an answer that is not Ray's
        raise OSError(f"{address}: {error}") from error


async def _follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Print the log of a job until it ends; its exit status. A lost connection is taken up where it broke."""
    import aiohttp

    shown, failures = 0, 0
    while True:
        position, before = 0, shown
        try:
            async for text in client.tail_job_logs(submission_id):
                fresh = text[
                    max(0, shown - position) :
                ]  # a new connection starts at the top of the log
                position += len(text)
                shown = max(shown, position)
                print(fresh, end="", flush=True)
            details = client.get_job_info(submission_id)
            if details.status.is_terminal():
                return _exit_status(details)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            failures = 0 if shown > before else failures + 1
            if failures > RECONNECTS:
                raise OSError(f"lost the job's log ({error}); the job may well go on") from error
        time.sleep(RECONNECT_AFTER_S)


def _exit_status(details: Any) -> int:
    """Of the job's own command where there is one: 0, 1 for a failed step, 2 for a wrong setting."""
    print(f"job {details.submission_id}: {details.status.value}", flush=True)
    if details.status.value == "SUCCEEDED":
        return 0
    if details.status.value == "STOPPED":
        return STOPPED_STATUS
    if details.driver_exit_code is None and details.message:
        print(details.message, flush=True)
    return details.driver_exit_code or 1
