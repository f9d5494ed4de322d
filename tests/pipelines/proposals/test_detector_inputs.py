"""What detectors need beside their config: checked, identified by content, found."""

import itertools
import os
from pathlib import Path

import huggingface_hub
import pytest

from fo1_model.detectors import (
    BoxFileConfig,
    ClosedSetConfig,
    GroundTruthConfig,
    OPNDetectorConfig,
    TextPromptedConfig,
    UnionConfig,
    UntrainedOPNConfig,
    UPNConfig,
)
from pipelines.artifacts import Artifact
from pipelines.errors import SettingError
from pipelines.proposals.detector_inputs import (
    check_supplies,
    checkpoints,
    content_digest,
    find_weights,
    supplied_inputs,
    supply_for,
)

RUN = Artifact(root="/r", kind="runs", name="opn", fingerprint="0" * 15 + "1")
SAMPLES = Artifact(root="/r", kind="samples", name="coco", fingerprint="0" * 15 + "2")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as the hub gives it: files in folders, and text that nobody loads."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "part" / "vocab.txt").write_text("a\nb")
    (folder / "README.md").write_text("about it")
    return folder


@pytest.fixture
def box_file(tmp_path: Path) -> Path:
    path = tmp_path / "boxes.jsonl"
    path.write_text("{}\n")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "digests"


def test_each_detector_takes_what_it_needs(weights: Path, box_file: Path) -> None:
    """Every kind of supply to every kind of detector: only the documented ones pass."""
    supplies = {
        "none": None,
        "run": RUN,
        "samples": SAMPLES,
        "folder": str(weights),
        "file": str(box_file),
    }
    takes = {
        UntrainedOPNConfig(): {"none"},
        OPNDetectorConfig(): {"run", "folder", "file"},  # a path may be either; it is opened later
        ClosedSetConfig(): {"folder", "file"},
        UPNConfig(): {"folder", "file"},
        GroundTruthConfig(): {"samples"},
        BoxFileConfig(): {"folder", "file"},
    }
    for (detector, allowed), (name, supply) in itertools.product(takes.items(), supplies.items()):
        if name in allowed:
            check_supplies(detector, (supply,))
        else:
            with pytest.raises(
                SettingError, match=rf"^{type(detector).__name__} needs .* was given"
            ):
                check_supplies(detector, (supply,))


