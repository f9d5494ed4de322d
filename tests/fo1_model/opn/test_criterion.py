"""OPN's loss: worked by hand, without boxes, with ignore regions, whatever way a batch is split."""

import dataclasses
import math

import pytest
import torch

from fo1_model.opn.config import OPN_SIZES, OPNCriterionConfig
from fo1_model.opn.criterion import OPNCriterion
from fo1_model.opn.network import OPNOutputs, new_opn
from fo1_model.opn.targets import Letterbox, OPNBatch

NOTHING = torch.zeros(0, 4)


def batch_of(
    boxes: list[torch.Tensor],
    ignore: list[torch.Tensor] | None = None,
    complete: tuple[bool, ...] | None = None,
) -> OPNBatch:
    generator = torch.Generator().manual_seed(len(boxes))
    return OPNBatch(
        pixels=torch.randn(len(boxes), 3, 64, 64, generator=generator),
        prompts=torch.zeros(len(boxes), dtype=torch.int64),
        boxes=tuple(boxes),
        ignore_boxes=tuple(ignore or [NOTHING] * len(boxes)),
        complete=complete or (True,) * len(boxes),
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
    """A query 0.1 beside its object of 0.2 x 0.2, and a far one; every term by hand, twice.

    Twice: for the layer and for the encoder. IoU 1/3. L1 = 0.1. GIoU: union 0.06, hull 0.06: 1/3.
    Varifocal: the match (logit 0) towards 1/3 with weight 1/3; the other (logit 0, p 1/2) towards 0
    with weight 0.75 p^2. BCE at logit 0 is log 2 either way.
    """
    outputs = one_layer([0.0, 0.0], [[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    total, num_boxes, logs = OPNCriterion()(
        outputs, batch_of([torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    )
    varifocal = (1 / 3 + 0.75 / 4) * math.log(2)
    assert logs["loss_vfl"] == pytest.approx(varifocal, abs=1e-5)
    assert logs["loss_bbox"] == pytest.approx(5 * 0.1, abs=1e-5)
    assert logs["loss_giou"] == pytest.approx(2 * (1 - 1 / 3), abs=1e-5)
    assert float(total) == pytest.approx(2 * (varifocal + 0.5 + 4 / 3), abs=1e-4)
    assert float(num_boxes) == 1.0


def test_queries_in_ignore_regions_are_no_negatives() -> None:
    """Inside counts by the share of the query's own area; a matched query stays in any case."""
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


FAR, NEAR, HALF = [0.8, 0.8, 0.1, 0.1], [0.5, 0.55, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2]
"""Beside an object at 0.5, 0.5 of 0.2 x 0.2: IoU 0, 0.6 and 1/3."""


def score_loss(config: OPNCriterionConfig, *, complete: bool) -> float:
    """The score's loss of the three queries above and one on the object, less the match's.

    All logits are 0.
    """
    there = [0.5, 0.5, 0.2, 0.2]
    outputs = one_layer([0.0] * 4, [there, FAR, NEAR, HALF])
    batch = batch_of([torch.tensor([there])], complete=(complete,))
    return OPNCriterion(config)(outputs, batch)[2]["loss_vfl"] - math.log(
        2
    )  # the match: IoU 1 towards 1


@pytest.mark.parametrize(
    ("config", "complete", "negatives"),
    [
        (OPNCriterionConfig(), True, 3),
        (OPNCriterionConfig(), False, 2),  # FAR may be an object that nobody annotated
        (OPNCriterionConfig(incomplete_iou=0.5), False, 1),
        (OPNCriterionConfig(ignore_band=(0.1, 0.5)), True, 2),  # HALF overlaps in part
        (OPNCriterionConfig(ignore_band=(0.0, 0.9)), True, 1),  # the band is open: FAR has 0
        (OPNCriterionConfig(ignore_band=(0.1, 0.5)), False, 1),
    ],
)
def test_who_is_no_negative(config: OPNCriterionConfig, complete: bool, negatives: int) -> None:
    assert score_loss(config, complete=complete) == pytest.approx(
        negatives * 0.75 / 4 * math.log(2), abs=1e-4
    )


def test_an_ignored_query_has_no_gradient() -> None:
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2], FAR]]])
    outputs = OPNOutputs(
        logits=logits, boxes=boxes, encoder_logits=logits[0], encoder_boxes=boxes[0]
    )
    for complete, moves in ((True, True), (False, False)):
        logits.grad = None
        batch = batch_of([torch.tensor([[0.5, 0.5, 0.2, 0.2]])], complete=(complete,))
        OPNCriterion()(outputs, batch)[0].backward()
        assert bool(logits.grad[0, 0, 1] != 0) == moves
        assert logits.grad[0, 0, 0] != 0


def test_an_incomplete_image_without_boxes_teaches_nothing_about_scores() -> None:
    outputs = one_layer([0.0, 1.0], [FAR, NEAR])
    assert OPNCriterion()(outputs, batch_of([NOTHING], complete=(False,)))[2][
        "loss_vfl"
    ] == pytest.approx(0)
    assert OPNCriterion()(outputs, batch_of([NOTHING]))[2]["loss_vfl"] > 0.1


def ignored_one_by_one(
    boxes: list[list[float]],
    objects: list[list[float]],
    regions: list[list[float]],
    complete: bool,
    config: OPNCriterionConfig,
) -> list[bool]:
    """The rule for the unmatched queries of one image, in plain numbers; all boxes cxcywh."""

    def overlap(a: list[float], b: list[float]) -> float:
        sides = []
        for axis in (0, 1):
            low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
            high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
            sides.append(max(0.0, high - low))
        return sides[0] * sides[1]

    answers = []
    for box in boxes:
        area = box[2] * box[3]
        answer = any(overlap(box, region) / area >= config.ignore_coverage for region in regions)
        best = 0.0
        for other in objects:
            shared = overlap(box, other)
            best = max(best, shared / (area + other[2] * other[3] - shared))
        if config.ignore_band is not None and config.ignore_band[0] < best < config.ignore_band[1]:
            answer = True
        if not complete and best < config.incomplete_iou:
            answer = True
        answers.append(answer)
    return answers


@pytest.mark.parametrize("band", [None, (0.1, 0.5), (0.3, 0.4)])
@pytest.mark.parametrize("seed", range(3))
def test_ignored_queries_against_plain_numbers(band: tuple[float, float] | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> torch.Tensor:
        return 0.2 + 0.5 * torch.rand(count, 4, generator=generator)

    objects, regions, complete = (
        [some(4), NOTHING, some(2)],
        [some(1), some(2), NOTHING],
        (True, False, False),
    )
    queries = torch.stack([some(60) for _ in objects])
    config = OPNCriterionConfig(ignore_band=band, incomplete_iou=0.3, ignore_coverage=0.7)
    found = OPNCriterion(config)._ignored(queries, batch_of(objects, regions, complete))
    images = zip(queries, objects, regions, complete, strict=True)
    expected = [
        ignored_one_by_one(*(part.tolist() for part in parts), whole, config)
        for *parts, whole in images
    ]
    assert found.tolist() == expected
    share = found.float().mean()
    assert 0 < share < 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"incomplete_iou": 2.0}, "incomplete_iou"), ({"ignore_band": (0.5, 0.1)}, "band")],
)
def test_wrong_settings(changes: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        OPNCriterionConfig(**changes)


def test_denoising_terms_are_a_mean_over_groups() -> None:
    """Two equal groups, a near copy and a far one each, cost as one does; padding costs nothing."""
    batch = batch_of([torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    plain = one_layer([0.0], [[0.6, 0.5, 0.2, 0.2]])

    def total(groups: int, padding: int) -> float:
        boxes = [[0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]] * groups + [
            [0.5, 0.5, 0.1, 0.1]
        ] * padding
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
@pytest.mark.parametrize(
    "objects", [[NOTHING, NOTHING], [NOTHING, torch.tensor([[0.5, 0.5, 0.3, 0.3]])]]
)
def test_empty_images_reach_every_parameter(groups: int, objects: list[torch.Tensor]) -> None:
    config = dataclasses.replace(OPN_SIZES["tiny"](), image_size=64, denoising_groups=groups)
    model = new_opn(config, 0).train()
    batch = batch_of(objects)
    total, num_boxes, _ = OPNCriterion()(
        model(batch.pixels, batch.prompts, batch.boxes, batch.seeds), batch
    )
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
    boxes = [
        torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.2, 0.2, 0.1, 0.2]]),
        torch.tensor([[0.6, 0.4, 0.2, 0.2]]),
    ]
    whole = batch_of([*boxes, NOTHING])

    def loss(chosen: slice) -> torch.Tensor:
        part = dataclasses.replace(
            whole,
            pixels=whole.pixels[chosen],
            prompts=whole.prompts[chosen],
            boxes=whole.boxes[chosen],
            ignore_boxes=whole.ignore_boxes[chosen],
            complete=whole.complete[chosen],
            seeds=whole.seeds[chosen],
        )
        return OPNCriterion()(model(part.pixels, part.prompts, part.boxes, part.seeds), part)[0]

    parts = loss(slice(0, 1)) + loss(slice(1, 3))
    torch.testing.assert_close(parts, loss(slice(0, 3)), rtol=1e-5, atol=1e-5)
