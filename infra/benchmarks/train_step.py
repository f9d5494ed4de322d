"""A training step: time and peak memory against two savings undone, and where its time goes.

    python infra/benchmarks/train_step.py > infra/benchmarks/reports/DATE-train-step.md
    python infra/benchmarks/train_step.py --device cuda

Every measurement comes from a process of its own, which takes steps as `pipelines.training.loop`
does: learner, DeepSpeed engine, forward and backward passes, clipping, AdamW. All steps see the
same noise images with random boxes and a detection question. Weights are random. For comparison
two savings are undone, alone and together: logits at all positions, and the upsampled map
(`train_variants.py`). All ways must give the same losses, or the run ends.

On a CPU: a small model with the released vocabulary, one thread, float32, CPU time. On a GPU: the
released size in bf16 and wall time. Peak memory is what a step needs above what stays at rest:
weights, optimizer state and gradient buffers. Utilisation counts what the model is worth
(`pipelines.training.flops`), recomputed activations left out.
"""

import argparse
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from region_pooling import clock, extra_memory, machine, resident
from train_variants import MODELS, VARIANTS, computed_as, samples

from fo1_model.acceleration import attention_implementation
from fo1_model.config import TOWERS
from pipelines.loading.loader import MicroBatch, StepData
from pipelines.train_config import TrainConfig
from pipelines.training.deepspeed_engine import Engine
from pipelines.training.flops import peak_flops, train_flops
from pipelines.training.learners import FO1Learner
from pipelines.training.run_state import RunState
from pipelines.training.train_step import take_step

STAGES = ("stage1", "stage2")
PHASES = ("towers and regions", "decoder", "head and loss", "backward", "clip and update", "rest")
TOLERANCE = 1e-4
"""Largest relative difference of losses in float32; in bf16 a hundred times as much."""
SOURCE = "drawn"
"""Source of all samples."""


