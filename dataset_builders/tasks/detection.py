"""Detection datasets: which categories an image shows and where.

What is made of one image, or of each window into a crowded one:

| task          | questions                                                                        |
| ------------- | -------------------------------------------------------------------------------- |
| detection     | `single_names` questions for one present category each, then one for several at  |
|               | once; with `everything` one for every object there is, label by label, where the |
|               | regime is exhaustive and no label has an ignore region or a rejected box         |
| counting      | `counting` questions for a present category that has no ignore region; with a    |
|               | chance of `absent_counts` one for an absent category, which counts none          |
| region_name   | `region_names` questions for the name of one region                              |
| visual_prompt | `visual_prompts` questions that show one object and ask for all of its category  |
| rejection     | for an image without boxes only: one to three absent categories; the answer is   |
|               | None                                                                             |

Rejection of images with boxes is made in the shard step from `absent_labels`. A category with a
rejected box on an image is in doubt there: not asked for, not counted, not called absent. ours
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dataset_builders.data_folders import DataFolders
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.readers.coco_files import CocoFile, CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import Part, Reject, Sample, Turn
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, ImageSource, Item
from dataset_builders.tasks.absence import (
    LabelStatistics,
    Nearness,
    Related,
    absent_fields,
    shares_word,
)
from dataset_builders.tasks.prompts import (
    JOINER,
    conversation,
    counted_answer,
    grounded_answer,
    question,
)

ASK = ("present", "all")
"""Ways to ask: for present categories, or for all at once."""
MAX_ABSENT_NAMES = 3
"""Most names that the question of an image without boxes asks for."""
ALL_TASKS = ("detection", "counting", "region_name", "visual_prompt", "rejection")
"""Tasks of the table of this module."""

AbsentOf = Callable[[ImageFacts], Mapping[str, Any]]
"""Returns the fields of a sample that say what is absent from an image or window
(`absence.absent_fields`); empty where nothing is known."""
Spellings = Mapping[str, Sequence[str]]
"""Label -> what it may be called in the text of a sample; a label that is not there is called by
its name."""


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    folder: str,
    source: ImageSource,
    ask: str = "present",
    form: CocoForm | None = None,
    nearness: Nearness = shares_word,
    related: Related | None = None,
    absent_by: Callable[[CocoFile, LabelStatistics], AbsentOf] | None = None,
    spelled_by: Callable[[CocoFile], Spellings] = lambda _: {},
) -> Iterator[Item]:
    """Yield the samples of a COCO detection file with exhaustive labels, rejects, and the ledger.

    Args:
        folders: Where the datasets lie.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: Name of the JSON.
        folder: Folder of its images.
        source: What its images belong to.
        ask: "present" for the questions of this module; "all" for one question an image that asks
            for every category in the file's order, as the release evaluates COCO.
        form: Where the file differs from COCO's own.
        nearness: How near two names are, see `absence`.
        related: Names that a present one makes unsafe, see `absence`.
        absent_by: Another annotation regime, where that is not "exhaustive"; nearness and related
            are its own business then.
        spelled_by: Names of its categories for texts, of which each image gets one; not for "all".

    Raises:
        SettingError: The file is not of this form.
    """
    if ask not in ASK:  # the fault of a dataset's module, never of a user
        raise ValueError(f"ask={ask!r}: want one of {ASK}")
    counter = RecordCounter()
    with open_coco(folders, file=file, folder=folder, source=source, form=form) as coco:
        names = coco.names
        statistics = (
            LabelStatistics.of(coco.label_sets()) if ask == "present" else LabelStatistics()
        )

        def exhaustive(facts: ImageFacts) -> Mapping[str, Any]:
            return absent_fields(
                facts.absent(names),
                {item.label for item in facts.objects} | facts.uncertain,
                statistics,
                regime="exhaustive",
                nearness=nearness,
                related=related,
            )

        absent_of = exhaustive if absent_by is None else absent_by(coco, statistics)
        spellings = spelled_by(coco)

        def samples_of(image: CocoImage) -> Iterator[Sample]:
            if ask == "all":
                yield ask_all(image.facts, names, dataset)
                return
            for facts in image.facts.windows(options.max_objects):
                seed = (options.seed, dataset, facts.ref.image_id)
                shown, absent = spelled(facts, absent_of(facts), spellings, seed)
                yield from image_samples(shown, options, dataset, absent)

        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
            else:
                record = f"image {item.facts.ref.image_id}"
                yield from counter.record(record, partial(samples_of, item), "image")
    yield counter.ledger()


def spelled(
    facts: ImageFacts, absent: Mapping[str, Any], spellings: Spellings, seed: Sequence[object]
) -> tuple[ImageFacts, Mapping[str, Any]]:
    """Return an image's facts and absent fields with each label called by one of its names.

    Args:
        facts: What is known of the image.
        absent: Its absent fields, see `AbsentOf`.
        spellings: Names of each label; no two labels may share one.
        seed: Names of the seed that draws.
    """
    if not spellings:
        return facts, absent

    def shown(label: str) -> str:
        names = spellings.get(label, (label,))
        return names[0] if len(names) == 1 else names[seed_of(*seed, label) % len(names)]

    objects = tuple(replace(item, label=shown(item.label)) for item in facts.objects)
    if absent.get("absent_labels"):
        absent = {**absent, "absent_labels": tuple(map(shown, absent["absent_labels"]))}
    return replace(facts, objects=objects, uncertain=frozenset(map(shown, facts.uncertain))), absent


def ask_all(facts: ImageFacts, categories: tuple[str, ...], dataset: str) -> Sample:
    """Return the question for every category at once, in the release's wording always."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(facts.objects):
        if not item.ignore:
            rows.setdefault(item.label, []).append(row)
    found = [(name, rows[name]) for name in categories if name in rows]
    turns = conversation(question("detection", JOINER.join(categories)), grounded_answer(found))
    return facts.sample(
        dataset=dataset,
        task="detection",
        number=0,
        turns=turns,
        absent_labels=facts.absent(categories),
        absent_regime="exhaustive",
    )


