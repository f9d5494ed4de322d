import dataclasses
import hashlib
import pickle
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dataset_builders.records import sample_from_row
from fo1_model import grammar
from pipelines.artifacts import Artifact
from pipelines.boxes import iou_matrix
from pipelines.errors import SettingError
from pipelines.schemas import RegionExample
from pipelines.shards.config import ShardsConfig
from pipelines.shards.rejection import RejectionConfig
from pipelines.shards.tar_format import (
    ShardSet,
    TarWriter,
    decode_member,
    image_suffix,
    key_of,
    tasks_of,
)
from tests.pipelines.coco_world import Steps, write_world


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    folder = tmp_path_factory.mktemp("shards")
    write_world(folder / "data", broken=True)
    made = Steps(folder / "data", folder, max_reject_fraction=0.5)
    made.build()
    made.propose()
    return made


def shard(steps: Steps, config: ShardsConfig) -> Artifact:
    steps.shards_config = config
    steps.shard()
    return steps.shards


def examples(artifact: Artifact, task: str) -> list[tuple[RegionExample, bytes]]:
    source = ShardSet(artifact, task)
    return [
        decode_member(source.read(name, i)) for name, count in source.shards for i in range(count)
    ]


def everything(artifact: Artifact) -> list[tuple[RegionExample, bytes]]:
    return [item for task in tasks_of(artifact) for item in examples(artifact, task)]


def test_training_examples_keep_the_invariants(steps: Steps) -> None:
    made = shard(steps, ShardsConfig())
    assert tasks_of(made) == ["counting", "detection", "region_name", "rejection", "visual_prompt"]
    for example, _ in everything(made):
        assert example.messages[0]["content"].count("<regionfeat>") == len(example.boxes)
        answer = example.messages[-1]
        assert answer["role"] == "assistant"
        parsed = grammar.parse(answer["content"], len(example.boxes))
        assert parsed.problem is None
        grounded = tuple((t["text"], tuple(t["regions"])) for t in example.targets if t["boxes"])
        assert parsed.phrases == grounded
        for target in example.targets:
            assert target["regions"] == sorted(set(target["regions"]))
            for box in target["boxes"]:  # each annotated box has a region of the answer on it
                regions = example.boxes[target["regions"]]
                assert iou_matrix(np.array([box], np.float32), regions).max() >= 0.5


def test_image_bytes_are_the_original_ones(steps: Steps) -> None:
    made = shard(steps, ShardsConfig())
    for example, image in examples(made, "detection"):
        assert (
            image == Path(steps.folder, f"train2017/{int(example.image_id):06d}.jpg").read_bytes()
        )


def test_ledger_counts_rejects_and_statistics(steps: Steps) -> None:
    ledger = shard(steps, ShardsConfig()).manifest()["ledger"]
    samples = steps.samples.manifest()["ledger"]["samples"]
    assert ledger["rows_in"] == samples == ledger["rows_out"] + ledger["rejects"]
    assert set(ledger["rejects_by_reason"]) == {
        "undecodable_image",
        "missing_image",
        "size_mismatch",
    }
    assert ledger["rejection"]["rows_in"] > 0
    assert sum(ledger["examples"].values()) == ledger["rows_out"] + ledger["rejection"]["rows_out"]
    assert sum(ledger["regions_histogram"].values()) == sum(ledger["examples"].values())
    assert ledger["objects"] == 3 * 8
    assert 0 < ledger["matched"] <= ledger["objects"]
    lost = [
        row["reason"]
        for bucket in range(8)
        for row in steps.shards.read_table(f"rejects-{bucket:05d}.parquet").to_pylist()
    ]
    assert len(lost) == ledger["rejects"] + ledger["rejection"]["rejects"]


def test_scored_examples_are_proposals_in_score_order_and_ask_only(steps: Steps) -> None:
    made = shard(steps, ShardsConfig(regions="proposals_scored"))
    unmatched = 0
    for example, _ in everything(made):
        assert example.messages[-1]["role"] == "user"
        scores = [score for score in example.scores if score is not None]
        assert scores == sorted(scores, reverse=True)
        if example.task != "region_name":  # only a question that points at a region brings one in
            assert "gt" not in example.box_sources
        unmatched += sum(
            len(target["boxes"]) - len(target["regions"]) for target in example.targets
        )
        assert all(target["boxes"] for target in example.targets) or example.targets[0]["text"]
    assert unmatched >= 0


