"""Hugging Face detectors asked in words against the library's own pipeline of each family."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForObjectDetection,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)

from fo1_model.detectors import (
    Detector,
    DetectorInput,
    TextPromptedConfig,
    build_detector,
    preparation,
)
from fo1_model.detectors.text_prompted import FAMILIES, phrases
from fo1_model.errors import SettingError
from tests.fo1_model.detectors.small_detectors import (
    CLOSED_SET,
    EVERYTHING,
    SIZES,
    TEXT_PROMPTED,
    assert_near,
    noise_image,
    once_a_box,
    prepared,
    saved,
)
from tests.ties import assert_same_detections

NAMES = ["Red cat", "dog"]
CONFIG = TextPromptedConfig(prompt="Red cat; dog", selection=EVERYTHING)


@pytest.fixture(scope="module", params=sorted(TEXT_PROMPTED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = request.param
    made = saved(
        AutoModelForZeroShotObjectDetection, TEXT_PROMPTED[name], tmp_path_factory.mktemp(name)
    )
    return str(made)


@pytest.fixture(scope="module")
def detector(folder: str) -> Detector:
    return build_detector(CONFIG, folder)


@torch.inference_mode()
def test_boxes_are_those_of_the_librarys_own_pipeline(folder: str, detector: Detector) -> None:
    """Image and text -> processor -> model -> its post-processing, one image at a time."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    kind = model.config.model_type
    text: Any = "red cat. dog." if "dino" in kind else [NAMES]
    options: dict[str, Any] = {"threshold": 0.0} | (
        {"nms_threshold": 1.0} if "omdet" in kind else {}
    )
    found = [detector.detect([item])[0] for item in prepared(detector)]
    assert (np.concatenate([one.boxes for one in found]).std(0) > 1).all()
    for seed, ((width, height), mine) in enumerate(zip(SIZES, found, strict=True)):
        inputs = processor(images=noise_image(width, height, seed), text=text, return_tensors="pt")
        if "omdet" in kind:
            inputs.pop("pixel_mask")
        outputs = model(**inputs)
        [result] = processor.post_process_grounded_object_detection(
            outputs, target_sizes=[(height, width)], **options
        )
        theirs = once_a_box(result, width, height)
        assert len(theirs.boxes) > 5
        # OmDet-Turbo's cuts to the best (query, name) pairs, where a query may be missing.
        if "omdet" not in kind:
            assert len(theirs.boxes) == len(mine.boxes)
        assert_same_detections(mine, theirs, best_only=True)


def test_an_images_boxes_do_not_depend_on_its_batch_or_on_calls_before(detector: Detector) -> None:
    batch = prepared(detector)
    together = detector.detect(batch)
    for item, expected in zip(batch, together, strict=True):
        [alone] = detector.detect([item])
        assert_same_detections(alone, expected, atol_px=0.01)
    backwards = detector.detect(batch[::-1])[::-1]
    for found, expected in zip(backwards, together, strict=True):
        assert_same_detections(found, expected, atol_px=0.01)
    assert detector.detect([]) == []


def test_odd_sizes_give_boxes_or_none(detector: Detector) -> None:
    sizes = [(1, 1), (600, 3), (3, 600), (128, 96)]
    found = detector.detect(prepared(detector, sizes))
    for (width, height), one in zip(sizes, found, strict=True):
        assert (one.boxes >= 0).all()
        assert (one.boxes <= [width, height, width, height]).all()
    assert len(found[-1].boxes)


def test_bf16_gives_nearly_the_same_boxes(folder: str, detector: Detector) -> None:
    config = TextPromptedConfig(prompt="Red cat; dog", selection=EVERYTHING, precision="bf16")
    half = build_detector(config, folder)
    batch = prepared(detector)
    exact = detector.detect(batch)
    for found, expected in zip(half.detect(batch), exact, strict=True):
        assert found.boxes.dtype == np.float32
        assert_near(found, expected, atol_px=0.5, share=0.5)
    assert any(
        not np.array_equal(a.boxes, b.boxes) for a, b in zip(half.detect(batch), exact, strict=True)
    )


def test_the_preparation_needs_no_weights_and_travels(folder: str, detector: Detector) -> None:
    ready = pickle.loads(pickle.dumps(preparation(CONFIG, folder)))
    item = DetectorInput(image_id="a", image=noise_image(50, 128))
    mine, theirs = ready(item), detector.prepare(item)
    np.testing.assert_array_equal(mine.pixels, theirs.pixels)
    assert (mine.pixels.dtype, mine.width, mine.height) == (np.float32, 50, 128)
    assert mine.scale == theirs.scale


def test_what_is_asked_for_matters(folder: str, detector: Detector) -> None:
    batch = prepared(detector)
    other = build_detector(TextPromptedConfig(selection=EVERYTHING), folder).detect(batch)
    assert not np.allclose(other[0].scores[:5], detector.detect(batch)[0].scores[:5], atol=1e-4)


def test_a_prompt_longer_than_the_model_reads_is_refused(folder: str) -> None:
    config = TextPromptedConfig(prompt=" ".join(["cat"] * 40))
    if "omdet" in folder:
        build_detector(config, folder)  # its processor cuts the text, as in training
        return
    with pytest.raises(SettingError, match=r"4[23] tokens, but the model") as caught:
        build_detector(config, folder)
    assert folder in str(caught.value)


def test_phrases_golden() -> None:
    assert phrases(["A Cat", "red dog"]) == "a cat. red dog."
    assert phrases(["object"]) == "object."


def test_boxes_of_owl_v2_lie_in_its_square(tmp_path: Path) -> None:
    """50 x 128 px are padded to 128 x 128 on the right, then scaled to 64 px: by half each way."""
    folder = saved(AutoModelForZeroShotObjectDetection, TEXT_PROMPTED["owl_v2"], tmp_path)
    item = preparation(CONFIG, str(folder))(DetectorInput(image_id="a", image=noise_image(50, 128)))
    assert item.scale == (0.5, 0.5)
    assert item.pixels is not None
    assert item.pixels.shape == (3, 64, 64)
    padding = item.pixels[:, :, 30:]
    assert float(np.ptp(padding, axis=(1, 2)).max()) < 1e-3


def test_other_models_are_named(tmp_path: Path) -> None:
    folder = saved(AutoModelForObjectDetection, CLOSED_SET["detr"], tmp_path)
    for make in (preparation, build_detector):
        with pytest.raises(SettingError, match="holds a detr; use one of") as caught:
            make(CONFIG, str(folder))
        assert all(name in str(caught.value) for name in FAMILIES)
        with pytest.raises(SettingError, match="no such folder"):
            make(CONFIG, str(tmp_path / "none"))
