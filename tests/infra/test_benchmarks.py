"""The benchmark scripts in a setting of seconds: they run, and their tables hold sane numbers."""

import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from fo1_model.checkpoint import new_model
from fo1_model.generation import GenerationConfig, generate
from fo1_model.sizes import debug
from fo1_model.stages import parameter_groups
from tests import ROOT

BENCHMARKS = ROOT / "infra/benchmarks"
sys.path.append(str(BENCHMARKS))  # the scripts import each other


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def table(text: str) -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "|" in line
    ]
    return [dict(zip(lines[0], row, strict=True)) for row in lines[2:]]


SMALL = ["--sides", "192", "--boxes", "20", "--dims", "64", "64", "64", "64", "--repeats", "1"]


def test_region_pooling(monkeypatch, capsys):
    benchmark = script("region_pooling")
    monkeypatch.setattr(benchmark, "PASSES", ("forward",))  # every measurement starts a process
    benchmark.main(SMALL)
    text = capsys.readouterr().out
    assert f"    python infra/benchmarks/region_pooling.py {' '.join(SMALL)}\n" in text
    (row,) = table(text)
    assert float(row["largest difference"]) < 1e-4
    assert float(row["reference ms"]) > 0
    # The reference holds four maps of 64 x 48 x 48 at the finest grid.
    assert float(row["reference MiB"]) > 4 * 64 * 48 * 48 * 4 / 2**20
    assert float(row["fast MiB"]) < float(row["reference MiB"])


def test_both_ways_pool_the_same_with_a_backward_pass(tmp_path):
    benchmark = script("region_pooling")
    files = [tmp_path / "fast.npy", tmp_path / "reference.npy"]
    for variant, file in zip(benchmark.VARIANTS, files, strict=True):
        words = [*SMALL, "--measure", variant, "forward and backward", "--result", str(file)]
        assert set(benchmark.measure(benchmark.arguments(words))) == {"seconds", "bytes"}
    assert np.load(files[0]).shape == (20, 256)
    assert benchmark.largest_difference(*files) < 1e-4
    np.save(files[0], np.load(files[0]) + 1)
    assert benchmark.largest_difference(*files) > 0.1


