"""The command as a user meets it: imports, errors and exit statuses, logging, flags."""

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command import command_line
from jobs.command.command_line import main, parse
from jobs.command.verbs import VERBS
from jobs.errors import ClusterError
from pipelines import progress
from pipelines.errors import SettingError
from pipelines.row_accounting import LedgerError

HEAVY = ("torch", "ray", "transformers", "mlflow", "deepspeed", "timm", "matplotlib", "scipy")
LIGHT = (*HEAVY, "pyarrow", "numpy", "PIL", "dataset_builders", "fo1_model", "pipelines", "asyncio")


def imported(words: list[str], names: tuple[str, ...]) -> str:
    code = (
        "import sys\nfrom jobs.__main__ import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('IMPORTED', [name for name in {names!r} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "IMPORTED" in ran.stdout, ran.stdout[-500:] + ran.stderr[-2000:]
    return ran.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_help_imports_no_package_but_jobs(words):
    assert imported(words, LIGHT) == "IMPORTED []"


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "datasets", "coco_train"], ["train", "stage2", "--help"], ["plan", "x"]],
)
def test_light_verbs_import_nothing_heavy(words):
    assert imported(words, HEAVY) == "IMPORTED []"


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fo1 {importlib.metadata.version('vlm-fo1-ray')}\n"


