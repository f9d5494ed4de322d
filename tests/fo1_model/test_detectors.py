"""The shared selection, the ground-truth detectors, OPN as a detector, and building by config."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from fo1_model.detectors import (
    DETECTORS,
    Detections,
    Detector,
    DetectorInput,
    GroundTruthConfig,
    GroundTruthJitterConfig,
    OPNDetectorConfig,
    Selection,
    UnionConfig,
    UntrainedOPNConfig,
    as_known,
    build_detector,
)
from fo1_model.detectors.postprocess import select
from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.network import new_opn, save_opn

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
    kept = select(boxes, scores, width=100, height=100, selection=Selection(score_min=0.2, nms_iou=0.9))
    np.testing.assert_array_equal(kept.boxes, [[0, 0, 20, 20], [40, 40, 60, 60], [70, 70, 90, 90]])
    np.testing.assert_allclose(kept.scores, [0.9, 0.5, 0.5])
    assert (kept.boxes.dtype, kept.scores.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(boxes, before)
    off = select(boxes, scores, width=100, height=100, selection=Selection(nms_iou=None, max_boxes=2))
    np.testing.assert_array_equal(off.boxes, [[0, 0, 20, 20], [1, 1, 20, 20]])


@given(
    st.lists(st.tuples(*[st.floats(-50, 150, width=32) | st.just(np.nan)] * 5), max_size=30),
    st.sampled_from([None, 0.3, 0.8]),
)
def test_select_invariants(rows: list[tuple[float, ...]], nms_iou: float | None) -> None:
    table = np.array(rows, np.float32).reshape(-1, 5)
    found = select(
        table[:, :4], table[:, 4], width=100, height=80, selection=Selection(nms_iou=nms_iou, max_boxes=10)
    )
    assert len(found.boxes) == len(found.scores) <= 10
    assert np.isfinite(found.boxes).all()
    assert (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [100, 80, 100, 80]).all()
    assert (np.diff(found.scores) <= 0).all()
    if nms_iou is not None and len(found.boxes):
        iou = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(found.boxes)).fill_diagonal_(0)
        assert float(iou.max()) <= nms_iou + 1e-6
    again = select(found.boxes, found.scores, width=100, height=80, selection=Selection(nms_iou=nms_iou))
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
    [empty] = detect(build_detector(GroundTruthConfig()), [scene(objects=np.zeros((0, 4), np.float32))])
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
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        build_detector(config, str(tmp_path / "nowhere"))


def test_checkpoint_and_config_must_agree() -> None:
    with pytest.raises(ValueError, match="OPNDetectorConfig needs the export folder"):
        build_detector(OPNDetectorConfig())
    with pytest.raises(ValueError, match="GroundTruthConfig has no weights"):
        build_detector(GroundTruthConfig(), "somewhere")
    assert all(
        isinstance(make().selection, Selection) for make in DETECTORS.values() if make is not UnionConfig
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
    with pytest.raises(ValueError, match=field):
        make()


def test_configs_import_nothing_heavy() -> None:
    """Recipes hash detector configs in commands that must answer in under a second."""
    code = "import sys, fo1_model.detectors, fo1_model.opn.config; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
