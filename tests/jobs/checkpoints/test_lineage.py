"""From a run back to the detector whose boxes it was trained on, by manifests alone."""

from pathlib import Path

import pytest

from fo1_model.detectors.configs import GroundTruthConfig, OPNDetectorConfig, UnionConfig
from jobs.checkpoints.lineage import lineage
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.fingerprints import canonical


def artifact(root: Path, kind: str, name: str, key: str = "0" * 16, **manifest) -> Artifact:
    made = Artifact(root=str(root), kind=kind, name=name, fingerprint=key)
    made.commit({"inputs": {}, **manifest})
    return made


def trained_on(root: Path, detector, inputs: dict[str, str]) -> Artifact:
    artifact(
        root, "proposals", "coco/boxes", config={"detector": canonical(detector)}, inputs=inputs
    )
    artifact(root, "shards", "coco/proposals", inputs={"proposals/coco/boxes": "0" * 16})
    return artifact(root, "runs", "stage1", inputs={"shards/coco/proposals": "0" * 16})


def test_the_run_behind_an_opn_is_found(tmp_path):
    opn = artifact(tmp_path, "runs", "opn", "1" * 16)
    found = lineage(trained_on(tmp_path, OPNDetectorConfig(), {"runs/opn": "1" * 16}))
    assert found.config == OPNDetectorConfig()
    assert found.sources == (opn.path,)


def test_only_the_member_that_needs_a_run_gets_it(tmp_path):
    opn = artifact(tmp_path, "runs", "opn", "1" * 16)
    union = UnionConfig(members=(GroundTruthConfig(), OPNDetectorConfig()))
    assert lineage(trained_on(tmp_path, union, {"runs/opn": "1" * 16})).sources == (None, opn.path)


@pytest.mark.parametrize("second", [{"runs/opn.1": "2" * 16}, {"runs/other": "2" * 16}, {}])
def test_of_two_runs_the_manifest_does_not_tell_which_is_whose(tmp_path, second):
    """Not even where they are one and the same: nothing is guessed."""
    artifact(tmp_path, "runs", "opn", "1" * 16)
    artifact(tmp_path, "runs", "other", "2" * 16)
    union = UnionConfig(members=(OPNDetectorConfig(), OPNDetectorConfig(prompt="fine")))
    assert lineage(trained_on(tmp_path, union, {"runs/opn": "1" * 16} | second)).sources == (
        None,
        None,
    )


def test_a_run_without_proposals_is_refused(tmp_path):
    artifact(tmp_path, "shards", "coco/ground_truth")
    run = artifact(tmp_path, "runs", "opn", inputs={"shards/coco/ground_truth": "0" * 16})
    with pytest.raises(SettingError, match="runs/opn was not trained on proposals"):
        lineage(run)
