"""OPN learns: a few fixed images in seconds, to propose on held-out images in a minute."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from fo1_model.detectors.configs import Selection
from fo1_model.detectors.postprocess import select
from fo1_model.opn.config import OPN_SIZES, AugmentationConfig
from fo1_model.opn.criterion import OPNCriterion
from fo1_model.opn.network import OPN, new_opn
from fo1_model.opn.targets import OPNExample, collate, letterbox

Example = tuple[Image.Image, np.ndarray, np.ndarray]


def draw(seed: int) -> Example:
    """1 to 5 discs and squares in strong colours over noise and grey lines, with whole boxes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(90, 160, (128, 128, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        pen.line(rng.uniform(0, 128, 4).tolist(), fill=(60, 60, 60), width=2)
    boxes = []
    for _ in range(rng.integers(1, 6)):
        radius = rng.uniform(7, 24)
        x, y = rng.uniform(radius, 128 - radius, 2)
        box = (x - radius, y - radius, x + radius, y + radius)
        colour = ((215, 40, 45), (40, 165, 80), (40, 90, 215))[rng.integers(3)]
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour)
        boxes.append(box)
    return image, np.array(boxes, np.float32), np.zeros(len(boxes), bool)


def train(model: OPN, examples: list[Example], *, steps: int, batch_size: int) -> list[float]:
    """The demo's recipe, smaller: AdamW 2e-3, warm-up, cosine, clip 1; each step's loss per box."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    criterion = OPNCriterion()
    rng = np.random.default_rng(0)
    losses = []
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 20)
        optimizer.param_groups[0]["lr"] = (
            2e-3 * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        )
        chosen = [examples[i] for i in rng.choice(len(examples), batch_size, replace=False)]
        batch = collate(
            [
                OPNExample(image=image, boxes=boxes, ignore=ignore)
                for image, boxes, ignore in chosen
            ],
            model.config,
            seeds=[step * batch_size + i for i in range(batch_size)],
            augmentation=AugmentationConfig(),
        )
        outputs = model(batch.pixels, batch.prompts, batch.boxes, batch.seeds)
        loss_sum, num_boxes, _ = criterion(outputs, batch)
        loss = loss_sum / num_boxes.clamp(min=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def recall(model: OPN, examples: list[Example], best: int) -> float:
    """Share of objects with IoU >= 0.5 to one of the `best` boxes of their image."""
    model.eval()
    found = total = 0
    for image, boxes, _ in examples:
        square, placed = letterbox(image, model.config)
        outputs = model(square.unsqueeze(0))
        detections = select(
            placed.to_original(outputs.boxes[-1, 0]),
            outputs.logits[-1, 0].sigmoid().numpy(),
            width=image.width,
            height=image.height,
            selection=Selection(nms_iou=0.6, max_boxes=best),
        )
        iou = box_iou(torch.from_numpy(boxes), torch.from_numpy(detections.boxes))
        found += int((iou.amax(1) >= 0.5).sum())
        total += len(boxes)
    return found / total


def test_fits_four_images() -> None:
    torch.set_num_threads(1)
    model = new_opn(OPN_SIZES["tiny"](), seed=0)
    losses = train(model, [draw(i) for i in range(4)], steps=40, batch_size=4)
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


@pytest.mark.slow
def test_learns_to_propose() -> None:
    """250 steps of 8 images; recall on held-out ones."""
    torch.set_num_threads(1)
    train_set, held_out = [draw(i) for i in range(600)], [draw(10_000 + i) for i in range(60)]
    model = new_opn(OPN_SIZES["tiny"](), seed=0)
    untrained = recall(model, held_out, best=20)
    losses = train(model, train_set, steps=250, batch_size=8)
    trained = recall(model, held_out, best=20)
    assert np.isfinite(losses).all()
    assert trained >= 0.8, (untrained, trained)
    assert untrained < 0.4, (untrained, trained)
