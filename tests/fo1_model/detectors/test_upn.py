"""UPN: the network against a slow reference and the released code, its names, the detector."""

import pickle
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as tvf

from fo1_model.boxes import embed, sine_embedding, to_corners
from fo1_model.detectors import (
    Detections,
    DetectorInput,
    Selection,
    UPNConfig,
    build_detector,
    preparation,
)
from fo1_model.detectors.upn.detector import UPNDetector, input_size
from fo1_model.detectors.upn.network import UPN, UPNNetworkConfig, anchor_logits
from fo1_model.detectors.upn.weights import load_upn, published_name
from fo1_model.errors import SettingError
from tests.fo1_model.detectors import upn_reference as reference
from tests.ties import assert_same_detections

torch.set_num_threads(1)

SMALL = UPNNetworkConfig(
    embed_dim=16,
    depths=(1, 1, 2, 1),
    backbone_heads=(1, 2, 4, 4),
    window_size=4,
    hidden_dim=64,
    num_heads=4,
    feedforward_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_queries=20,
    short_side_px=64,
    long_side_px=100,
)
PUBLISHED = UPNNetworkConfig()
EVERYTHING = UPNConfig(selection=Selection(nms_iou=None))

State = dict[str, torch.Tensor]


def state(config: UPNNetworkConfig = SMALL, seed: int = 0) -> State:
    return {
        name: torch.from_numpy(v) for name, v in reference.published_weights(config, seed).items()
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upn") / "upn_large.pth"
    torch.save({"model": state()}, path)
    return path


@pytest.fixture(scope="module")
def network(published: Path) -> UPN:
    return load_upn(published, SMALL)


@pytest.fixture(scope="module")
def detector(published: Path) -> UPNDetector:
    return UPNDetector(EVERYTHING, str(published), network=SMALL)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, height, width)).astype(np.float32)


def scene(width: int, height: int, image_id: str = "a") -> DetectorInput:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return DetectorInput(image_id=image_id, image=Image.fromarray(pixels))


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 200), (131, 50)])
@pytest.mark.parametrize("prompt", ["coarse", "fine"])
def test_network_equals_the_slow_reference(
    network: UPN, size: tuple[int, int], prompt: str
) -> None:
    """Sizes that need padding to patches, to windows (before the shift) and to pairs.

    Some points lie off the map.
    """
    pixels = noise(*size)
    logits, boxes = reference.forward(reference.published_weights(SMALL, 0), SMALL, pixels, prompt)
    with torch.inference_mode():
        found_logits, found_boxes = network(torch.from_numpy(pixels)[None], prompt)
    np.testing.assert_allclose(found_logits[0], logits, atol=2e-4)
    np.testing.assert_allclose(found_boxes[0], boxes, atol=5e-6)
    assert boxes.std() > 0.1
    assert logits.std() > 1.0


def test_fewer_positions_than_queries(network: UPN) -> None:
    """Eleven positions give eleven boxes, where the released code fails.

    Norms of single pairs are touchy, hence the wide tolerance.
    """
    pixels = noise(5, 9)
    logits, boxes = reference.forward(reference.published_weights(SMALL, 0), SMALL, pixels, "fine")
    with torch.inference_mode():
        found_logits, found_boxes = network(torch.from_numpy(pixels)[None], "fine")
    np.testing.assert_allclose(found_logits[0], logits, atol=1e-2)
    np.testing.assert_allclose(found_boxes[0], boxes, atol=5e-4)
    assert len(boxes) == 11


def test_queries_without_an_anchor(tmp_path: Path) -> None:
    """Border positions stay in the choice, with boxes of ones; here they all score best."""
    weights = reference.published_weights(SMALL, 0)
    weights["transformer.enc_output.bias"] = (
        30 * weights["transformer.fine_grained_prompt.weight"][0]
    )
    torch.save(
        {name: torch.from_numpy(value) for name, value in weights.items()}, tmp_path / "upn.pth"
    )
    # 9 x 52 positions on the finest level: the outer columns are within 1 %.
    pixels = noise(36, 208)
    logits, boxes = reference.forward(weights, SMALL, pixels, "fine")
    with torch.inference_mode():
        found_logits, found_boxes = load_upn(tmp_path / "upn.pth", SMALL)(
            torch.from_numpy(pixels)[None], "fine"
        )
    np.testing.assert_allclose(found_logits[0], logits, atol=2e-4)
    np.testing.assert_allclose(found_boxes[0], boxes, atol=5e-6)


