"""Images for `proposals_report`: the boxes of both caches over the annotated ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dataset_builders import DataFolders
from dataset_builders.images import bucket_of, decode_image, read_image_bytes
from dataset_builders.records import BadRecord
from pipelines.artifacts import Artifact
from pipelines.boxes import iou_matrix
from pipelines.evaluation.metrics.comparison import IOU, Difference
from pipelines.reports.drawing import CROWD, Mark, draw_marks, jpeg_uri
from pipelines.reports.html_page import Card, Cards, Line, Section
from pipelines.reports.plots import PAIR

TRUE = "#111827"
"""Colour of annotated boxes, drawn dashed."""
_LEGEND = (
    "Dashed black: annotated; dashed grey: crowd. Blue: A, orange: B, thin where they overlap no "
    "object from IoU 0.5 on; only the best boxes of each, twice as many as there are objects and "
    "at least ten. Images whose recall at IoU 0.5 differs most come first."
)


def image_section(
    dataset: str, differences: Sequence[Difference], cache: Artifact, folders: DataFolders
) -> Section:
    """Draw the images of a dataset on which A and B differ.

    An image that cannot be read is counted in the text above the cards instead.

    Args:
        dataset: Name of the dataset.
        differences: The images, in order.
        cache: Either of the two caches, for the list of images.
        folders: Where the images lie.
    """
    uris = _image_uris(cache, [difference.scene.image_id for difference in differences])
    cards, lost = [], Counter[str]()
    for difference in differences:
        try:
            image = decode_image(read_image_bytes(folders, uris[difference.scene.image_id]))
        # A page without one image is of use; only what a dataset's files cause is let pass.
        except BadRecord as error:
            lost[error.reason] += 1
            continue
        cards.append(_card(difference, jpeg_uri(draw_marks(image, _marks(difference)))))
    note = "".join(f" Not shown: {number} {reason}." for reason, number in sorted(lost.items()))
    return Section(
        title=f"Images of {dataset}",
        intro=_LEGEND + note,
        blocks=[Cards(cards=cards)] if cards else [],
    )


def _image_uris(cache: Artifact, image_ids: Sequence[str]) -> dict[str, str]:
    """Return the uris of some images, from the lists that the cache was made from."""
    num_buckets = cache.manifest()["buckets"]
    uris: dict[str, str] = {}
    for bucket in sorted({bucket_of(image_id, num_buckets) for image_id in image_ids}):
        listed = cache.read_table(f"images-{bucket:05d}.parquet", ["image_id", "image_uri"])
        uris |= dict(zip(*(column.to_pylist() for column in listed.columns), strict=True))
    return uris


def _marks(difference: Difference) -> list[Mark]:
    """Return the boxes of A, then of B, then the annotated ones."""
    scene = difference.scene
    objects = scene.boxes[~np.array(scene.ignore, bool)]
    marks = []
    for proposed, colour in zip(difference.proposed, PAIR, strict=True):
        boxes = proposed.boxes[: difference.shown]
        # A hit here is any box on an object, also a second one; `found` counts one to one.
        hits = iou_matrix(boxes, objects).max(axis=1, initial=0.0) >= IOU
        for box, hit in zip(boxes, hits, strict=True):
            marks.append(Mark(box=box.tolist(), colour=colour, faint=not hit))
    marks += [
        Mark(box=box.tolist(), colour=CROWD if ignore else TRUE, dashed=True)
        for box, ignore in zip(scene.boxes, scene.ignore, strict=True)
    ]
    return marks


def _card(difference: Difference, image: str) -> Card:
    """Return the card of an image, given as a data URI, with what each cache finds on it."""
    lines = [
        Line(who=letter, text=_found_text(found, difference, len(proposed.boxes), among))
        for letter, found, proposed, among in zip(
            "AB", difference.found, difference.proposed, difference.found_shown, strict=True
        )
    ]
    more = difference.found[1] - difference.found[0]
    badge = f"{'B' if more > 0 else 'A'} finds {abs(more)} more" if more else "same number"
    return Card(image=image, title=difference.scene.image_id, lines=lines, badge=badge)


def _found_text(found: int, difference: Difference, boxes: int, among: int) -> str:
    share = f"recall {100 * found / difference.objects:.0f} %"
    recall = f"{share}: {found} of {difference.objects}, {boxes} box{'' if boxes == 1 else 'es'}"
    return recall if among == found else f"{recall}; {among} by the {difference.shown} drawn"