def test_injection_when_the_detector_misses_everything(steps: Steps) -> None:
    blind = Steps(
        Path(steps.runtime.data), Path(steps.runtime.root).parent, max_reject_fraction=0.5
    )
    blind.detector = dataclasses.replace(blind.detector, miss_rate=1.0)
    blind.propose()
    trained = shard(blind, ShardsConfig())
    ledger = trained.manifest()["ledger"]
    assert ledger["injected"] > 0
    assert ledger["matched"] < ledger["objects"] / 2
    for example, _ in examples(trained, "detection"):
        named = {region for target in example.targets for region in target["regions"]}
        assert sum(len(t["boxes"]) for t in example.targets) == sum(
            len(t["regions"]) for t in example.targets
        )
        assert all(example.scores[r] is None for r in named if example.box_sources[r] == "gt")
    scored = shard(blind, ShardsConfig(regions="proposals_scored"))
    missing = [t for e, _ in examples(scored, "detection") for t in e.targets if not t["regions"]]
    assert missing
    assert all(target["boxes"] for target in missing)


def test_ground_truth_examples_are_one_an_image_with_crowds_marked(steps: Steps) -> None:
    made = shard(steps, ShardsConfig(regions="ground_truth"))
    found = {example.image_id: example for example, _ in everything(made)}
    assert sorted(found, key=int) == ["0", "1", "2", "6", "7", "8", "9", "10", "11"]
    assert tasks_of(made) == ["detection"]
    assert made.manifest()["ledger"]["rejects"] == 3
    assert found["2"].ignore == (False, False, False, True)
    assert found["1"].boxes.shape == (0, 4)
    assert found["2"].messages == ()
    assert set(found["2"].box_sources) == {"gt"}


def test_rejection_examples_ask_for_what_is_absent(steps: Steps) -> None:
    made = shard(steps, ShardsConfig(rejection=RejectionConfig(pure_share=1.0, many_share=0.0)))
    rows = [
        r for b in range(8) for r in steps.samples.read_table(f"part-{b:05d}.parquet").to_pylist()
    ]
    labels = {row["image_id"]: {item["label"] for item in row["objects"]} for row in rows}
    for example, _ in examples(made, "rejection"):
        names = (
            example.messages[0]["content"]
            .split("Please detect ")[1]
            .split(" in this image")[0]
            .split("; ")
        )
        assert not set(names) & labels[example.image_id]
        assert example.messages[-1]["content"] == "None"
    without = shard(steps, ShardsConfig(rejection=None))
    assert all("/rejection/" in example.sample_id for example, _ in examples(without, "rejection"))


def test_rebuilt_elsewhere_the_bytes_are_the_same(steps: Steps, tmp_path: Path) -> None:
    again = Steps(Path(steps.runtime.data), tmp_path, max_reject_fraction=0.5)
    again.build()
    again.propose()
    for config in (ShardsConfig(), ShardsConfig(regions="ground_truth")):
        first, second = shard(steps, config), shard(again, config)
        left, right = (
            {p.relative_to(a.path): p.read_bytes() for p in Path(a.path).rglob("*") if p.is_file()}
            for a in (first, second)
        )
        assert left == right
        assert first.fingerprint == second.fingerprint
        assert not any(str(tmp_path).encode() in data for data in right.values())


def test_seed_changes_the_order_and_nothing_else(steps: Steps) -> None:
    first = {e.sample_id: e for e, _ in examples(shard(steps, ShardsConfig()), "counting")}
    other = {e.sample_id: e for e, _ in examples(shard(steps, ShardsConfig(seed=1)), "counting")}
    assert first.keys() == other.keys()
    assert any((first[k].boxes[:2] != other[k].boxes[:2]).any() for k in first)


def test_tar_opens_with_tar_and_webdataset(steps: Steps, tmp_path: Path) -> None:
    made = shard(steps, ShardsConfig())
    source = ShardSet(made, "detection")
    name, count = max(source.shards, key=lambda item: item[1])
    subprocess.run(["tar", "xf", made.uri(name), "-C", str(tmp_path)], check=True)
    assert len(list(tmp_path.glob("*.jpg"))) == len(list(tmp_path.glob("*.json"))) == count
    with tarfile.open(made.uri(name)) as tar:
        members = tar.getmembers()
    assert all(m.mtime == m.uid == m.gid == 0 and m.uname == m.gname == "" for m in members)
    keys = [m.name.split(".")[0] for m in members]
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == count
    import webdataset

    read = list(webdataset.WebDataset(made.uri(name), shardshuffle=False))
    assert len(read) == count
    for index, item in enumerate(read):
        example, image = decode_member({k: v for k, v in item.items() if not k.startswith("__")})
        direct, data = decode_member(source.read(name, index))
        assert example.to_json() == direct.to_json()
        assert image == data


