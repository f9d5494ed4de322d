"""Conversations about lists: the look-up skill that the tiny base is pre-trained on (ours).

A list has the shape of a region prompt, a key before each item, but its keys are ordinary words,
drawn anew for every list, and its items are soft vectors (`ItemSlot`): the region language does not
exist in a base. Questions have the wording of the drawn world's tasks, answers the form in which
Qwen2.5-VL writes groundings,

    <|object_ref_start|>red circle<|object_ref_end|><|box_start|>KEY KEY<|box_end|>

so that the region language is, to the finished base, a new set of keys and brackets for a skill
that it has.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from dataset_builders.drawn_world.drawing import CATEGORIES
from dataset_builders.tasks.prompts import JOINER, TEMPLATES
from fo1_model.vlms.tiny_tokenizer import tiny_words

MOST_ITEMS = 16
"""Most items of a list."""
KINDS = ("probe", "short", "full")
"""What surrounds a list.

probe: an answer's phrases and keys alone. short: questions cut short, without system turn and
image, which make early training cheap. full: prompts as the region tasks have them.
"""
_TURNS = {"probe": 0, "short": 4, "full": 3}
"""Number of questions about one list, by kind; several, since a list costs more than they do."""
_WORLD_WORDS = 70
"""Number of leading words in the tokenizer's list that prompts and drawn world use: no keys."""

Phrase = tuple[str, str]
"""Two words: colour and shape, or any two in a list about other things."""


@dataclass(frozen=True, kw_only=True)
class ItemSlot:
    """A place in the ids that an item's vector fills."""

    position: int
    """Index of the place into the ids."""
    words: tuple[int, int] | None
    """Ids of the item's two words; None for an item that is nothing."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training sequence of the decoder."""

    ids: list[int]
    """Token ids."""
    labels: list[int]
    """Label of each id: the id itself where it is supervised, else -100 (the loss shifts)."""
    slots: list[ItemSlot]
    """Places of the items of the list."""
    image_at: int | None = None
    """Index of the first image token; None without image."""


