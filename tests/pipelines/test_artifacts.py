import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fo1_model.config import ADDED
from pipelines.artifacts import Artifact, parquet_bytes, prepare
from pipelines.errors import SettingError
from pipelines.fingerprints import canonical, file_digest, fingerprint, json_bytes
from pipelines.row_accounting import (
    LedgerError,
    UnbalancedLedgerError,
    add_ledgers,
    check_rejects,
    entry,
    reconcile,
)
from pipelines.storage import check_writable


@dataclass(frozen=True, kw_only=True)
class Left:
    a: int = 1
    b: tuple[float, ...] = (0.5,)


@dataclass(frozen=True, kw_only=True)
class Right:
    a: int = 1
    b: tuple[float, ...] = (0.5,)


def artifact(root: object, name: str = "coco", made: str = "0" * 16) -> Artifact:
    return Artifact(root=str(root), kind="samples", name=name, fingerprint=made)


def finish(target: Artifact, num_buckets: int = 2) -> dict:
    for bucket in range(num_buckets):
        ledger = {**entry(3, 2, ["empty_box"]), "tasks": {"detection": 2}}
        target.commit_bucket(bucket, {f"part-{bucket:05d}.parquet": b"x" * bucket}, ledger, rows={})
    return target.commit_buckets(
        version=1, config=Left(), inputs={"b": "2", "a": "1"}, num_buckets=num_buckets
    )