def test_shard_set_reads_by_position_survives_pickling_and_names_what_is_there(
    steps: Steps,
) -> None:
    made = shard(steps, ShardsConfig())
    source = ShardSet(made, "region_name")
    assert source.num_examples == len(source) == sum(count for _, count in source.shards)
    assert source.read(0, 0) == source.read(source.shards[0][0], 0)
    copy = pickle.loads(pickle.dumps(source))  # as Ray hands it to a worker
    assert copy.read(1, 0) == source.read(1, 0)
    assert copy.sample_ids(0)[0] == decode_member(source.read(0, 0))[0].sample_id
    with pytest.raises(SettingError, match=r"no shards of task 'ocr'; it has counting, detection"):
        ShardSet(made, "ocr")


def test_wrong_inputs_are_refused_before_any_work(steps: Steps, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="regions='boxes'"):
        ShardsConfig(regions="boxes")
    from pipelines.shards.write import write_shards

    common = {"folders": steps.folders, "runtime": steps.runtime, "inputs": {}}
    with pytest.raises(SettingError, match="needs proposals"):
        write_shards(ShardsConfig(), steps.samples, {}, steps.shards, **common)
    found = {"coco": steps.proposals}
    with pytest.raises(SettingError, match="takes no proposals"):
        write_shards(
            ShardsConfig(regions="ground_truth"), steps.samples, found, steps.shards, **common
        )
    fresh = Steps(Path(steps.runtime.data), tmp_path)
    with pytest.raises(SettingError, match="is missing: make it"):
        fresh.shard()


def test_keys_and_suffixes() -> None:
    key = key_of("coco/train2017.v1/7/détection/0")
    digest = hashlib.sha256("coco/train2017.v1/7/détection/0".encode()).hexdigest()[:12]
    assert key == f"coco_train2017_v1_7_d_tection_0-{digest}"
    assert len(key_of("x" * 500)) < 90
    assert [image_suffix(data) for data in (b"\xff\xd8\xff\xe0", b"\x89PNG", b"??")] == [
        "jpg",
        "png",
        "img",
    ]


def test_a_sample_id_comes_once_in_a_tar(steps: Steps) -> None:
    example, image = examples(shard(steps, ShardsConfig()), "detection")[0]
    tar = TarWriter()
    tar.add(example, image)
    tar.add(example, image)
    with pytest.raises(ValueError, match="comes twice"):
        tar.finish()
    with pytest.raises(ValueError, match="at most one image"):
        decode_member({"json": b"{}", "jpg": b"", "png": b""})


def test_first_sample_of_an_image_has_all_its_objects(steps: Steps) -> None:
    # What `_ground_truth` and `objects_by_image` rely on.
    for bucket in range(8):
        by_image: dict[str, set] = {}
        for row in steps.samples.read_table(f"part-{bucket:05d}.parquet").to_pylist():
            by_image.setdefault(row["image_id"], set()).add(sample_from_row(row).objects)
        assert all(len(found) == 1 for found in by_image.values())


def test_questions_about_one_picture_share_its_regions(steps: Steps) -> None:
    one_each = RejectionConfig(share=0.5)
    single = shard(steps, ShardsConfig(rejection=one_each))
    joined = shard(steps, ShardsConfig(turns=3, rejection=one_each))
    for artifact in (single, joined):
        ledger = artifact.manifest()["ledger"]
        assert ledger["rows_in"] == ledger["rows_out"] + ledger["rejects"]
    assert joined.manifest()["ledger"]["rows_in"] == single.manifest()["ledger"]["rows_in"]
    assert joined.manifest()["ledger"]["rows_out"] == single.manifest()["ledger"]["rows_out"]
    for task in tasks_of(single):
        asked = [
            m["content"].split("\n")[-1] for e, _ in examples(single, task) for m in e.messages[::2]
        ]
        together = examples(joined, task)
        again = [m["content"].split("\n")[-1] for e, _ in together for m in e.messages[::2]]
        region = re.compile(
            r"<region\d+>"
        )  # the order of regions is drawn by the id of the example
        assert sorted(region.sub("", text) for text in again) == sorted(
            region.sub("", text) for text in asked
        )
        most = {"region_name": 4, "visual_prompt": 2}.get(
            task, 6
        )  # three questions, or as many as there are
        assert max(len(e.messages) for e, _ in together) == most
        for example, _ in together:
            assert sum(m["content"].count("<regionfeat>") for m in example.messages) == len(
                example.boxes
            )
            for message in example.messages[1::2]:
                assert grammar.parse(message["content"], len(example.boxes)).problem is None


def test_joined_questions_are_for_training_only() -> None:
    with pytest.raises(SettingError, match="turns=2: use 1"):
        ShardsConfig(regions="proposals_scored", turns=2)
