"""Detection datasets with exhaustive labels, as COCO's: which categories an image shows and where.

What is made of one image:

| task        | questions                                                                             |
| ----------- | ------------------------------------------------------------------------------------- |
| detection   | `single_names` questions for one present category each, then one for all present ones |
| counting    | `counting` questions for a present category that has no crowd region                  |
| region_name | `region_names` questions for the name of one region                                   |
| rejection   | for an image without boxes only: one to three absent categories; the answer is None   |

Rejection of images with boxes is made in the shard step from `absent_labels`. A category with a rejected box
on an image is in doubt there: not asked for, not counted, not called absent. ours
"""

import random
from collections.abc import Iterator
from pathlib import Path

from dataset_builders import BuildOptions
from dataset_builders.coco_files import ImageFacts, read_coco
from dataset_builders.prompts import JOINER, counted_answer, grounded_answer, question, seed_of
from dataset_builders.records import Ledger, Part, Reject, Sample, Turn

ASK = ("present", "all")
MAX_ABSENT_NAMES = 3
"""Most names that the question of an image without boxes asks for."""


def build(
    root: Path,
    options: BuildOptions,
    *,
    dataset: str,
    annotations: str,
    images: str,
    num_buckets: int,
    ask: str,
) -> Iterator[Sample | Reject | Ledger]:
    """Yield the samples of a COCO detection file, its rejects, and the ledger last.

    annotations, images: JSON file and picture folder relative to root. num_buckets: of the image source.
    ask: "present" for the questions of this module; "all" for one question an image that asks for every
    category in the file's order, as the release evaluates COCO.
    Raises ValueError when the file is not of this form.
    """
    if ask not in ASK:
        raise ValueError(f"ask={ask!r}: want one of {ASK}")
    coco = read_coco(Path(root) / annotations, images=images, num_buckets=num_buckets)
    yield from coco.rejects
    for facts in coco.images():
        if ask == "all":
            samples = [ask_all(facts, coco.categories, dataset)]
        else:
            samples = image_samples(facts, coco.categories, options, dataset)
        yield from samples
    yield coco.ledger()


def ask_all(facts: ImageFacts, categories: tuple[str, ...], dataset: str) -> Sample:
    """Return the question for every category at once, in the release's wording whatever the options say."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(facts.objects):
        if not item.ignore:
            rows.setdefault(item.label, []).append(row)
    found = [(name, rows[name]) for name in categories if name in rows]
    turns = (
        Turn("user", question("detection", JOINER.join(categories))),
        Turn("assistant", grounded_answer(found)),
    )
    absent = facts.absent(categories)
    return facts.sample(
        dataset=dataset,
        task="detection",
        number=0,
        turns=turns,
        absent_labels=absent,
        absent_regime="exhaustive",
    )


def image_samples(
    facts: ImageFacts, categories: tuple[str, ...], options: BuildOptions, dataset: str
) -> list[Sample]:
    """Return the samples of one image; see the table of this module."""
    rng = random.Random(seed_of(options.seed, dataset, facts.ref.image_id))
    present = facts.present()
    absent = facts.absent(categories)
    conversations: list[tuple[str, tuple[Part, ...], tuple[Part, ...]]] = []

    def ask(task: str, argument: str | tuple[int, ...], answer: tuple[Part, ...], *, wording: str) -> None:
        parts = question(wording, argument, seed=rng.getrandbits(32), paraphrases=options.paraphrases)
        conversations.append((task, parts, answer))

    names = list(present)
    rng.shuffle(names)
    for name in names[: options.single_names]:
        ask("detection", name, grounded_answer([(name, present[name])]), wording="detection")
    if len(names) > 1:
        rng.shuffle(names)
        found = [(name, present[name]) for name in names]
        ask("detection", JOINER.join(names), grounded_answer(found), wording="detection")
    countable = [name for name in present if name not in facts.crowded()]
    for name in rng.sample(countable, min(options.counting, len(countable))):
        rows = present[name]
        ask("counting", name, counted_answer(len(rows), (name, rows)), wording="counting")
    boxed = [row for row, item in enumerate(facts.objects) if not item.ignore]
    for row in rng.sample(boxed, min(options.region_names, len(boxed))):
        ask("region_name", (row,), (Part(facts.objects[row].label),), wording="region_name")
    if not facts.objects and absent:
        asked = rng.sample(absent, rng.randint(1, min(MAX_ABSENT_NAMES, len(absent))))
        ask("rejection", JOINER.join(asked), grounded_answer([]), wording="detection")

    samples, numbers = [], dict.fromkeys((task for task, _, _ in conversations), 0)
    for task, asked_parts, answer in conversations:
        turns = (Turn("user", asked_parts), Turn("assistant", answer))
        samples.append(
            facts.sample(
                dataset=dataset,
                task=task,
                number=numbers[task],
                turns=turns,
                absent_labels=absent,
                absent_regime="exhaustive",
            )
        )
        numbers[task] += 1
    return samples
