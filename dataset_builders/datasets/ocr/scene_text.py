"""Scene text, one ground-truth file an image: ICDAR2015 (RRC challenge 4), MLT2019 (challenge 15).

A line is a quadrilateral and its text, which may hold commas and quotes; the file is UTF-8, with a
byte order mark in ICDAR2015 and in some files of MLT2019:

    377,117,463,117,465,130,378,130,Genaxis Theatre        ICDAR2015: x1,y1 ... x4,y4,text
    78,55,419,55,419,109,78,109,Latin,###                  MLT2019: x1,y1 ... x4,y4,script,text

A quadrilateral becomes the upright box around it, and the text a question for the text of that
region (ocr). Text ``###`` is don't-care: its box is an ignore region.

Sources: https://rrc.cvc.uab.es/?ch=4 and ?ch=15; open-mmlab/mmocr dataset_zoo/icdar2015.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from dataset_builders.box_checks import BoxGuard
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_sources import folder_source, stem
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Reject
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.ocr import (
    DONT_CARE,
    LABEL,
    TextRegion,
    quad_corners,
    read_regions,
    reading_samples,
)

NO_SCRIPTS = frozenset({"Symbols", "Mixed", "None"})
"""Values of MLT2019's script column that name no script."""
SCRIPTS = NO_SCRIPTS | {
    "Arabic",
    "Bangla",
    "Chinese",
    "Devanagari",
    "Hindi",
    "Japanese",
    "Korean",
    "Latin",
}
"""All values of MLT2019's script column; Hindi is called Devanagari in some files."""
MAX_FILE_BYTES = 4 * 2**20
"""Longest ground-truth file of one image; real ones have a few kB."""
_NUMBER = re.compile(r"\s*-?\d{1,9}(?:\.\d{1,9})?\s*", re.ASCII)


def parse_icdar(line: bytes) -> TextRegion:
    """Read a line of ICDAR2015.

    Raises:
        BadRecord: malformed.
    """
    *numbers, text = _fields(line, 9)
    if text.partition(",")[0] in SCRIPTS and "," in text:
        raise BadRecord("malformed", f"{text[:80]!r} starts with a script: a line of MLT2019")
    return TextRegion(corners=_quad(numbers), text=None if text == DONT_CARE else text)


def parse_mlt(line: bytes) -> TextRegion:
    """Read a line of MLT2019.

    Raises:
        BadRecord: malformed.
    """
    *numbers, script, text = _fields(line, 10)
    if script not in SCRIPTS:
        raise BadRecord(
            "malformed", f"script {script[:80]!r} is none of {', '.join(sorted(SCRIPTS))}"
        )
    label = LABEL if script in NO_SCRIPTS else f"{script} text"
    return TextRegion(corners=_quad(numbers), text=None if text == DONT_CARE else text, label=label)


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    truth: str,
    prefix: str,
    source: ImageSource,
    parse: Callable[[bytes], TextRegion],
) -> Iterator[Item]:
    """Yield the readings of every image that has a ground-truth file, the rejects, the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        truth: Pattern of the ground-truth files.
        prefix: What their names have before the image's name.
        source: Image source that the images belong to.
        parse: Reads a line.

    Raises:
        SettingError: The files are not of this form.
    """
    counter = RecordCounter()
    guard = BoxGuard("xyxy", source=truth)
    uris: dict[str, str] = {}
    for item in source.images(folders):
        if isinstance(item, Reject):
            yield counter.reject(item.record_id, BadRecord(item.reason, item.detail), "image")
        else:
            uris[item.image_id] = item.image_uri
    for name in folders.matches(truth):
        record = PurePosixPath(name).stem
        image_id = record.removeprefix(prefix)
        lines: list[tuple[int, bytes]] = []
        try:
            lines = _lines(folders, name)
            if image_id not in uris:
                raise BadRecord("missing_image", f"no image {image_id} for {name}")
            ref = source.open(folders, uris[image_id])
        except BadRecord as error:
            yield counter.reject(record, error, "image")
            # the lines count as read, so that the ledger adds up to those of the files
            for place, _ in lines:
                lost = BadRecord("image_rejected", f"{image_id}: {error.reason}")
                yield counter.reject(f"{record}/{place}", lost, "box")
            continue
        yield from _image_items(ref, lines, parse, counter, guard, record, options, dataset)
    guard.check()
    yield counter.ledger()


