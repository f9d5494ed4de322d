"""Hugging Face detectors with fixed classes against the library's own pipeline; small RT-DETR."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    BertConfig,
    BertModel,
    DeformableDetrImageProcessor,
    DetrImageProcessor,
    RTDetrImageProcessor,
    YolosImageProcessor,
)

from fo1_model.detectors import (
    ClosedSetConfig,
    Detector,
    DetectorInput,
    Prepared,
    UntrainedRTDETRConfig,
    build_detector,
    preparation,
)
from fo1_model.detectors.batching import detect_by_shape
from fo1_model.detectors.closed_set import best_sigmoid, best_softmax, score_rule, untrained_rt_detr
from fo1_model.detectors.pretrained import pixel_mask, prepare_image, raw_boxes
from fo1_model.errors import SettingError
from tests.fo1_model.detectors.small_detectors import (
    CLOSED_SET,
    EDGES,
    EVERYTHING,
    SIZES,
    assert_near,
    noise_image,
    once_a_box,
    prepared,
    saved,
)
from tests.ties import assert_same_detections

CONFIG = ClosedSetConfig(selection=EVERYTHING)


@pytest.fixture(scope="module", params=sorted(CLOSED_SET))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = request.param
    return str(saved(AutoModelForObjectDetection, CLOSED_SET[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def detr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(AutoModelForObjectDetection, CLOSED_SET["detr"], tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def detector(folder: str) -> Detector:
    return build_detector(CONFIG, folder)


@torch.inference_mode()
def test_boxes_are_those_of_the_librarys_own_pipeline(folder: str, detector: Detector) -> None:
    """Image, processor, model, its post-processing, one image at a time; a box counts once."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForObjectDetection.from_pretrained(folder)
    found = [detector.detect([item])[0] for item in prepared(detector)]
    spread = np.concatenate([one.boxes for one in found]).std(0)
    assert (spread > 1).all(), "the boxes differ, or the comparison would show little"
    for seed, ((width, height), mine) in enumerate(zip(SIZES, found, strict=True)):
        inputs = processor(images=noise_image(width, height, seed), return_tensors="pt")
        if model.config.model_type == "yolos":
            inputs.pop("pixel_mask")
        outputs = model(**inputs)
        options: dict[str, Any] = {"threshold": 0.0, "target_sizes": [(height, width)]}
        if (
            isinstance(processor, DeformableDetrImageProcessor)
            or "Conditional" in type(processor).__name__
        ):
            options["top_k"] = outputs.logits[0].numel()
        [result] = processor.post_process_object_detection(outputs, **options)
        theirs = once_a_box(result, width, height)
        if isinstance(processor, DetrImageProcessor | YolosImageProcessor) or "top_k" in options:
            assert len(theirs.boxes) == len(mine.boxes)
        assert len(theirs.boxes) > 3
        # Where the library cuts to the best (query, class) pairs, its boxes are our best ones.
        assert_same_detections(mine, theirs, best_only=True)


def test_an_images_boxes_do_not_depend_on_its_batch(detector: Detector) -> None:
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
    sizes = [(1, 1), (2000, 3), (3, 2000), (128, 96)]
    found = detector.detect(prepared(detector, sizes))
    for (width, height), one in zip(sizes, found, strict=True):
        assert (one.boxes >= 0).all()
        assert (one.boxes <= [width, height, width, height]).all()
    assert len(found[-1].boxes)


def test_bf16_gives_nearly_the_same_boxes(folder: str, detector: Detector) -> None:
    half = build_detector(ClosedSetConfig(selection=EVERYTHING, precision="bf16"), folder)
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


def test_outputs_that_are_no_numbers_are_dropped(detr_folder: Path) -> None:
    detector = build_detector(CONFIG, str(detr_folder))
    with torch.no_grad():
        detector.model.bbox_predictor.layers[-1].bias.fill_(torch.nan)  # type: ignore[attr-defined]
    [found] = detector.detect(prepared(detector, [(128, 96)]))
    assert found.boxes.shape == (0, 4)


def test_fixed_padding_is_known_to_mask_and_boxes() -> None:
    """128 x 96 px become 85 x 64 in a square of 96: boxes are relative to the square."""
    processor = DetrImageProcessor(size=EDGES, pad_size={"height": 96, "width": 96})
    item = prepare_image(
        DetectorInput(image_id="a", image=noise_image(128, 96)), processor=processor
    )
    assert item.pixels is not None
    assert item.pixels.shape == (3, 96, 96)
    assert item.scale == (85 / 128, 64 / 96)
    assert (item.pixels[:, 64:] == 0).all()
    assert (item.pixels[:, :, 85:] == 0).all()
    expected = np.zeros((96, 96), np.int64)
    expected[:64, :85] = 1
    np.testing.assert_array_equal(pixel_mask([item], 96, 96)[0], expected)

    def network(pixels: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert (pixels.shape, int(mask.sum())) == ((1, 3, 96, 96), 85 * 64)
        whole = [85 / 192, 64 / 192, 85 / 96, 64 / 96]
        corner = [8.5 / 96, 8 / 96, 17 / 96, 16 / 96]  # 17 x 16 px at the left top
        return torch.tensor([[whole, corner]]), torch.tensor([[0.9, 0.8]])

    [found] = detect_by_shape([item], partial(raw_boxes, network), EVERYTHING)
    np.testing.assert_allclose(found.boxes, [[0, 0, 128, 96], [0, 0, 25.6, 24]], atol=1e-4)


@torch.inference_mode()
def test_a_model_that_takes_the_mask_gets_it(detr_folder: Path) -> None:
    detector = build_detector(CONFIG, str(detr_folder))
    processor = DetrImageProcessor(size=EDGES, pad_size={"height": 96, "width": 96})
    image = noise_image(128, 96)
    inputs = processor(images=image, return_tensors="pt")
    model = AutoModelForObjectDetection.from_pretrained(detr_folder)
    outputs, unmasked = model(**inputs), model(inputs["pixel_values"])
    assert not torch.allclose(outputs.pred_boxes, unmasked.pred_boxes, atol=1e-3)
    frame = 96 * 128 / 85, 96 * 96 / 64  # of the square, in px of the image
    [result] = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[frame[::-1]]
    )
    [found] = detector.detect(
        [prepare_image(DetectorInput(image_id="a", image=image), processor=processor)]
    )
    assert_same_detections(found, once_a_box(result, 128, 96))


