"""Detectors in words: what is understood, what is refused, what a recipe makes of it."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fo1_model.detectors.configs import (
    DETECTORS,
    BoxFileConfig,
    ClosedSetConfig,
    GroundTruthConfig,
    GroundTruthJitterConfig,
    OPNDetectorConfig,
    Selection,
    TextPromptedConfig,
    TorchvisionConfig,
    UnionConfig,
    UntrainedOPNConfig,
    UntrainedRTDETRConfig,
    UPNConfig,
    from_canonical,
    leaves,
    name_of,
    with_selection,
)
from jobs.chain.recipe_chain import recipe_chain
from jobs.command.command_line import main
from jobs.detector_arguments import (
    DetectorChoice,
    describe_detectors,
    is_trained_here,
    parse_detector,
)
from jobs.recipes.arguments import parse_arguments
from jobs.recipes.catalogue import RECIPES
from pipelines.cluster import RuntimeConfig
from pipelines.fingerprints import canonical


@pytest.fixture
def box_file(tmp_path: Path) -> Path:
    path = tmp_path / "a+b:c" / "boxes+more.v1:final.jsonl"
    path.parent.mkdir()
    path.write_text('{"image": "a.jpg", "boxes": []}\n')
    return path


def test_every_form_of_the_docstring(box_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_detector("opn") == DetectorChoice(config=OPNDetectorConfig(), sources=(None,))
    assert parse_detector("opn:RUN") == DetectorChoice(config=OPNDetectorConfig(), sources=("RUN",))
    assert parse_detector("closed_set:PekingU/rtdetr_r18vd") == DetectorChoice(
        config=ClosedSetConfig(), sources=("PekingU/rtdetr_r18vd",)
    )
    assert parse_detector("text_prompted:DIR,prompt=person;dog") == DetectorChoice(
        config=TextPromptedConfig(prompt="person;dog"), sources=("DIR",)
    )
    assert parse_detector("upn:upn_large.pth,score_min=0.25") == DetectorChoice(
        config=UPNConfig(selection=Selection(score_min=0.25)), sources=("upn_large.pth",)
    )
    expected = DetectorChoice(config=BoxFileConfig(), sources=(str(box_file),))
    assert parse_detector(f"file:{box_file}") == expected
    monkeypatch.chdir(box_file.parent)  # a worker runs in another folder
    assert parse_detector(f"file:{box_file.name}") == expected
    assert parse_detector(f"opn+file:{box_file}") == DetectorChoice(
        config=UnionConfig(members=(OPNDetectorConfig(), BoxFileConfig())),
        sources=(None, str(box_file)),
    )


def test_settings_have_types() -> None:
    chosen = parse_detector(
        "ground_truth_jitter,jitter=0.2,num_distractors=3,seed=4,"
        "score_min=0.1,nms_iou=none,max_boxes=7"
    )
    assert chosen.config == GroundTruthJitterConfig(
        jitter=0.2,
        num_distractors=3,
        seed=4,
        selection=Selection(score_min=0.1, nms_iou=None, max_boxes=7),
    )
    assert parse_detector(
        "torchvision:f.pth,model=ssd,boxes=rpn,precision=bf16"
    ).config == TorchvisionConfig(model="ssd", boxes="rpn", precision="bf16")
    assert parse_detector("opn:/a/b,prompt=both").config == OPNDetectorConfig(prompt="both")
    # only what stands there replaces a detector's own defaults
    assert parse_detector("upn:x,nms_iou=0.5").config.selection == Selection(
        score_min=0.3, nms_iou=0.5
    )
    assert parse_detector("ground_truth,max_boxes=9").config.selection == Selection(
        nms_iou=None, max_boxes=9
    )
    assert parse_detector("text_prompted:d,prompt=a=b").config == TextPromptedConfig(prompt="a=b")


def test_the_recipes_selection_holds_where_the_text_says_nothing() -> None:
    base = {"score_min": 0.2, "nms_iou": 0.4, "max_boxes": 12}
    kept = Selection(score_min=0.2, nms_iou=0.4, max_boxes=12)
    assert parse_detector("upn:x", base).config.selection == kept
    assert parse_detector("ground_truth", {"max_boxes": 12}).config.selection == Selection(
        nms_iou=None, max_boxes=12
    )
    assert parse_detector("ground_truth,max_boxes=5", base).config.selection == Selection(
        score_min=0.2, nms_iou=0.4, max_boxes=5
    )
    union = parse_detector("opn_untrained,max_boxes=5+ground_truth,nms_iou=none", base).config
    assert union.selection == kept
    assert [leaf.selection for leaf in leaves(union)] == [
        Selection(score_min=0.2, nms_iou=0.4, max_boxes=5),
        Selection(score_min=0.2, nms_iou=None, max_boxes=12),
    ]
    assert base == {"score_min": 0.2, "nms_iou": 0.4, "max_boxes": 12}


@pytest.mark.parametrize(
    ("text", "names", "sources"),
    [
        ("opn:/a+b/c", ["opn"], ["/a+b/c"]),
        ("opn:s3://bucket/run+1:2", ["opn"], ["s3://bucket/run+1:2"]),
        ("opn:a+opnx", ["opn"], ["a+opnx"]),
        ("opn+opn_untrained", ["opn", "opn_untrained"], [None, None]),
        ("opn_untrained+opn", ["opn_untrained", "opn"], [None, None]),
        ("opn:a+opn:b", ["opn", "opn"], ["a", "b"]),
        ("opn,prompt=fine+opn,prompt=coarse", ["opn", "opn"], [None, None]),
        (
            "upn:a+b.pth+closed_set:c+d/e+torchvision:f:g",
            ["upn", "closed_set", "torchvision"],
            None,
        ),
        (
            "ground_truth+opn+rt_detr_untrained",
            ["ground_truth", "opn", "rt_detr_untrained"],
            [None] * 3,
        ),
        ("text_prompted:d,prompt=a+b;c+opn", ["text_prompted", "opn"], ["d", None]),
    ],
)
def test_unions_and_paths_with_plus_and_colon(text: str, names: list, sources: list | None) -> None:
    chosen = parse_detector(text)
    assert [name_of(leaf) for leaf in leaves(chosen.config)] == names
    assert list(chosen.sources) == (sources or ["a+b.pth", "c+d/e", "f:g"])
    assert isinstance(chosen.config, UnionConfig) == (len(names) > 1)
    if len(names) > 1:
        assert name_of(chosen.config) == "+".join(names)


KNOWN = "opn, opn_untrained, closed_set, rt_detr_untrained, text_prompted, torchvision, upn, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", rf"detector=: unknown detector ''; known: {KNOWN}"),
        ("OPN", rf"detector=OPN: unknown detector 'OPN'; did you mean 'opn'\? known: {KNOWN}"),
        ("union", "unknown detector 'union'"),
        (
            "opn:a+nothing:b,seed=1",
            "'seed=1' is no setting of opn; it has prompt, precision, score_min",
        ),
        ("closed_set", "detector=closed_set: it needs the folder, file or hub name of its weights"),
        (
            "opn+upn",
            "detector=upn: it needs the folder, file or hub name of its weights; .*upn:PATH",
        ),
        ("file", "detector=file: it needs a file of boxes; write detector=file:PATH"),
        ("file:/nowhere.json", r"detector=file:/nowhere\.json: there is no such file"),
        ("file:/tmp", "detector=file:/tmp: there is no such file"),
        ("ground_truth:x", "detector=ground_truth:x: ground_truth needs nothing"),
        ("opn_untrained:x", "opn_untrained needs nothing; write detector=opn_untrained"),
        ("opn,prompt=medium", "prompt=medium: choose one of coarse, fine, both"),
        ("opn,precision=fp16", "precision=fp16: .*choose one of fp32, bf16"),
        ("opn,max_boxes=1.5", "max_boxes=1.5: not a whole number"),
        ("opn,max_boxes=0", "Selection.max_boxes=0"),
        ("opn,nms_iou=high", "nms_iou=high: not a number"),
        ("opn,score_min=nan", "Selection.score_min=nan"),
        ("opn,seed=1", "'seed=1' is no setting of opn"),
        ("opn,prompt", "'prompt' is no setting of opn"),
        ("opn,", "'' is no setting of opn"),
        ("opn,selection=x", "'selection=x' is no setting of opn"),
        ("opn,needs=nothing", "'needs=nothing' is no setting of opn"),
        ("opn,score_min=0.1,score_min=0.2", "score_min is given twice"),
        ("ground_truth_jitter,jitter=0.9", "GroundTruthJitterConfig.jitter=0.9"),
        ("opn_untrained,size=huge", "UntrainedOPNConfig.size='huge'"),
        ("text_prompted:d,prompt=;", "TextPromptedConfig.prompt"),
        (
            "ground_truth+ground_truth_jitter",
            "only one of them may bring boxes that are known already",
        ),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_detector(text)


def test_a_recipe_trains_a_detector_of_ours_that_nobody_named() -> None:
    assert is_trained_here(parse_detector("opn"))
    assert is_trained_here(parse_detector("opn_untrained+opn,prompt=fine"))
    for text in ("opn:RUN", "opn_untrained", "ground_truth", "closed_set:x", "opn:RUN+upn:x"):
        assert not is_trained_here(parse_detector(text)), text


def test_the_list_describes_every_detector_but_the_union() -> None:
    lines = describe_detectors()
    assert [line.partition(" ")[0].partition(":")[0].removesuffix("[") for line in lines] == [
        name for name in DETECTORS if name != "union"
    ]
    by_name = {line.split()[0]: line for line in lines}
    assert "prompt=coarse" in by_name["opn[:RUN]"]
    assert (
        "jitter=0.08, miss_rate=0.0, num_distractors=12, seed=0" in by_name["ground_truth_jitter"]
    )
    assert {"closed_set:WEIGHTS", "text_prompted:WEIGHTS", "upn:WEIGHTS", "file:FILE"} < set(
        by_name
    )
    for line in lines:
        name = line.split()[0].partition("[:")[0].partition(":")[0]
        assert DETECTORS[name].__doc__.strip().splitlines()[0] in line
        assert "selection" not in line


ALL_CONFIGS = [
    OPNDetectorConfig(prompt="both", precision="bf16"),
    UntrainedOPNConfig(seed=3, selection=Selection(max_boxes=5)),
    ClosedSetConfig(selection=Selection(score_min=0.5)),
    UntrainedRTDETRConfig(seed=2),
    TextPromptedConfig(prompt="person; dog"),
    TorchvisionConfig(boxes="rpn"),
    UPNConfig(prompt="coarse"),
    GroundTruthConfig(),
    GroundTruthJitterConfig(jitter=0.1, selection=Selection(nms_iou=None)),
    BoxFileConfig(),
    UnionConfig(members=(OPNDetectorConfig(), UPNConfig()), selection=Selection(nms_iou=0.5)),
]


def test_manifests_give_configs_back() -> None:
    assert {type(config) for config in ALL_CONFIGS} == set(DETECTORS.values())
    for config in ALL_CONFIGS:
        written = json.loads(json.dumps(canonical(config)))
        assert from_canonical(written) == config
        assert written == json.loads(json.dumps(canonical(config))), "it is left as it is"
    described = [json.dumps(canonical(config), sort_keys=True) for config in ALL_CONFIGS]
    assert all(one != two for one, two in itertools.combinations(described, 2))


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=name_of)
def test_manifests_of_another_version_are_refused(config) -> None:
    good = canonical(config)
    selection = good["selection"]
    for wrong in (
        good | {"type": "NoSuchConfig"},
        good | {"type": None},
        {name: value for name, value in good.items() if name != "type"},
        {name: value for name, value in good.items() if name != "selection"},
        good | {"added": 1},
        good | {"selection": selection | {"added": 1}},
        good
        | {"selection": {name: value for name, value in selection.items() if name != "nms_iou"}},
        good | {"selection": selection | {"max_boxes": 0}},
    ):
        with pytest.raises(ValueError, match=r"not known to this version|max_boxes"):
            from_canonical(wrong)


def test_with_selection_changes_that_alone() -> None:
    for config in ALL_CONFIGS:
        other = with_selection(config, max_boxes=3)
        assert (type(other), other.selection.max_boxes) == (type(config), 3)
        assert with_selection(other, max_boxes=config.selection.max_boxes) == config


def recipe(name: str, *words: str):
    return RECIPES[name](**parse_arguments(RECIPES[name], list(words)))


def test_recipes_take_a_file_of_boxes(box_file: Path) -> None:
    word = f"detector=file:{box_file}"
    for made in (
        recipe("data", "mix=coco", word),
        recipe("coco_sample", "coco_root=/data", word),
        recipe("stage1", word),
        recipe("stage2", word),
    ):
        assert isinstance(made.detector, BoxFileConfig)
        assert made.detector_sources == (str(box_file),)
        assert made.detector_training is None
    assert recipe("data", "mix=coco", word, "proposals=7").detector.selection == Selection(
        nms_iou=None, max_boxes=7
    )
    assert (
        recipe(
            "data", "mix=coco", f"{word},max_boxes=3", "proposals=7"
        ).detector.selection.max_boxes
        == 3
    )
    union = recipe("stage1", f"{word}+opn")
    assert union.detector_sources == (str(box_file), None)
    assert union.detector_training is not None


def test_a_plan_follows_the_content_of_the_file(
    box_file: Path, tmp_path: Path, drawn_world: Path
) -> None:
    runtime = RuntimeConfig(root=str(tmp_path / "root"), data=str(drawn_world), workers=0)

    def proposals() -> set[str]:
        made = recipe_chain(recipe("data", "mix=drawn_val", f"detector=file:{box_file}"), runtime)
        return {
            step.artifact.path for step in made.steps.values() if step.artifact.kind == "proposals"
        }

    before = proposals()
    assert [Path(path).parent.name for path in before] == ["file"]
    box_file.write_text('{"image": "b.jpg", "boxes": []}\n')
    assert not proposals() & before


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("closed_set:/nowhere", "weights=/nowhere: there is no such folder or file"),
        ("opn_untrained+upn:/nowhere.pth", "weights=/nowhere.pth: there is no such folder or file"),
        ("file:/nowhere.json", "detector=file:/nowhere.json: there is no such file"),
        ("opn", "this recipe trains none; name a run of it: detector=opn:RUN"),
        ("opn:no_such_run", "no_such_run"),
        ("nothing", "unknown detector 'nothing'"),
    ],
)
def test_a_plan_names_what_is_missing(
    detector: str, message: str, drawn_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--root", str(tmp_path), "--data", str(drawn_world)]
    for verb in ("plan", "propose"):
        assert main([verb, "data", "mix=drawn_val", f"detector={detector}", *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "proposals").exists()


def test_a_plan_fails_fast_and_imports_nothing_heavy(drawn_world: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "print({'torch', 'ray', 'transformers', 'huggingface_hub'} & set(sys.modules))\n"
        "sys.exit(status)"
    )
    words = ["plan", "data", "mix=drawn_val", "detector=closed_set:/nowhere"]
    flags = ["--root", str(tmp_path), "--data", str(drawn_world)]
    start = time.monotonic()
    command = [sys.executable, "-c", code, *words, *flags]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert time.monotonic() - start < 10  # about one second where nothing else runs
    assert result.returncode == 2
    assert "weights=/nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "set()"