@pytest.mark.parametrize(
    ("prompt", "logits", "boxes"),
    [
        (
            "coarse",
            [-3.4221, -9.8345, -9.8724],
            [
                [0.87954, 0.54338, 0.0595, 0.05269],
                [0.76463, 0.09061, 0.04533, 0.17085],
                [0.80258, 0.09746, 0.05961, 0.31096],
            ],
        ),
        (
            "fine",
            [38.6624, 35.9254, 31.5393],
            [
                [0.47152, 0.25077, 0.19008, 0.17568],
                [0.74488, 0.02329, 0.04154, 0.11305],
                [0.24047, 0.20268, 0.23798, 0.31668],
            ],
        ),
    ],
)
def test_golden_of_the_released_code(
    tmp_path: Path, prompt: str, logits: list[float], boxes: list[list[float]]
) -> None:
    """The three best of the released classes, run in float32 on a CPU on the same input.

    om-ai-lab/VLM-FO1 e6bef8d, `detect_tools/upn`, its compiled operation replaced by the
    grid_sample form that stands beside it; the state dict was loaded there with `strict=True`.
    """
    config = UPNNetworkConfig(
        embed_dim=16,
        depths=(1, 1, 2, 1),
        backbone_heads=(1, 2, 4, 4),
        window_size=4,
        feedforward_dim=48,
        num_encoder_layers=3,
        num_decoder_layers=3,
        num_queries=20,
    )
    torch.save({"model": state(config, seed=7)}, tmp_path / "upn.pth")
    with torch.inference_mode():
        found, where = load_upn(tmp_path / "upn.pth", config)(
            torch.from_numpy(noise(70, 101, 7))[None], prompt
        )
    best = found[0].argsort(descending=True)[:3]
    np.testing.assert_allclose(found[0, best], logits, atol=1e-3)
    np.testing.assert_allclose(where[0, best], boxes, atol=2e-5)


def test_the_published_size() -> None:
    """Names and shapes of the large network, without its memory: each has one published source."""
    with torch.device("meta"):
        model = UPN(PUBLISHED)
    assert sum(weight.numel() for weight in model.parameters()) == 217_506_876
    shapes = reference.published_shapes(PUBLISHED)
    assert len(shapes) == 701  # as many as the released class has
    used: dict[str, list] = {}
    for own, value in model.state_dict().items():
        name, third = published_name(own)
        rows = value.shape[0] * (1 if third is None else 3)
        assert (rows, *value.shape[1:]) == shapes[name], own
        used.setdefault(name, []).append(third)
    assert all(parts == [None] or sorted(parts) == [0, 1, 2] for parts in used.values())
    copies = {
        f"{where}bbox_embed.{i}.layers" for where in ("", "transformer.decoder.") for i in range(6)
    }
    left = {name for name in set(shapes) - set(used) if name.rsplit(".", 2)[0] not in copies}
    assert all("relative_position_index" in name or "ref_point_head_point" in name for name in left)
    assert len(left) == 24 + 4


def test_every_form_of_the_file_loads(tmp_path: Path, network: UPN) -> None:
    """Bare, as safetensors, without what is not used, with the shared head stored once.

    The head may have any of its names.
    """
    once = {
        name: value
        for name, value in state().items()
        if "relative_position_index" not in name
        and "ref_point_head_point" not in name
        and not (
            "bbox_embed" in name and "enc_out" not in name and "decoder.bbox_embed.2" not in name
        )
    }
    torch.save(state(), tmp_path / "bare.pth")
    torch.save(
        {"model": {name: value.half() for name, value in once.items()}}, tmp_path / "half.pth"
    )
    save_file({name: value.clone() for name, value in once.items()}, tmp_path / "upn.safetensors")
    for file in ("bare.pth", "upn.safetensors", "half.pth"):
        found = load_upn(tmp_path / file, SMALL).state_dict()
        for name, value in network.state_dict().items():
            assert found[name].dtype == torch.float32
            exact = value.half().float() if file == "half.pth" else value
            torch.testing.assert_close(found[name], exact, rtol=0, atol=0, msg=name)


