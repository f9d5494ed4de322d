"""Every dataset on its generated sample: it builds, it loses nothing, whatever its files hold."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builders import DATASETS, IMAGE_SOURCES, BuildOptions, DataFolders
from dataset_builders.benchmark_leakage import excluded_images
from dataset_builders.errors import SettingError
from dataset_builders.images import BadImage, decode_image, read_image_bytes
from dataset_builders.records import BadRecord, ImageRef
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import collect
from tests.formats import FORMATS, SEED
from tests.formats.mutate import mutate_file
from tests.formats.scenes import Format

OPTIONS = BuildOptions(paraphrases=True)
GENERATED = {name: item for item in FORMATS for name in item.datasets}
OTHERS = {
    name for name in DATASETS if name.startswith(("drawn", "coco"))
}  # tested with the drawn world and COCO


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Path]:
    """The data root with the files of a format, written once."""
    written: dict[int, Path] = {}

    def write(item: Format) -> Path:
        if id(item) not in written:
            written[id(item)] = tmp_path_factory.mktemp(item.datasets[0])
            item.write(written[id(item)], SEED)
        return written[id(item)]

    return write


def test_every_dataset_has_a_generated_sample() -> None:
    assert set(GENERATED) == set(DATASETS) - OTHERS


@pytest.mark.parametrize("name", GENERATED)
def test_it_builds_the_same_way_twice_and_few_records_are_lost(
    name: str, data_of: Callable
) -> None:
    spec, folders = DATASETS[name], DataFolders(str(data_of(GENERATED[name])))
    built = collect(spec.samples(folders, OPTIONS))
    assert len(built.samples) > 3
    assert set(built.tasks) == set(spec.tasks), "the sample shows every task, and no other"
    for sample in built.samples:
        validate(sample)
    for unit, read in built.ledger.read.items():
        lost = read - built.ledger.used.get(unit, 0)
        assert lost <= 0.2 * read, f"{unit}: {lost} of {read} rejected: {built.reasons}"
    again = collect(spec.samples(folders, OPTIONS))
    assert again.samples == built.samples
    assert again.rejects == built.rejects


@pytest.mark.parametrize("name", GENERATED)
def test_its_pictures_are_listed_and_have_the_size_that_samples_say(
    name: str, data_of: Callable
) -> None:
    spec, folders = DATASETS[name], DataFolders(str(data_of(GENERATED[name])))
    listed = {
        (source.name, ref.image_id): ref
        for source in spec.sources(folders)
        for ref in source.images(folders)
        if isinstance(ref, ImageRef)
    }
    sizes = {}
    for sample in collect(spec.samples(folders, OPTIONS)).samples:
        if sample.image_uri:
            # an image that is not on disk may be missing from the list of a folder: its samples
            # are rejected later
            there = (sample.image_source, sample.image_id) in listed
            ref = listed.get((sample.image_source, sample.image_id))
            sizes[sample.image_uri] = (sample.width, sample.height)
            assert not there or ref.image_uri == sample.image_uri
            assert there or not folders.path(sample.image_uri.partition("#")[0]).exists()
    good = 0
    for uri, size in sizes.items():
        try:
            good += decode_image(read_image_bytes(folders, uri)).size == size
        except BadImage:
            continue
    assert good >= 0.7 * len(sizes), "most pictures are whole and of their annotated size"


@pytest.mark.parametrize("name", GENERATED)
def test_a_wrong_folder_is_refused_with_file_place_and_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=f"dataset {name}: .* not found: there is no {tmp_path}"
    ) as error:
        next(DATASETS[name].samples(DataFolders(str(tmp_path)), OPTIONS))
    assert DATASETS[name].layout in str(error.value)


@pytest.mark.parametrize("name", GENERATED)
def test_a_file_of_another_form_is_refused_or_rejected_whole(
    name: str, data_of: Callable, tmp_path: Path
) -> None:
    """Every annotation file in turn becomes something else: text, an empty list, strings."""
    item = GENERATED[name]
    for pattern in item.records:
        for content in (b"not annotations at all\n" * 50, b"[]", b"{}", b"", b'["a", "b", 3]' * 1):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(data_of(item), copy)
            for file in DataFolders(str(copy)).matches(pattern):
                (copy / file).write_bytes(content)
            try:
                built = collect(DATASETS[name].samples(DataFolders(str(copy)), OPTIONS))
            except SettingError as error:
                assert DATASETS[name].layout in str(error)  # noqa: PT017 - it may also give rejects
            else:
                for sample in built.samples:
                    validate(sample)


@pytest.mark.parametrize("item", FORMATS, ids=lambda item: item.datasets[0])
@settings(  # the same mutations every time; take derandomize out to look for others
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_mutated_records_are_used_or_rejected_never_lost(
    item: Format, data_of: Callable, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(data_of(item), copy)
    folders = DataFolders(str(copy))
    pattern = rng.choice(sorted(item.records))
    found = [name for name in folders.matches(pattern) if (copy / name).stat().st_size]
    mutate_file(copy / rng.choice(found), item.records[pattern], rng)
    for name in item.datasets:
        try:
            built = collect(DATASETS[name].samples(folders, OPTIONS))  # holds the ledger
        # a whole file may have become unusable, but never because of one record
        except SettingError as error:
            assert DATASETS[name].layout in str(error)  # noqa: PT017
            assert not isinstance(error.__cause__, BadRecord), error  # noqa: PT017
            continue
        for sample in built.samples:
            validate(sample)


@pytest.mark.parametrize("name", GENERATED)
def test_a_planted_leak_is_known_for_every_dataset(
    name: str, data_of: Callable, tmp_path: Path
) -> None:
    """A user's list names the image of one sample; `test_every_dataset` sees it dropped."""
    folders = DataFolders(str(data_of(GENERATED[name])), {"benchmarks": str(tmp_path)})
    shown = next(
        s for s in collect(DATASETS[name].samples(folders, OPTIONS)).samples if s.image_uri
    )
    space = IMAGE_SOURCES[shown.image_source].key_space or shown.image_source
    (tmp_path / "planted.txt").write_text(f"{space} {shown.image_id}\n\n")
    assert excluded_images(folders, ["planted"])[space, shown.image_id] == "planted"
