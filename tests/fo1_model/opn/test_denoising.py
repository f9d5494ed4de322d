"""Noised queries: where they lie, who sees whom, and that no image's depend on its batch."""

import torch

from fo1_model.opn.denoising import NoisedQueries, noised_queries

ONE = torch.tensor([[0.5, 0.4, 0.2, 0.1]])
TWO = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.1, 0.3]])
NOTHING = torch.zeros(0, 4)


def make(boxes: list[torch.Tensor], seeds: list[int], groups: int = 2) -> NoisedQueries:
    noised = noised_queries(boxes, seeds, num_queries=3, groups=groups, scale=1.0)
    assert noised is not None
    return noised


def test_layout_golden() -> None:
    """Near copies at 0 1, far ones at 2 3, then the second group.

    An image of one box has places 0 2 4 6.
    """
    noised = make([ONE, TWO, NOTHING], [1, 2, 3])
    assert noised.box_logits.shape == (3, 8, 4)
    assert noised.real.int().tolist() == [[1, 0, 1, 0, 1, 0, 1, 0], [1] * 8, [0] * 8]
    assert [p.tolist() for p in noised.positives] == [[0, 4], [0, 1, 4, 5], []]
    assert torch.isfinite(noised.box_logits).all()


def test_near_copies_keep_every_edge_within_half_a_side_and_far_ones_do_not() -> None:
    """The box is small and central, so that nothing is clipped."""
    noised = make([torch.tensor([[0.5, 0.5, 0.2, 0.1]])], [4], groups=200)
    boxes = noised.box_logits[0].sigmoid()
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    edges = torch.cat([centre - half, centre + half], 1) - torch.tensor([0.4, 0.45, 0.6, 0.55])
    moved = edges.abs() / torch.tensor([0.1, 0.05, 0.1, 0.05])
    near = moved.view(200, 2, 4)[:, 0]
    assert float(near.max()) <= 1.0 + 1e-3
    assert 0.45 < float(near.mean()) < 0.55
    far = moved.view(200, 2, 4)[:, 1]
    assert (
        1.1 < float(far.mean()) <= 1.6
    )  # 1.5 but for the quarter whose edges crossed and were put in order


def test_who_sees_whom() -> None:
    visible = torch.isfinite(make([ONE, TWO], [1, 2]).mask[:, 0])
    assert visible.shape == (2, 12, 12)  # 8 noised, 3 queries, the task token
    assert not visible[:, 8:, :8].any()  # nobody else sees a noised query
    assert visible[:, :, 8:].all()  # everybody sees the others
    assert not visible[:, :4, 4:8].any()  # groups apart
    assert visible[1, :4, :4].all()
    assert visible[0, 0, :4].tolist() == [True, False, True, False]  # padding unseen
    assert visible[0, 1, :4].tolist() == [True, True, True, False]  # but by itself
    assert (visible.sum(-1) > 0).all()


def test_own_noise_whatever_the_batch() -> None:
    alone, beside = make([ONE], [1]), make([TWO, ONE], [2, 1])
    torch.testing.assert_close(
        beside.box_logits[1][beside.real[1]], alone.box_logits[0][alone.real[0]]
    )
    assert not torch.equal(make([ONE], [9]).box_logits, alone.box_logits)


def test_inputs_stay_and_nothing_gives_nothing() -> None:
    before = TWO.clone()
    make([TWO], [0])
    assert torch.equal(TWO, before)
    assert noised_queries([NOTHING, NOTHING], [0, 1], num_queries=3, groups=2, scale=1.0) is None
    assert noised_queries([ONE], [0], num_queries=3, groups=0, scale=1.0) is None
