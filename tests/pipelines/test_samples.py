import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_builders import DATASETS, DataFolders
from dataset_builders.images import bucket_of
from dataset_builders.records import Ledger, Reject, Sample, sample_from_row
from dataset_builders.validation import validate
from pipelines import samples
from pipelines.errors import SettingError
from pipelines.row_accounting import LedgerError
from tests.pipelines.coco_world import Steps, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    write_world(data, broken=True)
    return data


def content(path: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(Path(path).rglob("*"))
        if p.is_file()
    }


def fake_dataset(monkeypatch: pytest.MonkeyPatch, items: list) -> None:
    def build(folders: DataFolders, options: object) -> Iterator[Sample | Reject | Ledger]:
        yield from items

    monkeypatch.setitem(DATASETS, "coco", dataclasses.replace(DATASETS["coco"], build=build))


def built_samples(world: Path) -> list:
    spec = DATASETS["coco"]
    return list(spec.build(DataFolders(str(world)), samples.BuildOptions()))


def test_buckets_hold_their_samples_sorted_and_the_ledger_balances(
    world: Path, tmp_path: Path
) -> None:
    steps = Steps(world, tmp_path)
    manifest = steps.build()
    rows = []
    for bucket in range(manifest["buckets"]):
        part = steps.samples.read_table(f"part-{bucket:05d}.parquet").to_pylist()
        assert [row["sample_id"] for row in part] == sorted(row["sample_id"] for row in part)
        assert {row["bucket"] for row in part} <= {bucket}
        rows += part
    expected = [item for item in built_samples(world) if isinstance(item, Sample)]
    assert {row["sample_id"]: sample_from_row(row) for row in rows} == {
        s.sample_id: s for s in expected
    }
    assert len(rows) == manifest["ledger"]["samples"] > 40
    for row in rows:
        validate(sample_from_row(row))
    units = manifest["ledger"]["units"]
    assert units["image"]["rows_in"] == 12
    assert units["box"]["rows_in"] == 3 * 11 + 2
    assert units["box"]["rejects_by_reason"] == {"not_finite_box": 1}
    assert manifest["ledger"]["rows_in"] == sum(unit["rows_in"] for unit in units.values())
    rejects = [
        row
        for bucket in range(manifest["buckets"])
        for row in steps.samples.read_table(f"rejects-{bucket:05d}.parquet").to_pylist()
    ]
    assert [row["reason"] for row in rejects] == ["not_finite_box"]


def test_spilling_gives_the_same_bytes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, spilled = Steps(world, tmp_path / "a"), Steps(world, tmp_path / "b")
    whole.build()
    monkeypatch.setattr("pipelines.bucket_spill.SPILL_ROWS", 5)
    spilled.build()
    assert content(whole.samples.path) == content(spilled.samples.path)


def test_done_is_not_done_again_and_force_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(world, tmp_path)
    manifest = steps.build()
    stamps = {p: p.stat().st_mtime_ns for p in Path(steps.samples.path).rglob("*")}
    assert steps.build() == manifest
    assert stamps == {p: p.stat().st_mtime_ns for p in Path(steps.samples.path).rglob("*")}
    forced = Steps(world, tmp_path, force=True)
    assert forced.build() == manifest
    assert stamps != {p: p.stat().st_mtime_ns for p in Path(steps.samples.path).rglob("*")}


def test_one_changed_annotation_is_another_artifact(tmp_path: Path) -> None:
    write_world(tmp_path / "data")
    steps = Steps(tmp_path / "data", tmp_path)
    steps.build()
    before = steps.samples
    path = tmp_path / "data/coco/annotations/instances_train2017.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(document))
    assert steps.samples.fingerprint != before.fingerprint
    assert steps.samples.status() == "stale"
    assert before.status() == "done"


def test_missing_file_names_it_and_the_layout(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "coco").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"instances_train2017.json not found(.|\n)*layout(.|\n)*train2017/"
    ):
        _ = Steps(tmp_path / "empty", tmp_path).samples
    with pytest.raises(SettingError, match=r"dataset='cocoo' is unknown.*drawn_train"):
        samples.SamplesConfig(dataset="cocoo")


def test_too_many_rejects_fail_with_reasons_and_a_higher_limit_finishes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [Reject(f"annotations/{i}", "empty_box", "", "box") for i in range(3)]
    items += [Ledger(read={"box": 10}, used={"box": 7})]
    fake_dataset(monkeypatch, items)
    with pytest.raises(
        LedgerError, match=r"3 of 10 rows rejected \(3 empty_box\).*max_reject_fraction=0.2"
    ):
        Steps(world, tmp_path).build()
    assert Steps(world, tmp_path).samples.status() == "partial"
    assert Steps(world, tmp_path, max_reject_fraction=0.3).build()["ledger"]["rejects"] == 3


def broken_items(world: Path) -> dict[str, tuple[list, str]]:
    good = [item for item in built_samples(world) if isinstance(item, Sample)]
    empty = Ledger(read={}, used={})
    moved = dataclasses.replace(good[0], image_source="elsewhere")
    return {
        "no ledger": ([good[0]], "without a ledger"),
        "after the ledger": ([empty, good[0]], "after its ledger"),
        "lost box": ([Ledger(read={"box": 2}, used={"box": 1})], "do not add up"),
        "two alike": ([good[0], good[0], empty], f"{good[0].sample_id}: two samples"),
        "wrong source": ([moved, empty], f"{good[0].sample_id}: dataset"),
        "invalid": (
            [dataclasses.replace(good[0], width=0), empty],
            f"{good[0].sample_id}: .*bad_size",
        ),
    }


@pytest.mark.parametrize(
    "case", ["no ledger", "after the ledger", "lost box", "two alike", "wrong source", "invalid"]
)
def test_broken_builders_stop_the_run(
    case: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, message = broken_items(world)[case]
    fake_dataset(monkeypatch, items)
    with pytest.raises(RuntimeError, match=message):
        Steps(world, tmp_path).build()
    assert Steps(world, tmp_path).samples.status() != "done"


def test_bucket_is_that_of_the_image(world: Path, tmp_path: Path) -> None:
    steps = Steps(world, tmp_path)
    steps.build()
    for bucket in range(8):
        for row in steps.samples.read_table(f"part-{bucket:05d}.parquet").to_pylist():
            assert bucket_of(row["image_id"], 8) == bucket
