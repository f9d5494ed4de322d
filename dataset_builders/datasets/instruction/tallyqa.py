"""TallyQA: counting questions over images of COCO and Visual Genome, with numbers for answers.

Files: one JSON list of questions a split, images of COCO and Visual Genome, optional COCO's
instances. Each question becomes one sample (counting). Where COCO's boxes are at hand and agree
exactly with the answer, the answer also names the objects; see `tasks.counting`. Images are found
by their path: Visual Genome's ids are shifted in the records.

Source: https://github.com/manoja328/TallyQA_dataset.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.image_sources import (
    COCO_TRAIN,
    COCO_VAL,
    VISUAL_GENOME,
    coco_id,
    coco_uri,
    source_of,
)
from dataset_builders.images import check_uri
from dataset_builders.readers.coco_files import CocoFile, open_coco
from dataset_builders.readers.json_files import stream_array
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.counting import question_sample, read_question

INSTANCES = "coco/annotations/instances_train2017.json"
"""COCO's boxes, used where the file is there."""
_COCO_FOLDERS = ("train2014", "val2014")


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    optional: tuple[ImageSource, ...] = (),
) -> Iterator[Item]:
    """Yield one sample a question, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: List of questions, below the data root.
        optional: Image sources that are used where their files are there.

    Raises:
        SettingError: A file is not of this form.
    """
    counter = RecordCounter()
    seen: set[int] = set()
    sources = tuple(source for source in optional if source.exists(folders))
    with ExitStack() as stack:
        coco: CocoFile | None = None
        if folders.matches(INSTANCES):
            form = open_coco(folders, file=INSTANCES, folder="coco/train2017", source=COCO_TRAIN)
            coco = stack.enter_context(form)
        for position, record in enumerate(stream_array(folders.path(file), None)):

            def make(record: Any = record) -> list[Sample]:
                asked = read_question(record, seen)
                facts, names = _facts(folders, get(record, "image"), coco, sources)
                return [question_sample(facts, names, *asked, options, dataset=dataset)]

            yield from counter.record(f"{Path(file).stem}/{position}", make)
    if not counter.num_read:
        raise SettingError(f"{file} holds no questions: TallyQA's files are one JSON list")
    yield counter.ledger()


def _facts(
    folders: DataFolders, image: Any, coco: CocoFile | None, optional: tuple[ImageSource, ...]
) -> tuple[ImageFacts, tuple[str, ...]]:
    """Return what is known of an image, and the names that are annotated exhaustively on it.

    Args:
        folders: Where the data lies.
        image: Path in the record.
        coco: COCO's boxes, where they are there.
        optional: Image sources that are there besides.

    Raises:
        BadRecord: unsafe_path, unknown_image, missing_image, malformed or what `read_image_size`
            says.
    """
    folder, _, _ = check_uri(image).partition("/")
    if folder not in _COCO_FOLDERS:
        uri = f"vg/{image}"
        return ImageFacts(ref=source_of(uri, (VISUAL_GENOME,)).open(folders, uri)), ()
    number = coco_id(image)
    if coco is not None:
        try:
            return coco.image(int(number)).facts, coco.names
        except BadRecord:  # an image that the file does not list has no known boxes
            pass
    # COCO's val2014 was divided among train2017 and val2017
    moved = f"coco/val2017/{int(number):012d}.jpg"
    if COCO_VAL in optional and folder == "val2014" and folders.path(moved).is_file():
        return ImageFacts(ref=COCO_VAL.open(folders, moved)), ()
    return ImageFacts(ref=COCO_TRAIN.open(folders, coco_uri(number))), ()


def _tallyqa(
    name: str, split: str, *, optional: tuple[ImageSource, ...] = (), **facts: Any
) -> DatasetSpec:
    file = f"tallyqa/{split}.json"

    def samples(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        return build(folders, options, dataset=name, file=file, optional=optional)

    return DatasetSpec(
        name=name,
        images=(COCO_TRAIN, VISUAL_GENOME),
        optional_images=optional,
        build=samples,
        files=(file,),
        optional_files=(INSTANCES,),
        tasks=("counting",),
        licence="Apache-2.0; images under those of COCO and Visual Genome",
        source="https://github.com/manoja328/TallyQA_dataset",
        layout=(
            f"{file}   list of questions, from tallyqa.zip\n"
            "coco/train2017/   images of COCO train2017\n"
            "vg/VG_100K/, vg/VG_100K_2/   images of Visual Genome\n"
            + "".join(f"{source.image_paths[0]}/   where it is there\n" for source in optional)
            + f"{INSTANCES}   where it is there: names the counted objects"
        ),
        **facts,
    )


DATASETS = (
    _tallyqa("tallyqa", "train", stages=(2,), num_samples=249_318),
    _tallyqa("tallyqa_test", "test", optional=(COCO_VAL,), num_samples=38_589),
)
