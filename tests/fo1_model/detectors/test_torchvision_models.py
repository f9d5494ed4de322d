"""Torchvision detectors: final boxes against the model's own call, proposals by a second way."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model
from torchvision.ops import box_iou

from fo1_model.detectors import (
    Detections,
    DetectorInput,
    Selection,
    TorchvisionConfig,
    build_detector,
)
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import with_all_pixels
from fo1_model.detectors.torchvision_models import TorchvisionDetector, load_detector, vanishes
from fo1_model.errors import SettingError
from tests.fo1_model.detectors.small_detectors import (
    EVERYTHING,
    SIZES,
    assert_near,
    noise_image,
    prepared,
)
from tests.ties import assert_same_detections

FASTER = "fasterrcnn_mobilenet_v3_large_320_fpn"
SSD = "ssdlite320_mobilenet_v3_large"
ONE_STAGE = [SSD, "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn"]
CLASSES = 4


@torch.no_grad()
def lively(name: str) -> nn.Module:
    """A random model whose boxes differ: its norms have seen images, its heads are drawn wider."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).eval()
        for key, parameter in model.named_parameters():
            if "head" in key or "box_predictor" in key:
                parameter.add_(torch.randn(parameter.shape), alpha=0.03)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
                norm.train()
        shrink(model)
        model([tensor_image(seed) for seed in range(len(SIZES))])
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights of each model, as safetensors."""
    folder = tmp_path_factory.mktemp("torchvision")
    paths = {name: str(folder / f"{name}.safetensors") for name in (FASTER, *ONE_STAGE)}
    for name, path in paths.items():
        save_file(lively(name).state_dict(), path)
    return paths


def detector(files: dict[str, str], name: str, **settings: Any) -> TorchvisionDetector:
    config = TorchvisionConfig(model=name, **{"selection": EVERYTHING} | settings)
    made = build_detector(config, files[name])
    assert isinstance(made, TorchvisionDetector)
    shrink(made.model)
    return made


def shrink(model: Any) -> None:
    """Let the model look at small images, which costs less."""
    model.transform.min_size, model.transform.max_size = (96,), 160


def tensor_image(seed: int) -> torch.Tensor:
    pixels = np.asarray(noise_image(*SIZES[seed], seed)).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels)) / 255


@torch.inference_mode()
@pytest.mark.parametrize("name", [FASTER, *ONE_STAGE])
def test_final_boxes_are_those_of_the_model(files: dict[str, str], name: str) -> None:
    model: Any = load_detector(name, files[name]).eval()
    shrink(model)
    last = model.roi_heads if name == FASTER else model
    last.score_thresh, last.detections_per_img = 0.0, 10 * EVERYTHING.max_boxes
    made = detector(files, name)
    for seed, item in enumerate(prepared(made)):
        [found] = made.detect([item])
        [result] = model([tensor_image(seed)])
        width, height = SIZES[seed]
        expected = select(
            result["boxes"].numpy(),
            result["scores"].numpy(),
            width=width,
            height=height,
            selection=EVERYTHING,
        )
        assert len(found.boxes) > 20
        assert np.ptp(found.scores) > 0.05
        assert_same_detections(found, expected)


@torch.inference_mode()
def test_region_proposals_are_what_the_network_hands_on(files: dict[str, str]) -> None:
    """Overheard in an ordinary call of an untouched model, and scaled back by hand."""
    model: Any = load_detector(FASTER, files[FASTER]).eval()
    shrink(model)
    heard: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    filtering = model.rpn.filter_proposals

    def overhear(*arguments: Any) -> Any:
        heard.append(filtering(*arguments))
        return heard[-1]

    model.rpn.filter_proposals = overhear
    selection = Selection(nms_iou=None, max_boxes=100)  # below the model's own 150
    made = detector(files, FASTER, boxes="rpn", selection=selection)
    for seed, item in enumerate(prepared(made)):
        [found] = made.detect([item])
        model([tensor_image(seed)])
        [boxes], [scores] = heard[-1]
        width, height = SIZES[seed]
        factor = min(96 / min(width, height), 160 / max(width, height))
        back = np.array([width / int(width * factor), height / int(height * factor)] * 2)
        everything = select(
            boxes.numpy() * back, scores.numpy(), width=width, height=height, selection=EVERYTHING
        )
        assert len(found.boxes) == 100
        assert np.ptp(found.scores) > 0.05
        assert_same_detections(everything, found, best_only=True)


def test_one_object_counts_once_whatever_its_classes(files: dict[str, str]) -> None:
    alike, apart = (
        detector(files, FASTER, selection=Selection(nms_iou=iou, max_boxes=1000))
        for iou in (None, 0.8)
    )
    [many], [few] = alike.detect(prepared(alike)[:1]), apart.detect(prepared(apart)[:1])
    overlap = [
        float(
            box_iou(torch.from_numpy(one.boxes), torch.from_numpy(one.boxes))
            .fill_diagonal_(0)
            .max()
        )
        for one in (many, few)
    ]
    assert overlap[0] > 0.8 >= overlap[1]
    assert few.scores[0] == many.scores[0]


@pytest.mark.parametrize(("name", "boxes"), [(FASTER, "final"), (FASTER, "rpn"), (SSD, "final")])
def test_batches_odd_sizes_and_bf16(files: dict[str, str], name: str, boxes: str) -> None:
    made, half = (detector(files, name, boxes=boxes, precision=p) for p in ("fp32", "bf16"))
    batch = prepared(made)
    together = made.detect(batch)
    for item, expected in zip(batch, together, strict=True):
        assert item.pixels is not None
        assert item.pixels.dtype == np.uint8
        # Arithmetic in another order moves a box by a hair, which can tip it over an NMS threshold.
        assert_near(made.detect([item])[0], expected, atol_px=0.02, share=0.98)
    for found, expected in zip(half.detect(batch), together, strict=True):
        assert found.boxes.dtype == np.float32
        assert_near(found, expected, atol_px=6.0, share=0.5)
    assert made.detect([]) == []
    sizes = [(1, 1), (2000, 3), (3, 2000), (1, 200)]
    for (width, height), one in zip(sizes, made.detect(prepared(made, sizes)), strict=True):
        assert (one.boxes >= 0).all()
        assert (one.boxes <= [width, height, width, height]).all()


def test_bf16_keeps_anchors_exact(files: dict[str, str]) -> None:
    """Proposals of a network that moves no anchor are its anchors, far from the origin too."""
    half = detector(files, FASTER, boxes="rpn", precision="bf16")
    half.model.transform.min_size, half.model.transform.max_size = (64,), 1333
    with torch.no_grad():
        for parameter in half.model.rpn.head.bbox_pred.parameters():
            parameter.zero_()
    [found] = half.detect(prepared(half, [(1333, 64)]))
    [anchors] = half.model.rpn.anchor_generator.cell_anchors[:1]
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).round(3)
    inside = (found.boxes > 0).all(1) & (found.boxes < [1333, 64, 1333, 64]).all(1)
    known = {tuple(side) for side in (anchors[:, 2:] - anchors[:, :2]).numpy().round(3).tolist()}
    assert inside.sum() > 10
    assert found.boxes[inside].max() > 1000
    assert {tuple(side) for side in sides[inside].tolist()} <= known


def test_outputs_that_are_no_numbers_are_dropped(files: dict[str, str]) -> None:
    made = detector(files, FASTER)
    with torch.no_grad():
        made.model.roi_heads.box_predictor.bbox_pred.bias.fill_(torch.nan)
    [found] = made.detect(prepared(made)[:1])
    assert found.boxes.shape == (0, 4)


def test_the_models_own_cuts_follow_the_selection(files: dict[str, str]) -> None:
    selection = Selection(score_min=0.3, max_boxes=2000)
    made = detector(files, FASTER, selection=selection)
    assert made.model.roi_heads.score_thresh == 0.3
    assert made.model.roi_heads.detections_per_img == 20_000
    assert made.model.rpn.post_nms_top_n() == 150, (
        "the proposals behind final boxes stay the model's"
    )
    [found] = made.detect(prepared(made)[:1])
    assert isinstance(found, Detections)
    assert (found.scores >= 0.3).all()
    few, many = (
        detector(files, FASTER, boxes="rpn", selection=Selection(nms_iou=None, max_boxes=limit))
        for limit in (100, 2000)
    )
    [short], [long] = (one.detect(prepared(one)[:1]) for one in (few, many))
    assert len(long.boxes) > 150
    assert len(short.boxes) == 100
    assert_same_detections(long, short, best_only=True)


def test_the_number_of_classes_is_read_off_the_file(files: dict[str, str], tmp_path: Path) -> None:
    assert detector(files, FASTER).model.roi_heads.box_predictor.cls_score.out_features == CLASSES
    path = tmp_path / "coco.pth"
    torch.save(get_model(FASTER, weights=None, weights_backbone=None).state_dict(), path)
    coco: Any = load_detector(FASTER, str(path))
    assert coco.roi_heads.box_predictor.cls_score.out_features == 91


def test_published_files_have_frozen_norms(tmp_path: Path) -> None:
    """They lack the counters of trainable norms; some were trained without eps."""
    name = "fasterrcnn_resnet50_fpn"
    state = get_model(name, weights=None, weights_backbone=None).state_dict()
    for kept, eps in ((True, 1e-5), (False, 0.0)):
        path = str(tmp_path / "a.pth")
        torch.save({k: v for k, v in state.items() if kept or "num_batches_tracked" not in k}, path)
        norms = [m for m in load_detector(name, path).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {norm.eps for norm in norms} == {eps}


def test_wrong_files_are_named(files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.pth"

    def refuse(match: str, name: str = FASTER) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            build_detector(TorchvisionConfig(model=name), str(path))
        assert str(path) in str(caught.value)

    refuse("no such file")
    path.write_bytes(b"no tensors")
    refuse("not a file of plain tensors")
    path.write_bytes(b"")
    refuse("not a file of plain tensors")
    torch.save({"model": {}, "epoch": 3}, path)
    refuse("save model.state_dict\\(\\) alone")
    torch.save({"weight": torch.zeros(2)}, path)
    refuse(f"no weights of {FASTER}")
    path.with_suffix(".safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        build_detector(TorchvisionConfig(model=FASTER), str(path.with_suffix(".safetensors")))
    with pytest.raises(SettingError, match="no weights of"):
        build_detector(TorchvisionConfig(model=FASTER), files[SSD])


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"weight": Hostile()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        build_detector(TorchvisionConfig(model=FASTER), str(tmp_path / "a.pth"))
    assert not (tmp_path / "made").exists()


def test_wrong_settings_name_the_choices(files: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=f"model='resnet50': use one of .*{FASTER}"):
        build_detector(TorchvisionConfig(model="resnet50"), files[FASTER])
    with pytest.raises(SettingError, match=f"{SSD} has no region proposal network"):
        build_detector(TorchvisionConfig(model=SSD, boxes="rpn"), files[SSD])


def test_too_thin_golden(files: dict[str, str]) -> None:
    """1333 px of longest side: 3 px of 4,000 are 0.99975 px, 3 px of 3,999 are one."""
    transform = load_detector(FASTER, files[FASTER]).transform
    transform.max_size = 1333  # type: ignore[union-attr, assignment]
    assert vanishes(transform, 3, 4000)  # type: ignore[arg-type]
    assert not vanishes(transform, 3999, 3)  # type: ignore[arg-type]
    assert not vanishes(load_detector(SSD, files[SSD]).transform, 3, 4000)  # type: ignore[arg-type]


def test_pixels_are_handed_over_whole() -> None:
    image = noise_image(5, 3)
    item = with_all_pixels(DetectorInput(image_id="a", image=image))
    assert item.pixels is not None
    np.testing.assert_array_equal(item.pixels.transpose(1, 2, 0), np.asarray(image))
    assert (item.width, item.height, item.scale) == (5, 3, (1.0, 1.0))
