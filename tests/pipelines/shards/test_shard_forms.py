"""Forms of examples beyond the usual.

Windows into crowded images, texts without image, smaller images, images of benchmarks, several
image sources. Samples and proposals are written by hand.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataset_builders import DATASETS, IMAGE_SOURCES, DataFolders, ImageSource
from dataset_builders.images import bucket_of, decode_image
from dataset_builders.records import SAMPLE_SCHEMA, Object, Part, Sample, Turn, sample_to_row
from pipelines.artifacts import Artifact, parquet_bytes
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.example_image import shrink, view
from pipelines.fingerprints import fingerprint
from pipelines.row_accounting import entry
from pipelines.schemas import PROPOSALS_SCHEMA, RegionExample
from pipelines.shards.config import ShardsConfig
from pipelines.shards.rejection import RejectionConfig
from pipelines.shards.tar_format import ShardSet, decode_member, tasks_of
from pipelines.shards.write import VERSION, shards_inputs, write_shards

BUCKETS = {"left": 2, "right": 8}


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in BUCKETS.items():
        source = ImageSource(
            name=name, num_buckets=number, list_images=lambda folders: iter(()), image_paths=(name,)
        )
        monkeypatch.setitem(IMAGE_SOURCES, name, source)


def sample(number: int, *, source: str = "left", task: str = "detection", **changes) -> Sample:
    """Two boxes in an image of 100 x 60: a cat on the left, a dog on the right, asked for."""
    made = Sample(
        sample_id=f"d/{source}/{number}/{task}/0",
        dataset="d",
        task=task,
        image_source=source,
        image_id=str(number),
        image_uri=f"{source}/{number}.png",
        width=100,
        height=60,
        objects=(
            Object(box=(10.0, 10.0, 30.0, 30.0), label="cat"),
            Object(box=(60.0, 20.0, 90.0, 50.0), label="dog"),
        ),
        turns=(
            Turn("user", (Part("Please detect dog in this image."),)),
            Turn("assistant", (Part("dog", (1,)),)),
        ),
    )
    return replace(made, **changes)


def text_sample(number: int) -> Sample:
    return sample(
        number,
        source="",
        task="instruction",
        image_id=f"text/{number}",
        image_uri="",
        width=0,
        height=0,
        objects=(),
        turns=(Turn("user", (Part("Why?"),)), Turn("assistant", (Part("Because."),))),
    )


class Built:
    """Finished samples and proposals of some hand-written samples, and their shards."""

    def __init__(self, root: Path, samples: Sequence[Sample], num_buckets: int = 4) -> None:
        self.root, self.folders = str(root / "out"), DataFolders(str(root))
        self.samples = Artifact(root=self.root, kind="samples", name="d", fingerprint="0" * 16)
        for bucket in range(num_buckets):
            inside = [s for s in samples if bucket_of(s.image_id, num_buckets) == bucket]
            rows = [
                sample_to_row(s, bucket=bucket) for s in sorted(inside, key=lambda s: s.sample_id)
            ]
            table = parquet_bytes(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
            tasks = {task: sum(s.task == task for s in inside) for task in {s.task for s in inside}}
            ledger = {**entry(len(rows), len(rows), []), "samples": len(rows), "tasks": tasks}
            self.samples.commit_bucket(bucket, {f"part-{bucket:05d}.parquet": table}, ledger)
        self.samples.commit_buckets(version=1, config={}, inputs={}, num_buckets=num_buckets)
        self.proposals = {
            name: self._proposals(name, root, [s for s in samples if s.image_source == name])
            for name in BUCKETS
        }

    def _proposals(self, source: str, root: Path, samples: Sequence[Sample]) -> Artifact:
        made = Artifact(
            root=self.root, kind="proposals", name=f"{source}/hand", fingerprint="1" * 16
        )
        images = {s.image_id: s for s in samples}
        for number, shown in images.items():
            (root / source).mkdir(exist_ok=True)
            pixels = np.zeros((shown.height, shown.width, 3), np.uint8)
            pixels[20:50, 60:90] = (0, 0, 255)
            Image.fromarray(pixels).save(root / source / f"{number}.png")
        for bucket in range(BUCKETS[source]):
            rows = [
                {
                    "image_id": name,
                    "bucket": bucket,
                    "width": shown.width,
                    "height": shown.height,
                    "rotation": 1,
                }
                | {"boxes": [[61, 20, 90, 50], [0, 0, 9, 9]], "scores": [0.9, 0.4]}
                | {"status": "ok", "error": None}
                for name, shown in sorted(images.items())
                if bucket_of(name, BUCKETS[source]) == bucket
            ]
            table = parquet_bytes(pa.Table.from_pylist(rows, schema=PROPOSALS_SCHEMA))
            ledger = entry(len(rows), len(rows), [])
            made.commit_bucket(bucket, {f"part-{bucket:05d}.parquet": table}, ledger)
        made.commit_buckets(version=1, config={}, inputs={}, num_buckets=BUCKETS[source])
        return made

    def shard(self, config: ShardsConfig, excluded: dict | None = None) -> Artifact:
        inputs = shards_inputs(
            self.samples, self.proposals, dict.fromkeys(config.exclude, "digest")
        )
        key = fingerprint(kind="shards", version=VERSION, config=config, inputs=inputs)
        made = Artifact(root=self.root, kind="shards", name="d", fingerprint=key)
        runtime = RuntimeConfig(root=self.root, data=self.root, workers=0)
        write_shards(
            config,
            self.samples,
            self.proposals,
            made,
            folders=self.folders,
            runtime=runtime,
            inputs=inputs,
            excluded=excluded,
        )
        return made


def examples(made: Artifact) -> dict[str, tuple[RegionExample, bytes]]:
    found = {}
    for task in tasks_of(made):
        source = ShardSet(made, task)
        for name, count in source.shards:
            for row in range(count):
                example, image = decode_member(source.read(name, row))
                found[example.sample_id] = (example, image)
    return found


PLAIN = ShardsConfig(rejection=None)


def test_a_dataset_over_two_image_sources_finds_the_proposals_of_each(
    tmp_path: Path, sources: None
) -> None:
    both = [sample(n, source=source) for source in BUCKETS for n in range(12)]
    built = Built(tmp_path, both)
    found = examples(built.shard(PLAIN))
    assert set(found) == {s.sample_id for s in both}
    for example, _ in found.values():
        assert "proposal" in example.box_sources
        assert example.targets[0]["regions"]


def test_a_window_is_cut_out_when_it_is_looked_at(tmp_path: Path, sources: None) -> None:
    seen = sample(
        3, window=(50, 10, 100, 60), objects=(Object(box=(60.0, 20.0, 90.0, 50.0), label="dog"),)
    )
    seen = replace(seen, turns=(seen.turns[0], Turn("assistant", (Part("dog", (0,)),))))
    built = Built(tmp_path, [seen])
    ((example, image),) = examples(built.shard(PLAIN)).values()
    assert example.window == (50, 10, 100, 60)
    assert image == (tmp_path / "left" / "3.png").read_bytes(), "the bytes are the picture's own"
    assert len(example.boxes) == 1, "the proposal outside the window is none of it"
    picture, boxes = view(example, image)
    assert picture.size == (50, 50)
    x1, y1, x2, y2 = boxes[0]
    assert (boxes[0] == example.boxes[0] - (50, 10, 50, 10)).all()
    blue = np.asarray(picture)[int(y1) : int(y2), int(x1) : int(x2)]
    assert (blue == (0, 0, 255)).all(), "the box lies on the same pixels in the window"


def test_a_text_without_picture_is_its_json_alone(tmp_path: Path, sources: None) -> None:
    built = Built(tmp_path, [text_sample(1), sample(2)])
    made = built.shard(PLAIN)
    example, image = examples(made)["d//1/instruction/0"]
    assert image == b""
    assert example.messages == (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    )
    assert len(example.boxes) == 0
    assert view(example, image)[0] is None


def test_texts_and_pictures_train_in_one_batch(tmp_path: Path, sources: None) -> None:
    from fo1_model.sizes import SIZES
    from pipelines.loading.collators import Example, batch_of
    from pipelines.train_config import TrainConfig
    from pipelines.training.learners import FO1Learner

    found = examples(Built(tmp_path, [text_sample(1), sample(2)]).shard(PLAIN))
    trainee = FO1Learner(stage="stage1", model=SIZES["debug"]()).build(None, seed=0)
    trainee.parameter_groups(TrainConfig(steps=1, batch_size=2, learning_rate=1e-3))
    batch = batch_of(
        trainee.collator, [Example(record=e, image=data, seed=0) for e, data in found.values()]
    )
    loss = trainee.loss(trainee.module, batch).total
    loss.backward()
    assert np.isfinite(loss.item())
    alone = batch_of(
        trainee.collator,
        [Example(record=e, image=data, seed=0) for e, data in found.values() if not data],
    )
    assert np.isfinite(trainee.loss(trainee.module, alone).total.item())


def test_conversations_without_regions_come_with_the_list_and_without(
    tmp_path: Path, sources: None
) -> None:
    told = (Turn("user", (Part("What is it?"),)), Turn("assistant", (Part("A dog."),)))
    many = [sample(n, task="instruction", turns=told) for n in range(200)]
    built = Built(tmp_path, many)
    with_list = [len(e.boxes) > 0 for e, _ in examples(built.shard(PLAIN)).values()]
    assert 70 < sum(with_list) < 130
    always = ShardsConfig(rejection=None, plain_with_regions=1.0)
    assert all(len(e.boxes) for e, _ in examples(built.shard(always)).values())


def test_pictures_of_benchmarks_are_left_out_and_counted_by_benchmark(
    tmp_path: Path, sources: None
) -> None:
    built = Built(tmp_path, [sample(n) for n in range(10)])
    excluded = {("left", "3"): "refcoco", ("left", "4"): "coco_val", ("right", "5"): "coco_val"}
    made = built.shard(ShardsConfig(rejection=None, exclude=("coco_val", "refcoco")), excluded)
    ledger = made.manifest()["ledger"]
    assert ledger["excluded"] == {"refcoco": 1, "coco_val": 1}
    assert (ledger["rows_in"], ledger["rows_out"], ledger["rejects"]) == (10, 8, 2)
    assert {e.image_id for e, _ in examples(made).values()} == {str(n) for n in range(10)} - {
        "3",
        "4",
    }


def test_leaving_out_most_pictures_is_no_fault_of_the_data(tmp_path: Path, sources: None) -> None:
    built = Built(tmp_path, [sample(n) for n in range(10)])
    everything = {("left", str(n)): "coco_val" for n in range(9)}
    made = built.shard(ShardsConfig(rejection=None, exclude=("coco_val",)), everything)
    assert made.manifest()["ledger"]["rejects_by_reason"] == {"benchmark_image": 9}


def test_pictures_are_made_smaller_only_when_a_recipe_asks_for_it(
    tmp_path: Path, sources: None
) -> None:
    built = Built(tmp_path, [sample(1)])
    ((whole, original),) = examples(built.shard(PLAIN)).values()
    ((small, encoded),) = examples(
        built.shard(ShardsConfig(rejection=None, max_side_px=50))
    ).values()
    assert decode_image(original).size == (100, 60)
    assert decode_image(encoded).size == (small.width, small.height) == (50, 30)
    np.testing.assert_allclose(np.sort(small.boxes, 0), np.sort(whole.boxes, 0) / 2, rtol=1e-6)
    np.testing.assert_allclose(small.targets[0]["boxes"], np.array(whole.targets[0]["boxes"]) / 2)
    ((same, kept),) = examples(built.shard(ShardsConfig(rejection=None, max_side_px=100))).values()
    assert kept == original
    assert same.width == 100


def test_a_smaller_window_holds_the_scaled_one() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100)).save(buffer, "PNG")
    example = RegionExample(
        sample_id="s",
        dataset="d",
        task="detection",
        image_id="1",
        width=200,
        height=100,
        window=(25, 11, 75, 99),
        boxes=np.array([[30, 20, 70, 90]], np.float32),
        scores=(0.5,),
        box_sources=("proposal",),
    )
    small, _ = shrink(example, buffer.getvalue(), 66)
    assert (small.width, small.height) == (66, 33)
    assert small.window == (8, 3, 25, 33)  # 8.25, 3.63, 24.75, 32.67 outwards
    x1, y1, x2, y2 = small.boxes[0]
    assert (x1 >= 8, y1 >= 3, x2 <= 25, y2 <= 33) == (True,) * 4


def test_the_rejection_quota_is_kept_to_the_sample_and_written_down(
    tmp_path: Path, sources: None
) -> None:
    absent = {"absent_labels": ("zebra", "ship", "cup"), "absent_regime": "exhaustive"}
    built = Built(tmp_path, [sample(n, **absent) for n in range(80)])
    ledger = built.shard(ShardsConfig(rejection=RejectionConfig(share=0.2))).manifest()["ledger"]
    assert ledger["examples"] == {"detection": 80, "rejection": 20}
    quota = ledger["rejection_quota"]
    assert (quota["wanted"], quota["made"]) == (20, 20)
    assert quota["pure"] + quota["mixed"] + quota.get("many", 0) == 20


def test_a_quota_that_cannot_be_met_says_so(tmp_path: Path, sources: None) -> None:
    absent = {"absent_labels": ("zebra",), "absent_regime": "exhaustive"}
    known = [sample(n, **absent) for n in range(4)]
    built = Built(tmp_path, known + [sample(n) for n in range(4, 40)])
    quota = built.shard(ShardsConfig(rejection=RejectionConfig(share=0.5))).manifest()["ledger"][
        "rejection_quota"
    ]
    assert (quota["wanted"], quota["made"]) == (40, 4)


def test_wrong_settings_name_the_field() -> None:
    for wrong in ({"max_side_px": 5}, {"plain_with_regions": 2.0}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            ShardsConfig(**wrong)
    with pytest.raises(SettingError, match="neither `exclude` nor"):
        ShardsConfig(regions="proposals_scored", exclude=("coco_val",))
    assert "coco" in DATASETS
