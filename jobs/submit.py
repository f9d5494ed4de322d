"""``fo1 submit``: the same words, checked here, run on a cluster through Ray's job API.

The words after ``--`` go through the parser and the recipe of the command itself, so that a typo
fails here. What is sent is this checkout without what ``.rayignore`` names, the words, and nothing
of this machine's environment but the folders `SENT_VARIABLES`. A job's words and variables are
shown to everyone who sees the cluster's dashboard: a password among them is refused. Secrets belong
into the environment of the cluster's machines (``infra/kuberay``). Ray takes its own token from
``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``; ``RAY_AUTH_MODE=disabled`` is
for a cluster without one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import time
import uuid
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs.benchmarks import BENCHMARKS
from jobs.chain.checks import check_names
from jobs.command.command_line import parse
from jobs.command.flags import runtime_of
from jobs.command.verbs import VERBS, sent_verbs
from jobs.errors import ClusterError
from jobs.experiment import EXPERIMENTS, recipe_of
from jobs.recipes.catalogue import named_recipe
from pipelines.errors import SettingError
from pipelines.storage import is_uri, join

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CHECKOUT = Path(__file__).parents[1]
"""Folder that holds the packages: what a job runs in."""
SENT_VARIABLES = ("FO1_ROOT", "FO1_DATA")
"""Variables of this machine that are sent where they are set: their flags are words too."""
NEEDED_MODULES = ("aiohttp", "pydantic", "requests")
"""Modules that Ray's job client imports; the extra `cluster` brings them."""
STOPPED_STATUS = 130
"""Exit status of a job that was stopped, and of an interrupted follower: a shell's for Ctrl-C."""
RECONNECT_AFTER_S = 2.0
"""Wait before a lost connection is tried again."""
RECONNECTS = 30
"""Times in a row, without a new line of the log, that it is tried again: a minute in all."""
_CREDENTIALS = re.compile(
    r"://\S*:\S*@|\bhttps?://\S*@|[?&][^=\s&]*(?:password|secret|token|key)[^=\s&]*=", re.IGNORECASE
)
"""User and password in a URI, anything before a web address's host, a secret in its parameters."""


def submit_verb(words: list[str], flags: Namespace) -> int:
    """Send the words behind ``--``, see `submit`."""
    if flags.address is None:
        raise SettingError("submit: say where: --address http://HEAD:8265, the dashboard's")
    return submit(words, flags.address, no_wait=flags.no_wait)


def submit(sent: Sequence[str], address: str, *, no_wait: bool = False) -> int:
    """Send a job, follow its log, and return its exit status.

    Ctrl-C ends the following, not the job.

    Args:
        sent: Command that the job runs: a verb, its words and flags.
        address: The dashboard's, http(s)://HOST.
        no_wait: Return 0 once the job is sent.

    Returns:
        The job's exit status; `STOPPED_STATUS` for a job that was stopped.

    Raises:
        SettingError: For words that cannot be sent or would fail there.
        ClusterError: When the cluster cannot be reached or refuses.
    """
    address = check_address(address)
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
        raise ClusterError(f"{address} refused the job: {error}") from error
    follow_words = f"ray job logs --follow --address {address} {submission_id}"
    stop_words = f"ray job stop --address {address} {submission_id}"
    print(
        f"job {submission_id} on {address}\n  follow: {follow_words}\n  stop:   {stop_words}",
        flush=True,
    )
    if no_wait:
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
    """Parse a command as the cluster will.

    Raises:
        SettingError: For what would fail there, or a secret that the dashboard would show.
        UsageError: For a verb or a flag that there is not.
    """
    for text in (*sent, *sent_environment().values()):
        if _CREDENTIALS.search(text):
            raise SettingError(
                "submit: the words hold a URI with a password, which the cluster's dashboard would "
                "show; set MLFLOW_TRACKING_URI or the store's own variables in the environment of "
                "its machines"
            )
    # First: submit's own flags are others, and an error about one of them would mislead.
    own = next((name for name in sent if name in VERBS), "")
    if own and not VERBS[own].sent:
        raise SettingError(
            f"submit: {own!r} runs on this machine only; sent are {', '.join(sent_verbs())}"
        )
    command = parse(sent)
    verb, words, flags = command.verb.name, command.words, command.flags
    if flags.address is not None:
        raise SettingError("submit: --address belongs before the --; the job finds its own cluster")
    data = flags.data or ("" if is_uri(flags.root) else join(flags.root, "datasets"))
    for flag, folder in (("--root", flags.root), ("--data", data)):
        if folder and not is_uri(folder) and not folder.startswith("/"):
            raise SettingError(
                f"submit: {flag} {folder} would lie in the job's working directory, which is "
                "deleted after it: give a URI, or the absolute path of a folder that all machines "
                "of the cluster share"
            )
    runtime_of(flags)
    for named in recipes_of(verb, words):
        check_names(named_recipe(named, others=list(BENCHMARKS) if verb == "evaluate" else ()))


