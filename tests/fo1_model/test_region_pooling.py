import pytest
import torch
import torch.nn.functional as F
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
        (
            (-1.5, -1.5, 2.5, 2.5),
            {"output_size": 1, "aligned": False, "sampling_ratio": 2},
            (0.75, 0.75),
        ),
        # Samples at -1.5 (dropped, it still counts) and 2.5 along x, 2 and 4 along y.
        ((-3.5, 1, 4.5, 5), {"output_size": 1, "aligned": False, "sampling_ratio": 2}, (1.25, 1.5)),
        # Beyond the far border: clamped to the last cell within one cell of it, nothing farther
        # out.
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
anywhere = st.tuples(coordinate, coordinate, coordinate, coordinate)
small = st.tuples(coordinate, coordinate, st.floats(0, 1.5), st.floats(0, 1.5)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
whole_cells = st.tuples(*[st.integers(-3, 26).map(float)] * 4)
"""On borders and with whole numbers of samples, where one rule ends and another begins."""


@st.composite
def cases(draw):
    grid = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    sizes = [
        (draw(st.integers(1, grid[0])), draw(st.integers(1, grid[1])))
        for _ in range(draw(st.integers(0, 2)))
    ]
    aligned = draw(st.booleans())
    corners = draw(st.lists(anywhere | small | whole_cells, min_size=1, max_size=6))
    boxes = torch.tensor(corners, dtype=torch.float64)
    if aligned:  # torchvision crashes on a negative number of samples
        boxes = torch.cat(
            [boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], dim=1
        )
    return {
        "grid": grid,
        "sizes": [grid, *sizes],
        "boxes": boxes,
        "settings": {
            "output_size": draw(st.sampled_from([1, 2, 7])),
            "aligned": aligned,
            "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3])),
        },
        "seed": draw(st.integers(0, 2**16)),
    }


def check_against_reference(case, device: str = "cpu") -> None:
    """Levels pooled as if upsampled and concatenated, and the gradient of each, in float64."""
    generator = torch.Generator().manual_seed(case["seed"])
    levels = [
        torch.randn(2, *size, generator=generator, dtype=torch.float64) for size in case["sizes"]
    ]
    out_grad = torch.randn(
        len(case["boxes"]), 2 * len(levels), generator=generator, dtype=torch.float64
    )
    boxes = case["boxes"].to(device)

    def fast(leaves):
        return pool_levels(leaves, boxes, grid_size=case["grid"], **case["settings"])

    def one_by_one(leaves):
        size = case["grid"]
        return torch.cat(
            [pool_regions(leaf, boxes, upsampled_size=size, **case["settings"]) for leaf in leaves],
            dim=1,
        )

    def reference(leaves):
        resized = [
            F.interpolate(leaf[None], size=case["grid"], mode="bilinear")[0] for leaf in leaves
        ]
        return pool_regions_reference(torch.cat(resized), boxes, **case["settings"])

    def reference_one_by_one(leaves):
        size = case["grid"]
        return torch.cat(
            [
                pool_regions_reference(leaf, boxes, upsampled_size=size, **case["settings"])
                for leaf in leaves
            ],
            dim=1,
        )

    results = []
    for pool in (fast, one_by_one, reference, reference_one_by_one):
        leaves = [level.to(device).clone().requires_grad_() for level in levels]
        pooled = pool(leaves)
        pooled.backward(out_grad.to(device))
        results.append([pooled.detach(), *(leaf.grad for leaf in leaves)])
    for ours in zip(*results, strict=True):
        for other in ours[1:]:
            assert (ours[0] - other).abs().max() < 1e-9


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_resize_concatenate_roi_align_mean_with_its_gradient(case) -> None:
    check_against_reference(case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@settings(max_examples=50, deadline=None)
@given(cases())
def test_equals_the_reference_on_a_gpu(case) -> None:
    check_against_reference(case, "cuda")


def test_levels_are_pooled_as_if_upsampled_and_concatenated() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(c, h, w, generator=generator) for c, h, w in [(2, 13, 17), (3, 7, 9), (4, 4, 5)]
    ]
    boxes = torch.tensor([[0.0, 0.0, 17.0, 13.0], [3.2, 4.1, 9.9, 5.0]])
    upsampled = torch.cat(
        [torch.nn.functional.interpolate(v[None], size=(13, 17), mode="bilinear") for v in levels],
        dim=1,
    )
    expected = roi_align(upsampled, [boxes], 7, 1.0, -1, False).mean((2, 3))
    torch.testing.assert_close(pool_levels(levels, boxes, **RELEASE, grid_size=(13, 17)), expected)


def test_adaptive_sampling_rounds_as_torchvision_does_on_whole_cells() -> None:
    # 49 px are exactly 14 cells at stride 3.5: two samples a bin, or three when a product is a bit
    # too large.
    values = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(1))
    starts = torch.arange(0.0, 100.0)
    boxes = torch.stack([starts, starts, starts + 49, starts + 98], dim=1)
    feature_map = FeatureMap(values, (1, 1), 3.5)
    ours = pool_regions(values, boxes_in_cells(feature_map, boxes), **RELEASE)
    expected = roi_align(values[None], [boxes], 7, 1 / 3.5, -1, False).mean((2, 3))
    torch.testing.assert_close(ours, expected)


def test_a_box_as_wide_as_the_image_rounds_as_in_the_release() -> None:
    # The release moves boxes to the frame of the ViT's input first and leaves the stride to
    # RoIAlign.
    generator = torch.Generator().manual_seed(2)
    for width in range(150, 200):
        patches = 2 * round(width / 28)
        ratio = patches * 14 / width
        values = torch.randn(2, 4 * patches, 4 * patches, generator=generator)
        boxes = torch.tensor([[0.0, 0.0, width, width]])
        ours = pool_regions(
            values, boxes_in_cells(FeatureMap(values, (ratio, ratio), 3.5), boxes), **RELEASE
        )
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
    out_grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    pooled.backward(out_grad)
    exact_leaf = values.float().requires_grad_()
    pool_regions(exact_leaf, boxes, **RELEASE).backward(out_grad)
    assert torch.equal(leaf.grad, exact_leaf.grad.bfloat16())


def test_many_boxes_at_the_release_width_agree_in_float32() -> None:
    generator = torch.Generator().manual_seed(3)
    levels = [
        torch.randn(d, 96 // s, 128 // s, generator=generator)
        for d, s in [(256, 1), (512, 2), (1024, 4)]
    ]
    low = torch.rand(100, 2, generator=generator) * torch.tensor([140.0, 110.0]) - 8
    boxes = torch.cat([low, low + 60 * torch.rand(100, 2, generator=generator) ** 3], dim=1)
    resized = [F.interpolate(level[None], size=(96, 128), mode="bilinear")[0] for level in levels]
    expected = pool_regions_reference(torch.cat(resized), boxes, **RELEASE)
    ours = pool_levels(levels, boxes, **RELEASE, grid_size=(96, 128))
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_no_boxes_keep_the_graph() -> None:
    values = torch.randn(5, 4, 4, requires_grad=True)
    for settings_ in (
        RELEASE,
        {**RELEASE, "sampling_ratio": 2},
        {**RELEASE, "upsampled_size": (8, 8)},
    ):
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