MEASURE = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("region_pooling", sys.argv[1])
loaded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loaded)
held = np.ones(40 * 2**20, dtype=np.uint8)
del held
extra = loaded.extra_memory("cpu")
before = extra()
used = np.ones(40 * 2**20, dtype=np.uint8)
del used
print(before, extra())
"""


def test_peak_memory_is_that_of_the_call_alone():
    # In a process of its own, as the benchmark measures: this one may reuse what tests left free.
    command = [sys.executable, "-c", MEASURE, str(BENCHMARKS / "region_pooling.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 8 * 2**20, "what was used before must not count"
    assert 36 * 2**20 < after < 60 * 2**20


@pytest.mark.parametrize("more", [[], ["--constrained"]])
def test_generation(more, capsys):
    words = [
        "--size",
        "debug",
        "--images",
        "3",
        "--new-tokens",
        "4",
        "--batches",
        "1",
        "2",
        "--side",
        "56",
    ]
    script("generation").main([*words, *more])
    text = capsys.readouterr().out
    assert re.search(
        r"3 images of 56 px with 12 boxes, prompts of \d+ tokens, 4 new tokens each", text
    )
    assert ("constrained." in text) == bool(more)
    rows = table(text)
    assert [row["batch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["answers per second"]) > 0
        shares = [int(row[part]) for part in ("vision", "prefill", "decode", "rest")]
        assert all(share >= 0 for share in shares)
        assert sum(shares) == pytest.approx(100, abs=2)


def test_the_stopwatch_tells_the_prompt_from_what_follows(monkeypatch):
    benchmark = script("generation")
    model, processor = new_model(debug(), 0)
    samples = benchmark.questions(processor, 2, 56, 3)
    watch = benchmark.Stopwatch(model, "cpu")
    ticks = iter(range(1000))
    monkeypatch.setattr(watch, "now", lambda: next(ticks))

    def endless(tokens, logits):
        return logits.index_fill(1, torch.tensor(processor.stop_ids), -torch.inf)

    for first in range(2):
        watch.start()
        config = GenerationConfig(max_new_tokens=5)
        generate(model, processor, samples[first : first + 1], config, logits_hook=endless)
    # One look at the image, one pass over the prompt and one for each further token but the last.
    assert watch.seconds == {"vision": 2, "prefill": 2, "decode": 8}


def test_build_and_shard(capsys):
    benchmark = script("build_and_shard")
    benchmark.main(["--annotations", "700", "--images", "16", "--rounds", "1"])
    text = capsys.readouterr().out
    built, sharded = (table(part) for part in text.split("## Shards"))
    assert [row["annotations"] for row in built] == ["70", "700"]
    assert int(built[1]["samples"].replace(",", "")) > 600
    three, one = sharded
    assert int(one["examples"].replace(",", "")) > 2 * int(three["examples"])
    assert int(one["shards"]) == int(three["shards"]) > 4
    assert all(0 < float(row["share of bare"].strip("*")) < 2 for row in sharded)


@pytest.mark.cluster
def test_proposals():
    """In a process of its own, whose loader processes can import it."""
    command = [
        sys.executable,
        BENCHMARKS / "proposals.py",
        "--images",
        "48",
        "--rounds",
        "1",
        "--side",
        "64",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heavy, free = (table(part) for part in text.split("## What a row costs"))
    for rows in (heavy, free):
        assert [row[""].split(",")[0] for row in rows] == ["loop", "loop", "graph"]
        assert all(float(row["images/s"]) > 0 for row in rows)
        assert float(rows[2]["start-up, s"]) > 0


@pytest.mark.slow
def test_opn(capsys):
    script("opn").main(["--seconds", "1", "--scenes", "32", "--held-out", "4"])
    rows = table(capsys.readouterr().out)
    assert [row["network"] for row in rows] == ["opn", "rt_detr", "fcos"]
    assert all(int(row["steps"]) > 0 and 0 <= float(row["AR@100"]) <= 1 for row in rows)


def test_loader():
    words = ["--examples", "48", "--rounds", "1", "--processes", "0", "1", "--shuffle-shards", "2"]
    # As a script: the processes of a DataLoader import it by its name.
    command = [sys.executable, str(BENCHMARKS / "loader.py"), *words]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "48 examples in 1 tars" in text
    read, decoded = (table(part) for part in text.split("## With decoding"))
    (row,) = read
    rates = {
        name: float(row[name].replace(",", "")) for name in ("bare tar read", "webdataset", "ours")
    }
    assert all(rate > 0 for rate in rates.values())
    assert float(row["ours / webdataset"].strip("*")) == pytest.approx(
        rates["ours"] / rates["webdataset"], abs=0.01
    )
    assert [row["processes"] for row in decoded] == ["0", "1"]
    assert all(float(row["ours / webdataset"].strip("*")) > 0 for row in decoded)


def test_loaders_are_compared_over_the_same_examples(tmp_path):
    benchmark = script("loader")
    readers = benchmark.Readers(benchmark.write_shards(tmp_path, 32), 1)
    assert sum(readers.bare()) == sum(readers.web()) == sum(readers.ours()) == 32
    loader = benchmark.Loader(
        readers.plan,
        {benchmark.SOURCE: readers.source},
        collator=benchmark.Decoded(),
        batch_size=16,
        micro_batch_size=16,
    )
    ours = [
        item for data in loader.steps(0, 2) for micro in data.micro_batches for item in micro.batch
    ]
    theirs = [benchmark.decoded_member(members) for members in readers._web()]
    matched = {text + str(boxes.tolist()): image for image, boxes, text in ours}
    assert len(matched) == 32
    for image, boxes, text in theirs:
        assert torch.equal(matched[text + str(boxes.tolist())], image)


SMALL_STEP = ["--model", "debug", "--side", "112", "--boxes", "8", "--steps", "1", "--passes", "2"]
SMALL_STEP += ["--variants", "ours", "both"]


def test_train_step(monkeypatch, capsys):
    """Both stages, here in one process: each of its own takes seconds to start."""
    benchmark = script("train_step")

    def measured(given, stage, variant):
        return json.loads(json.dumps(benchmark.measure(given, stage, variant)))

    monkeypatch.setattr(benchmark, "in_own_process", measured)
    benchmark.main(SMALL_STEP)
    text = capsys.readouterr().out
    assert "2 passes of 1 samples a step; attention sdpa; recomputed: nothing" in text
    against, ours, phases, *operations = (table(part) for part in text.split("\n## ")[1:])
    assert [(row["stage"], row["variant"]) for row in against] == [
        (stage, variant) for stage in ("stage1", "stage2") for variant in ("ours", "both")
    ]
    losses = [float(row["loss"]) for row in against]
    assert losses == pytest.approx([losses[0]] * 2 + [losses[2]] * 2, abs=2e-5)
    assert losses[0] != losses[2]
    for row in ours:
        assert int(row["tokens a sample"]) > int(row["of them supervised"]) > 0
        assert float(row["samples/s"]) > 0
        assert row["utilisation, %"] == ""
    assert [row["phase"] for row in phases] == list(benchmark.PHASES)
    for stage in ("stage1", "stage2"):
        assert sum(float(row[stage]) for row in phases) == pytest.approx(100, abs=0.5)
        assert all(float(row[stage]) > -1 for row in phases)
    assert [len(rows) for rows in operations] == [12, 12]


def test_train_step_on_a_gpu_that_is_full(monkeypatch, capsys):
    """A variant that does not fit is said to; utilisation is that of the device."""
    benchmark = script("train_step")
    one = {
        "seconds": 2.0,
        "losses": [3.0],
        "resting": 60 * 2**30,
        "peak": 10 * 2**30,
        "tokens": 8000,
        "supervised": 80.0,
        "flops": 890.1e12,
        "peak_flops": 989e12,
        "phases": dict.fromkeys(benchmark.PHASES, 0.25),
        "operations": [["gemm", 4, 0.5]],
    }
    found = {"ours": one, "both": None}
    monkeypatch.setattr(benchmark, "in_own_process", lambda _given, _stage, variant: found[variant])
    words = [*SMALL_STEP, "--batch", "8", "--passes", "1", "--stages", "stage2"]
    benchmark.main(words)
    against, ours, _, operations = (
        table(part) for part in capsys.readouterr().out.split("\n## ")[1:]
    )
    assert [row["s a step"] for row in against] == ["2.000", "out of memory"]
    assert (ours[0]["utilisation, %"], ours[0]["samples/s"], ours[0]["tokens/s"]) == (
        "**45.0**",
        "4.00",
        "4,000",
    )
    assert operations == [
        {"operation": "`gemm`", "calls": "4", "ms": "500.0", "% of a step": "25.0"}
    ]
    found["both"] = one | {"losses": [3.1]}
    with pytest.raises(ArithmeticError, match="differ"):
        benchmark.main(words)


def test_train_step_on_a_gpu_takes_the_released_size():
    benchmark = script("train_step")
    given = benchmark.arguments(["--device", "cuda"])
    assert (given.model, given.precision, given.batch) == ("qwen2_5_vl_3b", "bf16", 8)
    assert given.recompute == ["language", "auxiliary"]


@pytest.mark.parametrize("variant", ["full logits", "upsampled map", "both"])
def test_what_is_undone_changes_no_gradient(variant):
    variants = script("train_variants")
    model, processor = new_model(debug(), 0)
    parameter_groups(model, "stage2", 1.0)
    batch = processor.collate(variants.samples(processor, 2, 112, 40))
    gradients = []
    for name in ("ours", variant):
        model.zero_grad()
        with variants.computed_as(name):
            found = model(batch)
        found.loss_sum.backward()
        gradients.append(
            (float(found.num_tokens), [p.grad for p in model.parameters() if p.requires_grad])
        )
    assert gradients[0][0] == gradients[1][0]
    for ours, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
