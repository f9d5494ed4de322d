"""Loading and detecting in one process, in two, and on Ray: the same rows, no pixel copied."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_builders.images import bucket_of
from fo1_model.detectors import (
    Detections,
    DetectorConfig,
    GroundTruthJitterConfig,
    Prepared,
    Selection,
    UnionConfig,
    UntrainedOPNConfig,
)
from pipelines.proposals.detector_inputs import checkpoints
from pipelines.proposals.workers import (
    LOADED_SCHEMA,
    SLICE,
    DetectorWorker,
    ImageLoader,
    LoadAndDetectWorker,
    WorkerSettings,
    _packed,
    _unpacked,
    slices,
)
from pipelines.schemas import PROPOSALS_SCHEMA
from pipelines.worker_pools import Stage, run_stages
from tests.pipelines.coco_world import Steps, write_world

JITTER = GroundTruthJitterConfig(num_distractors=3, jitter=0.05, seed=3)
OPN = UntrainedOPNConfig(selection=Selection(max_boxes=20))
DETECTORS: dict[str, DetectorConfig] = {
    "opn_untrained": OPN,
    "ground_truth_jitter": JITTER,
    "union": UnionConfig(members=(OPN, JITTER), selection=Selection(nms_iou=0.6, max_boxes=30)),
}
NUM_IMAGES = 40
BROKEN = {"3": "undecodable_image", "4": "missing_image", "5": "size_mismatch"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken pictures, one that lies on its side, and one of another shape than all the others."""
    folder = tmp_path_factory.mktemp("looking")
    write_world(folder / "data", NUM_IMAGES, broken=True)
    exif = Image.Exif()
    exif[0x0112] = 8
    path = folder / "data/coco/train2017/000007.jpg"
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_270).save(path, exif=exif)
    Steps(folder / "data", folder).build()
    return folder


def proposed(world: Path, name: str) -> Steps:
    """Proposals made in this process; the lists of images stay beside them."""
    steps = Steps(world / "data", world, max_reject_fraction=0.5)
    steps.detector = DETECTORS[name]
    steps.propose()
    return steps


def settings_of(steps: Steps) -> WorkerSettings:
    return WorkerSettings(
        detector=steps.detector,
        checkpoint=checkpoints(steps.detector, steps.supplies),
        output=steps.proposals,
        folders=steps.folders,
        device="cpu",
    )


def tasks_of(steps: Steps) -> list[dict[str, int]]:
    counts = {b: steps.proposals.read_table(f"images-{b:05d}.parquet").num_rows for b in range(8)}
    return [task for bucket, count in counts.items() for task in slices(bucket, count)]


def made(steps: Steps) -> list[dict]:
    """Rows of the artifact, by bucket and id."""
    tables = [steps.proposals.read_table(f"part-{bucket:05d}.parquet") for bucket in range(8)]
    return [row for table in tables for row in table.to_pylist()]


