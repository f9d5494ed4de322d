"""What a run was made from: artifacts all the way up, the code, and links without secrets."""

import subprocess
from pathlib import Path

import pytest

from pipelines.artifacts import Artifact
from pipelines.storage import public_uri
from pipelines.training.lineage import UNKNOWN, code_state, upstream

SAMPLES, OTHER, OPN, FOUND, SHARDS, STAGE = (f"{number:x}" * 16 for number in range(1, 7))


def artifact(
    root: Path, kind: str, name: str, key: str, inputs: dict[str, str] | None = None
) -> Artifact:
    made = Artifact(root=str(root), kind=kind, name=name, fingerprint=key)
    if inputs is not None:
        made.commit({"inputs": inputs})
    return made


def test_the_way_up_through_manifests(tmp_path: Path) -> None:
    artifact(
        tmp_path,
        "samples",
        "coco",
        SAMPLES,
        {"annotations/a.json": "f" * 64, "images/coco": "e" * 64},
    )
    artifact(tmp_path, "runs", "opn", OPN, {"shards/coco/truth": OTHER, "weights": "d" * 16})
    artifact(tmp_path, "proposals", "coco/opn", FOUND, {"samples/coco": SAMPLES, "runs/opn": OPN})
    made_from = {"samples/coco": SAMPLES, "proposals/coco/opn": FOUND}
    shards = artifact(tmp_path, "shards", "coco/opn", SHARDS, made_from)
    assert upstream([shards]) == {
        "shards/coco/opn": SHARDS,
        "samples/coco": SAMPLES,
        "proposals/coco/opn": FOUND,
        "runs/opn": OPN,
        "shards/coco/truth": OTHER,  # its manifest is gone: known by name, and the way ends
    }


def test_two_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = artifact(tmp_path, "shards", "a", SHARDS, {"samples/coco": SAMPLES})
    second = artifact(tmp_path, "shards", "b", STAGE, {"samples/coco": OTHER})
    artifact(tmp_path, "samples", "coco", OTHER, {"runs/opn": OPN})
    assert upstream([first, second, first]) == {
        "shards/a": SHARDS,
        "shards/b": STAGE,
        "samples/coco": SAMPLES,
        f"samples/coco:{OTHER}": OTHER,
        "runs/opn": OPN,
    }


def test_the_commit_of_a_checkout_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (code_state(tmp_path)["commit"], code_state(tmp_path)["changed"]) == (UNKNOWN, UNKNOWN)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "untracked").write_text("")
    clean = code_state(tmp_path / "folder")
    assert (clean["commit"], clean["changed"]) == (git("rev-parse", "HEAD"), "no")
    (tmp_path / "code.py").write_text("a = 2\n")
    assert code_state(tmp_path)["changed"] == "yes"
    monkeypatch.setenv("PATH", "")
    assert code_state(tmp_path)["commit"] == UNKNOWN


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/runs/a", "/data/runs/a"),
        ("s3://bucket/runs/a", "s3://bucket/runs/a"),
        ("s3://key:se@cret@bucket/runs?secret_key=x&region=eu#part", "s3://bucket/runs"),
        ("hdfs://user@host:8020/runs", "hdfs://host:8020/runs"),
    ],
)
def test_a_link_holds_no_secret(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown
