"""The command as a user meets it: help, lists, one line for a wrong setting."""

import subprocess
import sys

import pytest

from jobs.__main__ import VERBS, main

HEAVY = ("torch", "ray", "transformers", "mlflow", "deepspeed", "timm", "matplotlib", "scipy")


def fo1(*words: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "datasets", "coco_train"]])
def test_light_verbs_import_nothing_heavy(words, tmp_path):
    code = (
        "import sys\nfrom jobs.__main__ import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "HEAVY []" in ran.stdout, ran.stdout[-500:] + ran.stderr[-2000:]


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_list_shows_arguments_layouts_and_licences(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate=0.001 warmup_steps=50" in shown
    assert "CC BY 4.0" in shown
    assert main(["list", "datasets", "drawn_train"]) == 0
    assert "annotations/instances_train.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "stage3"], "unknown recipe 'stage3'; known: opn, stage1"),
        (["plan"], "name a recipe first"),
        (["plan", "stage2", "step=3"], "unknown argument 'step' of stage2; did you mean 'steps'?"),
        (["plan", "stage2", "mix=nothing"], "unknown mix 'nothing'"),
        (["plan", "my_module:my_recipe"], "No module named 'my_module'"),
        (
            ["build", "coco_sample", "coco_root=/nowhere"],
            "/nowhere/annotations/instances_train2017.json",
        ),
        (["train", "coco_sample", "coco_root=/nowhere", "batch_size=0"], "batch_size=0"),
        (
            ["inspect", "coco_sample", "coco_root=/nowhere", "dataset=cars"],
            "instances_train2017.json",
        ),
        (["predict", "checkpoint=nothing", "image=a.jpg", "query=cup"], "no finished run"),
        (["evaluate", "drawn_val", "checkpoint=nothing"], "no finished run"),
        (["list", "datasets", "cars"], "unknown dataset 'cars'"),
        (["plan", "stage2", "--workers", "-1"], "workers=-1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_two(words, message, tmp_path, capsys):
    assert main([*words, "--root", str(tmp_path / "root")]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("fo1: ")
    assert "Traceback" not in shown.err


def test_arguments_may_follow_flags(tmp_path, capsys):
    assert main(["plan", "stage2", "--root", str(tmp_path), "colour=red"]) == 2
    assert "unknown argument 'colour' of stage2" in capsys.readouterr().err


def test_a_root_that_cannot_be_written_is_refused(tmp_path, capsys, drawn_world):
    (tmp_path / "file").write_text("")
    words = [
        "build",
        "stage2",
        "size=debug",
        "--data",
        str(drawn_world),
        "--root",
        str(tmp_path / "file" / "root"),
    ]
    assert main(words) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_fails_without_a_traceback():
    ran = fo1("build", "coco_sample", "coco_root=/nowhere", "--root", "/tmp/fo1-test-never-made")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") <= 4
    assert "Traceback" not in ran.stderr
