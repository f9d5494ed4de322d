"""The Cauldron: fifty datasets as questions and answers, a folder of parquet files each.

Images lie in the parquet. A row is ``{images: [{bytes, path}], texts: [{user, assistant,
source}]}`` and becomes one sample (instruction). Files are read a few rows at a time. An image's id
is `<subset>/<file>/<row group>#<row>/<image>`, so that images of one row group, which are read
together, are in one bucket.

Sources: https://huggingface.co/datasets/HuggingFaceM4/the_cauldron; the reader of
pytorch/torchtune.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.box_checks import get
from dataset_builders.containers import parquet_place
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.images import MAX_IMAGE_BYTES, check_uri, image_size
from dataset_builders.readers.conversations import message_text, text_turns
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import ROLES, BadRecord, ImageRef, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item

FILES = "cauldron/*/*.parquet"
ROWS = 16
"""How many rows are in memory at a time."""


def build(
    folders: DataFolders, _options: BuildOptions, *, dataset: str = "cauldron"
) -> Iterator[Item]:
    """Yield one sample a row, the rejects, and the ledger last.

    Raises:
        SettingError: A file is not parquet or lacks a column.
    """
    counter = RecordCounter()
    for name in folders.matches(FILES):
        for group, number, row in _rows(folders, name, images=True):

            def make(
                name: str = name, group: int = group, number: int = number, row: Any = row
            ) -> list[Sample]:
                uri, image_id = _place(name, group, number)
                turns = text_turns(read_texts(get(row, "texts")))
                width, height = image_size(_image_bytes(get(row, "images")))
                ref = CAULDRON_IMAGES.ref(image_id, uri, width, height)
                return [
                    ImageFacts(ref=ref).sample(
                        dataset=dataset, task="instruction", number=0, turns=turns
                    )
                ]

            yield from counter.record(f"{name.partition('/')[2]}#{group}/{number}", make)
    yield counter.ledger()


def read_texts(stored: Any) -> list[tuple[str, str]]:
    """Return (role, text) for each message of a row.

    Raises:
        BadRecord: malformed or empty_text.
    """
    if not isinstance(stored, list):
        raise BadRecord("malformed", f"texts is {type(stored).__name__}, not a list")
    if not stored:
        raise BadRecord("empty_text", "a row without texts")
    messages = []
    for exchange in stored:
        messages += [(role, message_text(get(exchange, role), what=role)) for role in ROLES]
    return messages


def _image_bytes(stored: Any) -> bytes:
    """Return the bytes of the one image of a row.

    Raises:
        BadRecord: malformed, missing_image, several_images or image_too_large.
    """
    if stored is not None and not isinstance(stored, list):
        raise BadRecord("malformed", f"images is {type(stored).__name__}, not a list")
    if not stored:
        raise BadRecord("missing_image", "a row without images")
    if len(stored) > 1:
        raise BadRecord("several_images", f"{len(stored)} images")
    data = get(stored[0], "bytes")
    if not isinstance(data, bytes):
        raise BadRecord(
            "missing_image",
            f"the image holds no bytes; its path is {ascii(stored[0].get('path'))[:120]}",
        )
    if len(data) > MAX_IMAGE_BYTES:
        raise BadRecord("image_too_large", f"more than {MAX_IMAGE_BYTES} bytes")
    return data


def _place(name: str, group: int, row: int) -> tuple[str, str]:
    """Return the uri and the id of the first image of a row."""
    stem = PurePosixPath(check_uri(name)).with_suffix("").as_posix().partition("/")[2]
    return f"{name}#{parquet_place(group, row, 0)}", f"{stem}/{group}#{row}/0"


def _rows(
    folders: DataFolders, name: str, *, images: bool
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (row group, number in it, row) of a file; an empty row for one whose text is not UTF-8.

    With `images` False no more of the column `images` is read than the paths, where there are any.
    """
    with _opened(folders, name) as file:
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        paths = [leaf for leaf in leaves if leaf.startswith("images.") and leaf.endswith(".path")]
        columns = ["images", "texts"] if images else paths or ["images"]
        for group in range(file.num_row_groups):
            number = 0
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
                for offset in range(batch.num_rows):
                    yield group, number, _row(batch.slice(offset, 1))
                    number += 1


def _row(batch: pa.RecordBatch) -> dict[str, Any]:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return {}


@contextmanager
def _opened(folders: DataFolders, name: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(folders.path(name)) as file:
            if missing := {"images", "texts"} - set(file.schema_arrow.names):
                lacking = " or ".join(sorted(missing))
                raise SettingError(
                    f"{name} has no column {lacking}; The Cauldron's have images and texts"
                )
            yield file
    except (pa.ArrowException, OSError) as error:
        raise SettingError(f"{name} is not a whole parquet file: {error}") from error


def _list_images(folders: DataFolders) -> Iterator[ImageRef | Reject]:
    """Yield the image of every row that has one; of the images only the paths are read."""
    for name in folders.matches(FILES):
        for group, number, row in _rows(folders, name, images=False):
            try:
                uri, image_id = _place(name, group, number)
            except BadRecord as error:
                yield Reject.of(ascii(name), error, "image")
                continue
            if len(row.get("images") or ()) == 1:
                yield CAULDRON_IMAGES.ref(image_id, uri, 0, 0)


CAULDRON_IMAGES = ImageSource(
    name="cauldron", num_buckets=512, list_images=_list_images, image_paths=(FILES,)
)

DATASETS = (
    DatasetSpec(
        name="cauldron",
        images=(CAULDRON_IMAGES,),
        build=build,
        files=(),
        containers=(FILES,),
        tasks=("instruction",),
        stages=(2,),
        licence="that of each of the fifty datasets",
        source="https://huggingface.co/datasets/HuggingFaceM4/the_cauldron",
        layout=(
            "cauldron/<subset>/train-*.parquet   "
            "columns images and texts, as many subsets as are there"
        ),
        num_samples=1_800_000,
    ),
)