def image_samples(
    facts: ImageFacts,
    options: BuildOptions,
    dataset: str,
    absent: Mapping[str, Any],
    *,
    countable: Callable[[str], bool] = lambda _: True,
    complete: Callable[[str], bool] = lambda _: True,
    tasks: tuple[str, ...] = ALL_TASKS,
) -> list[Sample]:
    """Return the samples of one image or window; see the table of this module.

    Args:
        facts: What is known of the image or window.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        absent: The `absent_fields` of the image, or an empty mapping where nothing is known to be
            absent.
        countable: Whether a category may be counted.
        complete: Whether all objects of a category are boxed, so that "all of them" has an answer.
        tasks: Those of the table that are wanted.
    """
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id, *(facts.window or ())))
    present = {name: rows for name, rows in facts.present().items() if complete(name)}
    conversations: list[tuple[str, tuple[Turn, ...]]] = []

    def ask(
        task: str, argument: str | tuple[int, ...], answer: tuple[Part, ...], *, wording: str
    ) -> None:
        parts = question(
            wording, argument, seed=rng.getrandbits(32), paraphrases=options.paraphrases
        )
        # drawn in any case, so that leaving a task out changes nothing in the others
        if task in tasks:
            conversations.append((task, conversation(parts, answer)))

    names = list(present)
    rng.shuffle(names)
    for name in names[: options.single_names]:
        ask("detection", name, grounded_answer([(name, present[name])]), wording="detection")
    if len(names) > 1:
        rng.shuffle(names)
        several = within_budget(names, present, options.max_objects)
        found = [(name, present[name]) for name in several]
        ask("detection", JOINER.join(several), grounded_answer(found), wording="detection")
    counted = [name for name in present if name not in facts.crowded() and countable(name)]
    for name in rng.sample(counted, min(options.counting, len(counted))):
        rows = present[name]
        ask("counting", name, counted_answer(len(rows), (name, rows)), wording="counting")
    boxed = [row for row, item in enumerate(facts.objects) if not item.ignore]
    for row in rng.sample(boxed, min(options.region_names, len(boxed))):
        ask("region_name", (row,), (Part(facts.objects[row].label),), wording="region_name")
    absent_labels = absent.get("absent_labels") or ()
    if not facts.objects and absent_labels:
        asked = rng.sample(absent_labels, rng.randint(1, min(MAX_ABSENT_NAMES, len(absent_labels))))
        ask("rejection", JOINER.join(asked), grounded_answer([]), wording="detection")
    alike = [name for name, rows in present.items() if len(rows) > 1]
    for name in rng.sample(alike, min(options.visual_prompts, len(alike))):
        shown = rng.choice(present[name])
        # Figure 10 of the paper names the reference itself among the answers.
        ask(
            "visual_prompt",
            (shown,),
            grounded_answer([(name, present[name])]),
            wording="visual_prompt",
        )
    if counted and absent_labels and rng.random() < options.absent_counts:
        ask("counting", rng.choice(absent_labels), counted_answer(0), wording="counting")
    # last, so that it changes nothing in the other samples
    if options.everything and lists_everything(facts, absent, present):
        ask("detection", "", grounded_answer(list(present.items())), wording="everything")
    return numbered(facts, dataset, conversations, absent)


def lists_everything(
    facts: ImageFacts, absent: Mapping[str, Any], complete: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether the boxes of an image are an answer to "every object in the image".

    Args:
        facts: What is known of the image or window.
        absent: Its `absent_fields`.
        complete: Label -> rows, of the labels whose objects are all boxed.
    """
    exhaustive = absent.get("absent_regime") == "exhaustive"
    doubtful = facts.crowded() | facts.uncertain | (set(facts.present()) - set(complete))
    return exhaustive and not doubtful and bool(complete)


def numbered(
    facts: ImageFacts,
    dataset: str,
    conversations: list[tuple[str, tuple[Turn, ...]]],
    absent: Mapping[str, Any],
) -> list[Sample]:
    """Return a sample for each (task, turns), numbered within its task."""
    samples, numbers = [], dict.fromkeys((task for task, _ in conversations), 0)
    for task, turns in conversations:
        samples.append(
            facts.sample(dataset=dataset, task=task, number=numbers[task], turns=turns, **absent)
        )
        numbers[task] += 1
    return samples


def within_budget(
    names: list[str], present: Mapping[str, tuple[int, ...]], max_objects: int
) -> list[str]:
    """Return as many of the names, in their order, as have few enough objects together.

    A name that does not fit any more is left out whole: an answer is never a part of "all of them".

    Args:
        names: The names.
        present: Name -> rows of its objects.
        max_objects: Most objects of all names together.
    """
    kept, total = [], 0
    for name in names:
        if total + len(present[name]) <= max_objects:
            kept.append(name)
            total += len(present[name])
    return kept
