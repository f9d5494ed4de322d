"""The shared selection, detectors of known boxes, OPN, unions, and building by config."""

import itertools
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from fo1_model.detectors import (
    DETECTORS,
    BoxFileConfig,
    Detections,
    Detector,
    DetectorInput,
    GroundTruthConfig,
    GroundTruthJitterConfig,
    OPNDetectorConfig,
    Prepared,
    Selection,
    UnionConfig,
    UntrainedOPNConfig,
    as_known,
    build_detector,
    preparation,
    with_all_pixels,
)
from fo1_model.detectors.batching import equal_shapes
from fo1_model.detectors.configs import name_of
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import without_pixels
from fo1_model.detectors.union import UnionDetector
from fo1_model.errors import SettingError
from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.network import new_opn, save_opn
from tests.ties import assert_same_detections

EVERYTHING = Selection(nms_iou=None)
OBJECTS = np.array([[10, 10, 50, 60], [70, 20, 110, 90]], np.float32)


def noise_image(width: int = 128, height: int = 96, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scene(image_id: str = "a", objects: np.ndarray | None = OBJECTS) -> DetectorInput:
    known = None if objects is None else as_known(objects)
    return DetectorInput(image_id=image_id, image=noise_image(), known=known)


def detect(detector: Detector, inputs: list[DetectorInput]) -> list[Detections]:
    return detector.detect([detector.prepare(item) for item in inputs])


def test_select_golden() -> None:
    """Clipped, too thin, not finite, under the floor, tied scores, suppressed: each once."""
    boxes = np.array(
        [
            [-5, -5, 20, 20],  # clipped
            [30, 30, 30.9, 60],  # under 1 px wide
            [40, 40, 60, 60],  # tie with the next
            [70, 70, 90, 90],
            [0, 0, np.inf, 5],
            [1, 1, 20, 20],  # IoU 0.9025 with the first
            [5, 5, 15, 15],  # under the score floor
            [99.5, 0, 140, 100],  # half a pixel is left
        ],
        np.float32,
    )
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.9, 0.8, 0.1, 0.9], np.float32)
    before = boxes.copy()
    kept = select(
        boxes, scores, width=100, height=100, selection=Selection(score_min=0.2, nms_iou=0.9)
    )
    np.testing.assert_array_equal(kept.boxes, [[0, 0, 20, 20], [40, 40, 60, 60], [70, 70, 90, 90]])
    np.testing.assert_allclose(kept.scores, [0.9, 0.5, 0.5])
    assert (kept.boxes.dtype, kept.scores.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(boxes, before)
    off = select(
        boxes, scores, width=100, height=100, selection=Selection(nms_iou=None, max_boxes=2)
    )
    np.testing.assert_array_equal(off.boxes, [[0, 0, 20, 20], [1, 1, 20, 20]])


@given(
    st.lists(st.tuples(*[st.floats(-50, 150, width=32) | st.just(np.nan)] * 5), max_size=30),
    st.sampled_from([None, 0.3, 0.8]),
)
def test_select_invariants(rows: list[tuple[float, ...]], nms_iou: float | None) -> None:
    table = np.array(rows, np.float32).reshape(-1, 5)
    found = select(
        table[:, :4],
        table[:, 4],
        width=100,
        height=80,
        selection=Selection(nms_iou=nms_iou, max_boxes=10),
    )
    assert len(found.boxes) == len(found.scores) <= 10
    assert np.isfinite(found.boxes).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [100, 80, 100, 80]).all()
    assert (np.diff(found.scores) <= 0).all()
    if nms_iou is not None and len(found.boxes):
        iou = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(found.boxes)).fill_diagonal_(
            0
        )
        assert float(iou.max()) <= nms_iou + 1e-6
    again = select(
        found.boxes, found.scores, width=100, height=80, selection=Selection(nms_iou=nms_iou)
    )
    np.testing.assert_array_equal(again.boxes, found.boxes)


