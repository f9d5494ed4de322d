"""OPN beside other detectors of like size, each trained for the same time on the same drawn scenes.

    python infra/benchmarks/opn.py [--seconds 180] [--scenes 2400] > REPORT.md

Three networks of about a million parameters, all from random weights, all class-agnostic, 128 px:

opn         the `tiny` size with the loss and the learner's settings of the recipe
rt_detr     transformers' RT-DETR with its own loss, as `rt_detr_untrained` builds it
fcos        torchvision's FCOS with its own loss, on OPN's backbone and a small pyramid

Each has the given CPU seconds of one process with one thread, forward, loss and step together
(drawing the scenes is not counted), batches of 16, AdamW 1e-3, warm-up and a cosine over that time,
mirrored images. Then held-out scenes: class-agnostic recall by pycocotools, and CPU milliseconds an
image at batch 1, from the decoded image to the boxes. An untrained network of each kind stands
beside it.
"""

import argparse
import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.transforms.v2.functional import pil_to_tensor

from dataset_builders.drawn_world.drawing import draw_scene
from fo1_model.boxes import to_center_size, to_corners
from fo1_model.detectors import Selection
from fo1_model.detectors.closed_set import untrained_rt_detr
from fo1_model.detectors.postprocess import select
from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.criterion import OPNCriterion
from fo1_model.opn.network import new_opn
from fo1_model.opn.targets import OPNExample, collate, letterbox
from pipelines.evaluation.metrics.cases import Scene
from pipelines.evaluation.metrics.proposals import Proposed, proposal_recall

BATCH = 16
WARM_UP = 0.1
"""Share of the time in which the learning rate rises."""
SIDE = 128
Example = tuple[Image.Image, np.ndarray, np.ndarray]
Found = tuple[np.ndarray, np.ndarray]


def draw(seed: int) -> Example:
    """Return a drawn scene: image, boxes float32[N, 4], which of them are crowds bool[N]."""
    scene = draw_scene((99, seed))
    boxes = np.array([item.box for item in scene.objects], np.float32).reshape(-1, 4)
    return scene.image, boxes, np.array([item.crowd for item in scene.objects], bool)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network, its loss on a batch, and its boxes with scores for one image."""

    module: nn.Module
    loss: Callable[[Sequence[Example], Sequence[int]], Tensor]
    propose: Callable[[Image.Image], Found]


def opn() -> Contender:
    model = new_opn(OPN_SIZES["tiny"](), 0)
    criterion = OPNCriterion()

    def loss(examples: Sequence[Example], seeds: Sequence[int]) -> Tensor:
        annotated = [
            OPNExample(image=image, boxes=boxes, ignore=flags) for image, boxes, flags in examples
        ]
        batch = collate(annotated, model.config, seeds=seeds)
        outputs = model(batch.pixels, batch.prompts, batch.boxes, batch.seeds)
        total, num_boxes, _ = criterion(outputs, batch)
        return total / num_boxes.clamp(min=1)

    def propose(image: Image.Image) -> Found:
        square, placed = letterbox(image, model.config)
        outputs = model(square.unsqueeze(0))
        return placed.to_original(outputs.boxes[-1, 0]), outputs.logits[-1, 0].sigmoid().numpy()

    return Contender(module=model, loss=loss, propose=propose)


def rt_detr() -> Contender:
    model, _ = untrained_rt_detr(0)

    def pixels(image: Image.Image) -> Tensor:
        return pil_to_tensor(image.resize((SIDE, SIDE))).float() / 255.0

    def loss(examples: Sequence[Example], _: Sequence[int]) -> Tensor:
        labels = []
        for image, boxes, ignore in examples:
            kept = torch.from_numpy(boxes[~ignore]) / torch.tensor(image.size * 2)
            labels.append(
                {"boxes": to_center_size(kept), "class_labels": torch.zeros(len(kept)).long()}
            )
        return model(torch.stack([pixels(image) for image, _, _ in examples]), labels=labels).loss

    def propose(image: Image.Image) -> Found:
        outputs = model(pixels(image).unsqueeze(0))
        boxes = to_corners(outputs.pred_boxes[0]) * torch.tensor(image.size * 2)
        return boxes.numpy(), outputs.logits[0, :, 0].sigmoid().numpy()

    return Contender(module=model, loss=loss, propose=propose)


class Pyramid(nn.Module):
    """OPN's backbone and a feature pyramid of OPN's width."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = timm.create_model("test_convnext2", features_only=True, out_indices=(1, 2, 3))
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.pyramid({str(i): found for i, found in enumerate(self.body(pixels))})


