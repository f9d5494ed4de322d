"""GRIT (Kosmos-2): captions from the web with grounded noun chunks and referring expressions.

A record has `caption` and, under `noun_chunks` and `ref_exps`, rows of seven numbers: first
character, the one behind the last, the corners of a box as shares of the image's sides, and the
score of the detector that made it. The caption is grounded by its noun chunks, or by its
expressions where it has no chunk (grounding); expressions contain chunks, so the two never stand in
one answer. Expressions are asked for too (referring).

The images come from img2dataset: tar shards with a ``.json`` beside each ``.jpg`` (`grit`), or a
folder of images beside tables (`grit_metadata`).

Sources: https://huggingface.co/datasets/zzliang/GRIT,
https://github.com/microsoft/unilm (kosmos-2/README.md)
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.box_checks import BoxGuard, clean_box, four_numbers, get
from dataset_builders.containers import tar_place
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import SUFFIXES, folder_source
from dataset_builders.images import check_uri, image_size
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.grounding import (
    Mention,
    expression_samples,
    expressions,
    find_phrases,
    grounding_sample,
    labelled,
    read_spans,
)
from dataset_builders.validation import check_text

MIN_SCORE = 0.65
"""Score below which a box is neither right nor wrong; the published file has few. ours"""
MAX_JSON_BYTES = 1 << 20
"""Longest record that is read."""
_FAMILIES = ("noun_chunks", "ref_exps")
_TARS = "grit/*.tar"
_TABLES = "grit/metadata/*.parquet"
_COLUMNS = ("key", "id", "status", "caption", *_FAMILIES)
_ROWS_AT_ONCE = 1024


class _Builder:
    """Makes the samples of records, whether they come from tar shards or from tables."""

    def __init__(self, options: BuildOptions, dataset: str) -> None:
        self.options, self.dataset = options, dataset
        self.counter = RecordCounter()
        self.guard = BoxGuard("normalised", source=dataset)

    def read(
        self, record_id: str, record: Any, open_image: Callable[[], ImageRef], number: str
    ) -> Iterator[Item]:
        """Yield the samples and rejects of one record.

        Args:
            record_id: Readable name of the record, for rejects.
            record: The record as stored.
            open_image: Returns its image, or raises BadRecord.
            number: Unique among the records of the dataset.
        """
        try:
            caption = check_text(get(record, "caption"), what="caption")
            listed = {family: record.get(family) for family in _FAMILIES}
            for family, rows in listed.items():
                if not isinstance(rows, list):
                    raise BadRecord("malformed", f"{family} is {type(rows).__name__}, not a list")
            ref = open_image()
        except BadRecord as error:
            yield self.counter.reject(record_id, error)
            return
        objects: list[Object] = []
        rows_of: dict[tuple[float, ...], int] = {}  # chunks and expressions share their boxes
        mentions: dict[str, list[Mention]] = {family: [] for family in _FAMILIES}
        for family, rows in listed.items():
            for position, row in enumerate(rows):
                spans: tuple[tuple[int, int], ...] = ()
                try:
                    if not isinstance(row, list) or len(row) != 7:
                        raise BadRecord("malformed", f"{str(row)[:80]!r} is not seven numbers")
                    spans = read_spans([row[:2]], caption)
                    box, score = self._box(row, ref)
                    found = rows_of.setdefault(box, len(objects))
                    if found == len(objects):
                        objects.append(
                            Object(box=box, label="object", ignore=not score >= MIN_SCORE)
                        )
                    mentions[family].append(
                        Mention(spans, None if objects[found].ignore else found)
                    )
                    self.counter.use("box")
                except BadRecord as error:
                    mentions[family].append(Mention(spans, None))
                    yield self.counter.reject(f"{record_id}/{family}/{position}", error, "box")
        facts = ImageFacts(ref=ref, objects=tuple(objects), ids=tuple(range(len(objects))))
        yield from self.counter.record(
            record_id, partial(self._samples, facts, caption, mentions, number)
        )

    def _box(
        self, row: list[Any], ref: ImageRef
    ) -> tuple[tuple[float, float, float, float], float]:
        x1, y1, x2, y2 = four_numbers(row[2:6], what="box")
        self.guard.look((x1, y1, x2, y2), ref.width, ref.height)
        corners = (x1 * ref.width, y1 * ref.height, x2 * ref.width, y2 * ref.height)
        (score, *_) = four_numbers([row[6]] * 4, what="score")
        return clean_box(corners, ref.width, ref.height), score

    def _samples(
        self, facts: ImageFacts, caption: str, mentions: dict[str, list[Mention]], number: str
    ) -> list[Sample]:
        chunks, expressed = (find_phrases(caption, mentions[family]) for family in _FAMILIES)
        facts = labelled(facts, caption, [*mentions["noun_chunks"], *mentions["ref_exps"]])
        named = [(phrase.text(caption), phrase.rows) for phrase in expressed or chunks]
        found = expressions([caption], named, self.options.single_names)
        phrases = chunks or expressed
        return [
            grounding_sample(
                facts, caption, phrases, self.options, dataset=self.dataset, number=number
            ),
            *expression_samples(facts, found, self.options, dataset=self.dataset, number=number),
        ]


def build_shards(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of img2dataset's tar shards, the rejects, and the ledger last.

    Raises:
        SettingError: A tar breaks off, or boxes are not shares of the sides.
    """
    builder = _Builder(options, "grit")
    for name in folders.matches(_TARS):
        seen: set[str] = set()
        for tar, key, members in _groups(folders, name):
            record_id = ascii(f"{name}/{key}")[1:-1][:300]
            try:
                if key in seen:
                    raise BadRecord(
                        "duplicate_id", f"{key[:80]!r} stands apart from its other files"
                    )
                seen.add(key)
                if (text := members.get(".json")) is None:
                    raise BadRecord("malformed", "no .json beside the image")
                record = _load(tar, text)
            except BadRecord as error:
                yield builder.counter.reject(record_id, error)
                continue
            open_image = partial(_open_member, tar, name, key, members)
            yield from builder.read(
                record_id, record, open_image, f"{PurePosixPath(name).stem}-{key}"
            )
    builder.guard.check()
    if not builder.counter.num_read:
        raise SettingError(
            f"{_TARS}: no shard holds a .jpg with its .json, as img2dataset writes them"
        )
    yield builder.counter.ledger()


