"""Letterbox and collate: golden numbers, the way back, flips by seed, wrong input."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fo1_model.opn.config import OPN_SIZES, AugmentationConfig
from fo1_model.opn.targets import Letterbox, OPNExample, collate, letterbox

TINY = OPN_SIZES["tiny"]()
NO_BOXES, NO_FLAGS = np.zeros((0, 4), np.float32), np.zeros(0, bool)


def split_image(width: int, height: int) -> Image.Image:
    """Left half white, right half black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    return Image.fromarray(pixels)


def test_letterbox_golden() -> None:
    """256 x 64 into 128: scale 1/2, the lower three quarters padding of the mean colour."""
    square, placed = letterbox(split_image(256, 64), TINY)
    assert placed == Letterbox(0.5, 128)
    assert square.shape == (3, 128, 128)
    assert square.dtype == torch.float32
    torch.testing.assert_close(square[:, :32, :60], torch.ones(3, 32, 60))  # (1 - 0.5) / 0.5
    torch.testing.assert_close(square[:, :32, 68:], -torch.ones(3, 32, 60))
    assert (square[:, 32:] == 0).all()
    boxes = np.array([[64, 16, 128, 64]], np.float32)
    normalised = placed.to_square(boxes)  # in the square 32, 8, 64, 32 px
    torch.testing.assert_close(normalised, torch.tensor([[0.375, 0.15625, 0.25, 0.1875]]))
    np.testing.assert_allclose(placed.to_original(normalised), boxes)


def test_grey_and_one_pixel_wide_images_pass() -> None:
    square, _ = letterbox(Image.new("L", (1, 4000), 255), TINY)
    assert (square[:, :, 0] == 1).all()
    assert (square[:, :, 1:] == 0).all()


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    corners=st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=5),
)
def test_boxes_come_back(width: int, height: int, corners: list[tuple[float, ...]]) -> None:
    boxes = np.array(corners, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    before = boxes.copy()
    placed = Letterbox(128 / max(width, height), 128)
    square = placed.to_square(boxes)
    assert (square[:, :2] <= 1 + 1e-5).all()
    np.testing.assert_allclose(placed.to_original(square), boxes, atol=1e-3 * max(width, height))
    np.testing.assert_array_equal(boxes, before)


def test_collate_separates_ignore_regions() -> None:
    boxes = np.array([[0, 0, 64, 64], [64, 64, 128, 128]], np.float32)
    batch = collate(
        [
            OPNExample(image=split_image(128, 128), boxes=boxes, ignore=np.array([False, True])),
            OPNExample(image=split_image(64, 128), boxes=NO_BOXES, ignore=NO_FLAGS, complete=False),
        ],
        TINY,
        seeds=(7, 9),
    )
    assert batch.pixels.shape == (2, 3, 128, 128)
    assert batch.seeds == (7, 9)
    assert batch.prompts.tolist() == [0, 0]
    assert batch.complete == (True, False)
    torch.testing.assert_close(batch.boxes[0], torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    torch.testing.assert_close(batch.ignore_boxes[0], torch.tensor([[0.75, 0.75, 0.5, 0.5]]))
    assert batch.boxes[1].shape == (0, 4)
    assert batch.to("cpu").letterboxes == batch.letterboxes


def test_flips_follow_the_seed_and_leave_the_input() -> None:
    boxes = np.array([[0, 0, 32, 64]], np.float32)
    examples = [OPNExample(image=split_image(128, 128), boxes=boxes, ignore=np.array([False]))] * 16
    flip = AugmentationConfig()
    first = collate(examples, TINY, seeds=range(16), augmentation=flip)
    again = collate(examples, TINY, seeds=range(16), augmentation=flip)
    other = collate(examples, TINY, seeds=range(16, 32), augmentation=flip)
    part = collate(examples[:4], TINY, seeds=range(8, 12), augmentation=flip)
    assert torch.equal(part.pixels, first.pixels[8:12])
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    left = [bool(pixels[0, 0, 0] > 0) for pixels in first.pixels]
    assert 0 < sum(left) < 16
    expected = [[0.125 if is_left else 0.875, 0.25, 0.25, 0.5] for is_left in left]
    assert [b[0].tolist() for b in first.boxes] == expected
    np.testing.assert_array_equal(boxes, [[0, 0, 32, 64]])
    assert all(float(b[0, 0]) == 0.125 for b in collate(examples, TINY).boxes)


def test_prompt_is_a_row() -> None:
    blank = OPNExample(image=split_image(8, 8), boxes=NO_BOXES, ignore=NO_FLAGS)
    batch = collate([dataclasses.replace(blank, prompt="fine"), blank], TINY)
    assert batch.prompts.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("boxes", "flags", "message"),
    [
        ([[0, 0, 5, 5]], [], "ignore flags"),
        ([[5, 0, 5, 5]], [False], "no area"),
        ([[0, 0, np.nan, 5]], [False], "not finite"),
    ],
)
def test_bad_examples_are_named(boxes: list[list[float]], flags: list[bool], message: str) -> None:
    good = OPNExample(image=split_image(8, 8), boxes=NO_BOXES, ignore=NO_FLAGS)
    bad = dataclasses.replace(good, boxes=np.array(boxes, np.float32), ignore=np.array(flags, bool))
    with pytest.raises(ValueError, match=f"image 1 has .*{message}"):
        collate([good, bad], TINY)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        collate([], dataclasses.replace(TINY, image_size=64))
