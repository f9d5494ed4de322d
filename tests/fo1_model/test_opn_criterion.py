"""OPN's loss: worked by hand, without boxes, with ignore regions, whatever way a batch is split."""

import dataclasses
import math

import pytest
import torch

from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.criterion import OPNCriterion
from fo1_model.opn.network import OPNOutputs, new_opn
from fo1_model.opn.targets import Letterbox, OPNBatch

NOTHING = torch.zeros(0, 4)


def batch_of(boxes: list[torch.Tensor], ignore: list[torch.Tensor] | None = None) -> OPNBatch:
    generator = torch.Generator().manual_seed(len(boxes))
    return OPNBatch(
        pixels=torch.randn(len(boxes), 3, 64, 64, generator=generator),
        prompts=torch.zeros(len(boxes), dtype=torch.int64),
        boxes=tuple(boxes),
        ignore_boxes=tuple(ignore or [NOTHING] * len(boxes)),
        letterboxes=(Letterbox(1.0, 64),) * len(boxes),
        seeds=tuple(range(len(boxes))),
    )


def one_layer(logits: list[float], boxes: list[list[float]]) -> OPNOutputs:
    """One decoder layer on one image; the encoder says the same."""
    scores, coordinates = torch.tensor([[logits]]), torch.tensor([[boxes]])
    return OPNOutputs(
        logits=scores, boxes=coordinates, encoder_logits=scores[0], encoder_boxes=coordinates[0]
    )


def test_golden() -> None:
    """A query 0.1 beside its object of 0.2 x 0.2, and a far one; every term by hand, twice (layer, encoder).

    IoU 1/3. L1 = 0.1. GIoU: union 0.06, hull 0.06: 1/3. Varifocal: the match (logit 0) towards 1/3 with
    weight 1/3; the other (logit 0, p 1/2) towards 0 with weight 0.75 p^2. BCE at logit 0 is log 2 either way.
    """
    outputs = one_layer([0.0, 0.0], [[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    total, num_boxes, logs = OPNCriterion()(outputs, batch_of([torch.tensor([[0.5, 0.5, 0.2, 0.2]])]))
    varifocal = (1 / 3 + 0.75 / 4) * math.log(2)
    assert logs["loss_vfl"] == pytest.approx(varifocal, abs=1e-5)
    assert logs["loss_bbox"] == pytest.approx(5 * 0.1, abs=1e-5)
    assert logs["loss_giou"] == pytest.approx(2 * (1 - 1 / 3), abs=1e-5)
    assert float(total) == pytest.approx(2 * (varifocal + 0.5 + 4 / 3), abs=1e-4)
    assert float(num_boxes) == 1.0


def test_queries_in_ignore_regions_are_no_negatives() -> None:
    """Inside counts by the share of the query's own area; a matched query stays whatever it lies in."""
    matched, inside, half_out = [0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.1, 0.1], [0.45, 0.7, 0.2, 0.1]
    outputs = one_layer([0.0, 0.0, 0.0], [matched, inside, half_out])
    boxes = [torch.tensor([matched])]
    term = 0.75 / 4 * math.log(2)

    def varifocal(ignore: list[list[float]]) -> float:
        regions = [torch.tensor(ignore).reshape(-1, 4)]
        return OPNCriterion()(outputs, batch_of(boxes, regions))[2]["loss_vfl"]

    alone = varifocal([])
    # half_out lies a quarter inside the first region and wholly inside the second
    assert varifocal([[0.7, 0.7, 0.4, 0.4]]) == pytest.approx(alone - term, abs=1e-5)
    assert varifocal([[0.6, 0.7, 0.4, 0.4]]) == pytest.approx(alone - 2 * term, abs=1e-5)
    assert varifocal([[0.2, 0.2, 0.4, 0.4]]) == pytest.approx(alone, abs=1e-5)


def test_denoising_terms_are_a_mean_over_groups() -> None:
    """Two equal groups, each a near copy and a far one, cost what one does; padding costs nothing."""
    batch = batch_of([torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    plain = one_layer([0.0], [[0.6, 0.5, 0.2, 0.2]])

    def total(groups: int, padding: int) -> float:
        boxes = [[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]] * groups + [[0.5, 0.5, 0.1, 0.1]] * padding
        noised = dataclasses.replace(
            plain,
            noised_logits=torch.zeros(1, 1, len(boxes)),
            noised_boxes=torch.tensor([[boxes]]),
            noised_real=torch.tensor([[True] * (2 * groups) + [False] * padding]),
            noised_positives=(torch.arange(groups) * 2,),
        )
        return float(OPNCriterion()(noised, batch)[0])

    alone = float(OPNCriterion()(plain, batch)[0])
    varifocal = (1 / 3 + 0.75 / 4) * math.log(2)
    assert total(1, 0) - alone == pytest.approx(varifocal + 0.5 + 4 / 3, abs=1e-4)
    assert total(2, 0) == pytest.approx(total(1, 0), abs=1e-4)
    assert total(2, 3) == pytest.approx(total(1, 0), abs=1e-4)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("objects", [[NOTHING, NOTHING], [NOTHING, torch.tensor([[0.5, 0.5, 0.3, 0.3]])]])
def test_empty_images_reach_every_parameter(groups: int, objects: list[torch.Tensor]) -> None:
    config = dataclasses.replace(OPN_SIZES["tiny"](), image_size=64, denoising_groups=groups)
    model = new_opn(config, 0).train()
    batch = batch_of(objects)
    total, num_boxes, _ = OPNCriterion()(model(batch.pixels, batch.prompts, batch.boxes, batch.seeds), batch)
    total.backward()
    assert torch.isfinite(total)
    assert float(num_boxes) == sum(len(b) for b in objects)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("groups", [0, 2])
def test_sum_over_parts_is_the_sum_over_the_batch(groups: int) -> None:
    """What lets the loop divide by the boxes of all workers: no term hides its own normaliser."""
    config = dataclasses.replace(OPN_SIZES["tiny"](), image_size=64, denoising_groups=groups)
    model = new_opn(config, 0).train()
    boxes = [torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.2, 0.2, 0.1, 0.2]]), torch.tensor([[0.6, 0.4, 0.2, 0.2]])]
    whole = batch_of([*boxes, NOTHING])

    def loss(chosen: slice) -> torch.Tensor:
        part = dataclasses.replace(
            whole,
            pixels=whole.pixels[chosen],
            prompts=whole.prompts[chosen],
            boxes=whole.boxes[chosen],
            ignore_boxes=whole.ignore_boxes[chosen],
            seeds=whole.seeds[chosen],
        )
        return OPNCriterion()(model(part.pixels, part.prompts, part.boxes, part.seeds), part)[0]

    parts = loss(slice(0, 1)) + loss(slice(1, 3))
    torch.testing.assert_close(parts, loss(slice(0, 3)), rtol=1e-5, atol=1e-5)