def _drop(name: str) -> State:
    return {key: value for key, value in state().items() if key != name}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            _drop("transformer.enc_output.bias"),
            "1 weights are missing: transformer.enc_output.bias",
        ),
        (
            state() | {"transformer.encoder.layers.2.norm1.weight": torch.zeros(64)},
            r"not the model's: transformer.encoder.layers.2.norm1.weight",
        ),
        (
            state() | {"bbox_embed.3.layers.0.bias": torch.zeros(64)},
            r"not the model's: bbox_embed.3",
        ),
        (state() | {"bbox_embed.1.layers.2.bias": torch.zeros(4)}, "heads of their own"),
        (
            state() | {"transformer.decoder.layers.0.self_attn.in_proj_bias": torch.zeros(64)},
            r"in_proj_bias is \[64\], the network has \[192\]",
        ),
        (
            state() | {"transformer.level_embed": torch.full((5, 64), torch.nan)},
            "level_embed .*not finite",
        ),
        (
            {"classifier.weight": torch.zeros(2, 2)},
            "weights are missing: backbone.model.backbone.layers.0",
        ),
        ([torch.zeros(2)], "no state dict"),
        ({"model": {"epoch": 3}}, "no state dict"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, given: object, message: str) -> None:
    torch.save(given, tmp_path / "upn.pth")
    with pytest.raises(ValueError, match=message):
        load_upn(tmp_path / "upn.pth", SMALL)


def test_foreign_modules_are_left_out_aloud(
    tmp_path: Path, network: UPN, caplog: pytest.LogCaptureFixture
) -> None:
    """The released loader ignores unknown names, so the file may hold what only training used."""
    torch.save({"model": state() | {"label_encoder.weight": torch.zeros(3)}}, tmp_path / "upn.pth")
    found = load_upn(tmp_path / "upn.pth", SMALL)
    assert "1 weights are not UPN's: label_encoder.weight" in caplog.text
    assert [record.name for record in caplog.records] == ["fo1_model"]
    torch.testing.assert_close(found.state_dict(), network.state_dict(), rtol=0, atol=0)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of a weights file ran')",))


def test_hostile_files_are_refused(tmp_path: Path, published: Path) -> None:
    whole = published.read_bytes()
    bad = {
        "code.pth": pickle.dumps({"model": _Code()}, protocol=2),
        "short.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"<html>not found</html>",
        "short.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"model": _Code()}, tmp_path / "zipped_code.pth")
    assert zipfile.is_zipfile(tmp_path / "zipped_code.pth")
    for name in (*bad, "zipped_code.pth"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
            load_upn(tmp_path / name, SMALL)
        # Torch's advice is to switch the protection off.
        assert "weights_only" not in str(caught.value)
        assert "exec" in str(caught.value) or "code" not in name
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            load_upn(path, SMALL)


def test_anchors_golden() -> None:
    """One position of 60 columns lies within 1 % of the border; level 4's anchors are 0.8 wide."""
    logits, valid = anchor_logits([(1, 60), (1, 1), (1, 1), (1, 1), (2, 1)], torch.device("cpu"))
    shares = logits.sigmoid()
    assert valid.tolist() == [False, *[True] * 58, False, True, True, True, True, True]
    assert torch.isinf(logits[0]).all()
    np.testing.assert_allclose(shares[1], [1.5 / 60, 0.5, 0.05, 0.05], atol=1e-6)
    np.testing.assert_allclose(shares[-1], [0.5, 0.75, 0.8, 0.8], atol=1e-6)


@given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_sine_embedding(values: list[float]) -> None:
    """The region encoder's embedding is the same at its temperature; the other by its formula."""
    box = torch.tensor([values])
    found = sine_embedding(box[:, [1, 0, 2, 3]], 32, 10_000.0)
    torch.testing.assert_close(found, embed(to_corners(box), 128), atol=1e-5, rtol=0)
    slow = reference.sine(np.array(values), 32, 20).reshape(-1)
    np.testing.assert_allclose(sine_embedding(box, 32, 20.0)[0], slow, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1066, 800)),  # 1066.7 is cut
        ((480, 640), (800, 1066)),
        ((500, 500), (800, 800)),
        ((2000, 601), (1334, 401)),  # 400.6 is rounded, the other follows: over the limit by 1
        ((1333, 800), (1333, 800)),
        ((1, 1), (800, 800)),
        ((1, 10_000), (1, 10_000)),  # 0.1 px would be none
    ],
)
def test_input_size_golden(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert input_size(*size, PUBLISHED) == expected


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_input_size(width: int, height: int) -> None:
    """Against exact arithmetic: the ratio is kept to a pixel, the limits to the rounding."""
    wide, high = input_size(width, height, PUBLISHED)
    assert input_size(height, width, PUBLISHED) == (high, wide)
    short, long = min(wide, high), max(wide, high)
    ratio = Fraction(max(width, height), min(width, height))
    assert long == int(short * ratio)
    assert short == 800 or short == max(1, round(1333 / ratio))
    assert short == 800 or ratio * 800 > 1333


def test_preparation_is_torchvisions_resize() -> None:
    item = scene(301, 200)
    prepared = preparation(UPNConfig(), "upn_large.pth")(item)
    expected = np.asarray(tvf.resize(item.image, [800, 1204])).transpose(2, 0, 1)
    assert prepared.pixels is not None
    assert prepared.pixels.dtype == np.uint8
    np.testing.assert_array_equal(prepared.pixels, expected)
    assert prepared.scale == (4.0, 4.0)
    assert (prepared.width, prepared.height) == (301, 200)
    again = pickle.loads(pickle.dumps(preparation(UPNConfig(), "upn_large.pth")))(item)
    np.testing.assert_array_equal(again.pixels, prepared.pixels)


def test_detector_returns_original_pixels(detector: UPNDetector) -> None:
    """Boxes and scores by hand from the reference's output for the normalised pixels."""
    item = detector.prepare(scene(120, 90))
    assert item.pixels is not None
    assert item.pixels.shape == (3, 64, 85)
    mean = np.array([0.485, 0.456, 0.406])[:, None, None]
    std = np.array([0.229, 0.224, 0.225])[:, None, None]
    weights = reference.published_weights(SMALL, 0)
    logits, boxes = reference.forward(weights, SMALL, (item.pixels / 255 - mean) / std, "fine")
    low = np.clip((boxes[:, :2] - boxes[:, 2:] / 2) * [120, 90], 0, [120, 90])
    high = np.clip((boxes[:, :2] + boxes[:, 2:] / 2) * [120, 90], 0, [120, 90])
    placed = np.concatenate([low, high], 1)
    wide = (placed[:, 2:] - placed[:, :2] >= 1).all(1)
    best = np.argsort(-logits[wide], kind="stable")
    expected = Detections(
        boxes=placed[wide][best], scores=1 / (1 + np.exp(-logits[wide][best].astype(float)))
    )
    [found] = detector.detect([item])
    assert wide.sum() > 5
    assert_same_detections(found, expected, atol_px=1e-2, atol_score=1e-4)
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)


