"""Guards the structure: who imports whom, file lengths, the README's tree, the visible top level."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dataset_builders", "fo1_model", "pipelines", "jobs")
TOP_LEVEL = {"pyproject.toml", "README.md", "tests", "infra", *PACKAGES}

MAY_IMPORT = {  # package -> packages of ours it may import
    "dataset_builders": {"dataset_builders"},
    "fo1_model": {"fo1_model"},
    "pipelines": {"pipelines", "dataset_builders", "fo1_model"},
    "jobs": {"jobs", "pipelines", "dataset_builders", "fo1_model"},
}
ONLY_IN = {  # library -> the files that may import it
    "ray": {"pipelines/cluster.py", "pipelines/training.py", "jobs/submit.py"},
    "deepspeed": {"pipelines/engine.py"},
    "mlflow": {"pipelines/tracking.py"},
    "webdataset": {"pipelines/shards.py", "pipelines/loader.py"},
}
PURE = ("assign", "rejection", "interleave", "mixing", "metrics/")
NEVER = {"dataset_builders": {"torch", "torchvision", "transformers", "ray"}, "fo1_model": {"pyarrow", "ray"}}
LIGHT = {"torch", "ray", "transformers", "mlflow", "deepspeed", "timm", "torchvision", "matplotlib"}


def tracked(pattern: str = "") -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
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


def test_top_level_is_fixed():
    visible = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert visible == TOP_LEVEL


def test_readme_tree_equals_disk():
    """Every source file has one line in the README's tree, and every line names a file."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "README.md has no block between <!-- tree --> and the closing fence"
    folder, listed = "", set()
    for line in block.group(1).splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            listed |= set() if folder else {name}
        else:
            listed.add(folder + name)
    shown = {
        name
        for name in tracked()
        if name.split("/")[0] in (*PACKAGES, "infra") and not name.endswith("__init__.py")
        if "/assets/" not in name and "/reports/" not in name and not name.endswith(".png")
    }
    written = {
        name
        for name in listed
        if not name.endswith("__init__.py") and name.split("/")[0] in (*PACKAGES, "infra")
    }
    assert written == shown


def test_readme_lists_every_dataset():
    """The README's table names each dataset once, with its builder; `name` (`_a`) means name and name_a."""
    from dataset_builders import DATASETS

    table = (ROOT / "README.md").read_text().split("<!-- datasets -->\n")[1].split("\n\n")[0]
    named: list[str] = []
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (ROOT / "dataset_builders" / cells[1].strip("`")).exists()
        for base, suffixes in re.findall(r"`([a-z]\w*)`(?: \(([^)]*)\))?", cells[0]):
            named += [base, *(base + suffix for suffix in re.findall(r"`(_\w+)`", suffixes))]
    assert sorted(named) == sorted(name for name in DATASETS if not name.startswith("drawn"))
