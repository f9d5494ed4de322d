"""HumanRef-CoT, the 45k release: expressions about persons with a reasoning through all of them.

Files: TSV of images (key, base64) with the places where lines start, and TSV of annotations. A line
has `gt_boxes` (all persons, x, y, width, height), `region_map` (expression -> positions in
gt_boxes, counted from 0) and `think`, a text that calls the persons "Person 1", "Person 2" ... and
ends with a verdict on each: "- Person 2: wears no tie → ✅". They become referring, counting and
reasoning; those of the second file, where nobody fits, become rejections.

The persons of the text become regions only when its verdicts are exactly those of region_map; a
text that says otherwise is rejected. What number the text starts to count from is checked on the
first lines.

Source: https://github.com/IDEA-Research/Rex-Thinker (tools/visualize_humanref_cot.py, README.md)
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from dataset_builders.box_checks import check_box_form
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.rexverse import read_objects, read_region_map
from dataset_builders.errors import SettingError
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.tsv_files import (
    PEEK_LINES,
    AnnotationLine,
    ImageTsv,
    annotation_lines,
    first_boxes,
    tsv_source,
)
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Sample
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks.mentions import mention_parts
from dataset_builders.tasks.prompts import (
    conversation,
    counted_answer,
    grounded_answer,
    question,
    thought_answer,
)
from dataset_builders.tasks.referring import expression_sample
from dataset_builders.validation import check_label, check_text

LABEL = "person"
_PERSON = re.compile(r"\bperson\s+#?(\d{1,4})\b", re.IGNORECASE)
# "Persons 1-3" names nobody for certain
_PERSONS = re.compile(r"\b(?:persons|people)\s+#?\d", re.IGNORECASE)
_SUBJECTS = re.compile(
    r"[\s\-•>#\d.)✅✔✓❌✗✘⚠\ufe0f]*((?:person\s+#?\d{1,4}\b[\s,&]*(?:and\b\s*)?)+)", re.IGNORECASE
)
_MARK = re.compile("[✅✔✓❌✗✘⚠]")
_YES = "✅✔✓"
MIN_CHECKED = 20
"""Fewer texts than these say nothing about where a file starts to count."""


def read_verdicts(think: str) -> dict[int, bool]:
    """Return the last verdict on each person, by the number in the text.

    A verdict is a line that starts with one or more persons and holds a mark; its last mark counts.
    """
    verdicts: dict[int, bool] = {}
    for line in think.splitlines():
        subjects, marks = _SUBJECTS.match(line.replace("*", "")), _MARK.findall(line)
        for number in _PERSON.findall(subjects[1]) if subjects and marks else ():
            verdicts[int(number)] = marks[-1] in _YES
    return verdicts


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    images: str,
    annotations: str,
    rejects: bool,
) -> Iterator[Item]:
    """Yield the samples of each line, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        images: TSV of the images, below the data root.
        annotations: TSV of the annotations, below the data root.
        rejects: Whether this is the file of expressions that fit nobody.

    Raises:
        SettingError: The boxes are not x, y, width, height, or the texts count persons from 0.
    """
    counter = RecordCounter()
    tsv = ImageTsv.of(folders, images, f"{images}.lineidx")
    open_image = partial(tsv.open, folders, _SOURCES[dataset])
    values, sizes = first_boxes(
        folders,
        annotations,
        boxes_of=lambda record: read_region_map(record).boxes,
        open_image=open_image,
    )
    check_box_form(values, sizes, declared="xywh", source=annotations)
    _check_base(folders, annotations)
    for record, line in annotation_lines(folders, annotations):
        yield from _line(record, line, open_image, options, dataset, rejects, counter)
    if not counter.num_read:
        raise SettingError(f"{annotations} has no line")
    yield counter.ledger()


def _line(
    record: str,
    line: AnnotationLine | BadRecord,
    open_image: Callable[[int], ImageRef],
    options: BuildOptions,
    dataset: str,
    rejects: bool,
    counter: RecordCounter,
) -> Iterator[Item]:
    try:
        if isinstance(line, BadRecord):
            raise line
        found = read_region_map(line.record)
        ref = open_image(line.offset)
    except BadRecord as error:
        yield counter.reject(record, error)
        return
    facts, lost = read_objects(ref, found.boxes, "xywh", LABEL)
    counter.use("box", len(facts.objects))
    for position, lack in lost:
        yield counter.reject(f"{record}/gt_boxes/{position}", lack, "box")

    def make() -> list[Sample]:
        # no windows here: the text goes through all persons, so all of them must be shown
        if facts.num_boxed > options.max_objects:
            raise BadRecord(
                "too_many_regions", f"{facts.num_boxed} persons, limit {options.max_objects}"
            )
        if lost:
            raise BadRecord(
                "unknown_object", "the text goes through all persons, and one has no usable box"
            )
        think = read_think(line.record)
        verdicts = read_verdicts(think)
        chosen = tuple(sorted(number - 1 for number, fits in verdicts.items() if fits))
        if not verdicts:
            raise BadRecord("bad_answer", "the reasoning gives no verdict on any person")
        samples: list[Sample] = []
        agreed = False
        for position, (expression, rows) in enumerate(found.texts):
            if bool(rows) == rejects:
                raise BadRecord(
                    "contradiction", f"the expression names {len(rows)} persons in this file"
                )
            said = check_label(" ".join(check_text(expression, what="expression").split()))
            number = f"{line.number}-{position}"
            wanted = tuple(sorted(rows))
            samples.append(
                expression_sample(facts, said, wanted, options, dataset=dataset, number=number)
            )
            if not rejects and options.counting:
                samples.append(_counting(facts, said, wanted, options, dataset, number))
            if chosen == wanted:
                agreed = True
                samples.append(_reasoning(facts, said, wanted, think, options, dataset, number))
        if not agreed:
            raise BadRecord(
                "contradiction",
                f"the reasoning chooses persons {[row + 1 for row in chosen]}, counted from 1, "
                f"region_map {[[row + 1 for row in rows] for _, rows in found.texts][:5]}",
            )
        return samples

    yield from counter.record(record, make)


def read_think(record: dict[str, Any]) -> str:
    """Return the reasoning of a record without tags around it.

    Raises:
        BadRecord: The text is not safe, has tags inside, or names several persons with one word.
    """
    think = check_text(record.get("think"), what="think").strip()
    think = think.removeprefix("<think>").removesuffix("</think>").strip()
    if re.search(r"</?(?:think|answer)>", think):
        raise BadRecord("bad_answer", "the reasoning has tags of thought or answer inside")
    if found := _PERSONS.search(think):
        raise BadRecord("unsupported", f"{found.group()!r} names several persons at once")
    return check_text(think, what="think")


def _reasoning(
    facts: ImageFacts,
    said: str,
    rows: tuple[int, ...],
    think: str,
    options: BuildOptions,
    dataset: str,
    number: str,
) -> Sample:
    def row_of(found: re.Match[str]) -> int:
        if not 1 <= int(found[1]) <= len(facts.objects):
            raise BadRecord("unknown_object", f"{found.group()!r} of {len(facts.objects)} persons")
        return int(found[1]) - 1

    seed = seed_of(options.seed, dataset, number)
    (wanted,) = question("referring", said)
    asked = question("reasoning", wanted.text or "", seed=seed, paraphrases=options.paraphrases)
    thought = mention_parts(think, _PERSON, row_of)
    answer = thought_answer(thought, grounded_answer([(said, rows)] if rows else []))
    turns = conversation(asked, answer)
    if rows:
        return facts.sample(dataset=dataset, task="reasoning", number=number, turns=turns)
    return facts.sample(
        dataset=dataset,
        task="rejection",
        number=f"{number}-reasoned",
        turns=turns,
        absent_labels=(said,),
        absent_regime="constructed",
    )


def _counting(
    facts: ImageFacts,
    said: str,
    rows: tuple[int, ...],
    options: BuildOptions,
    dataset: str,
    number: str,
) -> Sample:
    """Return a question how many persons fit: all are boxed, so the count is complete."""
    seed = seed_of(options.seed, dataset, number, "counting")
    asked = question(
        "counting_located",
        f'How many people fit the description "{said}"?',
        seed=seed,
        paraphrases=options.paraphrases,
    )
    turns = conversation(asked, counted_answer(len(rows), (said, rows)))
    return facts.sample(dataset=dataset, task="counting", number=number, turns=turns)


def _check_base(folders: DataFolders, file: str) -> None:
    """Raise SettingError when the verdicts of the first texts fit region_map better from 0."""
    from_one = from_zero = checked = 0
    for _, line in islice(annotation_lines(folders, file), PEEK_LINES):
        try:
            if isinstance(line, BadRecord):
                raise line
            wanted = {tuple(sorted(rows)) for _, rows in read_region_map(line.record).texts} - {()}
            verdicts = read_verdicts(read_think(line.record))
        except BadRecord:
            continue  # rejected, and counted, when the file is read
        chosen = tuple(sorted(number for number, fits in verdicts.items() if fits))
        if wanted and chosen:
            checked += 1
            from_zero += chosen in wanted
            from_one += tuple(number - 1 for number in chosen) in wanted
    if checked >= MIN_CHECKED and from_zero > from_one:
        raise SettingError(
            f'{file}: of {checked} texts {from_zero} agree with region_map when "Person N" is '
            f"counted from 0 and {from_one} when from 1, which is the documented base"
        )


_SOURCES = {
    name: tsv_source(
        name,
        images=f"humanref_cot/{name}.images.tsv",
        lineidx=f"humanref_cot/{name}.images.tsv.lineidx",
        num_buckets=64,
    )
    for name in ("humanref_cot", "humanref_cot_rejection")
}


def _humanref(name: str, *, rejects: bool, tasks: tuple[str, ...], num_samples: int) -> DatasetSpec:
    images, annotations = f"humanref_cot/{name}.images.tsv", f"humanref_cot/{name}.annotations.tsv"
    return DatasetSpec(
        name=name,
        images=(_SOURCES[name],),
        build=partial(build, dataset=name, images=images, annotations=annotations, rejects=rejects),
        files=(annotations,),
        containers=(images,),
        tasks=tasks,
        stages=(2,),
        licence="IDEA License 1.0: non-commercial",
        source="https://huggingface.co/datasets/IDEA-Research/HumanRef-CoT-45k",
        layout=f"""{images}   images: key, base64
{images}.lineidx   where the line of each image starts
{annotations}   byte of the image, JSON with gt_boxes, region_map, think""",
        num_samples=num_samples,
    )


DATASETS = (
    _humanref(
        "humanref_cot",
        rejects=False,
        tasks=("referring", "counting", "reasoning"),
        num_samples=110_000,
    ),
    _humanref("humanref_cot_rejection", rejects=True, tasks=("rejection",), num_samples=16_000),
)
