import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from fo1_model.region_pooling import (
    FeatureMap,
    boxes_in_cells,
    pool_levels,
    pool_regions,
    pool_regions_reference,
)

RELEASE = {"output_size": 7, "aligned": False, "sampling_ratio": -1}


def ramp(height: int, width: int) -> torch.Tensor:
    """Two channels: the column and the row of every cell."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]).double()


@pytest.mark.parametrize(
    ("box", "settings_", "expected"),
    [
        # One sample in the middle of the box; aligned moves it half a cell towards the origin.
        ((2, 3, 6, 5), {"output_size": 1, "aligned": False, "sampling_ratio": 1}, (4, 4)),
        ((2, 3, 6, 5), {"output_size": 1, "aligned": True, "sampling_ratio": 1}, (3.5, 3.5)),
        # Without alignment a box is at least one cell wide: the middle of (2, 3)-(3, 4).
        ((2, 3, 2, 3), {"output_size": 1, "aligned": False, "sampling_ratio": 1}, (2.5, 3.5)),
        # Two samples a side at -0.5 and 1.5: the first is clamped to cell 0.
        ((-1.5, -1.5, 2.5, 2.5), {"output_size": 1, "aligned": False, "sampling_ratio": 2}, (0.75, 0.75)),
        # Samples at -1.5 (dropped, it still counts) and 2.5 along x, 2 and 4 along y.
        ((-3.5, 1, 4.5, 5), {"output_size": 1, "aligned": False, "sampling_ratio": 2}, (1.25, 1.5)),
        # Beyond the far border: clamped to the last cell within one cell of it, nothing farther out.
        ((7, 7, 9, 9), {"output_size": 1, "aligned": False, "sampling_ratio": 1}, (7, 7)),
        ((8, 8, 10, 10), {"output_size": 1, "aligned": False, "sampling_ratio": 1}, (0, 0)),
        # A bilinear map pooled symmetrically inside the map gives its value at the middle.
        ((1, 2, 6, 4), RELEASE, (3.5, 3)),
    ],
)
def test_by_hand(box, settings_, expected) -> None:
    boxes = torch.tensor([box], dtype=torch.float64)
    for pool in (pool_regions, pool_regions_reference):
        assert pool(ramp(8, 8), boxes, **settings_)[0].tolist() == pytest.approx(expected)


coordinate = st.floats(-15, 40, allow_nan=False)


@st.composite
def cases(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    upsampled = draw(st.none() | st.tuples(st.integers(height, 24), st.integers(width, 24)))
    aligned = draw(st.booleans())
    corners = draw(
        st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=6)
    )
    boxes = torch.tensor(corners, dtype=torch.float64)
    if aligned:  # torchvision crashes on a negative number of samples
        boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], dim=1)
    return {
        "size": (height, width),
        "boxes": boxes,
        "settings": {
            "output_size": draw(st.sampled_from([1, 2, 7])),
            "aligned": aligned,
            "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3])),
            "upsampled_size": upsampled,
        },
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_resize_roi_align_mean_with_its_gradient(case) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    values = torch.randn(3, *case["size"], generator=generator, dtype=torch.float64)
    out_grad = torch.randn(len(case["boxes"]), 3, generator=generator, dtype=torch.float64)
    results = []
    for pool in (pool_regions, pool_regions_reference):
        leaf = values.clone().requires_grad_()
        pooled = pool(leaf, case["boxes"], **case["settings"])
        pooled.backward(out_grad)
        results.append((pooled.detach(), leaf.grad))
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() < 1e-9


def test_levels_are_pooled_as_if_upsampled_and_concatenated() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(c, h, w, generator=generator) for c, h, w in [(2, 13, 17), (3, 7, 9), (4, 4, 5)]]
    boxes = torch.tensor([[0.0, 0.0, 17.0, 13.0], [3.2, 4.1, 9.9, 5.0]])
    upsampled = torch.cat(
        [torch.nn.functional.interpolate(v[None], size=(13, 17), mode="bilinear") for v in levels], dim=1
    )
    expected = roi_align(upsampled, [boxes], 7, 1.0, -1, False).mean((2, 3))
    torch.testing.assert_close(pool_levels(levels, boxes, **RELEASE, grid_size=(13, 17)), expected)


def test_adaptive_sampling_rounds_as_torchvision_does_on_whole_cells() -> None:
    # 49 px are exactly 14 cells at stride 3.5: two samples a bin, or three when a product is a bit too large.
    values = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(1))
    starts = torch.arange(0.0, 100.0)
    boxes = torch.stack([starts, starts, starts + 49, starts + 98], dim=1)
    feature_map = FeatureMap(values, (1, 1), 3.5)
    ours = pool_regions(values, boxes_in_cells(feature_map, boxes), **RELEASE)
    expected = roi_align(values[None], [boxes], 7, 1 / 3.5, -1, False).mean((2, 3))
    torch.testing.assert_close(ours, expected)


def test_a_box_as_wide_as_the_image_rounds_as_in_the_release() -> None:
    # The release moves boxes to the frame of the ViT's input first and leaves the stride to RoIAlign.
    generator = torch.Generator().manual_seed(2)
    for width in range(150, 200):
        patches = 2 * round(width / 28)
        ratio = patches * 14 / width
        values = torch.randn(2, 4 * patches, 4 * patches, generator=generator)
        boxes = torch.tensor([[0.0, 0.0, width, width]])
        ours = pool_regions(values, boxes_in_cells(FeatureMap(values, (ratio, ratio), 3.5), boxes), **RELEASE)
        expected = roi_align(values[None], [boxes * ratio], 7, 1 / 3.5, -1, False).mean((2, 3))
        torch.testing.assert_close(ours, expected)


def test_boxes_in_cells_by_hand() -> None:
    feature_map = FeatureMap(torch.zeros(1, 34, 46), (46 * 14 / 640, 34 * 14 / 480), 14)
    boxes = torch.tensor([[0.0, 0.0, 640.0, 480.0], [320.0, 120.0, 640.0, 240.0]])
    expected = torch.tensor([[0, 0, 46, 34], [23, 8.5, 46, 17]])
    torch.testing.assert_close(boxes_in_cells(feature_map, boxes), expected)


class LargeResults(TorchDispatchMode):
    """Records the operators that write as many numbers as a map holds."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = values
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        large = isinstance(result, torch.Tensor) and result.numel() >= self.values.numel()
        if large and result.data_ptr() != self.values.data_ptr():
            self.operators.append(str(func))
        return result


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_map_is_never_copied(channels_last: bool) -> None:
    values = torch.randn(1, 64, 8, 6)
    values = values.contiguous(memory_format=torch.channels_last) if channels_last else values
    boxes = torch.tensor([[0.0, 1.0, 4.0, 6.0]])
    with LargeResults(values) as record:
        pooled = pool_regions(values[0], boxes, **RELEASE)
    assert record.operators == []
    torch.testing.assert_close(pooled, pool_regions_reference(values[0], boxes, **RELEASE))


def test_half_precision_maps_are_summed_in_float32() -> None:
    values = (torch.randn(5, 20, 20, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    boxes = torch.tensor([[1.0, 1.0, 19.0, 18.0]])
    exact = pool_regions(values.float(), boxes, **RELEASE)
    leaf = values.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_regions(leaf, boxes, **RELEASE)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, exact)
    pooled.sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


def test_no_boxes_keep_the_graph() -> None:
    values = torch.randn(5, 4, 4, requires_grad=True)
    for settings_ in (RELEASE, {**RELEASE, "sampling_ratio": 2}, {**RELEASE, "upsampled_size": (8, 8)}):
        pooled = pool_regions(values, torch.zeros(0, 4), **settings_)
        assert pooled.shape == (0, 5)
        pooled.sum().backward()
    assert torch.equal(values.grad, torch.zeros(5, 4, 4))


def test_boxes_are_not_changed_and_get_no_gradient() -> None:
    boxes = torch.tensor([[0.5, 1.0, 4.0, 6.0]], requires_grad=True)
    before = boxes.detach().clone()
    pool_regions(torch.randn(2, 8, 8, requires_grad=True), boxes, **RELEASE).sum().backward()
    assert torch.equal(boxes.detach(), before)
    assert boxes.grad is None
