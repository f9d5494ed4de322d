"""The package's README keeps to the code: its table of datasets, and its example of a new one."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from dataset_builders import DATASETS, BuildOptions, DataFolders
from dataset_builders.spec import DatasetSpec
from dataset_builders.validation import validate
from tests import ROOT
from tests.dataset_builders.conftest import collect
from tests.formats.scenes import jpeg, scene

PACKAGE = ROOT / "dataset_builders"
README = (PACKAGE / "README.md").read_text()
TABLE = README.split("<!-- datasets -->\n")[1].split("\n\n")[0].splitlines()[2:]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE]


def names(cell: str) -> list[str]:
    """The datasets of a row: `name` (`_a`) means name and name_a."""
    found: list[str] = []
    for base, suffixes in re.findall(r"`([a-z]\w*)`(?: \(([^)]*)\))?", cell):
        found += [base, *(base + suffix for suffix in re.findall(r"`(_\w+)`", suffixes))]
    return found


def definers() -> dict[str, str]:
    """Dataset -> path below the package of the module whose table has it."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        below = path.relative_to(PACKAGE)
        assigned = (
            target.id
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        )
        if "DATASETS" in assigned:
            module = import_module(".".join(("dataset_builders", *below.with_suffix("").parts)))
            found |= dict.fromkeys((spec.name for spec in module.DATASETS), below.as_posix())
    return found


def test_the_table_lists_every_dataset_once() -> None:
    assert sorted(name for row in ROWS for name in names(row[0])) == sorted(DATASETS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: names(row[0])[0])
def test_a_row_says_what_the_code_says(row: list[str]) -> None:
    where, specs = definers(), [DATASETS[name] for name in names(row[0])]
    assert {where[spec.name] for spec in specs} == {row[1].strip("`")}
    assert set(row[3].split(", ")) == {task for spec in specs for task in spec.tasks}
    stages = sorted({stage for spec in specs for stage in spec.stages})
    assert row[4] == (", ".join(map(str, stages)) or "-")
    assert row[2]
    assert row[5]


def test_every_path_of_the_readme_is_there() -> None:
    roots = (PACKAGE, ROOT, ROOT / "tests/dataset_builders")
    for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", README):
        if path not in ("benchmarks/", "annotations/"):  # of a data root
            assert any((root / path).exists() for root in roots), path


@pytest.fixture
def birds(tmp_path: Path) -> tuple[DatasetSpec, DataFolders]:
    """The dataset of the README's example, and its files: three good lines, and two bad ones."""
    module = ModuleType("birds")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), module.__dict__)
    lines = []
    (tmp_path / "birds" / "images").mkdir(parents=True)
    for number in range(3):
        image = scene(5, number).image
        (tmp_path / "birds" / "images" / f"{number}.jpg").write_bytes(jpeg(image))
        lines.append({"image": f"{number}.jpg", "bird": f"bird {number}", "box": [10, 20, 30, 40]})
    lines += [lines[0] | {"image": "no.jpg"}, lines[0] | {"box": [10, 20, 0, 0]}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "birds" / "boxes.jsonl").write_text(text)
    (spec,) = module.DATASETS
    return spec, DataFolders(str(tmp_path))


def test_the_example_of_a_new_dataset_runs(birds: tuple[DatasetSpec, DataFolders]) -> None:
    spec, folders = birds
    built = collect(spec.samples(folders, BuildOptions()))
    assert set(built.tasks) == set(spec.tasks)
    assert sorted(sample.sample_id for sample in built.samples) == sorted(
        f"birds/images/{number}/{task}/0" for number in range(3) for task in spec.tasks
    )
    for sample in built.samples:
        validate(sample)
        assert sample.objects[0].box == (10.0, 20.0, 40.0, 60.0)
        assert sample.absent_labels is None
    assert [reject.reason for reject in built.rejects] == ["missing_image", "empty_box"]
    assert built.ledger.used == {"record": 3}
