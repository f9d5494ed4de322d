import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from dataset_builders import DATASETS, IMAGE_SOURCES, BuildOptions, DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.images import bucket_of, buckets_holding
from dataset_builders.records import (
    SAMPLE_SCHEMA,
    TASKS,
    ImageRef,
    Ledger,
    sample_from_row,
    sample_to_row,
)
from dataset_builders.spec import Item
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import collect

DRAWN = sorted(name for name in DATASETS if name.startswith("drawn"))


def test_listing_datasets_imports_nothing_heavy() -> None:
    heavy = ["torch", "ray", "transformers", "scipy", "matplotlib", "mlflow", "timm", "deepspeed"]
    code = (
        "import sys, dataset_builders as d; d.DATASETS; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", DATASETS)
def test_every_spec_is_complete(name: str) -> None:
    spec = DATASETS[name]
    assert spec.name == name
    assert spec.tasks
    assert set(spec.tasks) <= set(TASKS)
    assert set(spec.stages) <= {1, 2}
    assert all((spec.licence, spec.source, spec.layout))
    pictures = [
        name for source in (*spec.images, *spec.optional_images) for name in source.image_paths
    ]
    for name in (*spec.files, *spec.containers, *spec.optional_files, *pictures):
        assert name.partition("*")[0].rstrip("/") in spec.layout, "the layout shows what is read"


def test_image_sources_are_told_apart_by_name() -> None:
    for spec in DATASETS.values():
        for source in (*spec.images, *spec.optional_images):
            assert IMAGE_SOURCES[source.name] is source, (
                "one name, one source: proposals are shared by it"
            )


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_dataset_builds_with_nothing_left_out(name: str, drawn_root: Path) -> None:
    spec, folders = DATASETS[name], DataFolders("/nowhere", {"drawn": str(drawn_root)})
    built = collect(spec.samples(folders, BuildOptions()))
    assert built.rejects == []
    assert set(built.tasks) == set(spec.tasks)
    (source,) = spec.images
    refs = {ref.image_id: ref for ref in source.images(folders) if isinstance(ref, ImageRef)}
    for sample in built.samples:
        validate(sample)
        assert sample.dataset == name
        ref = refs[sample.image_id]
        assert (ref.image_uri, ref.width, ref.height) == (
            sample.image_uri,
            sample.width,
            sample.height,
        )
        assert ref.image_source == sample.image_source == source.name
    rows = [sample_to_row(sample, bucket=0) for sample in built.samples]
    table = pa.Table.from_pylist(rows, SAMPLE_SCHEMA)
    table.validate(full=True)
    assert [sample_from_row(row) for row in table.to_pylist()] == built.samples
    assert built.samples == collect(spec.samples(folders, BuildOptions())).samples


def test_buckets_are_about_even(drawn_root: Path) -> None:
    folders = DataFolders("/nowhere", {"drawn": str(drawn_root)})
    refs = IMAGE_SOURCES["drawn_train"].images(folders)
    counts = Counter(bucket_of(ref.image_id, 8) for ref in refs if isinstance(ref, ImageRef))
    assert len(counts) == 8


@pytest.mark.parametrize("num_buckets", [1, 2, 16, 64])
@pytest.mark.parametrize("others", [1, 4, 16, 256])
def test_buckets_of_one_source_lie_whole_in_those_of_another(num_buckets: int, others: int) -> None:
    for number in range(300):
        image_id = f"image {number}"
        holding = buckets_holding(bucket_of(image_id, num_buckets), num_buckets, others)
        assert bucket_of(image_id, others) in holding
    everything = [
        b for bucket in range(num_buckets) for b in buckets_holding(bucket, num_buckets, others)
    ]
    assert set(everything) == set(range(others))


def test_images_of_a_row_group_share_a_bucket() -> None:
    assert bucket_of("ai2d/0/3#17/0", 256) == bucket_of("ai2d/0/3#18/0", 256)
    assert len({bucket_of(f"ai2d/0/{group}#17/0", 256) for group in range(20)}) > 10


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A folder of the same name stands for one that may not be read, which root always may."""
    folders = DataFolders(str(tmp_path))
    (tmp_path / "drawn" / "annotations" / "instances_train.json").mkdir(parents=True)
    (tmp_path / "drawn" / "train").mkdir()
    with pytest.raises(
        SettingError, match=r"dataset drawn_train: cannot read .*_train\.json: Is a"
    ):
        list(DATASETS["drawn_train"].samples(folders, BuildOptions()))
    with pytest.raises(SettingError, match=r"image source drawn_train: cannot read .*_train\.json"):
        list(IMAGE_SOURCES["drawn_train"].images(folders))


def test_a_defect_of_a_builder_keeps_its_traceback() -> None:
    def build(*_: object) -> Iterator[Item]:
        yield Ledger(read={}, used={})
        raise ValueError("a bug of ours")

    spec = replace(DATASETS["drawn_train"], build=build, files=(), images=())
    with pytest.raises(ValueError, match=r"^a bug of ours") as caught:
        list(spec.samples(DataFolders("/nowhere"), BuildOptions()))
    assert not isinstance(caught.value, SettingError)