def test_ties_keep_their_order() -> None:
    corners = np.arange(200, dtype=np.float32)[:, None] * [3, 0]
    boxes = np.concatenate([corners, corners + 2], 1)
    scores = np.tile(np.float32([0.5, 0.25]), 100)
    expected = np.concatenate([boxes[::2], boxes[1::2]])
    for nms_iou in (None, 0.5):
        selection = Selection(nms_iou=nms_iou, max_boxes=200)
        found = select(boxes, scores, width=1000, height=10, selection=selection)
        np.testing.assert_array_equal(found.boxes, expected)


def test_select_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="1 boxes but 2 scores"):
        select(np.zeros((1, 4)), np.zeros(2), width=9, height=9, selection=EVERYTHING)


def test_ground_truth_is_exact() -> None:
    [found] = detect(build_detector(GroundTruthConfig()), [scene()])
    np.testing.assert_array_equal(found.boxes, OBJECTS)
    np.testing.assert_array_equal(found.scores, [1, 1])
    [empty] = detect(
        build_detector(GroundTruthConfig()), [scene(objects=np.zeros((0, 4), np.float32))]
    )
    assert empty.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="image a"):
        detect(build_detector(GroundTruthConfig()), [scene(objects=None)])


def test_jitter_stays_near_and_follows_image_and_seed() -> None:
    config = GroundTruthJitterConfig(num_distractors=5, selection=EVERYTHING)
    detector = build_detector(config)
    first, other = detect(detector, [scene("a"), scene("b")])
    [again] = detect(detector, [scene("a")])
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not np.array_equal(first.boxes, other.boxes)
    reseeded = GroundTruthJitterConfig(num_distractors=5, seed=1, selection=EVERYTHING)
    assert not np.array_equal(detect(build_detector(reseeded), [scene("a")])[0].boxes, first.boxes)
    assert len(first.boxes) == 7
    iou = box_iou(torch.from_numpy(OBJECTS), torch.from_numpy(first.boxes))
    assert (iou[:, :2].amax(1) > 0.7).all()  # the two best scores are the two objects
    assert (first.scores[:2] > 0.6).all()


@pytest.mark.parametrize(("miss_rate", "expected"), [(0.0, 2), (1.0, 0)])
def test_jitter_misses(miss_rate: float, expected: int) -> None:
    config = GroundTruthJitterConfig(jitter=0.0, miss_rate=miss_rate, num_distractors=0)
    [found] = detect(build_detector(config), [scene()])
    assert len(found.boxes) == expected


def test_opn_from_a_checkpoint(tmp_path) -> None:
    model = new_opn(OPN_SIZES["tiny"](), seed=3)
    save_opn(model, tmp_path)
    config = OPNDetectorConfig(selection=Selection(nms_iou=0.6, max_boxes=24))
    trained = build_detector(config, str(tmp_path))
    inputs = [DetectorInput(image_id=str(i), image=noise_image(200, 100, i)) for i in range(3)]
    found = detect(trained, inputs)
    assert trained.detect([]) == []
    assert len(found) == 3
    for one in found:
        assert 0 < len(one.boxes) <= 24
        assert (one.boxes <= [200, 100, 200, 100]).all()
    same = UntrainedOPNConfig(seed=3, selection=config.selection)
    for one, two in zip(found, detect(build_detector(same), inputs), strict=True):
        np.testing.assert_array_equal(one.boxes, two.boxes)
    with pytest.raises(SettingError, match=r"config\.json is missing"):
        build_detector(config, str(tmp_path / "nowhere"))


class FixedDetector:
    """Gives the boxes it was made with, whatever the image; notes what it was shown."""

    def __init__(self, boxes: list, scores: list) -> None:
        self._found = as_known(boxes, scores)
        self.seen: list[Prepared] = []

    def prepare(self, item: DetectorInput) -> Prepared:
        """Turned upside down, so that no other member can have made it."""
        made = with_all_pixels(item)
        return replace(made, pixels=made.pixels[:, ::-1])

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        self.seen += batch
        return [self._found for _ in batch]


