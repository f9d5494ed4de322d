"""OPN's loss: Hungarian matching, varifocal score, L1 and GIoU, on all layers and the encoder.

transformers' RTDetrLoss does the matching and the three terms (one class, "object"). This file sums
them without dividing, so that the training loop can divide by the number of boxes over all workers,
and leaves out of the score's negatives what may be an object all the same: queries inside ignore
regions, those that an image with incomplete labels says nothing about, and, as an option, those
that overlap an object in part.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers.loss.loss_rt_detr import RTDetrLoss

from fo1_model.boxes import area, iou, to_corners
from fo1_model.opn.config import OPNCriterionConfig
from fo1_model.opn.network import OPNOutputs
from fo1_model.opn.targets import OPNBatch

Indices = list[tuple[Tensor, Tensor]]
"""Of each image, the matched queries and their objects, int64[M] each."""
IGNORED_LOGIT = -30.0
"""Logit in the place of an ignored query's: its varifocal term and gradient vanish."""


class OPNCriterion(nn.Module):
    """OPN's loss as a module: `criterion(outputs, batch) -> (loss_sum, num_boxes, logs)`."""

    def __init__(self, config: OPNCriterionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or OPNCriterionConfig()
        # RTDetrLoss reads attributes of a model config; these are all it reads.
        self.terms = RTDetrLoss(
            SimpleNamespace(
                num_labels=1,
                weight_loss_vfl=config.varifocal_weight,
                weight_loss_bbox=config.l1_weight,
                weight_loss_giou=config.giou_weight,
                eos_coefficient=1e-4,
                focal_loss_alpha=config.focal_alpha,
                focal_loss_gamma=config.focal_gamma,
                matcher_class_cost=config.matching_score_cost,
                matcher_bbox_cost=config.l1_weight,
                matcher_giou_cost=config.giou_weight,
                matcher_alpha=0.25,
                matcher_gamma=2.0,
                use_focal_loss=True,
            )
        )

    def forward(
        self, outputs: OPNOutputs, batch: OPNBatch
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the loss of one batch, as a sum.

        Args:
            outputs: What the network gave for the batch.
            batch: The objects and ignore regions that it is measured against.

        Returns:
            loss_sum: float32[], finite without any box; divide it by the number of boxes over all
                workers, at least 1.
            num_boxes: float32[], the boxes of this batch.
            logs: The summed terms of the last layer, by name.
        """
        targets = [
            {"boxes": boxes, "class_labels": boxes.new_zeros(len(boxes), dtype=torch.int64)}
            for boxes in batch.boxes
        ]
        layers = list(zip(outputs.logits, outputs.boxes, strict=True))
        last = self._layer(*layers[-1], targets, batch)
        total = _sum(last)
        for logits, boxes in [*layers[:-1], (outputs.encoder_logits, outputs.encoder_boxes)]:
            total = total + _sum(self._layer(logits, boxes, targets, batch))
        num_boxes = sum(len(boxes) for boxes in batch.boxes)
        total = total + self._denoising(outputs, targets)
        logs = {name: float(value.detach()) for name, value in last.items()}
        return total, total.new_tensor(float(num_boxes)), logs

    def _denoising(self, outputs: OPNOutputs, targets: list[dict[str, Tensor]]) -> Tensor:
        """Return the terms of the noised queries, whose matches are known; a mean of the groups."""
        total = outputs.logits.new_zeros(())
        if (
            outputs.noised_logits is None
            or outputs.noised_boxes is None
            or outputs.noised_real is None
        ):
            return total
        groups = sum(len(p) for p in outputs.noised_positives) // sum(
            len(t["boxes"]) for t in targets
        )
        matched = [
            (positives, torch.arange(len(target["boxes"]), device=positives.device).tile(groups))
            for positives, target in zip(outputs.noised_positives, targets, strict=True)
        ]
        # Padding queries must not count as negatives.
        logits_of_layers = outputs.noised_logits.masked_fill(~outputs.noised_real, IGNORED_LOGIT)
        for logits, boxes in zip(logits_of_layers, outputs.noised_boxes, strict=True):
            total = total + _sum(self._weighted(logits, boxes, targets, matched)) / groups
        return total

    def _layer(
        self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], batch: OPNBatch
    ) -> dict[str, Tensor]:
        """Return one layer's weighted terms: matching, then who is no negative, then the loss."""
        indices = self.terms.matcher({"logits": logits.unsqueeze(-1), "pred_boxes": boxes}, targets)
        ignored = self._ignored(boxes.detach(), batch)
        # A matched query is a positive, wherever it lies.
        for i, (queries, _) in enumerate(indices):
            ignored[i, queries] = False
        return self._weighted(logits.masked_fill(ignored, IGNORED_LOGIT), boxes, targets, indices)

    def _ignored(self, boxes: Tensor, batch: OPNBatch) -> Tensor:
        """Return which queries are no negatives unless they are matched.

        Args:
            boxes: float32[B, K, 4], cxcywh.
            batch: The objects and regions of the B images.

        Returns:
            bool[B, K].
        """
        ignored = _inside(boxes, batch.ignore_boxes, self.config.ignore_coverage)
        band = self.config.ignore_band
        if band is None and all(batch.complete):
            return ignored
        for i, objects in enumerate(batch.boxes):
            best = boxes.new_zeros(boxes.shape[1])
            if len(objects):
                best = iou(to_corners(boxes[i]), to_corners(objects)).amax(1)
            if band is not None:
                ignored[i] |= (best > band[0]) & (best < band[1])
            if not batch.complete[i]:
                ignored[i] |= best < self.config.incomplete_iou
        return ignored

    def _weighted(
        self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], indices: Indices
    ) -> dict[str, Tensor]:
        """Return the weighted terms of given matches, not divided by anything."""
        layer = {"logits": logits.unsqueeze(-1), "pred_boxes": boxes}
        terms: dict[str, Tensor] = {}
        for name in self.terms.losses:
            terms |= self.terms.get_loss(name, layer, targets, indices, 1.0)
        return {name: value * self.terms.weight_dict[name] for name, value in terms.items()}


def _sum(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def _inside(boxes: Tensor, regions: tuple[Tensor, ...], coverage: float) -> Tensor:
    """Return which boxes lie inside some single ignore region of their image, bool[B, K].

    A box does when at least the share `coverage` of its area is inside the region.
    """
    inside = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for i, image_regions in enumerate(regions):
        if len(image_regions):
            queries, corners = to_corners(boxes[i]), to_corners(image_regions)
            low = torch.maximum(queries[:, None, :2], corners[None, :, :2])
            high = torch.minimum(queries[:, None, 2:], corners[None, :, 2:])
            overlap = (high - low).clamp(min=0).prod(-1)
            share = overlap / area(queries).clamp(min=1e-9)[:, None]
            inside[i] = (share >= coverage).any(-1)
    return inside
