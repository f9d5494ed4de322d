import json
from pathlib import Path

import numpy as np
import pytest

from dataset_builders import IMAGE_SOURCES
from fo1_model.detectors import (
    GroundTruthConfig,
    GroundTruthJitterConfig,
    OPNDetectorConfig,
    Selection,
)
from pipelines.errors import SettingError
from pipelines.input_digests import image_list_digest
from pipelines.proposals.generate import ProposalsConfig
from pipelines.proposals.image_lists import objects_by_image
from pipelines.row_accounting import LedgerError
from pipelines.schemas import PROPOSALS_SCHEMA, proposals_by_image
from tests.pipelines.coco_world import Steps, write_world


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("proposals")
    write_world(folder / "data", broken=True)
    made = Steps(folder / "data", folder, max_reject_fraction=0.5)
    made.build()
    made.propose()
    return made


def all_rows(steps: Steps) -> dict[str, dict]:
    rows: dict[str, dict] = {}
    for bucket in range(8):
        table = steps.proposals.read_table(f"part-{bucket:05d}.parquet")
        assert table.schema.remove_metadata().equals(PROPOSALS_SCHEMA)
        found = proposals_by_image(table)
        assert list(found) == sorted(found)
        assert {row["bucket"] for row in found.values()} <= {bucket}
        rows |= found
    return rows


def test_every_image_has_a_row_with_its_status(steps: Steps) -> None:
    rows = all_rows(steps)
    assert sorted(rows, key=int) == [str(i) for i in range(12)]
    statuses = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert statuses == {"3": "undecodable_image", "4": "missing_image", "5": "size_mismatch"}
    for name, row in rows.items():
        assert (row["error"] is None) == (row["status"] == "ok")
        assert "0x" not in (row["error"] or "")
        assert len(row["boxes"]) == len(row["scores"])
        assert (np.diff(row["scores"]) <= 0).all()
        if row["status"] == "ok":
            assert (row["width"], row["height"]) == (96, 80)
            assert len(row["boxes"]) > (0 if name == "1" else 3)
        else:
            assert len(row["boxes"]) == 0


def test_ledger_and_metadata(steps: Steps) -> None:
    manifest = steps.proposals.manifest()
    reasons = {"missing_image": 1, "size_mismatch": 1, "undecodable_image": 1}
    expected = {"rows_in": 12, "rows_out": 9, "rejects": 3, "rejects_by_reason": reasons}
    assert expected.items() <= manifest["ledger"].items()
    assert manifest["ledger"]["boxes"] == sum(len(row["boxes"]) for row in all_rows(steps).values())
    metadata = steps.proposals.read_table("part-00000.parquet").schema.metadata
    assert metadata[b"fingerprint"].decode() == steps.proposals.fingerprint
    assert json.loads(metadata[b"detector"])["type"] == "GroundTruthJitterConfig"


def test_over_the_reject_limit_the_step_fails_with_counts(steps: Steps, tmp_path: Path) -> None:
    strict = Steps(Path(steps.runtime.data), tmp_path, max_reject_fraction=0.1)
    strict.build()
    with pytest.raises(
        LedgerError, match=r"3 of 12 rows rejected \(1 missing_image, 1 size_mismatch"
    ):
        strict.propose()


def test_ground_truth_objects_without_crowds(steps: Steps) -> None:
    found = {
        name: boxes
        for b in range(8)
        for name, boxes in objects_by_image(steps.samples, "coco", b).items()
    }
    assert found["2"].shape == (3, 4)
    assert found["2"].dtype == np.float32
    exact = Steps(
        Path(steps.runtime.data), Path(steps.runtime.root).parent, max_reject_fraction=0.5
    )
    exact.detector = GroundTruthConfig()
    exact.propose()
    row = all_rows(exact)["2"]
    assert sorted(row["boxes"].tolist()) == sorted(found["2"].tolist())


def test_detector_settings_change_the_artifact_and_a_box_only_what_sees_it(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "data")
    steps = Steps(tmp_path / "data", tmp_path)
    source = IMAGE_SOURCES["coco"]
    before = steps.proposals.fingerprint, image_list_digest(source, steps.folders, steps.cache)
    path = folder / "annotations/instances_train2017.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(document))
    # A ground-truth detector sees the box; the list of images, all that others depend on, stays.
    assert steps.proposals.fingerprint != before[0]
    assert image_list_digest(source, steps.folders, steps.cache) == before[1]
    document["images"].pop()
    path.write_text(json.dumps(document))
    assert image_list_digest(source, steps.folders, steps.cache) != before[1]
    made = {steps.proposals.fingerprint}
    for detector in (
        GroundTruthJitterConfig(),
        GroundTruthJitterConfig(selection=Selection(nms_iou=0.5)),
    ):
        steps.detector = detector
        made.add(steps.proposals.fingerprint)
    assert len(made) == 3


def test_what_a_detector_needs_is_checked_before_any_work(steps: Steps) -> None:
    with pytest.raises(SettingError, match=r"image_source='nowhere' is unknown"):
        ProposalsConfig(image_source="nowhere", detector=GroundTruthConfig())
    from pipelines.proposals.generate import propose

    common = {"folders": steps.folders, "runtime": steps.runtime, "inputs": {}}
    with pytest.raises(SettingError, match="GroundTruthJitterConfig needs samples"):
        propose(steps.proposals_config, steps.proposals, **common, supplies=(None,))
    config = ProposalsConfig(image_source="coco", detector=OPNDetectorConfig())
    with pytest.raises(SettingError, match="OPNDetectorConfig needs a finished training run"):
        propose(config, steps.proposals, **common, supplies=(None,))
    with pytest.raises(SettingError, match="OPNDetectorConfig needs a finished training run"):
        propose(config, steps.proposals, **common, supplies=(steps.samples,))
    with pytest.raises(SettingError, match="nothing at /nowhere"):
        propose(config, steps.proposals, **common, supplies=("/nowhere",))
    with pytest.raises(SettingError, match="0 given for 1 detectors"):
        propose(config, steps.proposals, **common, supplies=())


def test_samples_must_be_there_first(tmp_path: Path) -> None:
    write_world(tmp_path / "data")
    with pytest.raises(SettingError, match=r"is missing: make it before"):
        Steps(tmp_path / "data", tmp_path).propose()
