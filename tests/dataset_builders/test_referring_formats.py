"""Every referring dataset, built from its official layout with the traps of its sheet."""

from pathlib import Path

import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.referring import (
    c_refcoco,
    finecops,
    refcoco,
    refcoco_hf,
    refcoco_mdetr,
)
from dataset_builders.images import read_image_size
from tests.dataset_builders.conftest import collect
from tests.formats.referring import FORMATS
from tests.formats.scenes import Format

MODULES = (refcoco, refcoco_mdetr, refcoco_hf, c_refcoco, finecops)
SPECS = {spec.name: spec for module in MODULES for spec in module.DATASETS}


def test_every_dataset_has_a_format() -> None:
    named = [name for item in FORMATS for name in item.datasets]
    assert sorted(named) == sorted(SPECS)


@pytest.mark.parametrize("item", FORMATS, ids=lambda item: item.datasets[0])
def test_a_generated_layout_is_built(tmp_path: Path, item: Format) -> None:
    item.write(tmp_path / "a", 3)
    item.write(tmp_path / "b", 3)
    folders = DataFolders(str(tmp_path / "a"))
    for pattern in item.records:
        assert folders.matches(pattern)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    for name in item.datasets:
        built = collect(SPECS[name].samples(folders, BuildOptions()))
        assert set(built.tasks) == set(SPECS[name].tasks)
        for unit, read in built.ledger.read.items():
            assert read - built.ledger.used.get(unit, 0) < 0.2 * read, unit
        if SPECS[name].stages:
            assert built.rejects
        sources = {source.name for source in SPECS[name].images}
        for sample in built.samples:
            assert sample.image_source in sources
            assert read_image_size(folders, sample.image_uri) == (sample.width, sample.height)
        again = collect(SPECS[name].samples(DataFolders(str(tmp_path / "b")), BuildOptions()))
        assert again.samples == built.samples