def test_list_shows_arguments_layouts_and_licences(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate=0.001 warmup_steps=50" in " ".join(shown.split())
    assert "CC BY 4.0" in shown
    assert main(["list", "datasets", "drawn_train"]) == 0
    assert "annotations/instances_train.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "stage3"], "unknown recipe 'stage3'; did you mean 'stage2'? known: opn, stage1"),
        (["plan"], "name a recipe first"),
        (["plan", "stage2", "step=3"], "unknown argument 'step' of stage2; did you mean 'steps'?"),
        (["plan", "stage2", "size=tyny"], "size=tyny: did you mean 'tiny'? choose one of debug"),
        (["plan", "stage2", "mix=nothing"], "unknown mix 'nothing'; known: coco, "),
        (["plan", "stage2", "mix=drawn_stage3"], "did you mean 'drawn_stage"),
        (["plan", "data", "mix=coco_trian"], "did you mean 'coco_train'?"),
        (["plan", "stage2", "mix=stage2-ospray"], "did you mean 'osprey'?"),
        (["plan", "data", "mix=vaw/detection,cars/ocr"], "fo1 list datasets"),
        (["plan", "stage2", "detector=opm"], "unknown detector 'opm'; did you mean 'opn'?"),
        (["plan", "stage2", "detector=opn,promt=fine"], "did you mean 'prompt'?"),
        (["plan", "my_module:my_recipe"], "No module named 'my_module'; is it on PYTHONPATH?"),
        (["plan", "pathlib:Path"], "returned"),
        (["evaluate", "drawn_vall", "checkpoint=x"], "did you mean 'drawn_val'?"),
        (["evaluate", "drawn_val", "checkpont=x"], "did you mean 'checkpoint'?"),
        (["predict", "checkpoint=nothing", "image=a.jpg", "query=cup"], "no finished run"),
        (["predict"], "needs checkpoint=..., image=..., query=..."),
        (["evaluate", "drawn_val", "checkpoint=nothing"], "no finished run"),
        (["list", "datasets", "coco_trian"], "'coco_trian'; did you mean 'coco_train'?"),
        (["list", "mixs"], "unknown kind 'mixs'; did you mean 'mixes'?"),
        (["proposals", "dif"], "did you mean 'diff'?"),
        (["plna", "stage2"], "unknown verb 'plna'; did you mean 'plan'?"),
        (
            ["plan", "stage2", "--rooot", "x"],
            "unknown flag --rooot of plan; did you mean '--root'?",
        ),
        (["plan", "stage2", "--force"], "plan takes no --force; it belongs to build, "),
        (["build", "stage2", "--json"], "build takes no --json; it belongs to plan"),
        (["plan", "stage2", "--workers", "many"], "argument --workers: invalid"),
        (["plan", "stage2", "--root"], "argument --root: expected one argument"),
        (["plan", "stage2", "step=1", "--help"], "did you mean 'steps'?"),
        (["plan", "stage3", "--help"], "unknown recipe 'stage3'"),
        (["trian", "--help"], "unknown verb 'trian'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_two(words, message, tmp_path, capsys):
    given = words if "--root" in words else [*words, "--root", str(tmp_path / "root")]
    assert main(given) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("fo1: ")
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["build", "coco_sample", "coco_root=/nowhere"],
            "/nowhere/annotations/instances_train2017.json",
        ),
        (["train", "coco_sample", "coco_root=/nowhere", "batch_size=0"], "batch_size=0"),
        (
            ["inspect", "coco_sample", "coco_root=/nowhere", "dataset=cars"],
            "instances_train2017.json",
        ),
        (["plan", "stage2", "--workers", "-1"], "workers=-1"),
    ],
)
def test_wrong_settings_of_the_packages_below_are_one_line_too(words, message, tmp_path, capsys):
    assert main([*words, "--root", str(tmp_path / "root")]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("fo1: ")
    assert "Traceback" not in shown.err


def test_arguments_may_follow_flags_and_flags_go_anywhere(tmp_path, capsys):
    assert main(["plan", "stage2", "--root", str(tmp_path), "colour=red"]) == 2
    assert "unknown argument 'colour' of stage2" in capsys.readouterr().err
    command = parse(["--root", "x", "--workers=auto", "run", "stage1", "--force", "steps=3"])
    assert (command.verb.name, command.words) == ("run", ["stage1", "steps=3"])
    flags = command.flags
    assert (flags.root, flags.workers, flags.force, flags.quiet) == ("x", None, True, False)


def test_variables_stand_for_flags(monkeypatch):
    for name in ("FO1_ROOT", "FO1_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, f"/{name}")
    flags = parse(["plan", "stage1", "--data", "/d"]).flags
    assert (flags.root, flags.data, flags.mlflow) == ("/FO1_ROOT", "/d", "/MLFLOW_TRACKING_URI")


def test_a_root_that_cannot_be_written_is_refused(tmp_path, capsys, drawn_world):
    (tmp_path / "file").write_text("")
    root = str(tmp_path / "file" / "root")
    words = ["build", "stage2", "size=debug", "--data", str(drawn_world), "--root", root]
    assert main(words) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_fresh_checkout_is_told_how_to_draw_the_world(tmp_path, capsys):
    data = tmp_path / "my data"
    for verb in ("run", "plan", "train"):
        flags = ["--root", str(tmp_path / "root"), "--data", str(data)]
        assert main([verb, "stage1", *flags]) == 2
        command = f"python -m dataset_builders.drawn_world '{data}/drawn' --train 2400 --val 200"
        assert command in capsys.readouterr().err


def raises(error: BaseException, monkeypatch) -> None:
    """Let `fo1 list` raise an error."""

    def run(*_):
        raise error

    monkeypatch.setattr(command_line, "function_of", lambda _: run)


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (SettingError("steps=x"), 2, "fo1: steps=x\n"),
        (LedgerError("rows"), 1, "fo1: rows\n"),
        (ClusterError("away"), 1, "fo1: away\n"),
        (OSError(28, "No space left on device", "/r/a"), 1, "No space left on device: '/r/a'\n"),
        (FileNotFoundError(2, "No such file", "a.jpg"), 1, "No such file: 'a.jpg'\n"),
        (ConnectionError("nobody there"), 1, "fo1: nobody there\n"),
        (OSError("AWS Error SLOW_DOWN"), 1, "fo1: AWS Error SLOW_DOWN\n"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_errors_that_a_message_explains(error, status, shown, monkeypatch, capsys):
    raises(error, monkeypatch)
    assert main(["list"]) == status
    text = capsys.readouterr().err
    assert shown in text
    assert "Traceback" not in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("1"), KeyError("a"), RuntimeError("b"), OSError("no number, no file")]
)
def test_a_defect_shows_its_traceback_and_where_to_report(error, monkeypatch, capsys):
    raises(error, monkeypatch)
    assert main(["list"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback")
    assert type(error).__name__ in text
    assert "defect" in text.splitlines()[-1]


def test_verbose_shows_the_traceback_of_everything(monkeypatch, capsys):
    raises(SettingError("steps=x"), monkeypatch)
    assert main(["list", "--verbose"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("fo1: steps=x\n")


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (SettingError("steps=x"), 2),
        (FileNotFoundError(2, "No such file", "a.jpg"), 1),
        (ValueError("ours"), None),
    ],
)
def test_errors_of_ray_s_workers_follow_their_cause(cause, status, monkeypatch, capsys):
    exceptions = pytest.importorskip("ray.exceptions")
    error = exceptions.RayTaskError(
        "f", "long traceback of the worker", cause
    ).as_instanceof_cause()
    assert isinstance(error, type(cause))
    raises(error, monkeypatch)
    assert main(["list"]) == (status or 1)
    text = capsys.readouterr().err
    if status:
        assert text == f"fo1: {cause}\n"
    else:
        assert "long traceback of the worker" in text
        assert "defect" in text.splitlines()[-1]


def test_what_is_shown_follows_the_flags(capsys, monkeypatch):
    def verb(*_):
        logging.getLogger("pipelines").info("told")
        logging.getLogger("fo1_model").warning("warned")
        logging.getLogger("jobs").debug("detail")
        progress.Progress("build", 1).close()

    monkeypatch.setattr(command_line, "function_of", lambda _: verb)
    loggers = [logging.getLogger(name) for name in command_line.PACKAGES]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    seen = {}
    for words in ([], ["--quiet"], ["--verbose"]):
        main(["list", "mixes", *words])
        text = capsys.readouterr().err
        names = ("told", "warned", "detail", "build: 0/1")
        seen[" ".join(words)] = [name for name in names if name in text]
        assert text.count("warned") == 1, "one handler, however often the command runs"
    assert seen == {
        "": ["told", "warned", "build: 0/1"],
        "--quiet": ["warned"],
        "--verbose": ["told", "warned", "detail", "build: 0/1"],
    }
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


def test_verbose_names_flags_that_change_nothing(capsys):
    assert main(["list", "mixes", "--workers", "3", "--verbose"]) == 0
    assert "--workers changes nothing in list" in capsys.readouterr().err


def test_the_module_is_the_command(tmp_path):
    words = ["plan", "stage3", "--root", str(tmp_path / "never-made")]
    command = [sys.executable, "-m", "jobs", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.startswith("fo1: unknown recipe 'stage3'")


def test_every_verb_has_a_function_and_an_example_that_parses():
    for verb in VERBS.values():
        module, _, name = verb.run.partition(":")
        source = Path(*module.split(".")).with_suffix(".py")
        assert f"def {name}(" in (Path(command_line.__file__).parents[2] / source).read_text()
        assert verb.examples
        for example in verb.examples:
            words = example.split(" | ")[0].replace("'", "").split()
            assert parse(words[1:]).verb is verb
