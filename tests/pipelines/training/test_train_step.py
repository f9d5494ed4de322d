"""Losses by source add up to the loss, over passes and fillers; over ranks see test_run_state."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.loading.collators import Example, batch_of
from pipelines.loading.loader import MicroBatch
from pipelines.training.train_step import _means, _passes
from tests.pipelines.training.stub_learner import StubLearner, StubTrainee, record

SOURCES = ["a/counting", "a/detection", "b/detection", "c/never"]


class PlainEngine:
    """Forward passes and nothing else."""

    device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def __call__(self, *inputs: Any) -> Any:
        return self._module(*inputs)

    def ends_step(self, last: bool) -> None:
        pass

    def backward(self, loss: torch.Tensor) -> None:
        pass

    def micro_step(self) -> None:
        pass


TRAINEE: StubTrainee = StubLearner(dropout=0.0).build(None, seed=0)


def micro_batch(members: list[tuple[int, str]], *, filler: bool = False) -> MicroBatch:
    examples = [Example(record=record(number), image=b"", seed=number) for number, _ in members]
    batch = batch_of(TRAINEE.collator, examples)
    sources = () if filler else tuple(source for _, source in members)
    return MicroBatch(batch=batch, weight=0.0, sources=sources, filler=filler)


def passes(
    micro_batches: list[MicroBatch], sources: list[str]
) -> tuple[dict[str, Any], torch.Tensor]:
    engine: Any = PlainEngine(TRAINEE.module)
    return _passes(engine, TRAINEE, micro_batches, 1.0, sources)


MEMBERS = st.lists(
    st.tuples(st.integers(0, 99), st.sampled_from(SOURCES[:3])), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(MEMBERS, min_size=1, max_size=4), fillers=st.integers(0, 2))
def test_losses_of_sources_add_up_to_the_loss(
    drawn: list[list[tuple[int, str]]], fillers: int
) -> None:
    micro_batches = [micro_batch(members) for members in drawn]
    micro_batches += [micro_batch(drawn[-1], filler=True)] * fillers
    sums, by_source = passes(micro_batches, SOURCES)
    assert by_source[:, 0].sum().item() == pytest.approx(sums["loss"].item(), rel=1e-5)
    held: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    for number, source in (member for members in drawn for member in members):
        held[source] += len(record(number).boxes)
        losses[source] += float(passes([micro_batch([(number, source)])], [])[0]["loss"])
    assert by_source[:, 1].tolist() == [held[source] for source in SOURCES]
    means = _means(SOURCES, by_source.flatten().tolist())
    assert set(means) == {f"loss/{source}" for source in held}
    for source in held:
        assert means[f"loss/{source}"] == pytest.approx(losses[source] / held[source], rel=1e-5)


def test_a_step_that_is_not_logged_has_the_loss_alone() -> None:
    sums, by_source = passes([micro_batch([(1, SOURCES[0])])], [])
    assert set(sums) == {"loss"}
    assert by_source.numel() == 0


def test_a_loss_that_does_not_come_apart_has_no_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleNamespace(total=torch.ones((), requires_grad=True), parts={}, by_example=None)
    monkeypatch.setattr(TRAINEE, "loss", lambda *_: whole)
    _, by_source = passes([micro_batch([(1, SOURCES[0])])], SOURCES)
    assert _means(SOURCES, by_source.flatten().tolist()) == {}
