"""What no network computed has the same bytes under the kernels of any processor.

A child process makes a drawn world, samples, jittered proposals and shards once as this processor
computes, and once with the vector instructions of numpy and torch switched off.
"""

import os
import subprocess
import sys

SCRIPT = """
import hashlib, sys
from pathlib import Path
from dataset_builders.drawn_world.write import WorldSettings, write_world
from tests.pipelines import coco_world

out = Path(sys.argv[1])
write_world(out / "data" / "drawn", WorldSettings(train=20, val=4))
coco_world.write_world(out / "data", 12)
steps = coco_world.Steps(out / "data", out)
for step in (steps.build, steps.propose, steps.shard):
    step()
for path in sorted(out.rglob("*")):
    # Manifests hold times and folders.
    if path.is_file() and path.name != "manifest.json" and "digests" not in path.parts:
        print(path.relative_to(out), hashlib.sha256(path.read_bytes()).hexdigest())
"""
WITHOUT_VECTORS = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def test_data_have_the_same_bytes_without_vector_instructions(tmp_path) -> None:
    made = []
    for name, kernels in (("own", {}), ("plain", WITHOUT_VECTORS)):
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / name)]
        environment = os.environ | kernels
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        made.append(done.stdout.splitlines())
    own, plain = made
    for part in ("data/drawn/", "out/samples/", "out/proposals/", "out/shards/"):
        assert any(line.startswith(part) for line in own), part
    assert own == plain
