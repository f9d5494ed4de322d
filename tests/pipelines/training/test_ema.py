"""The moving average of the weights, against numbers worked by hand."""

from pathlib import Path

import torch
from torch import nn

from pipelines.training.ema import WeightAverage


def module() -> nn.Linear:
    made = nn.Linear(1, 2)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0], [3.0]]))
        made.bias.copy_(torch.tensor([5.0, 7.0]))
    made.bias.requires_grad_(False)
    return made


def test_golden() -> None:
    """Decay 2/11 after the first step, 3/12 after the second, never more than asked for."""
    made = module()
    average = WeightAverage(made, 0.2)
    with torch.no_grad():
        made.weight.add_(11.0)
    average.update(1)  # 2/11 * 1 + 9/11 * 12 = 10
    with average.applied():
        torch.testing.assert_close(made.weight, torch.tensor([[10.0], [12.0]]), rtol=0, atol=1e-6)
    average.update(2)  # 0.2 * 10 + 0.8 * 12 = 11.6
    with average.applied():
        torch.testing.assert_close(made.weight, torch.tensor([[11.6], [13.6]]), rtol=0, atol=1e-6)
        assert made.bias.tolist() == [5.0, 7.0]
    assert made.weight.tolist() == [[12.0], [14.0]]


def test_own_weights_come_back_after_an_error_and_bit_for_bit() -> None:
    made = module().bfloat16()
    before = made.weight.detach().clone()
    average = WeightAverage(made, 0.99)
    with torch.no_grad():
        made.weight.add_(0.125)
    own = made.weight.detach().clone()
    average.update(1)
    try:
        with average.applied():
            assert not torch.equal(made.weight, own)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(made.weight, own)
    assert not torch.equal(own, before)


def test_saved_and_read(tmp_path: Path) -> None:
    made = module()
    average = WeightAverage(made, 0.9)
    with torch.no_grad():
        made.weight.mul_(1.7)
    average.update(100)
    average.save(tmp_path)
    other = WeightAverage(module(), 0.9)
    other.load(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    other.save(again)
    assert (again / "average.safetensors").read_bytes() == (
        tmp_path / "average.safetensors"
    ).read_bytes()