def test_an_image_does_not_depend_on_its_batch(detector: UPNDetector) -> None:
    sizes = [(120, 90), (64, 64), (200, 150), (1, 1), (90, 120), (1, 300), (120, 90)]
    items = [detector.prepare(scene(*size, image_id=str(i))) for i, size in enumerate(sizes)]
    together = detector.detect(items)
    for item, found in zip(items, together, strict=True):
        [alone] = detector.detect([item])
        assert_same_detections(found, alone, atol_px=2e-2, atol_score=1e-3)
    for first, second in zip(together, detector.detect(items), strict=True):
        assert first.boxes.tobytes() == second.boxes.tobytes()
        assert first.scores.tobytes() == second.scores.tobytes()
    assert detector.detect([]) == []


def test_settings_of_the_detector(published: Path, detector: UPNDetector) -> None:
    item = detector.prepare(scene(120, 90))
    [every] = detector.detect([item])
    [coarse] = UPNDetector(
        UPNConfig(prompt="coarse", selection=Selection(nms_iou=None)), str(published), network=SMALL
    ).detect([item])
    assert coarse.boxes.shape != every.boxes.shape or not np.allclose(coarse.boxes, every.boxes)
    [strict] = UPNDetector(UPNConfig(), str(published), network=SMALL).detect([item])
    assert 0 < len(strict.boxes) < len(every.boxes)
    assert strict.scores.min() >= 0.3
    [rough] = UPNDetector(
        UPNConfig(precision="bf16", selection=Selection(nms_iou=None)),
        str(published),
        network=SMALL,
    ).detect([item])
    assert np.isfinite(rough.boxes).all()
    assert rough.boxes.dtype == np.float32
    assert len(set(rough.scores.tolist())) == len(rough.scores)  # scores keep float32's steps


def test_building_by_config(published: Path) -> None:
    with pytest.raises(SettingError, match="needs a folder or file of weights"):
        build_detector(UPNConfig())
    with pytest.raises(SettingError, match="checkpoint=None"):
        UPNDetector(UPNConfig(), None)
    with pytest.raises(ValueError, match="weights are missing"):  # the small network's file
        build_detector(UPNConfig(), str(published))