def test_path_and_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Artifact(root="out", kind="proposals", name="coco/opn", fingerprint="ab" * 8)
    assert made.path == f"{tmp_path}/out/proposals/coco/opn/{'ab' * 8}"


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "models"}, {"name": "a/b/c"}, {"name": "../x"}, {"fingerprint": "xyz"}, {"root": ""}],
)
def test_wrong_addresses_name_the_field(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Artifact(
            **({"root": "/tmp", "kind": "samples", "name": "x", "fingerprint": "0" * 16} | wrong)
        )


def test_status_from_missing_to_done_and_stale(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    assert made.status() == "missing"
    made.commit_bucket(0, {"part-00000.parquet": b""}, {})
    assert made.status() == "partial"
    manifest = finish(made)
    assert made.status() == "done"
    assert made.manifest() == manifest
    other = artifact(tmp_path, made="1" * 16)
    assert other.status() == "stale"
    assert other.other_fingerprints() == ["0" * 16]
    assert artifact(tmp_path, "coco/opn", "1" * 16).status() == "missing"
    made.delete()
    assert made.status() == "missing"
    assert other.status() == "missing"
    made.delete()


def test_manifest_holds_sums_and_is_deterministic(tmp_path: Path) -> None:
    first, second = artifact(tmp_path / "a"), artifact(tmp_path / "b")
    finish(first), finish(second)
    data = (Path(first.path) / "manifest.json").read_bytes()
    assert data == (Path(second.path) / "manifest.json").read_bytes()
    manifest = json.loads(data)
    assert manifest["ledger"] == {
        "rows_in": 6,
        "rows_out": 4,
        "rejects": 2,
        "rejects_by_reason": {"empty_box": 2},
        "tasks": {"detection": 4},
    }
    assert manifest["config"] == {"type": "Left", "a": 1, "b": [0.5]}
    assert str(tmp_path).encode() not in data
    assert not (Path(first.path) / ".partial").exists()


def test_bucket_counts_only_with_its_files_whole(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    made.commit_bucket(0, {"a.bin": b"12345"}, {})
    made.commit_bucket(1, {"b.bin": b"12345"}, {})
    assert sorted(made.finished()) == [0, 1]
    (Path(made.path) / "a.bin").write_bytes(b"123")
    (Path(made.path) / "b.bin").unlink()
    assert made.finished() == {}
    with pytest.raises(RuntimeError, match=r"buckets \[0, 1\]"):
        made.commit_buckets(version=1, config=Left(), inputs={}, num_buckets=2)


def test_half_written_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path)

    def killed(self: Path, target: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made.commit_bucket(0, {"a.bin": b"12345"}, {})
    assert not made.exists("a.bin")
    assert made.finished() == {}
    monkeypatch.undo()
    made.commit_bucket(0, {"a.bin": b"12345"}, {})
    made.commit_buckets(version=1, config=Left(), inputs={}, num_buckets=1)
    files = sorted(str(p.relative_to(made.path)) for p in Path(made.path).rglob("*") if p.is_file())
    assert files == ["a.bin", "buckets/00000.json", "manifest.json"]


def test_lost_rows_raise_with_the_place(tmp_path: Path) -> None:
    lost = {"rows_in": 3, "rows_out": 2, "rejects": 0, "rejects_by_reason": {}}
    message = r"samples/coco bucket 4, units: 3 rows in, 2 out"
    with pytest.raises(UnbalancedLedgerError, match=message):
        artifact(tmp_path).commit_bucket(4, {}, {"units": lost})
    with pytest.raises(UnbalancedLedgerError, match="here"):
        reconcile({**lost, "rejects": 1}, where="here")  # a reject without a reason


def test_too_many_rejects_name_reasons_and_counts() -> None:
    ledger = {"units": {"box": entry(10, 5, ["nan_box"] * 2 + ["empty_box"] * 3)}}
    check_rejects(ledger, 0.5, where="build")
    with pytest.raises(
        LedgerError, match=r"box: 5 of 10 rows rejected \(3 empty_box, 2 nan_box\).*=0.2"
    ):
        check_rejects(ledger, 0.2, where="build")


def test_a_step_that_lost_too_much_says_how_much_why_and_where(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    made.commit_bucket(0, {}, entry(10, 6, ["empty_box"] * 3 + ["benchmark_image"]))
    with pytest.raises(LedgerError) as error:
        made.commit_buckets(
            version=1, config=Left(), inputs={}, num_buckets=1, max_reject_fraction=0.2
        )
    assert str(error.value) == (
        "samples/coco: 3 of 10 rows rejected (3 empty_box), more than max_reject_fraction=0.2 "
        f"allows. The rejected rows, with details, lie in {made.path}/rejects-*.parquet. Mend the "
        "data, or raise --max-reject-fraction, and run the command again"
    )
    assert made.status() == "partial"


def test_a_lost_row_is_a_defect_and_no_fault_of_the_data(tmp_path: Path) -> None:
    """The command tells a `LedgerError` in one line; this one must show its traceback."""
    assert not issubclass(UnbalancedLedgerError, LedgerError)


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
)
def test_ledgers_add_key_by_key(left: dict, right: dict) -> None:
    total = add_ledgers({"n": left}, {"n": right})["n"]
    assert total == {key: left.get(key, 0) + right.get(key, 0) for key in {*left, *right}}


def test_fingerprint_depends_on_everything_that_can_change_a_result() -> None:
    base = {"kind": "samples", "version": 1, "config": Left(), "inputs": {"a": "1"}}
    changes = [
        {"kind": "shards"},
        {"version": 2},
        {"config": Left(a=2)},
        {"config": Right()},
        {"inputs": {"a": "2"}},
    ]
    made = {fingerprint(**(base | change)) for change in [{}, *changes]}
    assert len(made) == 6
    assert all(len(item) == 16 for item in made)
    reordered = fingerprint(**(base | {"inputs": dict(reversed([("b", "2"), ("a", "1")]))}))
    assert reordered == fingerprint(**(base | {"inputs": {"a": "1", "b": "2"}}))


def test_fingerprint_is_the_same_tomorrow() -> None:
    made = fingerprint(kind="samples", version=1, config=Left(), inputs={"a": "1"})
    assert made == "e465385e408c0191"


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A config that got a field later."""

    old: int = 1
    new: int = field(default=0, metadata=ADDED)


def test_a_field_that_came_later_is_hashed_only_where_it_is_set() -> None:
    assert canonical(Grown()) == {"type": "Grown", "old": 1}
    assert canonical(Grown(new=2)) == {"type": "Grown", "old": 1, "new": 2}


def test_config_that_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="set"):
        canonical({"a": {1, 2}})
    with pytest.raises(ValueError, match="keys"):
        canonical({1: 2})
    with pytest.raises(ValueError, match="JSON compliant"):
        json_bytes({"a": float("nan")})


def test_file_digest_follows_content_and_remembers(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.json", tmp_path / "cache"
    path.write_text("one")
    young = file_digest(path, cache)
    assert not cache.exists()  # too young to be remembered
    os.utime(path, (time.time() - 60,) * 2)
    assert file_digest(path, cache) == young
    assert len(list(cache.iterdir())) == 1
    next(cache.iterdir()).write_text("remembered")
    assert file_digest(path, cache) == "remembered"
    path.write_text("two")
    assert file_digest(path, cache) not in (young, "remembered")


def test_parquet_bytes_are_deterministic(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(10000)), "b": [str(i % 7) for i in range(10000)]})
    assert parquet_bytes(table) == parquet_bytes(pa.table(table.to_pydict()))
    made = artifact(tmp_path)
    made.write_bytes("t.parquet", parquet_bytes(table))
    assert made.read_table("t.parquet", columns=["b"]).num_rows == 10000


def test_prepare_checks_fingerprint_root_and_force(tmp_path: Path) -> None:
    step = {"version": 1, "config": Left(), "inputs": {"b": "2", "a": "1"}}
    made = artifact(tmp_path, made=fingerprint(kind="samples", **step))
    assert prepare(made, **step) is None
    finish(made)
    assert prepare(made, **step) == made.manifest()
    with pytest.raises(ValueError, match=r"output.fingerprint"):
        prepare(made, **(step | {"version": 2}))
    assert prepare(made, **step, force=True) is None
    assert made.status() == "missing"


def test_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"root=.*file/below.*cannot be written"):
        check_writable(str(tmp_path / "file" / "below"))
    check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []


def test_storage_that_nobody_knows_is_a_wrong_setting() -> None:
    with pytest.raises(SettingError, match=r"nowhere://bucket/x.*nowhere.*use a folder"):
        artifact("nowhere://bucket/x").status()


def test_object_store_by_uri() -> None:
    made = artifact("memory://artifacts-test/root")
    assert made.status() == "missing"
    manifest = finish(made)
    assert made.status() == "done"
    assert made.manifest() == manifest
    assert sorted(made.finished()) == [0, 1]
    assert artifact("memory://artifacts-test/root", made="1" * 16).status() == "stale"
    made.delete()
    assert made.status() == "missing"