def test_errors_say_what_is_needed(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jsonl")
    with pytest.raises(
        SettingError, match=rf"BoxFileConfig: there is nothing at {gone}; give a file of boxes"
    ):
        check_supplies(BoxFileConfig(), (gone,))
    union = UnionConfig(members=(UntrainedOPNConfig(), BoxFileConfig()))
    with pytest.raises(SettingError, match="1 given for 2 detectors"):
        check_supplies(union, (None,))
    with pytest.raises(SettingError, match=r"BoxFileConfig needs a file of boxes; None was given"):
        check_supplies(union, (None, None))
    with pytest.raises(SettingError, match="UntrainedOPNConfig needs nothing"):
        check_supplies(union, (gone, gone))


def test_identity_of_one_detector(weights: Path, box_file: Path, cache: Path) -> None:
    assert supplied_inputs(UntrainedOPNConfig(), (None,), cache) == {}
    assert supplied_inputs(OPNDetectorConfig(), (RUN,), cache) == {"runs/opn": RUN.fingerprint}
    assert supplied_inputs(GroundTruthConfig(), (SAMPLES,), cache) == {
        "samples/coco": SAMPLES.fingerprint
    }
    digest = content_digest(weights, cache)
    assert supplied_inputs(ClosedSetConfig(), (str(weights),), cache) == {"weights": digest}
    # a folder that a run exported is known by its content, not as a run
    assert supplied_inputs(OPNDetectorConfig(), (str(weights),), cache) == {"run": digest}
    assert supplied_inputs(BoxFileConfig(), (str(box_file),), cache) == {
        "boxes": content_digest(box_file, cache)
    }
    with pytest.raises(SettingError, match="BoxFileConfig needs"):
        supplied_inputs(BoxFileConfig(), (None,), cache)


def test_identity_of_a_union(weights: Path, box_file: Path, cache: Path) -> None:
    other = weights.parent / "other.pth"
    other.write_bytes(b"other weights")
    members = (UntrainedOPNConfig(), ClosedSetConfig(), BoxFileConfig(), UPNConfig())
    found = supplied_inputs(
        UnionConfig(members=members), (None, str(weights), str(box_file), str(other)), cache
    )
    assert found == {
        "weights.1": content_digest(weights, cache),
        "boxes.2": content_digest(box_file, cache),
        "weights.3": content_digest(other, cache),
    }
    # Two runs of one name: each counts.
    second = Artifact(root="/r", kind="runs", name="opn", fingerprint="0" * 15 + "3")
    union = UnionConfig(members=(OPNDetectorConfig(), OPNDetectorConfig(prompt="fine")))
    assert supplied_inputs(union, (RUN, second), cache) == {
        "runs/opn": RUN.fingerprint,
        "runs/opn.1": second.fingerprint,
    }


def test_a_folder_is_known_by_the_weights_in_it(weights: Path, cache: Path) -> None:
    before = content_digest(weights, cache)
    (weights / "README.md").write_text("more about it")
    (weights / ".cache").mkdir()
    assert content_digest(weights, cache) == before
    moved = weights.rename(weights.parent / "moved")
    assert content_digest(moved, cache) == before
    linked = weights.parent / "snapshot"  # the hub's cache is a folder of links
    linked.mkdir()
    for path in moved.rglob("*"):
        if path.is_file():
            (linked / path.relative_to(moved)).parent.mkdir(exist_ok=True)
            (linked / path.relative_to(moved)).symlink_to(path)
    assert content_digest(linked, cache) == before
    seen = {before}
    for change in (
        lambda: (moved / "model.safetensors").write_bytes(b"weightz"),
        lambda: (moved / "part" / "vocab.txt").write_text("a\nc"),
        lambda: (moved / "model.safetensors").rename(moved / "model2.safetensors"),
        lambda: (moved / "part" / "vocab.txt").rename(moved / "vocab.txt"),
        lambda: (moved / "tokenizer.json").write_text("{}"),
    ):
        change()
        seen.add(content_digest(moved, cache))
    assert len(seen) == 6
    assert all(len(digest) == 16 for digest in seen)


def test_a_byte_changed_in_place_is_seen_though_size_and_digests_are_remembered(
    weights: Path, cache: Path
) -> None:
    path = weights / "model.safetensors"
    os.utime(path, (1e9, 1e9))
    before = content_digest(weights, cache)
    assert any(cache.iterdir())
    assert content_digest(weights, cache) == before
    path.write_bytes(b"weightz")
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert content_digest(weights, cache) != before


def test_a_folder_without_weights_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(SettingError, match=r"the folder holds no weights \(\.bin, \.json, "):
        supplied_inputs(ClosedSetConfig(), (str(tmp_path),), cache)


def test_checkpoints_are_what_is_loaded(weights: Path, box_file: Path) -> None:
    assert checkpoints(UntrainedOPNConfig(), (None,)) is None
    assert checkpoints(GroundTruthConfig(), (SAMPLES,)) is None
    assert checkpoints(BoxFileConfig(), (str(box_file),)) is None
    assert checkpoints(OPNDetectorConfig(), (RUN,)) == f"/r/runs/opn/{RUN.fingerprint}/export"
    assert checkpoints(ClosedSetConfig(), (str(weights),)) == str(weights)
    union = UnionConfig(members=(OPNDetectorConfig(), TextPromptedConfig(), BoxFileConfig()))
    assert checkpoints(union, (RUN, str(weights), str(box_file))) == (
        RUN.uri("export"),
        str(weights),
        None,
    )


def test_supply_of_a_need(box_file: Path) -> None:
    union = UnionConfig(members=(OPNDetectorConfig(), BoxFileConfig()))
    assert supply_for(union, (RUN, str(box_file)), "boxes") == str(box_file)
    assert supply_for(union, (RUN, str(box_file)), "run") is RUN
    assert supply_for(union, (RUN, str(box_file)), "objects") is None


def test_weights_that_are_a_path(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise AssertionError("a path is no question for the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert find_weights(str(weights)) == str(weights)
    assert find_weights(str(weights / "model.safetensors")) == str(weights / "model.safetensors")
    monkeypatch.chdir(weights.parent)
    assert find_weights("model/part") == str(
        weights / "part"
    )  # a folder goes before a name of the hub
    for name in (
        "/nowhere",
        "/no/where",
        "./nowhere",
        "~/nowhere",
        "../no",
        "nowhere",
        "a/b/c",
        "x.pth",
    ):
        with pytest.raises(
            SettingError, match=rf"^weights={name}: there is no such folder or file$"
        ):
            find_weights(name)


def test_weights_in_the_hub_s_cache(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache as the hub's client lays it out; nothing asks the network."""
    model = tmp_path / "hub" / "models--maker--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    weights.rename(model / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    assert find_weights("maker/model") == str(model / "snapshots" / ("0" * 40))


@pytest.mark.parametrize("name", ["maker/model-that-nobody-made", "maker/..no--name"])
def test_weights_that_are_not_in_the_cache(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    fix = f"fetch it with `hf download {name}`, or give a folder"
    with pytest.raises(
        SettingError, match=rf"^vlm={name}: there is no such folder, .*{fix}$"
    ) as raised:
        find_weights(name, "vlm")
    assert "\n" not in str(raised.value)