@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        (DetrImageProcessor(), best_softmax),
        (YolosImageProcessor(), best_softmax),
        (DeformableDetrImageProcessor(), best_sigmoid),
        (RTDetrImageProcessor(), best_sigmoid),
    ],
)
def test_the_score_is_read_off_the_processor(processor: Any, rule: Any) -> None:
    assert score_rule(processor) is rule


def test_scores_golden() -> None:
    logits = torch.tensor([[np.log(1.0), np.log(3.0), np.log(4.0)]])
    np.testing.assert_allclose(best_softmax(logits), [3 / 8])  # the last column is no object
    np.testing.assert_allclose(best_sigmoid(logits), [4 / 5])


def test_another_kind_of_post_processing_is_refused() -> None:
    class Odd:
        def post_process_object_detection(
            self, outputs: Any, **_: Any
        ) -> list[dict[str, torch.Tensor]]:
            return [
                {"boxes": torch.tensor([[0.0, 0, 20, 10]]), "scores": outputs.logits.max()[None]}
            ]

    class Framed(DetrImageProcessor):
        def post_process_object_detection(self, *args: Any, **options: Any) -> Any:
            [result] = super().post_process_object_detection(*args, **options)
            return [result | {"boxes": result["boxes"] + 1}]

    with pytest.raises(SettingError, match="Odd scores boxes neither"):
        score_rule(Odd())
    with pytest.raises(SettingError, match="Framed scores boxes neither"):
        score_rule(Framed())
    with pytest.raises(SettingError, match="object does not turn"):
        score_rule(object())


def test_wrong_folders_are_named(tmp_path: Path, detr_folder: Path) -> None:
    def refuse(folder: Path, match: str) -> None:
        with pytest.raises(SettingError, match=match) as caught:
            build_detector(CONFIG, str(folder))
        assert str(folder) in str(caught.value)

    refuse(tmp_path / "none", "no such folder")
    with pytest.raises(SettingError, match="no such folder"):
        preparation(CONFIG, str(tmp_path / "none"))
    refuse(tmp_path, "no \\*.safetensors")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in ("config.json", "preprocessor_config.json"):
        (pickled / file).write_bytes((detr_folder / file).read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    refuse(pickled, "save_pretrained it again")
    (pickled / "model.safetensors").write_bytes(b"no tensors")
    refuse(pickled, "does not read it")
    state = load_file(detr_folder / "model.safetensors")
    for change in ({}, {"class_labels_classifier.bias": torch.zeros(9)}):
        lacking = {k: v for k, v in state.items() if k != "class_labels_classifier.bias"} | change
        save_file(lacking, pickled / "model.safetensors", metadata={"format": "pt"})
        refuse(pickled, "1 tensors of DetrForObjectDetection .* class_labels_classifier.bias")
    bert = tmp_path / "bert"
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(bert)
    refuse(bert, "AutoModelForObjectDetection does not read it")


def test_small_rt_detr_follows_its_seed_and_draws_for_itself() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    (first, processor), (again, _), (other, _) = (untrained_rt_detr(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(*(model.model.decoder.class_embed[0].weight for model in (first, other)))
    assert 1e6 < sum(parameter.numel() for parameter in first.parameters()) < 1.5e6
    assert all(parameter.requires_grad for parameter in first.parameters())
    assert processor.size == {"height": 128, "width": 128}
    model, processor = untrained_rt_detr(0, image_side=64, num_queries=7)
    with torch.inference_mode():
        outputs = model(**processor(images=noise_image(30, 20), return_tensors="pt"))
    assert outputs.pred_boxes.shape == (1, 7, 4)


def test_untrained_rt_detr_as_a_detector() -> None:
    config = UntrainedRTDETRConfig(selection=EVERYTHING)
    detector = build_detector(config)
    items = prepared(detector)
    found = detector.detect(items)
    assert all(10 < len(one.boxes) <= 50 for one in found)
    ready = preparation(config)(DetectorInput(image_id="0", image=noise_image(*SIZES[0], 0)))
    assert isinstance(ready, Prepared)
    np.testing.assert_array_equal(ready.pixels, items[0].pixels)
    [again] = build_detector(config).detect([ready])
    assert_same_detections(again, found[0])
    [other] = build_detector(UntrainedRTDETRConfig(seed=1, selection=EVERYTHING)).detect([ready])
    assert not np.array_equal(other.scores, again.scores)