def _groups(
    folders: DataFolders, name: str
) -> Iterator[tuple[tarfile.TarFile, str, dict[str, tarfile.TarInfo]]]:
    """Yield the members of a shard by their key, which is what stands before the first dot.

    Members of one key lie side by side.
    """
    key, members = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(folders.path(name), "r:") as tar:
            while (member := tar.next()) is not None:
                # else tarfile keeps all that it has seen, and memory grows with the shard
                tar.members = []  # type: ignore[attr-defined]
                path = PurePosixPath(member.name)
                if not member.isreg() or member.issparse() or not path.name:
                    continue
                stem, dot, suffix = path.name.partition(".")
                if (found := str(path.with_name(stem or path.name))) != key:
                    if members:
                        yield tar, key, members
                    key, members = found, {}
                members[f"{dot}{suffix}".lower()] = member
            _check_end(tar)
            if members:
                yield tar, key, members
    except (tarfile.TarError, EOFError) as error:
        raise SettingError(f"{name} is no whole tar: {error}") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise TarError unless a block of zeros follows: tarfile takes a broken header for the end."""
    tar.fileobj.seek(tar.offset)  # type: ignore[union-attr]
    block = tar.fileobj.read(tarfile.BLOCKSIZE)  # type: ignore[union-attr]
    if block.strip(b"\0") or not block:
        raise tarfile.ReadError(f"it breaks off, or has a broken header, at byte {tar.offset}")


def _load(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    if member.size > MAX_JSON_BYTES:
        raise BadRecord("text_too_long", f"{member.size} bytes of JSON, limit {MAX_JSON_BYTES}")
    stream = tar.extractfile(member)
    try:
        return json.loads((stream.read() if stream else b"").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRecord("malformed", f"not JSON: {type(error).__name__}") from error


def _image_member(members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    return next((member for suffix, member in members.items() if suffix in SUFFIXES), None)


def _open_member(
    tar: tarfile.TarFile, name: str, key: str, members: dict[str, tarfile.TarInfo]
) -> ImageRef:
    if (member := _image_member(members)) is None:
        raise BadRecord("missing_image", f"no image beside {key[:80]!r}.json")
    ref = _member_ref(name, key, member)
    stream = tar.extractfile(member)
    width, height = image_size(stream or b"")  # type: ignore[arg-type]  # it reads and seeks
    return GRIT.ref(ref.image_id, ref.image_uri, width, height)


def _member_ref(name: str, key: str, member: tarfile.TarInfo) -> ImageRef:
    check_uri(key)
    place = tar_place(member.offset_data, member.size)
    return GRIT.ref(f"{PurePosixPath(name).stem}/{key}", f"{name}#{place}", 0, 0)


def _list_members(folders: DataFolders) -> Iterator[ImageRef | Reject]:
    for name in folders.matches(_TARS):
        seen: set[str] = set()
        for _, key, members in _groups(folders, name):
            if (member := _image_member(members)) is not None and key not in seen:
                seen.add(key)
                try:
                    yield _member_ref(name, key, member)
                except BadRecord as error:
                    yield Reject.of(ascii(f"{name}/{key}")[:300], error, "image")


def build_metadata(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of metadata tables with a folder of images, the rejects, the ledger last.

    A row whose own status says that its image could not be fetched is no record of this collection.

    Raises:
        SettingError: A table is of another form, or boxes are not shares of the sides.
    """
    builder = _Builder(options, "grit_metadata")
    for name in folders.matches(_TABLES):
        for number, row in enumerate(_table_rows(folders, name)):
            if row.get("status", "success") != "success":
                continue
            yield from builder.read(
                f"{name}/{number}",
                row,
                partial(_open_image, folders, row),
                f"{PurePosixPath(name).stem}-{number}",
            )
    builder.guard.check()
    yield builder.counter.ledger()


