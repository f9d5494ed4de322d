"""VisDrone2019-DET: street scenes from drones, hundreds of small boxes an image.

Files: a folder of images and a folder with one text file an image, a box a line (README.md of
https://github.com/VisDrone/VisDrone2018-DET-toolkit):

    left, top, width, height, score, category, truncation, occlusion

Each image becomes the questions of `tasks.detection`. Traps:

- The sizes of the images stand only in the images.
- Inside category 0, ignored regions, nothing is boxed; a score of 0 and category 11, others, are
  not evaluated: all three are ignore regions here.
- The classes pedestrian (standing or walking) and people (any other pose) are one label, person: no
  question could tell them apart.
"""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataset_builders.box_checks import BoxGuard, clean_box, xywh_to_xyxy
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import folder_source, stem
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Object, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.absence import LabelStatistics, absent_fields
from dataset_builders.tasks.detection import ALL_TASKS, image_samples

FOLDER = "visdrone/VisDrone2019-DET-train"
IGNORED, OTHERS = "ignored region", "others"
CATEGORIES = {
    0: IGNORED,
    1: "person",
    2: "person",
    3: "bicycle",
    4: "car",
    5: "van",
    6: "truck",
    7: "tricycle",
    8: "awning-tricycle",
    9: "bus",
    10: "motor",
    11: OTHERS,
}
"""Category id of the file -> label."""
NAMES = tuple(dict.fromkeys(name for name in CATEGORIES.values() if name not in (IGNORED, OTHERS)))
"""Labels that are annotated exhaustively outside ignored regions."""
MAX_UNSEEN_SHARE = 0.05
"""Share of an image: where ignored regions cover more of it, nothing is called absent."""
_FIELDS = 8
_MAX_LINE_CHARS = 200

IMAGES = folder_source("visdrone_train", f"{FOLDER}/images", num_buckets=16, id_of=stem)


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of every annotation file, the rejects, and the ledger last.

    Raises:
        SettingError: The files are not of this form.
    """
    counter = RecordCounter()
    guard = BoxGuard("xywh", source=f"{FOLDER}/annotations")
    names = folders.matches(f"{FOLDER}/annotations/*.txt")
    statistics = LabelStatistics.of(_labels(folders, name) for name in names)
    for name in names:
        image_id = stem(name)
        lines = _lines(folders, name)
        try:
            ref = IMAGES.open(folders, f"{FOLDER}/images/{image_id}.jpg")
        except BadRecord as error:
            yield counter.reject(f"annotations/{image_id}", error, "image")
            for number, _ in lines:
                lost = BadRecord("image_rejected", f"image {image_id}")
                yield counter.reject(f"annotations/{image_id}/{number}", lost, "box")
            continue
        facts = yield from _facts(ref, lines, counter, guard)

        def samples_of(facts: ImageFacts = facts) -> Iterator[Sample]:
            for view in facts.windows(options.max_objects):
                yield from _samples(view, options, statistics)

        yield from counter.record(f"annotations/{image_id}", samples_of, "image")
    guard.check()
    yield counter.ledger()


def _samples(view: ImageFacts, options: BuildOptions, statistics: LabelStatistics) -> list[Sample]:
    present = {item.label for item in view.objects} | view.uncertain
    unseen = [item.box for item in view.objects if item.label in (IGNORED, OTHERS)]
    frame = view.window or (0, 0, view.ref.width, view.ref.height)
    absent: Mapping[str, Any] = {}
    if covered_share(unseen, frame) <= MAX_UNSEEN_SHARE:
        absent = absent_fields(view.absent(NAMES), present, statistics, regime="exhaustive")
    # things may stand in an ignored region: those outside can be found, but not all be counted
    whole = not any(item.label == IGNORED for item in view.objects)
    return image_samples(view, options, "visdrone", absent, countable=lambda _: whole)


def _facts(
    ref: ImageRef, lines: Sequence[tuple[int, bytes]], counter: RecordCounter, guard: BoxGuard
) -> Generator[Reject, None, ImageFacts]:
    """Yield the rejects of an image's boxes; return its facts."""
    objects, ids, uncertain = [], [], set()
    for number, line in lines:
        label = None
        try:
            *stored, score, category = read_line(line)
            label = CATEGORIES[category]
            guard.look(stored, ref.width, ref.height)
            box = clean_box(xywh_to_xyxy(stored), ref.width, ref.height)
        except BadRecord as error:
            # a lost ignored region may have held anything
            uncertain |= {label} if label in NAMES else set(NAMES)
            yield counter.reject(f"annotations/{ref.image_id}/{number}", error, "box")
            continue
        objects.append(
            Object(box=box, label=label, ignore=score == 0 or label in (IGNORED, OTHERS))
        )
        ids.append(number)
    counter.use("box", len(objects))
    return ImageFacts(
        ref=ref, objects=tuple(objects), ids=tuple(ids), uncertain=frozenset(uncertain)
    )