def through_bytes(table: pa.Table) -> pa.Table:
    """What another process gets."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@pytest.mark.parametrize("name", DETECTORS)
def test_two_stages_give_what_one_gives(name: str, world: Path) -> None:
    steps = proposed(world, name)
    loader, detector = ImageLoader(settings_of(steps)), DetectorWorker(settings_of(steps))
    rows, boxes = [], 0
    for number, task in enumerate(tasks_of(steps)):
        loaded = loader(pa.Table.from_pylist([task]))
        assert loaded.schema.equals(LOADED_SCHEMA)
        detected = detector(loaded if number % 2 else through_bytes(loaded))
        assert detected.schema.equals(PROPOSALS_SCHEMA)
        rows += detected.to_pylist()
        boxes += sum(len(row["boxes"]) for row in detected.to_pylist())
    assert rows == made(steps)
    assert boxes > NUM_IMAGES
    statuses = {row["image_id"]: row["status"] for row in rows if row["status"] != "ok"}
    assert statuses == BROKEN
    turned = {row["image_id"]: row["rotation"] for row in rows if row["rotation"] != 1}
    assert turned == {"3": 0, "4": 0, "7": 8}
    assert {(row["width"], row["height"]) for row in rows if row["image_id"] not in BROKEN} == {
        (96, 80)
    }


def test_several_tasks_at_once_and_a_table_in_pieces(world: Path) -> None:
    """Ray may hand on several slices as one block, or a block in chunks."""
    steps = proposed(world, "union")
    tasks = tasks_of(steps)
    loader, detector = ImageLoader(settings_of(steps)), DetectorWorker(settings_of(steps))
    both = loader(pa.Table.from_pylist(tasks))
    assert detector(both).to_pylist() == made(steps)
    pieces = pa.concat_tables([both.slice(0, 7), through_bytes(both.slice(7, 1)), both.slice(8)])
    assert pieces["pixels"].num_chunks == 3
    assert detector(pieces).to_pylist() == made(steps)
    assert LoadAndDetectWorker(settings_of(steps))(pa.Table.from_pylist(tasks)).to_pylist() == made(
        steps
    )
    assert detector(both.slice(0, 0)).num_rows == 0


def test_what_is_known_is_each_images_own(world: Path) -> None:
    """The annotated boxes that were listed for it, none for an image that is not looked at."""
    steps = proposed(world, "ground_truth_jitter")
    loaded = ImageLoader(settings_of(steps))(pa.Table.from_pylist(tasks_of(steps)))
    known = dict(
        zip(loaded["image_id"].to_pylist(), loaded["known_boxes"].to_pylist(), strict=True)
    )
    lists = [steps.proposals.read_table(f"images-{bucket:05d}.parquet") for bucket in range(8)]
    listed = [row for table in lists for row in table.to_pylist()]
    assert {row["image_id"] for row in listed} == set(known)
    for row in listed:
        assert known[row["image_id"]] == (None if row["image_id"] in BROKEN else row["known_boxes"])
    assert known["1"] == []
    assert len(known["0"]) == 12


def test_pixels_are_those_of_the_table(world: Path) -> None:
    steps = proposed(world, "opn_untrained")
    loaded = through_bytes(ImageLoader(settings_of(steps))(pa.Table.from_pylist(tasks_of(steps))))
    whole = np.frombuffer(loaded["pixels"].chunk(0).buffers()[2], np.uint8)
    looked_at = 0
    for prepared in _unpacked(loaded):
        if prepared is None:
            continue
        looked_at += 1
        assert prepared.pixels is not None
        assert np.shares_memory(prepared.pixels, whole)
        assert not prepared.pixels.flags.writeable
        assert prepared.pixels.dtype == np.uint8
        # tiny OPN: the longer side is 128 px
        assert prepared.pixels.shape == (3, 107, 128)
        assert prepared.scale == (128 / 96, 128 / 96)
    assert looked_at == NUM_IMAGES - 3


@st.composite
def prepared_images(draw: st.DrawFn) -> Prepared:
    height, width = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    dtype = draw(st.sampled_from([np.uint8, np.float32]))
    pixels = np.arange(3 * height * width, dtype=dtype).reshape(3, height, width)
    boxes = draw(st.integers(0, 3))
    known = Detections(
        boxes=np.full((boxes, 4), 1.1, np.float32), scores=np.full(boxes, 0.3, np.float32)
    )
    return Prepared(
        image_id=draw(st.text(st.characters(codec="utf-8"), max_size=3)),
        width=draw(st.integers(1, 2**31 - 1)),
        height=draw(st.integers(1, 2**31 - 1)),
        pixels=draw(st.sampled_from([None, pixels, pixels[:, ::-1]])),
        scale=draw(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))),
        known=draw(st.sampled_from([None, known])),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | prepared_images(), max_size=5))
def test_a_prepared_image_survives_the_table(images: list[Prepared | None]) -> None:
    blank = {"bucket": 0, "rotation": 1, "boxes": [], "scores": [], "status": "ok", "error": None}
    rows = []
    for image in images:
        of_image = {"image_id": "", "width": 0, "height": 0}
        if image is not None:
            of_image = {name: getattr(image, name) for name in of_image}
        rows.append(blank | of_image | _packed(image))
    table = through_bytes(pa.Table.from_pylist(rows, schema=LOADED_SCHEMA))
    for found, image in zip(_unpacked(table), images, strict=True):
        if image is None or found is None:
            assert image is found
            continue
        for name in ("image_id", "width", "height", "scale"):
            assert getattr(found, name) == getattr(image, name)
        for one, two in ((found.pixels, image.pixels), (found.known, image.known)):
            assert (one is None) == (two is None)
        if image.pixels is not None:
            np.testing.assert_array_equal(found.pixels, image.pixels, strict=True)
        if image.known is not None:
            np.testing.assert_array_equal(found.known.boxes, image.known.boxes, strict=True)
            np.testing.assert_array_equal(found.known.scores, image.known.scores, strict=True)


@given(st.integers(0, 5), st.integers(0, 10 * SLICE))
def test_slices_cover_a_bucket_once(bucket: int, num_images: int) -> None:
    tasks = slices(bucket, num_images)
    assert [i for task in tasks for i in range(task["start"], task["stop"])] == list(
        range(num_images)
    )
    assert all(
        task["bucket"] == bucket and 0 < task["stop"] - task["start"] <= SLICE for task in tasks
    )


class Recording:
    """A stage that writes down what it was given."""

    def __init__(self, log: list, name: str, *, broken: bool = False) -> None:
        if broken:
            raise ValueError(f"weights of {name} are broken")
        self.log, self.name = log, name

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.log.append((self.name, rows["value"].to_pylist()))
        if rows["value"].to_pylist() == [2]:
            raise RuntimeError(f"{self.name} cannot do 2")
        return rows


def test_stages_in_this_process_work_row_by_row(world: Path) -> None:
    runtime = Steps(world / "data", world).runtime
    log: list = []
    stages = [Stage(worker=Recording, kwargs={"log": log, "name": name}, size=5) for name in "ab"]
    found = run_stages(stages, [{"value": value} for value in (0, 1, 2, 3)], runtime=runtime)
    assert next(found).to_pylist() == [{"value": 0}]
    assert log == [("a", [0]), ("b", [0])]
    with pytest.raises(RuntimeError, match="a cannot do 2"):
        list(found)
    broken = [
        stages[0],
        Stage(worker=Recording, kwargs={"log": log, "name": "b", "broken": True}, size=1),
    ]
    with pytest.raises(ValueError, match="weights of b are broken"):
        list(run_stages(broken, [{"value": 0}], runtime=runtime))


def failing_stage() -> type:
    """A stage that raises.

    Made here, so that it is pickled by value: Ray's workers cannot import the modules of tests.
    """

    class Failing:
        def __init__(self, when: str) -> None:
            if when == "made":
                raise ValueError("checkpoint='x': 3 tensors are missing")
            self.when = when

        def __call__(self, rows: pa.Table) -> pa.Table:
            if self.when == "called":
                raise KeyError("image 17 is broken")
            return rows

    return Failing


@pytest.mark.cluster
def test_two_pools_on_ray(world: Path) -> None:
    """The rows of one process; an error of either stage arrives as it was raised, before long."""
    steps, on_ray = proposed(world, "union"), Steps(world / "data", world, workers=2)
    told = {"settings": settings_of(steps)}
    stages = [
        Stage(worker=ImageLoader, kwargs=told, size=1),
        Stage(worker=DetectorWorker, kwargs=told, size=1, num_gpus=0),
    ]
    tasks = tasks_of(steps)
    tables = list(run_stages(stages, tasks, runtime=on_ray.runtime))
    rows = [row for table in tables for row in table.to_pylist()]
    rows.sort(key=lambda row: (row["bucket"], row["image_id"]))
    assert rows == made(steps)
    assert {row["bucket"] for row in rows} == {bucket_of(str(n), 8) for n in range(NUM_IMAGES)}

    for when, error, message in (
        ("made", ValueError, r"checkpoint='x': 3 tensors are missing"),
        ("called", KeyError, "image 17 is broken"),
    ):
        for position in (0, 1):
            broken = [
                Stage(worker=failing_stage(), kwargs={"when": "never"}, size=1) for _ in range(2)
            ]
            broken[position] = Stage(worker=failing_stage(), kwargs={"when": when}, size=1)
            start = time.monotonic()
            with pytest.raises(error, match=message):
                list(run_stages(broken, tasks, runtime=on_ray.runtime))
            assert time.monotonic() - start < 60
