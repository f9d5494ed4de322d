"""The package's README: its example runs, its tables are the code's."""

import re
import subprocess
import sys
from pathlib import Path

import fo1_model
from fo1_model import grammar
from fo1_model.checkpoint import save_model
from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model

ROOM = Path(fo1_model.__file__).parent
README = (ROOM / "README.md").read_text()


def test_the_example_runs():
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["None", "() None"]


def test_the_table_of_families_is_the_codes():
    table = README.split("<!-- families -->\n")[1].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:3]] for row in table.splitlines()[2:]]
    assert dict(rows) == {
        family: small_model(family)[0].family.model_class.__name__ for family in VLM_FAMILIES
    }
    assert [name for name, _ in rows] == list(VLM_FAMILIES)


def test_every_module_is_in_the_table_of_rooms():
    table = README.split("## Rooms\n")[1]
    named = set(re.findall(r"`(\w+)(?:\.py|/)`", table))
    inside = {path.stem for path in ROOM.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == inside - {"__init__", "__pycache__"}


def test_commands_name_modules_that_are_there():
    for module in re.findall(r"python -m (\S+)", README):
        assert (ROOM.parent / f"{module.replace('.', '/')}.py").is_file()


def test_the_example_with_others_tools_runs(model, processor, tmp_path, capsys):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    save_model(model, processor, tmp_path)
    messages = [{"role": "user", "content": f"{grammar.IMAGE}\n{grammar.region_prompt(2)}\nWhat?"}]
    given = {"folder": tmp_path, "messages": messages, "image": picture(84, 56)}
    found = {**given, "boxes": some_boxes(2, 84, 56)}
    exec(code.replace("512", "4"), found)  # the README's own lines
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert found["loss"].ndim == 0
