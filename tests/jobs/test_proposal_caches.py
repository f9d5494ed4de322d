import json
import shutil
from pathlib import Path

import pytest

from jobs.command.command_line import main
from jobs.proposal_caches import find_cache, find_labelled, proposals
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError

JITTERED = "ground_truth_jitter,jitter=0.2,seed=4,max_boxes=50"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory, drawn_world: Path) -> RuntimeConfig:
    """A root with samples of drawn_val and three caches of two detectors. Never written to."""
    root = tmp_path_factory.mktemp("caches")
    flags = ["--root", str(root), "--data", str(drawn_world), "--workers", "0"]
    assert main(["build", "data", "mix=drawn_val", *flags]) == 0
    for detector in ("ground_truth", "ground_truth_jitter", JITTERED):
        assert main(["propose", "data", "mix=drawn_val", f"detector={detector}", *flags]) == 0
    return RuntimeConfig(root=str(root), data=str(drawn_world), workers=0)


def caches(runtime: RuntimeConfig, name: str) -> list[str]:
    return sorted(
        path.name for path in Path(runtime.root, "proposals", "drawn_val", name).iterdir()
    )


def test_list_has_a_line_a_cache(runtime, capsys):
    proposals(["list"], runtime)
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["source", "detector", "fingerprint", "images", "boxes"]
    assert len(lines) == 3
    for line in lines:
        source, detector, key, images, boxes, rejects, *settings = line.split()
        assert (source, images, rejects) == ("drawn_val", "12", "0")
        assert key in caches(runtime, detector)
        manifest = find_cache(f"drawn_val/{detector}/{key}", runtime.root).manifest()
        assert boxes == f"{manifest['ledger']['boxes'] / 12:.1f}"
        changed = [s for s in settings if "=" in s]
        if manifest["config"]["detector"].get("seed") == 4:
            assert changed == ["jitter=0.2,", "seed=4,", "max_boxes=50,"]
        else:
            assert changed == []
        assert settings[-2] == "samples/drawn_val"


def test_list_of_an_empty_root_and_of_an_older_version(runtime, tmp_path, capsys):
    here = RuntimeConfig(root=str(tmp_path), data=str(tmp_path), workers=0)
    proposals(["list"], here)
    assert "no finished proposals under" in capsys.readouterr().out
    key = caches(runtime, "ground_truth")[0]
    shutil.copytree(f"{runtime.root}/proposals", tmp_path / "proposals")
    path = tmp_path / "proposals/drawn_val/ground_truth" / key / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["detector"]["gone"] = 1
    path.write_text(json.dumps(manifest))
    (
        tmp_path / "proposals/drawn_val/ground_truth_jitter" / ("0" * 16)
    ).mkdir()  # begun, not finished
    proposals(["list"], here)
    shown = capsys.readouterr().out
    assert "settings of another version" in shown
    assert "0" * 16 not in shown
    with pytest.raises(SettingError, match="takes no words"):
        proposals(["list", "all"], here)


def test_diff_prints_tables_and_writes_the_page(runtime, tmp_path, capsys):
    root = tmp_path / "root"
    for kind in ("samples", "proposals"):
        shutil.copytree(f"{runtime.root}/{kind}", root / kind)
    here = RuntimeConfig(root=str(root), data=runtime.data, workers=0)
    first, second = caches(runtime, "ground_truth_jitter")
    proposals(
        ["diff", "drawn_val/ground_truth", f"drawn_val/ground_truth_jitter/{first[:6]}"], here
    )
    shown = capsys.readouterr().out
    page = root / "pages/proposals-diff-drawn_val-ground_truth-ground_truth_jitter.html"
    assert shown.endswith(f"page: {page}\n")
    assert "drawn_val  R50@100    100.0" in shown
    assert (
        page.read_text().count('<article class="card">') == 11
    )  # one of the twelve scenes has no object
    proposals(
        [
            "diff",
            *(f"drawn_val/ground_truth_jitter/{key}" for key in (first, second)),
            "images=2",
        ],
        here,
    )
    two = (f"ground_truth_jitter-{key[:8]}" for key in (first, second))
    name = f"proposals-diff-drawn_val-{'-'.join(two)}.html"
    assert (root / "pages" / name).read_text().count('<article class="card">') == 2
    folder = f"{runtime.root}/proposals/drawn_val/ground_truth_jitter/{first}"
    proposals(["diff", folder, "drawn_val/ground_truth", "dataset=drawn_val", "images=0"], here)