def _table_rows(folders: DataFolders, name: str) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(folders.path(name)) as file:
            there = [column for column in _COLUMNS if column in file.schema_arrow.names]
            wanted = {"caption", *_FAMILIES} - set(there)
            if wanted or not {"key", "id"} & set(there):
                raise SettingError(
                    f"{name} has no column {sorted(wanted) or 'key or id'}: it is not GRIT's"
                )
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=there):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{name} is no whole parquet file: {error}") from error


def _open_image(folders: DataFolders, row: dict[str, Any]) -> ImageRef:
    key = row.get("key")
    place = row.get("id") if key is None else key
    if not isinstance(place, str | int) or isinstance(place, bool):
        raise BadRecord("malformed", f"key or id is {str(place)[:80]!r}")
    # img2dataset: the shard's number starts the key
    shard = "" if key is None else f"{str(key)[:5]}/"
    return GRIT_FOLDER.open(folders, f"grit/images/{shard}{place}.jpg")


GRIT = ImageSource(name="grit", num_buckets=1024, list_images=_list_members, image_paths=(_TARS,))
GRIT_FOLDER = folder_source("grit_pictures", "grit/images", num_buckets=1024)
_LICENCE = "annotations MS-PL; images of their owners, linked from the web"
_SOURCE = "https://huggingface.co/datasets/zzliang/GRIT"

DATASETS = (
    DatasetSpec(
        name="grit",
        images=(GRIT,),
        build=build_shards,
        files=(),
        containers=(_TARS,),
        tasks=("grounding", "referring"),
        stages=(2,),
        licence=_LICENCE,
        source=_SOURCE,
        layout="grit/00000.tar ...   img2dataset's shards: 000000000.jpg beside 000000000.json",
        num_samples=30_000_000,  # of 20 million pairs, of which a fifth can no longer be fetched
    ),
    DatasetSpec(
        name="grit_metadata",
        images=(GRIT_FOLDER,),
        build=build_metadata,
        files=(_TABLES,),
        tasks=("grounding", "referring"),
        licence=_LICENCE,
        source=_SOURCE,
        layout="""grit/metadata/00000.parquet ...   GRIT's table; or img2dataset's: key, status
grit/images/00000/000000000.jpg   images by the table's key; without key by id, in no folder""",
        num_samples=30_000_000,
    ),
)
