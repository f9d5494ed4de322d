"""Samples with different numbers of images and boxes, as processors take them."""

from typing import Any

import numpy as np
import pytest

from fo1_model import grammar
from tests.fo1_model.conftest import picture, some_boxes

QUESTION = "How many red circle are there?"


def regional(sizes: list[tuple[int, int, int]], answer: str | None = None) -> tuple[Any, Any, Any]:
    """Messages, images and boxes of one sample: an image (width, height, boxes) each."""
    images = [picture(width, height, seed) for seed, (width, height, _) in enumerate(sizes)]
    boxes = [
        some_boxes(count, width, height) if count else np.zeros((0, 4), np.float32)
        for width, height, count in sizes
    ]
    content, start = "", 0
    for _, _, count in sizes:
        content += f"{grammar.IMAGE}\n{grammar.region_prompt(count, start)}\n"
        start += count
    messages = [{"role": "user", "content": content + QUESTION}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages, images, boxes


@pytest.fixture
def samples() -> list[tuple[Any, Any, Any]]:
    """Two images with two and three boxes, one without boxes, none at all."""
    return [regional([(84, 56, 2), (60, 140, 3)]), regional([(112, 70, 0)]), regional([])]