def fcos() -> Contender:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        anchors = AnchorGenerator(sizes=((8,), (16,), (32,)), aspect_ratios=((1.0,),) * 3)
        model = FCOS(
            Pyramid(),
            num_classes=1,
            min_size=SIDE,
            max_size=SIDE,
            anchor_generator=anchors,
            score_thresh=0.0,
            detections_per_img=100,
        )

    def loss(examples: Sequence[Example], _: Sequence[int]) -> Tensor:
        images = [pil_to_tensor(image).float() / 255.0 for image, _, _ in examples]
        targets = [
            {
                "boxes": torch.from_numpy(boxes[~ignore]),
                "labels": torch.zeros(int((~ignore).sum())).long(),
            }
            for _, boxes, ignore in examples
        ]
        return torch.stack(list(model(images, targets).values())).sum()

    def propose(image: Image.Image) -> Found:
        [found] = model([pil_to_tensor(image).float() / 255.0])
        return found["boxes"].numpy(), found["scores"].numpy()

    return Contender(module=model, loss=loss, propose=propose)


CONTENDERS = {"opn": opn, "rt_detr": rt_detr, "fcos": fcos}


def mirrored(example: Example) -> Example:
    image, boxes, ignore = example
    turned = boxes.copy()
    turned[:, [0, 2]] = image.width - boxes[:, [2, 0]]
    return ImageOps.mirror(image), turned, ignore


def train(contender: Contender, scenes: Sequence[Example], seconds: float) -> int:
    """Train for so many CPU seconds; return the number of steps."""
    optimizer = torch.optim.AdamW(contender.module.parameters(), lr=1e-3, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    contender.module.train()
    used, steps = 0.0, 0
    while used < seconds:
        start = time.process_time()
        share = used / seconds
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2
        optimizer.param_groups[0]["lr"] = 1e-3 * (
            max(share, 0.01) / WARM_UP if share < WARM_UP else cosine
        )
        chosen = [scenes[i] for i in rng.choice(len(scenes), BATCH, replace=False)]
        chosen = [mirrored(example) if rng.random() < 0.5 else example for example in chosen]
        loss = contender.loss(chosen, [steps * BATCH + i for i in range(BATCH)])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(contender.module.parameters(), 1.0)
        optimizer.step()
        used, steps = used + time.process_time() - start, steps + 1
    return steps


@torch.no_grad()
def judge(contender: Contender, scenes: Sequence[Example]) -> tuple[dict[str, float], float]:
    """Return recalls on held-out scenes, and CPU milliseconds an image."""
    contender.module.eval()
    truth, found = [], []
    contender.propose(scenes[0][0])
    start = time.process_time()
    for number, (image, _, _) in enumerate(scenes):
        boxes, scores = contender.propose(image)
        kept = select(boxes, scores, width=image.width, height=image.height, selection=Selection())
        found.append(Proposed(image_id=str(number), boxes=kept.boxes, scores=kept.scores))
    milliseconds = 1e3 * (time.process_time() - start) / len(scenes)
    for number, (_, boxes, ignore) in enumerate(scenes):
        labels = ("object",) * len(boxes)
        truth.append(Scene(image_id=str(number), boxes=boxes, labels=labels, ignore=tuple(ignore)))
    return proposal_recall(truth, found), milliseconds


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=180.0, help="CPU seconds of training each")
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--held-out", type=int, default=200)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    scenes = [draw(number) for number in range(options.scenes)]
    held_out = [draw(1_000_000 + number) for number in range(options.held_out)]
    cpu = platform.processor() or platform.machine()
    print(f"# OPN beside other detectors trained for the same time ({datetime.date.today()})\n")
    python, version = platform.python_version(), torch.__version__
    print(f"One thread of {os.cpu_count()} CPUs ({cpu}), Python {python}, torch {version}.")
    print(
        f"`python infra/benchmarks/opn.py --seconds {options.seconds:g} --scenes {options.scenes}`"
        f": {options.held_out} held-out scenes, one seed.\n"
    )
    header = ["network", "parameters", "steps", "AR@100", "R50@10", "R50@100", "R75@100"]
    header += ["untrained R50@100", "ms an image"]
    print("| " + " | ".join(header) + " |\n| --- |" + " ---: |" * (len(header) - 1))
    for name, make in CONTENDERS.items():
        contender = make()
        untrained, _ = judge(contender, held_out)
        steps = train(contender, scenes, options.seconds)
        recalls, milliseconds = judge(contender, held_out)
        size = sum(p.numel() for p in contender.module.parameters()) / 1e6
        shown = [recalls[key] for key in ("ar@100", "r50@10", "r50@100", "r75@100")]
        cells = [name, f"{size:.2f} M", str(steps), *(f"{value:.3f}" for value in shown)]
        cells += [f"{untrained['r50@100']:.3f}", f"{milliseconds:.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
