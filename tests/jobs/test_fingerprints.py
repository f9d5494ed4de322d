"""Fingerprints and shard bytes of a small chain, as they were before files moved to rooms.

A change here makes every artifact that people have stale. Where that is meant, the version of the
step is raised and `known_fingerprints.json` is written anew with what the failing test prints.
"""

import json
from pathlib import Path

import pytest

from jobs.chain.chain import Chain
from jobs.chain.recipe_chain import recipe_chain
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.catalogue import find_recipe
from pipelines.cluster import RuntimeConfig

KNOWN = json.loads(Path(__file__).with_name("known_fingerprints.json").read_text())
SHARDED = "stage2 size=debug detector=ground_truth_jitter"


def _chain(words: str, runtime: RuntimeConfig) -> Chain:
    name, *arguments = words.split()
    recipe = find_recipe(name)
    return recipe_chain(recipe(**parse_arguments(recipe, arguments)), runtime)


@pytest.mark.parametrize("words", KNOWN["fingerprints"])
def test_the_same_recipe_has_the_same_fingerprints(words, drawn_world, tmp_path):
    steps = _chain(words, RuntimeConfig(root=str(tmp_path), data=str(drawn_world))).steps.values()
    found = {f"{s.artifact.kind}/{s.artifact.name}": s.artifact.fingerprint for s in steps}
    assert found == KNOWN["fingerprints"][words]


def test_the_same_recipe_writes_the_same_shards(drawn_world, tmp_path):
    runtime = RuntimeConfig(root=str(tmp_path), data=str(drawn_world), workers=0)
    found = {}
    for step in _chain(SHARDED, runtime).steps.values():
        if step.artifact.kind in ("samples", "proposals", "shards"):
            files = step.execute(runtime)["files"]
            tars = {
                name: file["sha256"][:16] for name, file in files.items() if name.endswith(".tar")
            }
            found |= {step.artifact.name: tars} if step.artifact.kind == "shards" else {}
    assert found == KNOWN["tars"]