def test_a_cache_by_name_fingerprint_or_folder(runtime):
    key = caches(runtime, "ground_truth")[0]
    first, second = caches(runtime, "ground_truth_jitter")
    named = find_cache("drawn_val/ground_truth", runtime.root)
    assert (named.name, named.fingerprint) == ("drawn_val/ground_truth", key)
    assert (
        find_cache(f"drawn_val/ground_truth_jitter/{second[:8]}", runtime.root).fingerprint
        == second
    )
    assert find_cache(named.path, "/nowhere") == named
    several = f"there are 2 of them; name one of .*{first}, .*{second}"
    with pytest.raises(SettingError, match=several):
        find_cache("drawn_val/ground_truth_jitter", runtime.root)
    inner = f"drawn_val/ground_truth/{key[3:]}"
    for unknown in ("drawn_val/opn", "drawn_val", inner, "../../etc", ""):
        with pytest.raises(
            ValueError, match=f"no finished proposals of that name .*/ground_truth/{key}"
        ):
            find_cache(unknown, runtime.root)
    with pytest.raises(SettingError, match="there is nothing"):
        find_cache("drawn_val/opn", "/nowhere")
    samples = find_labelled("drawn_val", runtime.root, None)["drawn_val"]
    with pytest.raises(SettingError, match="is no cache of proposals"):
        find_cache(samples.path, runtime.root)


def manifest_of(root: Path, name: str, key: str, **options) -> None:
    """A finished samples artifact, as far as its manifest goes."""
    manifest = {"version": 1, "inputs": {"file": "x"}, "config": {"options": {"max_objects": 100}}}
    Artifact(root=str(root), kind="samples", name=name, fingerprint=key * 16).commit(
        manifest | options
    )


def test_labelled_sets_are_found_by_the_image_source(tmp_path):
    for name in ("drawn_val", "drawn_train", "lvis_train"):
        manifest_of(tmp_path, name, "a")
    found = find_labelled("drawn_val", str(tmp_path), None)
    assert {name: item.fingerprint for name, item in found.items()} == {"drawn_val": "a" * 16}
    assert list(find_labelled("coco_train2017", str(tmp_path), None)) == ["lvis_train"]
    with pytest.raises(
        ValueError, match="dataset=drawn_train: not over the images of drawn_val; drawn_val"
    ):
        find_labelled("drawn_val", str(tmp_path), "drawn_train")
    with pytest.raises(
        ValueError, match=r"over the images of coco_val2017 .*: fo1 build data mix="
    ):
        find_labelled("coco_val2017", str(tmp_path), None)
    with pytest.raises(
        ValueError, match=r"of lvis_train/b under .*: fo1 build data mix=lvis_train"
    ):
        find_labelled("coco_train2017", str(tmp_path), "lvis_train/b")


def test_samples_of_other_options_show_the_same_objects_unless_they_do_not(tmp_path):
    manifest_of(tmp_path, "drawn_val", "b")
    manifest_of(
        tmp_path, "drawn_val", "a", config={"options": {"max_objects": 100, "paraphrases": True}}
    )
    assert find_labelled("drawn_val", str(tmp_path), None)["drawn_val"].fingerprint == "a" * 16
    for other in (
        {"config": {"options": {"max_objects": 10}}},
        {"inputs": {"file": "y"}},
        {"version": 2},
    ):
        manifest_of(tmp_path, "drawn_val", "c", **other)
        with pytest.raises(
            ValueError, match="do not show the same objects: add one of dataset=drawn_val/aaaa"
        ):
            find_labelled("drawn_val", str(tmp_path), None)
        chosen = find_labelled("drawn_val", str(tmp_path), "drawn_val/ccc")
        assert chosen["drawn_val"].fingerprint == "c" * 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "write fo1 proposals diff"),
        (["show"], "write fo1 proposals diff"),
        (["diff"], "write fo1 proposals diff A B"),
        (["diff", "drawn_val/ground_truth"], "write fo1 proposals diff A B"),
        (["diff", "a/b", "c/d", "e/f"], "write fo1 proposals diff A B"),
        (["diff", "drawn_val/ground_truth", "drawn_val/ground_truth"], "are the same cache"),
        (["diff", "drawn_val/ground_truth", "drawn_val/opn"], "no finished proposals of that name"),
        (["diff", "a/b", "c/d", "image=3"], "did you mean 'images'?"),
        (["diff", "a/b", "c/d", "images=many"], "images=many"),
        (["diff", "a/b", "c/d", "images=-1"], "images=-1: use 0 or more"),
    ],
)
def test_a_wrong_word_is_named(words, message, runtime):
    with pytest.raises(SettingError) as error:
        proposals(words, runtime)
    assert message in str(error.value)


def test_caches_of_different_images_are_refused(runtime, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(f"{runtime.root}/proposals/drawn_val", root / "proposals/drawn_val")
    shutil.copytree(f"{runtime.root}/proposals/drawn_val", root / "proposals/drawn_train")
    here = RuntimeConfig(root=str(root), data=runtime.data, workers=0)
    with pytest.raises(SettingError, match="are of different images: name two of one source"):
        proposals(["diff", "drawn_val/ground_truth", "drawn_train/ground_truth"], here)