def test_union_golden() -> None:
    """Boxes of both by score, an overlap suppressed, own scores kept; each prepares itself."""
    one = FixedDetector([[0, 0, 20, 20], [40, 40, 60, 60]], [0.9, 0.4])
    two = FixedDetector([[1, 0, 21, 20], [70, 10, 90, 30]], [0.95, 0.3])  # IoU 0.905 with the first
    config = UnionConfig(
        members=(UntrainedOPNConfig(), GroundTruthConfig()),
        selection=Selection(nms_iou=0.8, max_boxes=3),
    )
    union = UnionDetector(config, [one, two])
    item = scene()
    [found] = detect(union, [item])
    np.testing.assert_array_equal(found.boxes, [[1, 0, 21, 20], [40, 40, 60, 60], [70, 10, 90, 30]])
    np.testing.assert_array_equal(found.scores, np.float32([0.95, 0.4, 0.3]))
    for member in (one, two):
        [seen] = member.seen
        np.testing.assert_array_equal(
            seen.pixels[:, ::-1], np.asarray(item.image).transpose(2, 0, 1)
        )
        assert (seen.image_id, seen.width, seen.height) == ("a", 128, 96)
        np.testing.assert_array_equal(seen.known.boxes, OBJECTS)
    everything = UnionDetector(replace(config, selection=EVERYTHING), [one, two])
    assert len(detect(everything, [item])[0].boxes) == 4
    assert union.detect([]) == []
    with pytest.raises(ValueError, match="image a: a union needs its pixels"):
        union.detect([without_pixels(item)])


@pytest.mark.parametrize(
    "known", [GroundTruthConfig(), BoxFileConfig(), GroundTruthJitterConfig(seed=2)]
)
def test_union_has_the_boxes_of_its_members(known) -> None:
    """Of a network and of known boxes, each through its own selection first."""
    opn = UntrainedOPNConfig(selection=Selection(max_boxes=15))
    config = UnionConfig(members=(opn, known), selection=Selection(nms_iou=None, max_boxes=300))
    images = [scene("a"), replace(scene("b"), image=noise_image(90, 120, 1))]
    found = detect(build_detector(config), images)
    of_members = [detect(build_detector(member), images) for member in config.members]
    for one, opn_found, known_found in zip(found, *of_members, strict=True):
        assert len(opn_found.boxes) > 5
        assert len(known_found.boxes) >= 2
        rows = np.concatenate(
            [np.column_stack([p.boxes, p.scores]) for p in (opn_found, known_found)]
        )
        np.testing.assert_array_equal(
            sorted(np.column_stack([one.boxes, one.scores]).tolist()), sorted(rows.tolist())
        )
        assert (np.diff(one.scores) <= 0).all()
    narrower = replace(config, selection=Selection(nms_iou=0.5, max_boxes=6))
    for one, whole in zip(detect(build_detector(narrower), images), found, strict=True):
        expected = select(
            whole.boxes, whole.scores, width=200, height=200, selection=narrower.selection
        )
        np.testing.assert_array_equal(one.boxes, expected.boxes)