def recipes_of(verb: str, words: list[str]) -> list[list[str]]:
    """Return the recipes that a command names, each with its arguments."""
    if verb == "evaluate" and words[:1] and words[0] in BENCHMARKS:
        return []  # the run that it names is known on the cluster only
    if verb == "experiment" and words[:1]:
        name, settings = recipe_of(words[0]), EXPERIMENTS[words[0]][1]
        return [[name, *words[1:], *own] for own in settings.values()]
    return [words]


def entrypoint(sent: Sequence[str]) -> str:
    """Return the shell command of the job; ``python`` is that on the path of the head's Ray."""
    return shlex.join(["python", "-m", "jobs", "--address", "auto", *sent])


def sent_environment() -> dict[str, str]:
    """Return the variables of this machine that the job gets."""
    return {name: os.environ[name] for name in SENT_VARIABLES if os.environ.get(name)}


def check_address(address: str) -> str:
    """Return the dashboard's address without a slash at its end. SettingError for no URL."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(
            f"submit: --address {address}: give the dashboard's, such as http://HEAD:8265"
        )
    if "@" in parts.netloc:
        raise SettingError(
            "submit: --address holds a user or password: give Ray a token in RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")


def _name(sent: Sequence[str]) -> str:
    """Return ``fo1-train-stage1-1b9d6bcd``: readable, and never used before."""
    what = "-".join(re.sub(r"\W+", "-", word) for word in sent[:2] if not word.startswith("-"))
    return f"fo1-{what}-{uuid.uuid4().hex[:8]}"


def _client(address: str) -> JobSubmissionClient:
    if missing := [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]:
        raise SettingError(
            f"submit needs {', '.join(missing)}, of the extra `cluster`: "
            "uv pip install -e '.[cluster]'"
        )
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise SettingError(
            f"submit sends the checkout, and {CHECKOUT} is none: run fo1 from one (infra/setup.sh)"
        )
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Ray would let RAY_ADDRESS win over what was said here; this variable wins over that.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(f"{address}: {error}") from error
    except (OSError, RuntimeError) as error:  # nobody there, or an answer that is not Ray's
        raise ClusterError(f"{address}: {error}") from error


async def _follow(client: JobSubmissionClient, submission_id: str) -> int:
    """Print the log of a job until it ends, over lost connections; return its exit status."""
    import aiohttp

    shown, failures = 0, 0
    while True:
        position, before = 0, shown
        try:
            async for text in client.tail_job_logs(submission_id):
                # A new connection starts at the top of the log.
                fresh = text[max(0, shown - position) :]
                position += len(text)
                shown = max(shown, position)
                print(fresh, end="", flush=True)
            details = client.get_job_info(submission_id)
            if details.status.is_terminal():
                return _exit_status(details)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            failures = 0 if shown > before else failures + 1
            if failures > RECONNECTS:
                raise ClusterError(
                    f"lost the job's log ({error}); the job may well go on"
                ) from error
        time.sleep(RECONNECT_AFTER_S)


def _exit_status(details: Any) -> int:
    """Return the status of the job's own command: 0, 1 for a failed step, 2 for a wrong setting."""
    print(f"job {details.submission_id}: {details.status.value}", flush=True)
    if details.status.value == "SUCCEEDED":
        return 0
    if details.status.value == "STOPPED":
        return STOPPED_STATUS
    if details.driver_exit_code is None and details.message:
        print(details.message, flush=True)
    return details.driver_exit_code or 1