class ListWriter:
    """A writer of conversations about random lists.

    Args:
        tokenizer: The tiny tokenizer.
        image_tokens: Number of image tokens in prompts that have an image.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._image_tokens = image_tokens
        self._slot, self._image = self._ids("<|vision_pad|>"), self._ids("<|image_pad|>")
        self._end, self._line = self._ids("<|im_end|>"), self._ids("\n")
        self._head = self._ids(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        )
        self._to_answer = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self._to_question = self._ids("\n<|im_start|>user\n")
        self._world: list[Phrase] = [(name.split()[0], name.split()[1]) for name in CATEGORIES]
        prompts = set(tiny_words()[:_WORLD_WORDS]) | {
            word for phrase in self._world for word in phrase
        }
        self._words = [word for word in tiny_words() if word not in prompts]
        forms = [form for word in self._words for form in (word, " " + word)]
        self.keys = [self._ids(form)[0] for form in forms]
        """Token ids that serve as keys: words that stand in no prompt, bare and after a blank."""

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _name(self, phrase: Phrase) -> str:
        return " ".join(phrase)

    def _grounded(self, phrase: Phrase, keys: Sequence[int]) -> list[int]:
        """Return the ids of a phrase with its keys, as an answer writes them."""
        name = f"<|object_ref_start|>{self._name(phrase)}<|object_ref_end|><|box_start|>"
        return [*self._ids(name), *keys, *self._ids("<|box_end|>")]

    def write(self, rng: random.Random, kind: str, *, most: int = MOST_ITEMS) -> Conversation:
        """Write a conversation about one list.

        Args:
            rng: Source of every draw.
            kind: What surrounds the list, one of `KINDS`.
            most: Number of items of the longest list.
        """
        # Some lists are about anything: what is learned must not be the drawn world's words alone.
        # The order of the draws below fixes what a seed makes; it must not change.
        names = [self._any_phrase(rng) for _ in self._world] if rng.random() < 0.1 else self._world
        items = self._items(rng, most, names)
        keys = rng.sample(self.keys, len(items))
        ids, image_at = list(self._line), None
        if kind == "full":
            image_at = len(self._head) + 1
            image = self._ids("<|vision_start|>") + self._image * self._image_tokens
            ids = self._head + image + self._ids("<|vision_end|>") + self._line
        slots = []
        found: dict[Phrase, list[int]] = {}
        for key, item in zip(keys, items, strict=True):
            words = (
                None if item is None else (self._ids(" " + item[0])[0], self._ids(" " + item[1])[0])
            )
            slots.append(ItemSlot(position=len(ids) + 1, words=words))
            ids += [key, *self._slot]
            if item is not None:
                found.setdefault(item, []).append(key)
        ids += self._line
        labels = [-100] * len(ids)
        if kind == "probe":
            self._probe(rng, found, ids, labels)
        for turn in range(_TURNS[kind]):
            question, answer = self._turn(rng, names, found, short=kind == "short")
            asked = (self._to_question if turn else []) + question + self._to_answer
            ids += asked + answer + self._end
            labels += [-100] * len(asked) + answer + self._end
        return Conversation(ids=ids, labels=labels, slots=slots, image_at=image_at)

    def caption(self, text: str) -> Conversation:
        """Write a conversation that asks for the caption of an image."""
        image = (
            self._ids("<|vision_start|>")
            + self._image * self._image_tokens
            + self._ids("<|vision_end|>")
        )
        ids = self._head + image + self._ids("\nBriefly describe this image.") + self._to_answer
        answer = self._ids(text) + self._end
        return Conversation(
            ids=ids + answer,
            labels=[-100] * len(ids) + answer,
            slots=[],
            image_at=len(self._head) + 1,
        )

    def _any_phrase(self, rng: random.Random) -> Phrase:
        """Draw two words that the drawn world does not have."""
        half = len(self._words) // 2
        return rng.choice(self._words[:half]), rng.choice(self._words[half:])

    def _items(self, rng: random.Random, most: int, names: list[Phrase]) -> list[Phrase | None]:
        """Draw items of a few kinds, some of them nothing, as proposals of an image are."""
        kinds = rng.randint(1, 4) if rng.random() < 0.7 else rng.randint(1, len(names))
        present = rng.sample(names, kinds)
        empty = rng.uniform(0, 0.8)
        return [
            None if rng.random() < empty else rng.choice(present)
            for _ in range(rng.randint(2, most))
        ]

    def _probe(
        self, rng: random.Random, found: dict[Phrase, list[int]], ids: list[int], labels: list[int]
    ) -> None:
        """Append each phrase with its keys, nothing around, to ids and labels.

        Only keys and closing brackets are supervised. No phrase comes twice: its keys could be
        copied from the first time.
        """
        for phrase in rng.sample(list(found), len(found)):
            answer = self._grounded(phrase, found[phrase])
            given = len(answer) - len(found[phrase]) - 1
            ids += answer + self._line
            labels += [-100] * given + answer[given:] + [-100]

    def _turn(
        self,
        rng: random.Random,
        names: list[Phrase],
        found: dict[Phrase, list[int]],
        *,
        short: bool,
    ) -> tuple[list[int], list[int]]:
        """Draw a question about the list and return its ids and those of its answer."""
        kind = rng.random()
        if kind < 0.25 and found:
            phrase = rng.choice(list(found))
            before, after = TEMPLATES["region_name"][0].split("{}")
            question = [*self._ids(before), rng.choice(found[phrase]), *self._ids(after)]
            return question, self._ids(self._name(phrase))
        absent = [name for name in names if name not in found]
        if kind < 0.37:
            none = absent and (not found or rng.random() < 0.3)
            phrase = rng.choice(absent if none else list(found))
            keys = found.get(phrase, [])
            answer = [*self._grounded(phrase, keys), *self._line] if keys else []
            question = self._question("counting", self._name(phrase), short=short)
            return question, answer + self._ids(f"There are {len(keys)}.")
        asked = self._asked(rng, list(found), absent, names)
        answer = []
        for phrase in asked:
            if phrase in found:
                answer += (self._line if answer else []) + self._grounded(phrase, found[phrase])
        question = self._question("detection", JOINER.join(map(self._name, asked)), short=short)
        return question, answer or self._ids("None")

    def _question(self, task: str, names: str, *, short: bool) -> list[int]:
        """Return the ids of a task's first wording; a short one ends after the names."""
        text = TEMPLATES[task][0]
        return self._ids((text[: text.index("{}") + 2] if short else text).format(names))

    def _asked(
        self, rng: random.Random, present: list[Phrase], absent: list[Phrase], names: list[Phrase]
    ) -> list[Phrase]:
        """Draw the names of a detection question.

        Absent ones alone, a single present one, all in their order, or a few of both.
        """
        kind = rng.random()
        if absent and (not present or kind < 0.3):
            return rng.sample(absent, min(len(absent), rng.choice((1, 1, 2, 3))))
        if kind < 0.55:
            return [rng.choice(present)]
        if kind < 0.7:
            return names
        asked = rng.sample(present, rng.randint(1, min(4, len(present))))
        asked += rng.sample(absent, rng.randint(0, min(3, len(absent))))
        rng.shuffle(asked)
        return asked
