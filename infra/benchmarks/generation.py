"""Answers per second at batch 1 and more, and where their time goes.

    python infra/benchmarks/generation.py > infra/benchmarks/reports/DATE-generation.md
    python infra/benchmarks/generation.py --size qwen2_5_vl_3b --device cuda

Fresh random weights; every answer has the same number of new tokens (ends are forbidden), so that
runs can be compared. Images and questions are encoded beforehand. On a CPU: one thread, float32,
CPU time; on a GPU bf16 and wall time.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fo1_model import grammar
from fo1_model.batch import Encoded
from fo1_model.checkpoint import new_model
from fo1_model.generation import GenerationConfig, generate
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.sizes import SIZES

PARTS = ("vision", "prefill", "decode")
"""Parts of an answer's time.

Both towers and the region encoder; the prompt through the decoder; one token after another. The
rest is choosing tokens, the head and reading answers.
"""


class Stopwatch:
    """Seconds of the parts of `generate`, by wrapping two methods of a model."""

    def __init__(self, model: FO1Model, device: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._calls = 0
        tower = self._timed(model.visual_tokens, lambda: "vision")
        model.visual_tokens = tower  # type: ignore[method-assign]
        model.decode = self._timed(model.decode, self._decoding)  # type: ignore[method-assign]

    def reset(self) -> None:
        self.seconds.clear()

    def start(self) -> None:
        """Begin a new batch: the next call of the decoder sees prompts."""
        self._calls = 0

    def now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _decoding(self) -> str:
        self._calls += 1
        return "prefill" if self._calls == 1 else "decode"

    def _timed(self, method: Callable[..., Any], part: Callable[[], str]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.measured(part()):
                return method(*args, **kwargs)

        return timed

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[part] += self.now() - start


def questions(processor: Processor, count: int, side: int, boxes: int) -> list[Encoded]:
    """Return noise images with random boxes and the release's detection question."""
    asked = (
        "Please detect red circle; blue square in this image. "
        "Answer the question with object indexes."
    )
    content = grammar.image_question(asked, boxes)
    samples = []
    for index in range(count):
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        corners = (
            np.sort(rng.uniform(0, side, (boxes, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
        )
        messages = [{"role": "user", "content": content}]
        samples.append(
            processor.encode(image, corners, messages, for_generation=True, sample_id=str(index))
        )
    return samples


def report(given: argparse.Namespace) -> str:
    model, processor = new_model(SIZES[given.size](), 0)
    model.to(device=given.device, dtype=torch.float32 if given.device == "cpu" else torch.bfloat16)
    samples = questions(processor, given.images, given.side, given.boxes)
    watch = Stopwatch(model, given.device)
    config = GenerationConfig(max_new_tokens=given.new_tokens, constrained=given.constrained)

    def endless(_tokens: Tensor, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, list(processor.stop_ids)] = -torch.inf
        return logits

    def answer(batch_size: int, chosen: list[Encoded], config: GenerationConfig) -> float:
        begin = watch.now()
        for first in range(0, len(chosen), batch_size):
            watch.start()
            generate(
                model, processor, chosen[first : first + batch_size], config, logits_hook=endless
            )
        return watch.now() - begin

    rows, rates = [], []
    for batch_size in given.batches:
        answer(batch_size, samples[:batch_size], GenerationConfig(max_new_tokens=2))
        watch.reset()
        total = answer(batch_size, samples, config)
        rates.append(len(samples) / total)
        shares = [watch.seconds[part] / total for part in PARTS]
        step = (
            1e3 * watch.seconds["decode"] / (given.new_tokens - 1) / -(-len(samples) // batch_size)
        )
        cells = [f"{100 * share:.0f}" for share in (*shares, 1 - sum(shares))]
        cells = [
            str(batch_size),
            *(f"{value:.2f}" for value in (rates[-1], rates[-1] / rates[0], step)),
            *cells,
        ]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], file=sys.stderr)
    return "\n".join([*heading(given, len(samples[0].input_ids)), *rows])


def heading(given: argparse.Namespace, prompt: int) -> list[str]:
    cpu = given.device == "cpu"
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    accelerator = "no GPU used" if cpu else torch.cuda.get_device_name()
    task = (
        f"{given.images} images of {given.side} px with {given.boxes} boxes, "
        f"prompts of {prompt} tokens"
    )
    how = "greedy, constrained" if given.constrained else "greedy"
    columns = [
        "batch",
        "answers per second",
        f"times batch {given.batches[0]}",
        "ms a decoding step",
    ]
    return [
        f"# Generation, size {given.size}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}",
        "",
        f"{machine}, {accelerator}, Python {platform.python_version()}, torch {torch.__version__}.",
        "Command:",
        "",
        f"    python infra/benchmarks/generation.py {' '.join(given.words)}".rstrip(),
        "",
        f"{task}, {given.new_tokens} new tokens each, {how}.",
        "Random weights; " + ("float32, one thread, CPU time." if cpu else "bf16, wall time."),
        "Shares in percent: towers and region encoder, prompt, further tokens, the rest.",
        "",
        f"| {' | '.join([*columns, *PARTS, 'rest'])} |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--images", type=int, default=16, help="answered at every batch size")
    parser.add_argument("--new-tokens", type=int, default=64, help="of every answer, at least 2")
    parser.add_argument("--boxes", type=int, help="of each image; 100, with the tiny sizes 12")
    parser.add_argument(
        "--side", type=int, help="of the square images in px; 768, with the tiny sizes 192"
    )
    parser.add_argument(
        "--constrained", action="store_true", help="hold answers to the region language"
    )
    given = parser.parse_args(words)
    small = given.size in ("debug", "tiny")
    given.boxes = given.boxes or (12 if small else 100)
    given.side = given.side or (192 if small else 768)
    given.words = words
    return given


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    print(report(arguments(words)))


if __name__ == "__main__":
    main(sys.argv[1:])
