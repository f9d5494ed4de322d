"""Questions as data: for each task the release's own wording, then paraphrases of ours.

The first entry of each task is the string of the release's task_templates.py;
`{}` is the argument. The two `counting_*` tasks have no counterpart there: they carry a ready question.
"""

import hashlib
from collections.abc import Sequence

from dataset_builders.records import Part

JOINER = "; "
"""Between category names, as in the release's COCO evaluation file."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "detection": (
        "Please detect {} in this image. Answer the question with object indexes.",
        "Find every instance of {} in the picture. Reply with object indexes.",
        "Which regions show {}? Give their object indexes.",
        "Locate all of the following: {}. Respond with the indexes of the objects.",
        "Mark each {} you can see here, using object indexes.",
        "Look for {} in this photo and list the matching object indexes.",
    ),
    "referring": (
        "Please detect {} in this image. Answer the question with object indexes.",
        "Which object is {}? Answer with its object index.",
        "Point out {}, using object indexes.",
        "Find {} in the picture and reply with the object index.",
        "Someone says: {}. Which region is meant? Give the object index.",
    ),
    "counting": (
        (
            "How many {} are there in this image? Count each instance of the target object. "
            "Locate them with object indexes and then answer the question with the number of objects."
        ),
        "Count the {} in this picture: first give their object indexes, then the total.",
        "What is the number of {} here? Name each one by its object index before you state the number.",
        "Go through all {} in the image by object index, then say how many there are.",
        "Tell me how many {} you see. List the object indexes first and finish with the count.",
    ),
    "counting_located": (
        (
            "{} Count each instance of the target object. "
            "Locate them with object indexes and then answer the question with the number of objects."
        ),
        "{} First give the object indexes, then the total.",
    ),
    "counting_number": (
        "{} Answer the question with the number of objects.",
        "{} Reply with the total only.",
    ),
    "region_name": (
        "Provide a brief description for {}.",
        "What is shown in {}?",
        "Name the object in {}.",
        "Say in a few words what {} is.",
        "What would you call {}?",
    ),
}


def seed_of(*names: object) -> int:
    """Return a seed that depends on the given values alone, on every machine and in every process."""
    return int(hashlib.sha256("/".join(map(str, names)).encode()).hexdigest()[:16], 16)


def question(
    task: str, argument: str | Sequence[int], *, seed: int = 0, paraphrases: bool = False
) -> tuple[Part, ...]:
    """Return a question as parts.

    task: key of `TEMPLATES`. argument: text, or the rows of the objects that the question shows.
    seed: chooses among the wordings when `paraphrases`; otherwise the first is taken.
    """
    wordings = TEMPLATES[task]
    before, after = wordings[seed % len(wordings) if paraphrases else 0].split("{}")
    if isinstance(argument, str):
        return (Part(before + argument + after),)
    mention = Part(objects=tuple(argument))
    return tuple(part for part in (Part(before), mention, Part(after)) if part.text != "")


def grounded_answer(found: Sequence[tuple[str, Sequence[int]]]) -> tuple[Part, ...]:
    """Return the answer of a detection: a line a found name, or the word None when nothing was found.

    found: (name, rows of objects) in the order asked, names without objects left out.
    """
    parts: list[Part] = []
    for name, rows in found:
        parts += [Part("\n")] if parts else []
        parts.append(Part(name, tuple(rows)))
    return tuple(parts) or (Part("None"),)


def counted_answer(count: int, located: tuple[str, Sequence[int]] | None = None) -> tuple[Part, ...]:
    """Return the answer of a count: the objects where they are known, then the number as the first digits."""
    total = f"There are {count}."
    if located is None or not located[1]:
        return (Part(total),)
    return (Part(located[0], tuple(located[1])), Part("\n" + total))
