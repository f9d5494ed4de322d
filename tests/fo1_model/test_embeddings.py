import pytest
import torch
import torch.nn.functional as F

from fo1_model.embeddings import NewTokenRows


def rows(ids=(3, 7), base_rows=5, hidden_size=2) -> NewTokenRows:
    """Id 3 sits in a spare row of the base, id 7 beyond it; ids 5 and 6 exist nowhere."""
    module = NewTokenRows(ids, base_rows=base_rows, hidden_size=hidden_size)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    return module


BASE = torch.arange(10.0).view(5, 2)


def test_embeddings_take_new_rows_where_ids_are_new():
    module, ids = rows(), torch.tensor([[0, 3, 4, 7]])
    base = F.embedding(module.base_ids(ids), BASE)
    expected = torch.tensor([[[0.0, 1.0], [10.0, 20.0], [8.0, 9.0], [30.0, 40.0]]])
    assert torch.equal(module(base, ids=ids), expected)


def test_logits_have_new_columns_in_their_places():
    module, hidden = rows(), torch.tensor([[1.0, 1.0]])
    logits = module(hidden @ BASE.T, hidden=hidden)
    inf = float("inf")
    assert logits.tolist() == [[1.0, 5.0, 9.0, 30.0, 17.0, -inf, -inf, 70.0]]


def test_merged_matrix_is_what_both_uses_see():
    module = rows()
    merged = module.merged(BASE)
    ids = torch.tensor([0, 1, 2, 3, 4, 7])
    assert torch.equal(merged[ids], module(F.embedding(module.base_ids(ids), BASE), ids=ids))
    hidden = torch.tensor([[0.5, -1.0]])
    assert torch.equal((hidden @ merged.T)[:, ids], module(hidden @ BASE.T, hidden=hidden)[:, ids])


def test_gradients_reach_only_the_rows_that_were_used():
    module, ids = rows(), torch.tensor([0, 7])
    module(torch.zeros(2, 2), ids=ids).sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_start_is_near_the_mean_of_used_rows_and_seeded():
    base = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 3
    base[40:] = 1000.0
    first = NewTokenRows(range(40, 48), base_rows=50, hidden_size=8)
    first.initialise(base, torch.Generator().manual_seed(1))
    used = base[:40]
    assert ((first.weight - used.mean(0)).abs() < 0.5 * used.std(0)).all()
    assert len(first.weight.unique(dim=0)) == 8
    again = NewTokenRows(range(40, 48), base_rows=50, hidden_size=8)
    again.initialise(base, torch.Generator().manual_seed(1))
    assert torch.equal(first.weight, again.weight)


def test_start_can_be_wide_or_another_token():
    base = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    module = NewTokenRows(range(40, 140), base_rows=150, hidden_size=8)
    padded = torch.cat([base, torch.zeros(110, 8)])
    module.initialise(padded, torch.Generator().manual_seed(1), spread=1.0, like={42: 7})
    assert torch.equal(module.weight[2], base[7])
    torch.testing.assert_close(module.weight.std(0), base.std(0), rtol=0.4, atol=0)


def test_ids_must_be_distinct():
    with pytest.raises(ValueError, match="distinct"):
        NewTokenRows((3, 3), base_rows=5, hidden_size=2)


def test_either_ids_or_hidden():
    with pytest.raises(ValueError, match="either"):
        rows()(torch.zeros(1, 2))
