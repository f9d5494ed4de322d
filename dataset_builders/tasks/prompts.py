"""Questions as data: for each task the release's own wording, then paraphrases of ours.

The first entry of each task is the string of the release's task_templates.py; `{}` is the argument
(`everything` came with a later version of that file). Tasks without counterpart there have only
ours: the two `counting_*`, which carry a ready question, `layout_type`, `caption` and
`caption_detail`, and `reasoning_steps`, which is the wording of the paper's figure 11.
"""

from collections.abc import Sequence

from dataset_builders.records import Part, Turn

JOINER = "; "
"""Stands between category names, as in the release's COCO evaluation file."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "detection": (
        "Please detect {} in this image. Answer the question with object indexes.",
        "Find every instance of {} in the picture. Reply with object indexes.",
        "Which regions show {}? Give their object indexes.",
        "Locate all of the following: {}. Respond with the indexes of the objects.",
        "Mark each {} you can see here, using object indexes.",
        "Look for {} in this photo and list the matching object indexes.",
    ),
    "everything": (
        (
            "Please identify every object in the image and provide their labels along with their "
            "indexes.{}"
        ),
        "Name all objects that this picture shows, each with its object index.{}",
        "What is in this image? List every object by its label and object indexes.{}",
        "Go through the whole photo and give the label and the object indexes of all you see.{}",
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
            "How many {} are there in this image? Count each instance of the target object. Locate "
            "them with object indexes and then answer the question with the number of objects."
        ),
        "Count the {} in this picture: first give their object indexes, then the total.",
        (
            "What is the number of {} here? Name each one by its object index before you state the "
            "number."
        ),
        "Go through all {} in the image by object index, then say how many there are.",
        "Tell me how many {} you see. List the object indexes first and finish with the count.",
    ),
    "counting_located": (
        (
            "{} Count each instance of the target object. Locate them with object indexes and then "
            "answer the question with the number of objects."
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
    "layout_type": (
        "What type of layout element is {}?",
        "Which layout class does {} belong to?",
        "What part of the page is {}?",
        "Name the kind of page element that {} shows.",
    ),
    "region_caption": (
        "Provide a brief description for {}.",
        "Describe {} in one sentence.",
        "What can be said about {} in short?",
        "Give a short description of {}.",
        "Tell me briefly what you see in {}.",
    ),
    "region_detail": (
        "Provide a detailed description for {}.",
        "Describe {} with all its details.",
        "Look closely at {} and report everything you notice.",
        "Write a thorough description of {}.",
    ),
    "ocr": (
        "Please provide the ocr results of {} in the image.",
        "Read the text in {}.",
        "What is written in {}?",
        "Transcribe {}.",
        "Which words does {} show?",
    ),
    "visual_prompt": (
        (
            "Using the provided object {} as a reference, identify all other objects of the same "
            "category in this image. Respond with object indexes."
        ),
        "Find everything of the same kind as {}, using object indexes.",
        "Which objects belong to the category of {}? Answer with object indexes.",
        "Take {} as an example and list all objects like it by their indexes.",
    ),
    "attribute_color": ("What color is {}?", "Which color does {} have?", "Name the color of {}."),
    "attribute_material": ("What is {} made of?", "Which material is {} made of?"),
    "attribute_pattern": ("What pattern does {} have?", "Which pattern can be seen on {}?"),
    "attribute_shape": ("What shape does {} have?", "Which shape is {}?"),
    "attribute_size": ("What size is {}?", "How big is {}?"),
    "attribute_state": ("What state is {} in?", "In which state is {}?"),
    "attribute_activity": ("What is {} doing?", "Say what {} is doing."),
    "attribute_pose": ("What pose is {} in?", "In which pose is {}?"),
    "grounding": (
        (
            "Briefly describe this image and detect all mentioned objects. Answer with grounded "
            "object indexes.{}"
        ),
        "Describe the picture in short and ground every object that you mention.{}",
        "Write a caption whose phrases carry the indexes of their objects.{}",
        "Say what the image shows, with object indexes for all things named.{}",
    ),
    "caption": (
        "Provide a brief description for this image.{}",
        "Describe the picture in one sentence.{}",
        "What does this photo show? Answer in short.{}",
    ),
    "caption_detail": (
        "Provide a detailed description for this image.{}",
        "Describe this picture in detail.{}",
        "Write down everything that this photo shows.{}",
    ),
    "reasoning": (
        (
            "First thinks about the reasoning process in the mind and then provides the user with "
            "the answer. The reasoning process and answer are enclosed within <think> </think> and "
            "<answer> </answer> tags, respectively, i.e., <think> reasoning process here "
            "</think><answer> answer here </answer>. Please give a detailed reasoning process "
            "process and provide image regions that can help you answer the question better. {}"
        ),
        (
            "Reason step by step inside <think> </think>, naming the image regions that help you, "
            "and put the answer inside <answer> </answer>. {}"
        ),
        (
            "{} Think first, between <think> and </think>, with the regions that matter; then "
            "answer between <answer> and </answer>."
        ),
    ),
    "reasoning_steps": (
        (
            "Within the reasoning process, please provide image regions that can help you answer "
            "the question better. {}"
        ),
        "{} Name the image regions that help to answer, then answer.",
        "Point out the regions that you need for the answer before you give it. {}",
    ),
}
"""Wordings of each task. The release's strings come first, where it has any. For `everything`,
`grounding`, `caption` and `caption_detail` the argument is empty."""


def question(
    task: str, argument: str | Sequence[int], *, seed: int = 0, paraphrases: bool = False
) -> tuple[Part, ...]:
    """Return a question as parts.

    Args:
        task: Key of `TEMPLATES`.
        argument: Text, or the rows of the objects that the question shows.
        seed: Chooses among the wordings when `paraphrases`.
        paraphrases: Whether wordings of ours are used; without them it is the first.
    """
    wordings = TEMPLATES[task]
    before, after = wordings[seed % len(wordings) if paraphrases else 0].split("{}")
    if isinstance(argument, str):
        return (Part(before + argument + after),)
    mention = Part(objects=tuple(argument))
    return tuple(part for part in (Part(before), mention, Part(after)) if part.text != "")


def conversation(question: tuple[Part, ...], answer: tuple[Part, ...]) -> tuple[Turn, Turn]:
    """Return one question with its answer."""
    return Turn("user", question), Turn("assistant", answer)


def grounded_answer(found: Sequence[tuple[str, Sequence[int]]]) -> tuple[Part, ...]:
    """Return the answer of a detection: a line a found name, or the word None without any.

    Args:
        found: Names with the rows of their objects in the order asked, names without objects left
            out.
    """
    parts: list[Part] = []
    for name, rows in found:
        parts += [Part("\n")] if parts else []
        parts.append(Part(name, tuple(rows)))
    return tuple(parts) or (Part("None"),)


def counted_answer(
    count: int, located: tuple[str, Sequence[int]] | None = None
) -> tuple[Part, ...]:
    """Return the answer of a count: the objects where they are known, then the number.

    The number comes as the first digits of the text, where the evaluation looks for it.

    Args:
        count: The number.
        located: The name that was counted, and the rows of its objects.
    """
    total = f"There are {count}."
    if located is None or not located[1]:
        return (Part(total),)
    return (Part(located[0], tuple(located[1])), Part("\n" + total))


def thought_answer(thought: Sequence[Part], answer: Sequence[Part]) -> tuple[Part, ...]:
    """Return an answer in the release's reasoning form: <think>...</think><answer>...</answer>."""
    return (Part("<think>"), *thought, Part("</think><answer>"), *answer, Part("</answer>"))


def steps_answer(regions: Sequence[int], answer: str) -> tuple[Part, ...]:
    """Return an answer in the form of figure 11 of the paper: helpful regions, then the answer."""
    lead = "The image regions that can help answer the question better are: "
    return (Part(lead), Part(objects=tuple(regions)), Part(f". {answer}"))