def test_union_refusals() -> None:
    with pytest.raises(SettingError, match="1 given; a union has at least two"):
        UnionConfig(members=(UntrainedOPNConfig(),))
    for pair in itertools.combinations_with_replacement(
        (GroundTruthConfig(), GroundTruthJitterConfig(), BoxFileConfig()), 2
    ):
        with pytest.raises(
            SettingError, match="only one of them may bring boxes that are known already"
        ):
            UnionConfig(members=pair)
    union = UnionConfig(members=(OPNDetectorConfig(), GroundTruthConfig()))
    for wrong in ("folder", ("folder",), ("folder", None, None)):
        with pytest.raises(SettingError, match="give a union one for each of 2"):
            build_detector(union, wrong)
        with pytest.raises(SettingError, match="give a union one for each of 2"):
            preparation(union, wrong)
    with pytest.raises(SettingError, match="OPNDetectorConfig needs the export folder"):
        build_detector(union)
    with pytest.raises(SettingError, match="GroundTruthConfig has no weights"):
        build_detector(
            UnionConfig(members=(UntrainedOPNConfig(), GroundTruthConfig())), (None, "folder")
        )
    with pytest.raises(ValueError, match="image a: GroundTruthConfig needs its boxes"):
        detect(
            build_detector(UnionConfig(members=(UntrainedOPNConfig(), GroundTruthConfig()))),
            [scene(objects=None)],
        )


def test_boxes_of_a_file_keep_their_scores() -> None:
    item = replace(
        scene(), known=as_known([*OBJECTS, [0, 0, 500, 500], [5, 5, 5.5, 90]], [0.2, 0.9, 0.4, 1.0])
    )
    [found] = detect(build_detector(BoxFileConfig()), [item])
    np.testing.assert_array_equal(found.boxes, [OBJECTS[1], [0, 0, 128, 96], OBJECTS[0]])
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.4, 0.2]))
    [best] = detect(
        build_detector(BoxFileConfig(selection=Selection(score_min=0.3, max_boxes=1))), [item]
    )
    np.testing.assert_array_equal(best.boxes, [OBJECTS[1]])
    with pytest.raises(ValueError, match="image a: BoxFileConfig needs its boxes"):
        detect(build_detector(BoxFileConfig()), [scene(objects=None)])


def test_both_prompts_together_are_the_boxes_of_each() -> None:
    everything = Selection(nms_iou=None, max_boxes=10_000)
    found = {
        prompt: detect(
            build_detector(UntrainedOPNConfig(prompt=prompt, selection=everything)), [scene()]
        )[0]
        for prompt in ("coarse", "fine", "both")
    }
    rows = {prompt: np.column_stack([one.boxes, one.scores]) for prompt, one in found.items()}
    assert rows["coarse"].tolist() != rows["fine"].tolist()
    assert sorted(rows["both"].tolist()) == sorted(
        [*rows["coarse"].tolist(), *rows["fine"].tolist()]
    )
    chosen = Selection(nms_iou=0.5, max_boxes=10)
    [selected] = detect(
        build_detector(UntrainedOPNConfig(prompt="both", selection=chosen)), [scene()]
    )
    raw = (
        np.concatenate([getattr(found[p], name) for p in ("coarse", "fine")])
        for name in ("boxes", "scores")
    )
    expected = select(*raw, width=128, height=96, selection=chosen)
    np.testing.assert_array_equal(selected.boxes, expected.boxes)
    np.testing.assert_array_equal(selected.scores, expected.scores)


def test_bf16_runs_and_stays_near() -> None:
    """Boxes and scores are float32 all the same; on CPU, where bfloat16 is emulated."""
    full, half = (
        detect(
            build_detector(UntrainedOPNConfig(precision=precision, selection=EVERYTHING)), [scene()]
        )[0]
        for precision in ("fp32", "bf16")
    )
    assert (half.boxes.dtype, half.scores.dtype) == (np.float32, np.float32)
    assert len(full.boxes) > 10
    assert not np.array_equal(half.scores[:10], full.scores[:10])
    np.testing.assert_allclose(half.scores[:10], full.scores[:10], atol=0.02)
    iou = box_iou(torch.from_numpy(full.boxes), torch.from_numpy(half.boxes)).amax(1)
    assert float(iou.median()) > 0.8