class Trained:
    """One stage of a model under training in this process."""

    def __init__(self, given: argparse.Namespace, stage: str) -> None:
        self.device = given.device
        self.config = TrainConfig(
            steps=1000,
            batch_size=given.batch * given.passes,
            micro_batch_size=given.batch,
            learning_rate=1e-5,
            precision=given.precision,
            zero_stage=given.zero_stage,
            activation_checkpointing=tuple(given.recompute),
            compile=given.compile,
            offload_optimizer=given.offload,
        )
        os.environ.setdefault("LOCAL_RANK", "0")
        if not dist.is_initialized():
            backend = "nccl" if given.device == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.trainee: Any = FO1Learner(stage=stage, model=MODELS[given.model]()).build(None, seed=0)
        groups = self.trainee.parameter_groups(self.config)
        self.engine = Engine(
            self.trainee.module,
            groups,
            self.config,
            num_micro_batches=given.passes,
            micro_batch_size=given.batch,
        )
        self.trainee.module.train()
        encoded = samples(
            self.trainee.collator.processor, self.config.batch_size, given.side, given.boxes
        )
        batches = [
            self.trainee.collator.collate(encoded[first : first + given.batch])
            for first in range(0, len(encoded), given.batch)
        ]
        self.flops = sum(train_flops(self.trainee.module, batch) or 0.0 for batch in batches)
        self.data = StepData(
            step=0,
            micro_batches=[
                MicroBatch(
                    batch=batch,
                    weight=self.trainee.collator.weigh(batch),
                    sources=(SOURCE,) * len(batch.sample_ids),
                )
                for batch in batches
            ],
            sample_ids=[item.sample_id for item in encoded],
            num_tokens=sum(len(item.input_ids) for item in encoded),
        )
        self.state = RunState(plan="benchmark")

    def step(self) -> tuple[float, float]:
        """Take a step; return its seconds and its loss."""
        start = clock(self.device)
        data = replace(self.data, step=self.state.step)
        result = take_step(
            self.engine,
            self.trainee,
            data,
            self.config,
            self.state,
            sources=(SOURCE,),
            logs=True,
            is_due=False,
        )
        self.state.step += 1
        return clock(self.device) - start, result.record["loss"]

    def phases(self) -> dict[str, float]:
        """Return the seconds of a step by `PHASES`.

        Waiting for the GPU after each makes the whole step a bit longer.
        """
        spent: defaultdict[str, float] = defaultdict(float)

        def timed(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                start = clock(self.device)
                result = method(*args, **kwargs)
                spent[phase] += clock(self.device) - start
                return result

            return call

        module = self.trainee.module
        wrapped = {
            "towers and regions": (module, "embed"),
            "decoder": (module, "decode"),
            "head and loss": (self.trainee, "loss"),
            "backward": (self.engine, "backward"),
            "clip and update": (self.engine, "finish_step"),
        }
        with contextlib.ExitStack() as stack:
            for phase, (owner, name) in wrapped.items():
                method = timed(getattr(owner, name), phase)
                stack.enter_context(mock.patch.object(owner, name, method))
            seconds, _ = self.step()
        spent["head and loss"] -= spent["towers and regions"] + spent["decoder"]
        spent["rest"] = seconds - sum(spent.values())
        return {phase: spent[phase] for phase in PHASES}

    def operations(self, count: int) -> list[tuple[str, int, float]]:
        """Return the operations that take most time: name, calls, seconds on the device."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        on_gpu = self.device == "cuda"
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            self.step()
        field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        events = profile.key_averages()
        # On a GPU kernels are kept; ranges of the CPU are listed there once more, under the same
        # names.
        on_cpu = {
            event.key for event in events if event.device_type == torch.autograd.DeviceType.CPU
        }
        found = [
            (event.key, event.count, getattr(event, field) / 1e6)
            for event in events
            if (event.key in on_cpu) != on_gpu
        ]
        return sorted(found, key=lambda row: -row[2])[:count]


def measure(given: argparse.Namespace, stage: str, variant: str) -> dict[str, Any]:
    """Measure one variant of one stage in this process."""
    with computed_as(variant):
        trained = Trained(given, stage)
        for _ in range(given.warm_up):
            trained.step()
        resting = torch.cuda.memory_allocated() if given.device == "cuda" else resident("VmRSS")
        extra = extra_memory(given.device)
        times, losses = zip(*(trained.step() for _ in range(given.steps)), strict=True)
        found = {
            "seconds": statistics.median(times),
            "losses": losses,
            "resting": resting,
            "peak": extra(),
            "tokens": trained.data.num_tokens,
            "supervised": sum(micro.weight for micro in trained.data.micro_batches),
            "flops": trained.flops,
            "peak_flops": peak_flops(torch.device(given.device)),
        }
        if variant == "ours":
            found |= {
                "phases": trained.phases(),
                "operations": trained.operations(given.operations),
            }
    return found


def in_own_process(given: argparse.Namespace, stage: str, variant: str) -> dict[str, Any] | None:
    """Return what `measure` finds; None when the GPU's memory does not suffice."""
    command = [sys.executable, __file__, *given.words, "--measure", stage, variant]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return ["", *(f"| {' | '.join(line)} |" for line in (header, rule, *rows))]


def report(given: argparse.Namespace) -> str:
    lines = heading(given)
    found = {s: {v: in_own_process(given, s, v) for v in given.variants} for s in given.stages}
    rows = [
        [stage, variant, *compared(given, measured[given.variants[0]], measured[variant])]
        for stage, measured in found.items()
        for variant in given.variants
    ]
    header = [
        "stage",
        "variant",
        "s a step",
        "times the first",
        "peak MiB",
        "times the first",
        "loss",
    ]
    lines += ["", "## Against full logits and the upsampled map", *table(header, rows, 2)]
    ours = {stage: measured["ours"] for stage, measured in found.items() if measured.get("ours")}
    if not ours:
        return "\n".join(lines)
    header = [
        "stage",
        "tokens a sample",
        "of them supervised",
        "samples/s",
        "tokens/s",
        "TFLOP a step",
    ]
    header += ["TFLOP/s", "utilisation, %", "MiB at rest", "peak MiB above"]
    rows = [[stage, *throughput(given, one)] for stage, one in ours.items()]
    lines += ["", "## Ours", *table(header, rows)]
    rows = [
        [
            phase,
            *(
                f"{100 * one['phases'][phase] / sum(one['phases'].values()):.1f}"
                for one in ours.values()
            ),
        ]
        for phase in PHASES
    ]
    lines += ["", "## Where a step goes, % of its time", *table(["phase", *ours], rows)]
    for stage, one in ours.items():
        rows = [
            [
                f"`{name[:90]}`",
                str(calls),
                f"{1e3 * seconds:.1f}",
                f"{100 * seconds / one['seconds']:.1f}",
            ]
            for name, calls, seconds in one["operations"]
        ]
        title = f"## Operations of {stage} that take most time"
        lines += ["", title, *table(["operation", "calls", "ms", "% of a step"], rows)]
    return "\n".join(lines)


def compared(given: argparse.Namespace, first: dict | None, one: dict | None) -> list[str]:
    """Return the cells of a variant beside the first one, whose losses must be the same."""
    if one is None:
        return ["out of memory", "", "", "", ""]
    if first is None:
        return [
            f"{one['seconds']:.3f}",
            "",
            f"{one['peak'] / 2**20:,.0f}",
            "",
            f"{one['losses'][-1]:.5f}",
        ]
    tolerance = TOLERANCE * (1 if given.precision == "fp32" else 100)
    if not np.allclose(one["losses"], first["losses"], rtol=tolerance, atol=0):
        raise ArithmeticError(f"losses {one['losses']} differ from {first['losses']}")
    return [
        f"{one['seconds']:.3f}",
        f"{one['seconds'] / first['seconds']:.2f}",
        f"{one['peak'] / 2**20:,.0f}",
        f"{one['peak'] / max(1, first['peak']):.2f}",
        f"{one['losses'][-1]:.5f}",
    ]


def throughput(given: argparse.Namespace, one: dict[str, Any]) -> list[str]:
    rate, batch = one["flops"] / one["seconds"], given.batch * given.passes
    share = "" if one["peak_flops"] is None else f"**{100 * rate / one['peak_flops']:.1f}**"
    return [
        f"{one['tokens'] / batch:.0f}",
        f"{one['supervised'] / batch:.0f}",
        f"{batch / one['seconds']:.2f}",
        f"{one['tokens'] / one['seconds']:,.0f}",
        f"{one['flops'] / 1e12:.3f}",
        f"{rate / 1e12:.3f}",
        share,
        f"{one['resting'] / 2**20:,.0f}",
        f"{one['peak'] / 2**20:,.0f}",
    ]


def heading(given: argparse.Namespace) -> list[str]:
    clocked = "one thread, CPU time" if given.device == "cpu" else "wall time"
    settings = [
        f"{given.precision}, ZeRO {given.zero_stage}",
        f"{given.passes} passes of {given.batch} samples a step",
        f"attention {attention_implementation(given.precision)}",
        f"recomputed: {', '.join(given.recompute) or 'nothing'}",
        *(name for name in ("compile", "offload") if getattr(given, name)),
    ]
    return [
        f"# A training step, {given.model}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
        "",
        f"{machine(given.device)}, load average {os.getloadavg()[0]:.1f} at the start. Command:",
        "",
        f"    python infra/benchmarks/train_step.py {' '.join(given.words)}".rstrip(),
        "",
        f"Images of {given.side} px with {given.boxes} boxes; {'; '.join(settings)}.",
        f"Median of {given.steps} steps after {given.warm_up}, {clocked}; a process for each row.",
        "Peak: above what stays at rest (weights, optimizer state, gradient buffers).",
    ]


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--model", choices=sorted(MODELS), help="widened; with cuda the released size"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, help="samples in a forward pass; 1, with cuda 8")
    parser.add_argument("--passes", type=int, default=1, help="forward passes a step")
    parser.add_argument("--side", type=int, default=768, help="of the square images, px")
    parser.add_argument("--boxes", type=int, default=100, help="of each image")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="fp32, with cuda bf16")
    parser.add_argument("--zero-stage", type=int, choices=[0, 1, 2, 3], default=2)
    parser.add_argument(
        "--recompute", nargs="*", choices=TOWERS, help="with cuda decoder and auxiliary tower"
    )
    parser.add_argument("--compile", action="store_true", help="the decoder's layers")
    parser.add_argument("--offload", action="store_true", help="optimizer state in main memory")
    parser.add_argument("--warm-up", type=int, help="steps before the timed ones; 1, with cuda 3")
    parser.add_argument("--steps", type=int, help="timed steps; 3, with cuda 10")
    parser.add_argument("--operations", type=int, default=12, help="listed of a profiled step")
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "VARIANT"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    on_gpu = given.device == "cuda"
    given.model = given.model or ("qwen2_5_vl_3b" if on_gpu else "widened")
    given.batch = given.batch or (8 if on_gpu else 1)
    given.precision = given.precision or ("bf16" if on_gpu else "fp32")
    given.recompute = (
        (["language", "auxiliary"] if on_gpu else [])
        if given.recompute is None
        else given.recompute
    )
    given.warm_up = given.warm_up or (3 if on_gpu else 1)
    given.steps = given.steps or (10 if on_gpu else 3)
    given.words = words
    return given


def main(words: list[str]) -> None:
    given = arguments(words)
    torch.set_num_threads(1)
    if not given.measure:
        print(report(given))
        return
    try:
        print(f"\n{json.dumps(measure(given, *given.measure))}")
    except torch.OutOfMemoryError:
        print("\nnull")


if __name__ == "__main__":
    main(sys.argv[1:])