def _image_items(
    ref: ImageRef,
    lines: list[tuple[int, bytes]],
    parse: Callable[[bytes], TextRegion],
    counter: RecordCounter,
    guard: BoxGuard,
    record: str,
    options: BuildOptions,
    dataset: str,
) -> Iterator[Item]:
    rejects, image = read_regions(ref, lines, parse, counter, guard, name=record)
    yield from rejects
    yield from counter.record(
        record, lambda: reading_samples(image, options, dataset=dataset), "image"
    )


def _lines(folders: DataFolders, name: str) -> list[tuple[int, bytes]]:
    """Return (line number, line) of a ground-truth file, empty lines left out.

    Lines end with a line feed alone or after a carriage return: a text may hold other line
    separators.
    """
    path = folders.path(name)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadRecord("malformed", f"{name} has more than {MAX_FILE_BYTES} bytes")
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [
        (number, line.removesuffix(b"\r")) for number, line in enumerate(lines, 1) if line.strip()
    ]


def _fields(line: bytes, count: int) -> list[str]:
    """Return the fields of a line; commas from the last one on belong to the text."""
    try:
        fields = line.decode("utf-8").split(",", count - 1)
    except UnicodeDecodeError as error:
        raise BadRecord("malformed", f"not UTF-8: {error}") from error
    if len(fields) != count:
        raise BadRecord("malformed", f"{len(fields)} fields, not {count}: {line[:80]!r}")
    return fields


def _quad(numbers: list[str]) -> tuple[float, float, float, float]:
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise BadRecord("malformed", f"{','.join(numbers)[:120]!r} are not eight numbers")
    return quad_corners([float(number) for number in numbers])


ICDAR2015_IMAGES = folder_source(
    "icdar2015", "icdar2015/ch4_training_images", num_buckets=16, id_of=stem
)
MLT2019_IMAGES = folder_source(
    "mlt2019", "mlt2019/ImagesPart1", "mlt2019/ImagesPart2", num_buckets=16, id_of=stem
)
_ICDAR2015_TRUTH = "icdar2015/ch4_training_localization_transcription_gt/gt_img_*.txt"
_MLT2019_TRUTH = "mlt2019/train_gt_t13/tr_img_*.txt"


def _icdar2015(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    return build(
        folders,
        options,
        dataset="icdar2015",
        truth=_ICDAR2015_TRUTH,
        prefix="gt_",
        source=ICDAR2015_IMAGES,
        parse=parse_icdar,
    )


def _mlt2019(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    return build(
        folders,
        options,
        dataset="mlt2019",
        truth=_MLT2019_TRUTH,
        prefix="",
        source=MLT2019_IMAGES,
        parse=parse_mlt,
    )


DATASETS = (
    DatasetSpec(
        name="mlt2019",
        images=(MLT2019_IMAGES,),
        build=_mlt2019,
        files=(_MLT2019_TRUTH,),
        tasks=("ocr",),
        stages=(2,),
        licence="terms of the Robust Reading Competition",
        source="https://rrc.cvc.uab.es/?ch=15&com=downloads",
        layout=(
            "mlt2019/ImagesPart1/, mlt2019/ImagesPart2/   "
            "tr_img_00001 ... tr_img_10000, .jpg, .png or .gif\n"
            "mlt2019/train_gt_t13/tr_img_00001.txt        x1,y1,...,x4,y4,script,text a line"
        ),
        match_iou=0.7,
        num_samples=30_000,
    ),
    DatasetSpec(
        name="icdar2015",
        images=(ICDAR2015_IMAGES,),
        build=_icdar2015,
        files=(_ICDAR2015_TRUTH,),
        tasks=("ocr",),
        stages=(2,),
        licence="CC BY 4.0",
        source="https://rrc.cvc.uab.es/?ch=4&com=downloads",
        layout=(
            "icdar2015/ch4_training_images/img_1.jpg ... img_1000.jpg\n"
            "icdar2015/ch4_training_localization_transcription_gt/gt_img_1.txt   "
            "x1,y1,...,x4,y4,text a line"
        ),
        match_iou=0.7,
        num_samples=2_500,
    ),
)