def test_an_image_alone_or_beside_others_of_other_shapes() -> None:
    everything = Selection(
        nms_iou=None, max_boxes=1000
    )  # rounding can tip a box over an NMS threshold
    detector = build_detector(UntrainedOPNConfig(prompt="both", selection=everything))
    sizes = [(128, 96), (96, 128), (64, 64), (300, 20), (1, 3), (640, 480)]
    images = [
        DetectorInput(image_id=str(i), image=noise_image(*size, seed=i))
        for i, size in enumerate(sizes)
    ]
    # 128x96 and 640x480 are one shape once they are scaled: a batch of two, equal but for the last
    # bits.
    together = detect(detector, images)
    shuffled = detect(detector, images[::-1])[::-1]
    for size, image, one, other in zip(sizes, images, together, shuffled, strict=True):
        [alone] = detect(detector, [image])
        for beside in (one, other):
            if size in ((128, 96), (640, 480)):
                assert_same_detections(beside, alone, atol_px=0.01)
            else:
                np.testing.assert_array_equal(beside.boxes, alone.boxes)
                np.testing.assert_array_equal(beside.scores, alone.scores)


def test_images_of_equal_shape_go_together() -> None:
    shapes = [(3, 4, 5), (3, 5, 4), (3, 4, 5), (3, 1, 1)]
    batch = [
        Prepared(image_id=str(i), width=9, height=9, pixels=np.full(shape, i, np.uint8))
        for i, shape in enumerate(shapes)
    ]
    groups = list(equal_shapes(batch))
    assert [indices for indices, _ in groups] == [[0, 2], [1], [3]]
    for indices, pixels in groups:
        assert pixels.shape == (len(indices), *shapes[indices[0]])
        assert [int(one.amax()) for one in pixels] == indices
    with pytest.raises(ValueError, match="image z: the detector needs its pixels"):
        list(equal_shapes([replace(batch[0], image_id="z", pixels=None)]))


@pytest.mark.parametrize(
    "config",
    [
        UntrainedOPNConfig(),
        GroundTruthConfig(),
        BoxFileConfig(),
        UnionConfig(members=(UntrainedOPNConfig(), BoxFileConfig())),
    ],
    ids=name_of,
)
def test_the_cpu_half_is_the_detectors_own_and_travels(config) -> None:
    apart = pickle.loads(pickle.dumps(preparation(config)))
    one, two = apart(scene()), build_detector(config).prepare(scene())
    for field in ("image_id", "width", "height", "scale"):
        assert getattr(one, field) == getattr(two, field)
    np.testing.assert_array_equal(one.known.boxes, two.known.boxes)
    assert (one.pixels is None) == (two.pixels is None)
    if one.pixels is not None:
        np.testing.assert_array_equal(one.pixels, two.pixels)


def test_checkpoint_and_config_must_agree() -> None:
    with pytest.raises(SettingError, match="OPNDetectorConfig needs the export folder"):
        build_detector(OPNDetectorConfig())
    with pytest.raises(SettingError, match="GroundTruthConfig has no weights"):
        build_detector(GroundTruthConfig(), "somewhere")
    assert all(
        isinstance(make().selection, Selection)
        for make in DETECTORS.values()
        if make is not UnionConfig
    )


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Selection(score_min=2), "score_min"),
        (lambda: Selection(nms_iou=0), "nms_iou"),
        (lambda: Selection(max_boxes=0), "max_boxes"),
        (lambda: GroundTruthJitterConfig(jitter=0.5), "jitter"),
        (lambda: GroundTruthJitterConfig(miss_rate=-0.1), "miss_rate"),
        (lambda: GroundTruthJitterConfig(num_distractors=-1), "num_distractors"),
        (lambda: OPNDetectorConfig(prompt="medium"), "prompt"),
        (lambda: UntrainedOPNConfig(size="huge"), "size"),
    ],
)
def test_wrong_settings_are_named(make, field: str) -> None:
    with pytest.raises(SettingError, match=field):
        make()


def test_configs_import_nothing_heavy() -> None:
    """Recipes hash detector configs in commands that must answer in under a second."""
    code = "import sys, fo1_model.detectors, fo1_model.opn.config; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
