"""Random views: boxes stay on what they frame, draws follow the seed, the input is left alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fo1_model.opn.augmentation import augment
from fo1_model.opn.config import AugmentationConfig

GREY = (0.5, 0.25, 0.0)
NEAR = AugmentationConfig(flip=False, zoom=3.0)
ZOOM = AugmentationConfig(zoom=3.0)


def drawn(boxes: np.ndarray, width: int, height: int) -> Image.Image:
    """Black, with box i filled by the red value 100 + 20 i."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        pixels[y0:y1, x0:x1, 0] = 100 + 20 * index
    return Image.fromarray(pixels)


def extent(image: Image.Image, red: int) -> list[int] | None:
    """The box of all pixels of one red value."""
    ys, xs = np.nonzero(np.asarray(image)[..., 0] == red)
    return (
        None
        if len(xs) == 0
        else [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
    )


@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    seed=st.integers(0, 2**63 - 1),
    share=st.floats(0, 1),
)
@settings(deadline=None)
def test_boxes_are_where_their_pixels_are(width: int, height: int, seed: int, share: float) -> None:
    """Boxes that do not overlap, painted and found again after any view."""
    middle = width // 2
    boxes = np.array([[1, 2, middle - 1, height - 3], [middle, 0, width, height // 2]], np.float32)
    ignore = np.array([False, True])
    image = drawn(boxes, width, height)
    before = np.asarray(image).copy(), boxes.copy(), ignore.copy()
    config = dataclasses.replace(ZOOM, min_visible=share)
    seen, moved, flags = augment((image, boxes, ignore), config, seed=seed, padding=GREY)
    left_over = [index for index in range(2) if extent(seen, 100 + 20 * index) is not None]
    assert len(moved) == len(flags) == len(left_over)
    for index, box, flag in zip(left_over, moved, flags, strict=True):
        assert box.tolist() == extent(seen, 100 + 20 * index)
        area = float((boxes[index, 2] - boxes[index, 0]) * (boxes[index, 3] - boxes[index, 1]))
        visible = float((box[2] - box[0]) * (box[3] - box[1])) / area
        assert bool(flag) == (bool(ignore[index]) or np.float32(visible) < share)
    for value, known in zip((np.asarray(image), boxes, ignore), before, strict=True):
        np.testing.assert_array_equal(value, known)


def test_neutral_settings_change_nothing() -> None:
    boxes = np.array([[2, 3, 20, 30]], np.float32)
    image = drawn(boxes, 40, 50)
    config = AugmentationConfig(flip=False)
    for seed in range(5):
        seen, moved, _ = augment((image, boxes, np.array([False])), config, seed=seed, padding=GREY)
        assert np.array_equal(np.asarray(seen), np.asarray(image))
        np.testing.assert_array_equal(moved, boxes)


def test_draws_follow_the_seed() -> None:
    boxes = np.array([[2, 3, 20, 30]], np.float32)
    view = drawn(boxes, 64, 48), boxes, np.array([False])
    shown = [np.asarray(augment(view, ZOOM, seed=seed, padding=GREY)[0]) for seed in range(40)]
    again = [
        np.asarray(augment(view, ZOOM, seed=seed, padding=GREY)[0]) for seed in reversed(range(40))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(shown, reversed(again), strict=True))
    widths = sorted(one.shape[1] for one in shown)
    assert widths[0] < 32
    assert widths[-1] > 128
    # Log-uniform: as many nearer as farther, give or take.
    assert 10 < sum(width < 64 for width in widths) < 30


def test_farther_means_padding_of_the_given_colour() -> None:
    boxes = np.array([[0, 0, 30, 20]], np.float32)
    image = Image.new("RGB", (30, 20), (200, 10, 10))
    for seed in range(20):
        seen, moved, _ = augment((image, boxes, np.array([False])), NEAR, seed=seed, padding=GREY)
        if seen.width > 30:
            x0, y0, x1, y1 = moved[0].astype(int)
            pixels = np.asarray(seen).copy()
            assert (pixels[y0:y1, x0:x1] == (200, 10, 10)).all()
            pixels[y0:y1, x0:x1] = (128, 64, 0)
            assert (pixels == (128, 64, 0)).all()
            return
    raise AssertionError("no seed zoomed out")


def test_images_of_one_pixel_and_without_boxes() -> None:
    for seed in range(10):
        seen, boxes, ignore = augment(
            (Image.new("RGB", (1, 1)), np.zeros((0, 4), np.float32), np.zeros(0, bool)),
            dataclasses.replace(ZOOM, zoom=8.0),
            seed=seed,
            padding=GREY,
        )
        assert seen.width >= 1
        assert boxes.shape == (0, 4)
        assert ignore.shape == (0,)


@pytest.mark.parametrize(
    "changes", [{"zoom": 0.5}, {"zoom": 9.0}, {"zoom": float("nan")}, {"min_visible": -0.1}]
)
def test_wrong_settings_are_named(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        AugmentationConfig(**changes)