def read_line(line: bytes) -> tuple[int, int, int, int, int, int]:
    """Return left, top, width, height (pixels), score and category of a line.

    Some lines end with a comma.

    Raises:
        BadRecord: malformed or unknown_category.
    """
    text = line[:_MAX_LINE_CHARS].decode("ascii", "replace")
    fields = text.strip().removesuffix(",").split(",")
    if len(fields) != _FIELDS or len(line) > _MAX_LINE_CHARS:
        raise BadRecord("malformed", f"{text!a} has {len(fields)} fields, want {_FIELDS}")
    if not all(re.fullmatch(r" *-?[0-9]+ *", field) for field in fields):
        raise BadRecord("malformed", f"{text!a} holds something else than whole numbers")
    left, top, width, height, score, category, truncation, occlusion = map(int, fields)
    if score not in (0, 1) or truncation not in (0, 1) or occlusion not in (0, 1, 2):
        raise BadRecord("malformed", f"{text!a}: score, truncation or occlusion is out of range")
    if category not in CATEGORIES:
        raise BadRecord("unknown_category", f"category {category}")
    return left, top, width, height, score, category


def covered_share(boxes: Sequence[Sequence[float]], frame: Sequence[float]) -> float:
    """Return the share of a frame that boxes inside it cover together, each place counted once.

    Args:
        boxes: float[N, 4], xyxy in pixels.
        frame: xyxy in pixels.
    """
    if not boxes:
        return 0.0
    corners = np.array(boxes, np.float64)
    xs, ys = np.unique(corners[:, 0::2]), np.unique(corners[:, 1::2])
    covered = np.zeros((len(ys) - 1, len(xs) - 1), bool)  # cells between neighbouring edges
    for x1, y1, x2, y2 in corners:
        covered |= np.outer((ys[:-1] >= y1) & (ys[1:] <= y2), (xs[:-1] >= x1) & (xs[1:] <= x2))
    area = (covered * np.outer(np.diff(ys), np.diff(xs))).sum()
    return float(area / ((frame[2] - frame[0]) * (frame[3] - frame[1])))


def _lines(folders: DataFolders, name: str) -> list[tuple[int, bytes]]:
    """Return the lines of a file that are not blank, with their numbers from 1."""
    lines = folders.path(name).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _labels(folders: DataFolders, name: str) -> frozenset[str]:
    """Return the labels of an annotation file, bad lines left out."""
    found = set()
    for _, line in _lines(folders, name):
        try:
            found.add(CATEGORIES[read_line(line)[-1]])
        except BadRecord:  # yielded as a reject when the boxes are read
            continue
    return frozenset(found - {IGNORED, OTHERS})


DATASETS = (
    DatasetSpec(
        name="visdrone",
        images=(IMAGES,),
        build=build,
        files=(f"{FOLDER}/annotations/*.txt",),
        tasks=ALL_TASKS,
        stages=(2,),
        licence="academic use",
        source="https://github.com/VisDrone/VisDrone-Dataset",
        layout=(
            f"{FOLDER}/annotations/*.txt   boxes, one file an image\n"
            f"{FOLDER}/images/   its images, *.jpg of the same names"
        ),
        num_samples=65_000,
    ),
)
