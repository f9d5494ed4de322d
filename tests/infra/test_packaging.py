"""Declared packages, pins, the licence, and a wheel that works alone."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"dataset_builders", "fo1_model", "pipelines", "jobs"}
EXTRAS = {"jobs": ("cluster",), "tests": ("cluster", "dev"), "infra": ("cluster", "dev")}
"""Extras that a top-level folder may rely on, beside what every installation has."""


def files(*patterns: str) -> list[str]:
    """Files of the checkout that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in run.stdout.splitlines() if (ROOT / name).is_file()]


def declared(extras: tuple[str, ...] = ()) -> set[str]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(name: str) -> Iterator[str]:
    """Top-level names that a file imports, less the standard library's and its neighbours'."""
    neighbours = {path.stem for path in (ROOT / name).parent.glob("*.py")}
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        for top in {module.split(".")[0] for module in modules}:
            if top not in sys.stdlib_module_names and top not in neighbours | PACKAGES | {"tests"}:
                yield top


@pytest.mark.parametrize(
    "folder", ["dataset_builders", "fo1_model", "pipelines", "jobs", "tests", "infra"]
)
def test_every_imported_package_is_declared(folder):
    homes = packages_distributions() | {"mlflow": ["mlflow"]}  # its parts carry the same name
    known = declared(EXTRAS.get(folder, ()))
    missing = {
        f"{name}: {top}"
        for name in files(f"{folder}/*.py")
        for top in imported(name)
        if not {canonicalize_name(home) for home in homes[top]} & known
    }
    assert missing == set()


def test_every_pin_is_needed_and_everything_needed_is_pinned():
    """infra/constraints.txt is the closure of what pyproject.toml asks for, with the extras."""
    waiting = [Requirement(line) for line in PROJECT["dependencies"]]
    waiting += [
        Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines
    ]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            key = (canonicalize_name(wanted.name), extra)
            if key in seen:
                continue
            seen.add(key)
            for line in distribution(wanted.name).requires or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    pins = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "infra/constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert pins == {name for name, _ in seen}


def test_constraints_name_no_hosts():
    text = (ROOT / "infra/constraints.txt").read_text()
    assert "://" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder outside the checkout, whose environment holds the wheel and what it declares."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in files():  # building in the checkout would leave its build/ and egg-info there
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"FO1_ROOT": str(place / "root")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            check=False,
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    run(*uv, "build", "--quiet", "--wheel", "--out-dir", place, source)
    (wheel,) = place.glob("*.whl")
    run(*uv, "venv", "--quiet", "--python", sys.executable, place / "venv")
    python = place / "venv/bin/python"
    constraints = ROOT / "infra/constraints.txt"
    run(*uv, "pip", "install", "--quiet", "--python", python, "--constraint", constraints, wheel)
    return place, lambda *words: run(place / "venv/bin" / words[0], *words[1:])


@pytest.mark.slow
def test_the_wheel_holds_code_assets_and_licence(installed):
    place, run = installed
    code = """
import importlib.metadata, json, pathlib, fo1_model, jobs
found = importlib.metadata.distribution("vlm-fo1-ray")
print(json.dumps([
    str(pathlib.Path(jobs.__file__)),
    (pathlib.Path(fo1_model.__file__).parent / "assets/tiny_base.safetensors").is_file(),
    [str(f) for f in found.files if f.name == "LICENSE"],
    sorted({str(f).split("/")[0] for f in found.files if f.suffix == ".py"}),
]))
"""
    where, assets, licences, packages = ast.literal_eval(
        run("python", "-c", code).replace("true", "True").replace("false", "False")
    )
    assert where.startswith(str(place))
    assert assets
    assert len(licences) == 1
    assert set(packages) == PACKAGES


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(installed):
    """`fo1 list`, `fo1 plan`, a small chain, and a prediction with the model it trains."""
    place, run = installed
    drawn = place / "root/datasets/drawn"
    run("python", "-m", "dataset_builders.drawn_world", drawn, "--train", "12", "--val", "6")
    assert "stage2" in run("fo1", "list")
    words = ["stage1", "size=debug", "detector=ground_truth_jitter", "steps=2"]
    assert "runs/stage1" in run("fo1", "plan", *words)
    for verb in ("build", "propose", "shard", "train"):
        run("fo1", verb, *words, "--workers", "0")
    image = min((drawn / "val").glob("*.jpg"))
    asked = [
        "checkpoint=stage1",
        f"image={image}",
        "query=red circle",
        "boxes=10,10,60,60;20,30,90,90",
    ]
    assert "answer:" in run("fo1", "predict", *asked)
    assert (place / "answer.png").is_file()
