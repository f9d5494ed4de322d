"""How fast a run is: metrics by hand, under a clock of our own."""

import mmap

import pytest
import torch
import torch.distributed as dist

from pipelines.training import throughput
from pipelines.training.throughput import GIB, SpeedMeter, StepCost, resident_bytes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds now, in a list of one; two ranks, of which the other has 3 GiB."""
    now = [100.0]

    def most(tensor: torch.Tensor, op: object) -> None:
        assert op == dist.ReduceOp.MAX
        tensor.clamp_(min=3.0)

    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(throughput.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(throughput.dist, "all_reduce", most)
    monkeypatch.setattr(throughput, "resident_bytes", lambda: 2 * GIB)
    return now


def meter(precision: str = "bf16") -> SpeedMeter:
    return SpeedMeter(torch.device("cpu"), batch_size=8, precision=precision)


def test_two_steps_by_hand(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda _: 400.0)
    measured = meter()
    measured.count(StepCost(tokens=300, flops=1000.0, wait_s=0.5), compute_s=1.0)
    measured.count(StepCost(tokens=500, flops=3000.0, wait_s=0.25), compute_s=2.5)
    clock[0] += 5.0
    assert measured.seconds == 5.0
    assert measured.metrics() == {
        "samples_per_second": 16 / 5,
        "tokens_per_second": 160.0,
        "step_seconds": 2.5,
        "data_wait_share": 0.15,
        "compute_share": 0.7,
        "flops_per_second": 400.0,  # 4000 by two ranks in 5 s
        "flop_utilisation": 1.0,
        "memory_resident_gib": 3.0,
    }


def test_an_interval_holds_its_own_steps_alone(clock: list[float]) -> None:
    measured = meter()
    measured.count(StepCost(tokens=300, flops=0.0, wait_s=0.5), compute_s=1.0)
    clock[0] += 60.0  # a checkpoint
    measured.restart()
    measured.count(StepCost(tokens=100, flops=0.0, wait_s=0.0), compute_s=1.0)
    clock[0] += 2.0
    metrics = measured.metrics()
    assert (metrics["tokens_per_second"], metrics["compute_share"]) == (50.0, 0.5)
    assert not {"flops_per_second", "flop_utilisation"} & set(metrics)  # nobody counted


def test_peaks_are_of_bf16_and_known_for_some_devices(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = StepCost(tokens=1, flops=10.0, wait_s=0.0)
    for precision, peak, known in (
        ("bf16", 5.0, True),
        ("fp32", 5.0, False),
        ("bf16", None, False),
    ):
        monkeypatch.setattr(throughput, "peak_flops", lambda _, peak=peak: peak)
        measured = meter(precision)
        measured.count(cost, compute_s=1.0)
        clock[0] += 1.0
        assert ("flop_utilisation" in measured.metrics()) is known


def test_memory_of_this_process() -> None:
    before = resident_bytes()
    with mmap.mmap(
        -1, 40 * 2**20
    ) as pages:  # an allocator might hand out memory that it holds already
        pages.write(bytes(40 * 2**20))
        assert resident_bytes() - before > 30 * 2**20
