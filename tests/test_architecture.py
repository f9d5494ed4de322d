"""Guards the structure: who imports whom, lengths, folder sizes, circles, the top level."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("dataset_builders", "fo1_model", "pipelines", "jobs")
TOP_LEVEL = {"pyproject.toml", "README.md", "tests", "infra", *PACKAGES}

MAY_IMPORT = {  # package -> packages of ours it may import
    "dataset_builders": {"dataset_builders"},
    "fo1_model": {"fo1_model"},
    "pipelines": {"pipelines", "dataset_builders", "fo1_model"},
    "jobs": {"jobs", "pipelines", "dataset_builders", "fo1_model"},
}
ONLY_IN = {  # library -> the files that may import it
    "ray": {
        "pipelines/cluster.py",
        "pipelines/worker_pools.py",
        "pipelines/training/ray_workers.py",
        "jobs/submit.py",
    },
    "deepspeed": {"pipelines/training/deepspeed_engine.py"},
    "mlflow": {"pipelines/training/mlflow_tracking.py"},
    "webdataset": {"pipelines/shards/write.py", "pipelines/loading/loader.py"},
}
PURE = (  # below pipelines/
    "boxes",
    "shards/assign",
    "shards/rejection",
    "shards/interleave",
    "loading/sample_plan",
    "evaluation/metrics/",
)
MOST_FILES = 22
"""Python files of a folder; past that it gets rooms."""
CIRCLES = [  # of modules; imports inside functions count
    {
        "fo1_model.checkpoint",
        "fo1_model.model",
        "fo1_model.pretrained.loading",
        "fo1_model.pretrained.methods",
        "fo1_model.processing",
        "fo1_model.release",
        "fo1_model.release.folders",
    }
]
NEVER = {
    "dataset_builders": {"torch", "torchvision", "transformers", "ray"},
    "fo1_model": {"pyarrow", "ray"},
}
LIGHT = {"torch", "ray", "transformers", "mlflow", "deepspeed", "timm", "torchvision", "matplotlib"}


def tracked(pattern: str = "") -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return sorted(name for name in names if re.search(pattern, name) and (ROOT / name).exists())


SOURCES = [name for name in tracked(r"\.py$") if name.split("/")[0] in PACKAGES]


def imports(name: str, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse((ROOT / name).read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_imports_follow_the_rules(name):
    package = name.split("/")[0]
    used = imports(name)
    assert used & set(PACKAGES) <= MAY_IMPORT[package]
    assert not used & NEVER.get(package, set())
    for library, files in ONLY_IN.items():
        assert library not in used or name in files, f"{library} belongs to {files}"
    if package == "pipelines" and name.removeprefix("pipelines/").startswith(PURE):
        assert not used & (LIGHT | {"webdataset"})


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("jobs/")])
def test_the_command_starts_without_heavy_imports(name):
    assert not imports(name, top_level_only=True) & LIGHT


@pytest.mark.parametrize("name", SOURCES)
def test_files_stay_short(name):
    assert len((ROOT / name).read_text().splitlines()) <= 400


ROOMS = sorted(name for name in SOURCES if name.endswith("__init__.py"))


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_its_modules_are(name):
    """The docstring of a package names each of its modules and sub-packages."""
    folder = Path(name).parent
    inside = {
        path.stem if path.suffix else path.name
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__", "__main__"}
    said = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ""
    assert {module for module in inside if not re.search(rf"\b{module}\b", said)} == set()


def test_top_level_is_fixed():
    visible = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert visible == TOP_LEVEL


def test_no_line_is_over_100_characters():
    """Ruff lets lines pass that end in a comment for a tool; these count too."""
    over = [
        f"{name}:{number}"
        for name in tracked(r"\.py$")
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert over == []


def test_folders_stay_small():
    folders = Counter(str(Path(name).parent) for name in tracked(r"\.py$"))
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}


def modules_imported(name: str) -> set[str]:
    """Modules of ours that a file imports, wherever in it, other than for the type checker."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a module of the package, or a name that its __init__ has
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse((ROOT / name).read_text()))
    return found & MODULES.keys()


MODULES = {re.sub(r"(/__init__)?\.py$", "", name).replace("/", "."): name for name in SOURCES}


def test_no_circles():
    """Modules that reach each other through imports are one circle; only one is allowed."""
    graph = {module: modules_imported(name) - {module} for module, name in MODULES.items()}
    reach = {module: set(direct) for module, direct in graph.items()}
    for middle in graph:  # Warshall's transitive closure
        for module in graph:
            if middle in reach[module]:
                reach[module] |= reach[middle]
    circles = {
        frozenset(other for other in graph if other in reach[module] and module in reach[other])
        for module in graph
        if module in reach[module]
    }
    assert sorted(map(sorted, circles)) == sorted(map(sorted, CIRCLES))
