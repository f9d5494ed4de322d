"""Every dataset through the command: build to inspect; then again with a leak planted."""

from pathlib import Path

import pytest

from dataset_builders import DATASETS
from jobs.command.command_line import main
from pipelines.artifacts import Artifact
from pipelines.shards.tar_format import ShardSet, decode_member, tasks_of
from tests.formats import FORMATS, SEED
from tests.formats.scenes import Format

GENERATED = {name: item for item in FORMATS for name in item.datasets}
# further splits differ in a file name from the first; test_every_format builds them too
NAMES = [
    name for name in GENERATED if not name.endswith(("_testA", "_testB", "_hf_val", "_hf_test"))
]


def finished_shards(root: Path, name: str) -> list[Artifact]:
    folder = root / "shards" / name / "proposals"
    return [
        Artifact(root=str(root), kind="shards", name=f"{name}/proposals", fingerprint=made.name)
        for made in sorted(folder.iterdir())
    ]


def images_in(shards: Artifact) -> set[str]:
    found = set()
    for task in tasks_of(shards):
        source = ShardSet(shards, task)
        for name, count in source.shards:
            found |= {decode_member(source.read(name, row))[0].image_id for row in range(count)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_from_official_files_to_shards_and_a_page(name: str, tmp_path: Path, capsys) -> None:
    item: Format = GENERATED[name]
    data, root = tmp_path / "data", tmp_path / "root"
    item.write(data, SEED)
    # a few pictures, of which one is broken on purpose: its share of the rows can be large
    flags = [
        "--data",
        str(data),
        "--root",
        str(root),
        "--workers",
        "0",
        "--max-reject-fraction",
        "1",
    ]
    assert main(["run", "data", f"mix={name}", "exclude=none", *flags]) == 0, (
        capsys.readouterr().err
    )
    (first,) = finished_shards(root, name)
    ledger = first.manifest()["ledger"]
    assert ledger["rows_in"] == ledger["rows_out"] + ledger["rejects"]
    assert sum(ledger["examples"].values()) > 0
    assert "excluded" not in ledger
    (page,) = (root / "pages").glob(f"inspect-{name}-proposals.html")
    assert page.stat().st_size > 10_000
    if {"detection", "rejection"} <= set(DATASETS[name].tasks):
        quota = ledger["rejection_quota"]
        assert 0 < quota["made"] <= quota["wanted"] or quota["wanted"] == 0

    shown = sorted(images_in(first))
    (data / "benchmarks").mkdir(exist_ok=True)
    spec = DATASETS[name]
    spaces = {source.key_space or source.name for source in (*spec.images, *spec.optional_images)}
    lines = "\n".join(f"{space} {shown[0]}" for space in sorted(spaces))
    (data / "benchmarks" / "planted.txt").write_text(lines)
    assert main(["shard", "data", f"mix={name}", "exclude=planted", *flags]) == 0, (
        capsys.readouterr().err
    )
    (second,) = [made for made in finished_shards(root, name) if made != first]
    ledger = second.manifest()["ledger"]
    assert ledger["excluded"]["planted"] == ledger["rejects_by_reason"]["benchmark_image"] > 0
    assert images_in(second) == set(shown) - {shown[0]}
