"""OPN's loss: Hungarian matching, varifocal score, L1 and GIoU on every layer and on the encoder's selection.

transformers' RTDetrLoss does the matching and the three terms (one class, "object"); this file sums them
without dividing, so that the training loop can divide by the number of boxes over all workers, and leaves
queries inside ignore regions out of the score's negatives.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers.loss.loss_rt_detr import RTDetrLoss

from fo1_model.boxes import area, to_corners
from fo1_model.opn.network import OPNOutputs
from fo1_model.opn.targets import OPNBatch

Indices = list[tuple[Tensor, Tensor]]
IGNORED_LOGIT = -30.0
"""Stands in for the logit of an ignored query: its varifocal term and gradient vanish."""


@dataclass(frozen=True, kw_only=True)
class OPNCriterionConfig:
    """Weights of the loss and of the matching; defaults are RT-DETR's."""

    varifocal_weight: float = 1.0
    """Score: binary cross-entropy towards the IoU of the matched box."""
    l1_weight: float = 5.0
    """Box: L1 over cxcywh in [0, 1]."""
    giou_weight: float = 2.0
    """Box: 1 - GIoU."""
    matching_score_cost: float = 2.0
    """Focal score cost in the matching; the box costs equal the box weights."""
    focal_alpha: float = 0.75
    """Varifocal weight of negatives."""
    focal_gamma: float = 2.0
    """Varifocal exponent on the predicted score of negatives."""
    ignore_coverage: float = 0.5
    """An unmatched query with at least this share of its area inside an ignore region is no negative."""


class OPNCriterion(nn.Module):
    """`criterion(outputs, batch) -> (loss_sum, num_boxes, logs)`; see `forward`."""

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

    def forward(self, outputs: OPNOutputs, batch: OPNBatch) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The loss of one batch, as a sum.

        Returns loss_sum float32[] (divide by the number of boxes over all workers, at least 1), num_boxes
        float32[] of this batch, and logs: the summed terms of the last layer. Finite without any box.
        """
        targets = [
            {"boxes": boxes, "class_labels": boxes.new_zeros(len(boxes), dtype=torch.int64)}
            for boxes in batch.boxes
        ]
        layers = list(zip(outputs.logits, outputs.boxes, strict=True))
        last = self._layer(*layers[-1], targets, batch.ignore_boxes)
        total = _sum(last)
        for logits, boxes in [*layers[:-1], (outputs.encoder_logits, outputs.encoder_boxes)]:
            total = total + _sum(self._layer(logits, boxes, targets, batch.ignore_boxes))
        num_boxes = sum(len(boxes) for boxes in batch.boxes)
        total = total + self._denoising(outputs, targets)
        logs = {name: float(value.detach()) for name, value in last.items()}
        return total, total.new_tensor(float(num_boxes)), logs

    def _denoising(self, outputs: OPNOutputs, targets: list[dict[str, Tensor]]) -> Tensor:
        """The same terms on the noised queries, whose matches are known; a mean over the groups."""
        total = outputs.logits.new_zeros(())
        if outputs.noised_logits is None or outputs.noised_boxes is None or outputs.noised_real is None:
            return total
        groups = sum(len(p) for p in outputs.noised_positives) // sum(len(t["boxes"]) for t in targets)
        matched = [
            (positives, torch.arange(len(target["boxes"]), device=positives.device).tile(groups))
            for positives, target in zip(outputs.noised_positives, targets, strict=True)
        ]
        logits_of_layers = outputs.noised_logits.masked_fill(~outputs.noised_real, IGNORED_LOGIT)
        for logits, boxes in zip(logits_of_layers, outputs.noised_boxes, strict=True):
            total = total + _sum(self._weighted(logits, boxes, targets, matched)) / groups
        return total

    def _layer(
        self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], ignore: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """One layer's weighted terms: matching, then ignore regions, then the loss."""
        indices = self.terms.matcher({"logits": logits.unsqueeze(-1), "pred_boxes": boxes}, targets)
        if any(len(regions) for regions in ignore):
            ignored = _inside(boxes.detach(), ignore, self.config.ignore_coverage)
            for i, (queries, _) in enumerate(indices):
                ignored[i, queries] = False
            logits = logits.masked_fill(ignored, IGNORED_LOGIT)
        return self._weighted(logits, boxes, targets, indices)

    def _weighted(
        self, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], indices: Indices
    ) -> dict[str, Tensor]:
        """Weighted, undivided terms of given matches."""
        layer = {"logits": logits.unsqueeze(-1), "pred_boxes": boxes}
        terms: dict[str, Tensor] = {}
        for name in self.terms.losses:
            terms |= self.terms.get_loss(name, layer, targets, indices, 1.0)
        return {name: value * self.terms.weight_dict[name] for name, value in terms.items()}


def _sum(terms: dict[str, Tensor]) -> Tensor:
    """The terms added up."""
    return torch.stack(list(terms.values())).sum()


def _inside(boxes: Tensor, regions: tuple[Tensor, ...], coverage: float) -> Tensor:
    """bool[B, K]: the share of a box's area inside some single ignore region of its image is >= coverage."""
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
