import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from dataset_builders import DATASETS, BuildOptions
from dataset_builders.images import bucket_of
from dataset_builders.records import SAMPLE_SCHEMA, TASKS, ImageRef, sample_from_row, sample_to_row, validate

from .conftest import collect

DRAWN = sorted(name for name in DATASETS if name.startswith("drawn"))


def test_listing_datasets_imports_nothing_heavy() -> None:
    heavy = ["numpy", "pyarrow", "PIL", "ijson"]
    code = f"import sys, dataset_builders as d; d.DATASETS; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_spec_is_complete_and_sources_agree() -> None:
    sources: dict[str, tuple] = {}
    for name, spec in DATASETS.items():
        assert spec.name == name
        assert set(spec.tasks) <= set(TASKS)
        assert spec.num_buckets > 0
        assert all((spec.licence, spec.source, spec.layout, spec.folder, spec.files, spec.image_files))
        assert all(file in spec.layout for file in spec.files)
        facts = (spec.folder, spec.num_buckets, spec.image_files)
        assert sources.setdefault(spec.image_source, facts) == facts, "proposals are shared by image source"


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_dataset_builds_with_nothing_left_out(name: str, drawn_root: Path) -> None:
    spec = DATASETS[name]
    built = collect(spec.samples(drawn_root, BuildOptions()))
    assert built.rejects == []
    assert set(built.tasks) == set(spec.tasks)
    refs = {ref.image_id: ref for ref in spec.images(drawn_root) if isinstance(ref, ImageRef)}
    for sample in built.samples:
        validate(sample)
        assert sample.dataset == name
        ref = refs[sample.image_id]
        assert (ref.image_uri, ref.width, ref.height) == (sample.image_uri, sample.width, sample.height)
        assert sample.bucket == ref.bucket == bucket_of(sample.image_id, spec.num_buckets)
    table = pa.Table.from_pylist([sample_to_row(sample) for sample in built.samples], SAMPLE_SCHEMA)
    table.validate(full=True)
    assert [sample_from_row(row) for row in table.to_pylist()] == built.samples
    assert built.samples == collect(spec.samples(drawn_root, BuildOptions())).samples


def test_buckets_are_about_even(drawn_root: Path) -> None:
    counts = Counter(ref.bucket for ref in DATASETS["drawn_train"].images(drawn_root))
    assert len(counts) == DATASETS["drawn_train"].num_buckets
