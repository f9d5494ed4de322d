"""Training of the tiny base's decoder on lists, with captions of drawn images among them (ours).

Keys are words, items are soft vectors: see `lookup_data`; the start is laid out by `lookup_init`.
Image tokens come from the vision tower, which is trained before and frozen here.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dataset_builders.drawn_world.drawing import CATEGORIES
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer, tiny_words
from pipelines.tiny_base.drawn_images import DrawnImage
from pipelines.tiny_base.lookup_data import KINDS, Conversation, ListWriter
from pipelines.tiny_base.lookup_init import lay_out_lookup
from pipelines.tiny_base.towers import Log, StepClock

_BATCH = {"probe": 64, "short": 32, "full": 24}
"""Conversations of a step, by kind of list: about equally many tokens."""
_DECAY = 0.01
"""Weight decay of matrices."""


@dataclass(frozen=True, kw_only=True)
class LookupConfig:
    """How the decoder of the tiny base learns to look up."""

    steps: int
    """Number of steps with AdamW, of 24 to 64 conversations each.

    AdamW tunes the laid-out start without undoing it.
    """
    rate: float
    """Learning rate of the steps with AdamW."""
    refine_steps: int
    """Number of steps with Muon after those, which learns what the start has not."""
    refine_rate: float
    """Learning rate of the steps with Muon, in AdamW's units; it falls to 0."""
    caption_share: float
    """Share of steps that caption images instead of reading lists."""
    seed: int
    """Seed of the start and of every list."""


