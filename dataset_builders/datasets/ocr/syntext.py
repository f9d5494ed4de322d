"""CurvedSynText150k: synthetic scene text between two Bezier curves, in COCO's form.

Files: one COCO JSON and one image folder for each of its two parts. An annotation has, beside
COCO's fields, `bezier_pts`: four control points of the upper edge from left to right, then four of
the lower edge from right to left, x and y alternating; and `rec`: the text as codes, 0 to 94 the
printable ASCII characters from the blank on, 95 a character that the alphabet lacks, 96 its end.
They become questions for the text of a region (ocr).

Source: aim-uofa/AdelaiDet (datasets/README.md, adet/data/datasets/text.py,
adet/utils/visualizer.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dataset_builders.box_checks import BoxGuard, get, whole_number
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.readers.coco_files import CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm, coco_source
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Reject
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.ocr import (
    LABEL,
    TextRegion,
    numbers,
    quad_corners,
    read_regions,
    reading,
    reading_samples,
)

UNKNOWN, END = 95, 96
"""Codes of a character outside the alphabet and of the end of a text, which fills the list up."""
CURVE_POINTS = 32
"""Points at which a curve is looked at.

Between them it strays by less than a pixel on any real word.
"""
_FORM = CocoForm(one_category=LABEL, box_fields=("bezier_pts", "rec"))
_SHARE = np.linspace(0.0, 1.0, CURVE_POINTS)[:, None]
# cubic Bernstein polynomials at CURVE_POINTS places: float64[CURVE_POINTS, 4]
_BERNSTEIN = np.hstack(
    [(1 - _SHARE) ** 3, 3 * _SHARE * (1 - _SHARE) ** 2, 3 * _SHARE**2 * (1 - _SHARE), _SHARE**3]
)


def curve_corners(stored: Any) -> tuple[float, float, float, float]:
    """Return the upright box around the two curves of `bezier_pts`, xyxy in pixels.

    Control points lie outside their curve, so that a box around them would be too big.

    Raises:
        BadRecord: malformed or not_finite_box.
    """
    controls = np.array(numbers(stored, 16, what="bezier_pts")).reshape(2, 4, 2)
    return quad_corners((_BERNSTEIN @ controls).reshape(-1).tolist())


def decode(stored: Any) -> str:
    """Return the text of `rec`.

    Raises:
        BadRecord: malformed for codes beyond 96 (the Chinese alphabet of ABCNet v2 has 5,462), or
            after the end; unsupported for a character that the alphabet lacks.
    """
    if not isinstance(stored, list) or not stored:
        raise BadRecord("malformed", f"rec is {str(stored)[:80]!r}, not a list of codes")
    codes = [whole_number(code, what="code of rec") for code in stored]
    if not all(0 <= code <= END for code in codes):
        raise BadRecord(
            "malformed", f"rec holds {max(codes, key=abs)}; the alphabet's codes are 0 to {END}"
        )
    length = codes.index(END) if END in codes else len(codes)
    if any(code != END for code in codes[length:]):
        raise BadRecord("malformed", "rec goes on after its end")
    if UNKNOWN in codes:
        raise BadRecord("unsupported", "rec holds a character that the alphabet lacks")
    return "".join(chr(code + 32) for code in codes[:length])


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    folder: str,
    source: ImageSource,
) -> Iterator[Item]:
    """Yield the readings of every image, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: The JSON, below the data root.
        folder: The image folder, below the data root.
        source: Image source that the images belong to.

    Raises:
        SettingError: The file is not of this form.
    """
    counter, listed = RecordCounter(), RecordCounter()
    guard = BoxGuard("xyxy", source=f"bezier_pts of {file}")
    with open_coco(folders, file=file, folder=folder, source=source, form=_FORM) as coco:
        if len(coco.categories) > 1:
            raise SettingError(
                f"{file}: {len(coco.categories)} categories; CurvedSynText has one, text"
            )
        # boxes are counted when their curves were read, not by the COCO file
        for item in coco.images(listed):
            if isinstance(item, Reject):
                yield counter.reject(item.record_id, BadRecord(item.reason, item.detail), item.unit)
            else:
                yield from _image_items(item, options, dataset, counter, guard)
        counter.use("category", len(coco.categories))
    guard.check()
    yield counter.ledger()


def _image_items(
    item: CocoImage, options: BuildOptions, dataset: str, counter: RecordCounter, guard: BoxGuard
) -> Iterator[Item]:
    facts = item.facts
    rows = [
        (number, (fields, box.ignore))
        for number, fields, box in zip(facts.ids, item.box_fields, facts.objects, strict=True)
    ]
    rejects, image = read_regions(
        facts.ref,
        rows,
        _region,
        counter,
        guard,
        name="annotation_id",
        read=lambda stored: reading(decode(stored)),
    )
    yield from rejects
    record = f"image {facts.ref.image_id}"
    yield from counter.record(
        record, lambda: reading_samples(image, options, dataset=dataset), "image"
    )


def _region(row: tuple[Mapping[str, Any], bool]) -> TextRegion:
    """Read the curves of an annotation; a crowd has no text."""
    fields, crowd = row
    corners = curve_corners(get(fields, "bezier_pts"))
    return TextRegion(corners=corners, text=None if crowd else get(fields, "rec"))


def _syntext(number: int, *, num_images: int) -> DatasetSpec:
    folder = f"syntext{number}"
    file = f"{folder}/annotations/train.json"
    name = f"curved_{folder}"
    source = coco_source(name, file=file, folder=f"{folder}/images", num_buckets=128)

    def samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(
            folders, options, dataset=name, file=file, folder=f"{folder}/images", source=source
        )

    return DatasetSpec(
        name=name,
        images=(source,),
        build=samples,
        files=(file,),
        tasks=("ocr",),
        stages=(2,),
        licence="non-commercial research (AdelaiDet)",
        source="https://github.com/aim-uofa/AdelaiDet/blob/master/datasets/README.md",
        layout=(
            f"{file}   COCO JSON with bezier_pts and rec\n"
            f"{folder}/images/   its images, by file_name"
        ),
        match_iou=0.7,
        num_samples=3 * num_images,
    )


DATASETS = (_syntext(1, num_images=94_723), _syntext(2, num_images=54_327))