class DecoderTraining:
    """The training of a decoder on lists and captions.

    The vision tower is frozen, so the tokens of all images are computed once and kept.

    Args:
        config: How the decoder learns.
        family: The VLM family (`fo1_model.vlms`).
        vlm: Its model; decoder, embeddings and the merger's last layer are changed in place.
        train: Drawn scenes to caption; only the square ones are used, which have one grid.
        held_out: Drawn scenes that measure captions.

    Raises:
        SettingError: The decoder's form does not fit the start (`lay_out_lookup`).
    """

    def __init__(
        self,
        config: LookupConfig,
        family: Any,
        vlm: Any,
        train: Sequence[DrawnImage],
        held_out: Sequence[DrawnImage],
    ) -> None:
        self.config, self.family = config, family
        self.decoder = family.language_model(vlm)
        self.rows: nn.Parameter = self.decoder.embed_tokens.weight
        self.tokenizer = tiny_tokenizer()
        self.spread = float(family.hidden_size) ** -0.5
        self.spaces = lay_out_lookup(self.decoder, config.seed)
        self.item_of_words = self.spaces.item_of_words
        self._start_words()
        self._shrink_image_tokens(vlm, train[:50])
        # One grid for all images, so that every prompt has the same number of image tokens.
        square = square_images(train)
        self.grid = family.preprocess(Image.fromarray(square[0].pixels))[1]
        self.train = self._captioned(vlm, square)
        self.held_out = self._captioned(vlm, square_images(held_out))
        self.writer = ListWriter(self.tokenizer, family.num_image_tokens(self.grid))
        self.is_key = torch.zeros(len(self.rows), dtype=torch.bool)
        self.is_key[self.writer.keys] = True
        self.rng = random.Random(config.seed)

    @torch.no_grad()
    def _start_words(self) -> None:
        """Start both forms of a word, bare and after a blank, close together."""
        words = self.rows[:, self.spaces.words]
        self.rows.zero_()
        nn.init.normal_(words, std=words.shape[1] ** -0.5)
        for word in tiny_words():
            bare, blank = (
                self.tokenizer.encode(form, add_special_tokens=False)[0]
                for form in (word, " " + word)
            )
            self.rows[bare] = 0.8 * self.rows[blank] + 0.6 * self.rows[bare]

    @torch.no_grad()
    def _shrink_image_tokens(self, vlm: Any, images: Sequence[DrawnImage]) -> None:
        """Bring image tokens to the size of word embeddings, and mostly into their space.

        The last layer of the merger is scaled, by what some images give.
        """
        inputs = [self.family.preprocess(Image.fromarray(image.pixels)) for image in images]
        pixels, grids = torch.cat([item[0] for item in inputs]), [item[1] for item in inputs]
        factor = 1.4 * self.spread / float(self.family.encode_images(vlm, pixels, grids)[0].std())
        last = [
            module
            for module in self.family.vision_tower(vlm).merger.modules()
            if isinstance(module, nn.Linear)
        ][-1]
        # What lies outside the words' space would be read as codes of items.
        scale = torch.full((len(last.weight), 1), 0.2 * factor)
        scale[self.spaces.words] = factor
        last.weight.mul_(scale)
        last.bias.mul_(scale[:, 0])

    @torch.no_grad()
    def _captioned(self, vlm: Any, images: Sequence[DrawnImage]) -> list[tuple[Tensor, str]]:
        """Return the image tokens float[T, D] and the caption of every image."""
        found = []
        for image in images:
            pixels, grid = self.family.preprocess(Image.fromarray(image.pixels))
            labels = [
                label for label, crowd in zip(image.labels, image.crowd, strict=True) if not crowd
            ]
            counts = [f"{labels.count(name)} {name}" for name in CATEGORIES if name in labels]
            found.append(
                (self.family.encode_images(vlm, pixels, [grid])[0], "; ".join(counts) or "Nothing")
            )
        return found

    def run(self, log: Log) -> dict[str, float]:
        """Train the decoder.

        Args:
            log: Gets lines of progress.

        Returns:
            What fresh lists and held-out captions give (`metrics`).
        """
        config = self.config
        self.decoder.train()
        # Embeddings are tables of vectors, not maps: Muon is for matrices alone.
        matrices = [
            p
            for name, p in self.decoder.named_parameters()
            if p.ndim > 1 and "embed_tokens" not in name
        ]
        others = [
            p
            for name, p in self.decoder.named_parameters()
            if p.ndim <= 1 or "embed_tokens" in name
        ]
        adamw = [self._adamw(matrices, config.rate), self._adamw(others, config.rate)]
        self._train("look-up", adamw, config.steps, config.rate, (0.3, 0.4, 0.3), log)
        # Muon moves every direction of a matrix alike: much faster, once there is something to
        # move.
        muon = torch.optim.Muon(
            matrices, lr=config.refine_rate, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw"
        )
        both = [muon, self._adamw(others, config.refine_rate)]
        rate = config.refine_rate
        self._train(
            "refinement", both, config.refine_steps, rate, (0.1, 0.35, 0.55), log, falls=True
        )
        self.decoder.eval()
        return self.metrics()

    def _train(
        self,
        name: str,
        optimizers: Sequence[torch.optim.Optimizer],
        steps: int,
        rate: float,
        kinds: tuple[float, float, float],
        log: Log,
        *,
        falls: bool = False,
    ) -> None:
        """Train one phase.

        Args:
            name: Name of the phase in lines of progress.
            optimizers: Optimizers that step together.
            steps: Number of steps.
            rate: Learning rate after a warm-up of 50 steps.
            kinds: Weight of each of `KINDS` among the steps on lists.
            log: Gets lines of progress.
            falls: Whether the rate goes to 0 over the last two thirds.
        """
        clock = StepClock(name, steps, log)
        for number in range(steps):
            share = min(1.0, (number + 1) / 50, 1.5 * (1 - number / steps) if falls else 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * share
            if self.rng.random() < self.config.caption_share:
                batch = self._captions(16)
            else:
                batch = self._lists(self.rng.choices(KINDS, kinds)[0])
            clock.tick(self._step(optimizers, batch))

    def _adamw(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        decays = all(p.ndim > 1 for p in parameters)
        return torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.95), weight_decay=_DECAY if decays else 0.0
        )

    def _step(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        batch: list[tuple[Conversation, Tensor | None]],
    ) -> dict[str, float]:
        """Take one step and return the loss and the shares of right keys and tokens."""
        loss, right = self._forward(batch)
        self.decoder.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        return {"loss": loss.item(), **right}

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Measure the shares of right keys and tokens on fresh lists, and of caption tokens."""
        # Lists that no training seed gives; the decoder is not trained after this.
        self.rng.seed(f"held out/{self.config.seed}")
        lists = [self._forward(self._lists("full"))[1] for _ in range(10)]
        captions = [
            self._forward(self._captions(16, self.held_out))[1]["tokens"] for _ in range(10)
        ]
        return {
            "list_keys": round(sum(item["keys"] for item in lists) / 10, 3),
            "list_tokens": round(sum(item["tokens"] for item in lists) / 10, 3),
            "caption_tokens": round(sum(captions) / 10, 3),
        }

    def _lists(self, kind: str) -> list[tuple[Conversation, Tensor | None]]:
        """Write a batch of conversations about lists.

        One with an image gets the tokens of a random image, which has nothing to do with its list:
        the decoder learns to look past it.
        """
        batch = [self.writer.write(self.rng, kind) for _ in range(_BATCH[kind])]
        return [
            (item, self.rng.choice(self.train)[0] if item.image_at is not None else None)
            for item in batch
        ]

    def _captions(
        self, count: int, captioned: list[tuple[Tensor, str]] | None = None
    ) -> list[tuple[Conversation, Tensor | None]]:
        """Write a batch of captions of random images, those of training unless others are given."""
        chosen = [self.rng.choice(captioned or self.train) for _ in range(count)]
        return [(self.writer.caption(text), tokens) for tokens, text in chosen]

    def _forward(
        self, batch: list[tuple[Conversation, Tensor | None]]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss float32[] and the shares of right tokens and keys, teacher-forced."""
        length = max(len(item.ids) for item, _ in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.int64)
        labels = torch.full((len(batch), length), -100)
        positions = torch.zeros(3, len(batch), length, dtype=torch.int64)
        places: list[tuple[int, int]] = []
        values: list[Tensor] = []
        for row, (item, image) in enumerate(batch):
            size = len(item.ids)
            ids[row, :size], labels[row, :size] = torch.tensor(item.ids), torch.tensor(item.labels)
            images = [] if item.image_at is None else [(item.image_at, self.grid)]
            positions[:, row, :size] = self.family.positions(size, images)
            if image is not None and item.image_at is not None:
                places += [(row, item.image_at + index) for index in range(len(image))]
                values.append(image)
            # Slots and image tokens are filled in one go below, in the order of this list.
            if item.slots:
                places += [(row, slot.position) for slot in item.slots]
                values.append(self._item_vectors(item))
        where = torch.tensor(places).T
        embedded = F.embedding(ids, self.rows).index_put((where[0], where[1]), torch.cat(values))
        hidden = self.decoder(
            inputs_embeds=embedded, position_ids=positions, use_cache=False
        ).last_hidden_state
        # Logits of supervised places only: the others' would cost time and memory for nothing.
        supervised = labels[:, 1:] != -100
        targets = labels[:, 1:][supervised]
        logits = F.linear(hidden[:, :-1][supervised], self.rows)
        right = (logits.argmax(1) == targets).float()
        keys = self.is_key[targets]
        return F.cross_entropy(logits, targets), {
            "keys": float(right[keys].mean()) if keys.any() else math.nan,
            "tokens": float(right.mean()),
        }

    def _item_vectors(self, item: Conversation) -> Tensor:
        """Return the soft vectors float[N, D] of a conversation's items.

        An item's words are summed and turned into the space of items, at varying size and with
        noise; an item that is nothing is noise alone.
        """
        real = torch.tensor([slot.words is not None for slot in item.slots])[:, None]
        words = torch.tensor([slot.words or (0, 0) for slot in item.slots]).reshape(-1, 2)
        meaning = F.embedding(words, self.rows).sum(1) @ self.item_of_words.T
        size = torch.empty(len(words), 1).uniform_(0.7, 1.5)
        noise = (
            torch.randn(len(words), self.rows.shape[1]) * torch.rand(len(words), 1) * self.spread
        )
        return torch.where(real, meaning * size + 0.4 * noise, noise)


def square_images(images: Sequence[DrawnImage]) -> list[DrawnImage]:
    """Return the square ones of some drawn images."""
    return [image for image in images if image.pixels.shape[0] == image.pixels.shape[1]]
